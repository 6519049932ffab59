"""FlashAttention in Triton: compiled on a CUDA GPU, interpreted on a CPU; the only room that imports Triton.

`forward` and `backward` hold the kernels, `function` joins them for autograd, `border` says what they accept, and
`runtime` chooses where they run. A kernel of your own imports `triton` and `tl` from here, and so runs there too.
"""

from qlab.attention_triton.backward import flash_backward
from qlab.attention_triton.forward import flash_forward
from qlab.attention_triton.function import flash_attention
from qlab.attention_triton.runtime import DEVICE, HOW_TO_GET, INSTALLED, INTERPRETED, tl, triton

__all__ = [
    "DEVICE",
    "HOW_TO_GET",
    "INSTALLED",
    "INTERPRETED",
    "flash_attention",
    "flash_backward",
    "flash_forward",
    "tl",
    "triton",
]
