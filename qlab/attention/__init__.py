"""FlashAttention: exact attention by tiles, with its traffic counted; in plain PyTorch, to be read and measured.

`softmax` has the pieces, `forward` and `backward` the passes, `autograd` joins them, `traffic` counts bytes and FLOPs.
"""

from qlab.attention.autograd import flash_attention
from qlab.attention.backward import flash_backward
from qlab.attention.border import AttentionShape
from qlab.attention.forward import flash_forward, visits
from qlab.attention.softmax import Partial, merge, partial, safe_softmax
from qlab.attention.standard import standard_attention
from qlab.attention.tiling import BLOCK, Tiling, blocks_for_sram
from qlab.attention.trace import Trace, TracedTile, trace_row
from qlab.attention.traffic import (
    TrafficCounter,
    flash_backward_bytes,
    flash_bytes,
    flash_flops,
    standard_bytes,
    standard_flops,
)

__all__ = [
    "BLOCK",
    "AttentionShape",
    "Partial",
    "Tiling",
    "Trace",
    "TracedTile",
    "TrafficCounter",
    "blocks_for_sram",
    "flash_attention",
    "flash_backward",
    "flash_backward_bytes",
    "flash_bytes",
    "flash_flops",
    "flash_forward",
    "merge",
    "partial",
    "safe_softmax",
    "standard_attention",
    "standard_bytes",
    "standard_flops",
    "trace_row",
    "visits",
]
