"""Checks of topic 10: adapters and their merge, 4-bit codes and their constants, and training within a budget."""

from qlab.checks.qlora.adapter import check_lora_linear
from qlab.checks.qlora.blocks import check_nf4_blockwise
from qlab.checks.qlora.double import check_double_quantization
from qlab.checks.qlora.levels import check_nf4_codebook
from qlab.checks.qlora.lossless import check_lossless_merge
from qlab.checks.qlora.merging import check_merge_adapter
from qlab.checks.qlora.through import check_qlora_linear
from qlab.checks.qlora.tuning import check_fine_tune

__all__ = [
    "check_double_quantization",
    "check_fine_tune",
    "check_lora_linear",
    "check_lossless_merge",
    "check_merge_adapter",
    "check_nf4_blockwise",
    "check_nf4_codebook",
    "check_qlora_linear",
]
