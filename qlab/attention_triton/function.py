"""The two passes as one function that autograd can differentiate."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from qlab.attention_triton.backward import flash_backward
from qlab.attention_triton.forward import flash_forward


class FlashAttention(torch.autograd.Function):
    """Keep q, k, v, the output and the log-sum-exp for the backward pass, and no matrix of scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        """Run the forward kernel."""
        output, log_sum_exp = flash_forward(q, k, v, is_causal=is_causal)
        ctx.save_for_backward(q, k, v, output, log_sum_exp)
        ctx.is_causal = is_causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward kernels."""
        return *flash_backward(*ctx.saved_tensors, grad_output, is_causal=ctx.is_causal), None


def flash_attention(
    q: Float[Tensor, "*batch heads queries width"],
    k: Float[Tensor, "*batch key_heads keys width"],
    v: Float[Tensor, "*batch key_heads keys width"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "*batch heads queries width"]:
    """Return exact attention, softmax(q kᵀ / √width) v, in FP16 or BF16, by Triton's kernels.

    It takes the place of `scaled_dot_product_attention`: `Decoder(config, attention=flash_attention)`. The inputs may
    have any strides. Fewer heads in k and v are shared by groups of query heads. Causal: query i sees the keys 0 to i.
    A NaN or an infinity in the inputs spreads through the rows that see it: looking for one would cost a pass.
    Errors:  ValueError if a shape, type or device does not fit; ModuleNotFoundError without Triton.
    """
    return FlashAttention.apply(q, k, v, is_causal)
