"""Adam on moments in 8-bit codes, in one Triton kernel: every value is read once and written once.

`fused_adam8bit_(parameter, gradient, moments, rates, *, block_size)` updates all of them in place; `accepts` tells
whether it can. Without a CUDA GPU the kernel runs in Triton's interpreter, without Triton not at all.
"""

from qlab.optimizers_triton.adam import FusedMoment, FusedRates, accepts, fused_adam8bit_

__all__ = ["FusedMoment", "FusedRates", "accepts", "fused_adam8bit_"]
