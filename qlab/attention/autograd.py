"""Tiled attention that autograd can differentiate: it keeps q, k, v, the output and the log-sum-exp, and no more."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from qlab.attention.backward import flash_backward
from qlab.attention.forward import flash_forward
from qlab.attention.tiling import BLOCK


class TiledAttention(torch.autograd.Function):
    """The two passes as one differentiable function."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Run the forward pass."""
        return flash_forward(q, k, v, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        *q_k_v, ctx.options = inputs
        ctx.save_for_backward(*q_k_v, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the backward pass."""
        return *flash_backward(*ctx.saved_tensors, grad_output, **ctx.options), None


def flash_attention(  # noqa: PLR0913 - a tile has two sides
    q: Float[Tensor, "*query_heads queries width"],
    k: Float[Tensor, "*key_heads keys width"],
    v: Float[Tensor, "*key_heads keys width"],
    *,
    is_causal: bool = False,
    block_rows: int = BLOCK,
    block_columns: int = BLOCK,
) -> Float[Tensor, "*query_heads queries width"]:
    """Return exact attention, softmax(q kᵀ / √width) v, without ever holding a matrix of scores.

    It takes the place of `scaled_dot_product_attention`: `Decoder(config, attention=flash_attention)`.
    Shapes:  any leading shape; the axis before the last two holds heads, of which k and v may have fewer than q.
    Errors:  ValueError if the inputs do not fit together or are not finite, or their scores overflow.
    """
    options = {"is_causal": is_causal, "block_rows": block_rows, "block_columns": block_columns}
    return TiledAttention.apply(q, k, v, options)[0]
