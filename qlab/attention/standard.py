"""Attention as its formula is written, with the whole matrix of scores: what the tiled one is compared with."""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention.border import checked_shape, refuse_overflow
from qlab.attention.traffic import report_load, report_store


def standard_attention(
    q: Float[Tensor, "*query_heads queries width"],
    k: Float[Tensor, "*key_heads keys width"],
    v: Float[Tensor, "*key_heads keys width"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "*query_heads queries width"]:
    """Return softmax(q kᵀ / √width) v by three operations that hand queries × keys matrices to each other.

    Errors:  ValueError if the inputs do not fit together, are not finite, or their scores overflow their type.
    """
    shape = checked_shape(q, k, v, is_causal=is_causal)
    report_load(q, k)
    wide_k, wide_v = (t.repeat_interleave(shape.group, dim=-3) if shape.group > 1 else t for t in (k, v))
    scores = q @ wide_k.mT * shape.head_width**-0.5
    if is_causal:
        later = torch.ones(shape.queries, shape.keys, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    report_store(scores)
    report_load(scores)
    weights = torch.softmax(scores, dim=-1)
    report_store(weights)
    report_load(weights, v)
    output = weights @ wide_v
    report_store(output)
    refuse_overflow(output, dtype=q.dtype)
    return output
