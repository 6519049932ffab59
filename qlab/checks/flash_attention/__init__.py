"""Checks of topic 08: softmax that never overflows, in pieces, in tiles, backward, in bytes, and as a Triton kernel."""

from qlab.checks.flash_attention.backward import check_tiled_backward
from qlab.checks.flash_attention.claims import check_attention_claims
from qlab.checks.flash_attention.forward import check_tiled_forward
from qlab.checks.flash_attention.kernel import check_triton_kernel
from qlab.checks.flash_attention.merging import check_merge_partials
from qlab.checks.flash_attention.softmax import check_safe_softmax
from qlab.checks.flash_attention.traffic import check_hbm_bytes

__all__ = [
    "check_attention_claims",
    "check_hbm_bytes",
    "check_merge_partials",
    "check_safe_softmax",
    "check_tiled_backward",
    "check_tiled_forward",
    "check_triton_kernel",
]
