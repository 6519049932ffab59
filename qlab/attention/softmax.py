"""Softmax that cannot overflow, and in pieces: partial results over some keys that merge into the whole."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qlab.attention.border import accumulator


def safe_softmax(scores: Float[Tensor, "*rows keys"]) -> Float[Tensor, "*rows keys"]:
    """Return softmax over the last axis, with each row's maximum subtracted first so that no exponential overflows.

    A score of −inf is a masked key; a row with no key left has weights of 0, not 0 / 0.
    Errors:  ValueError if a score is NaN or +inf.
    """
    if torch.isnan(scores).any() or torch.isposinf(scores).any():
        raise ValueError("scores must be below +inf and no NaN: they overflowed, or q or k holds such a value")
    if scores.shape[-1] == 0:
        return scores.clone()
    wide = scores.to(accumulator(scores.dtype))
    exponentials = torch.exp(wide - pivot(wide.amax(-1, keepdim=True)))
    total = exponentials.sum(-1, keepdim=True)
    return (exponentials / total.masked_fill(total == 0, 1)).to(scores.dtype)


def pivot(maximum: Tensor) -> Tensor:
    """Return what to subtract before an exponential: the maximum, or 0 where everything is masked (−inf − −inf)."""
    return maximum.masked_fill(maximum == -torch.inf, 0)


@dataclass(frozen=True)
class Partial:
    """What attention knows of some query rows after seeing some of the keys.

    `maximum` is the largest score; `total` the sum of exp(score − maximum); `output` the sum of exp(score − maximum)
    times the values, not yet divided by `total`. No key seen: −inf, 0 and 0.
    Shapes:  `maximum` and `total` are (heads, rows, 1), `output` is (heads, rows, width).
    Source:  Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3, with the values summed along.
    """

    maximum: Float[Tensor, "*rows 1"]
    total: Float[Tensor, "*rows 1"]
    output: Float[Tensor, "*rows width"]

    def finish(self) -> tuple[Float[Tensor, "*rows width"], Float[Tensor, "*rows 1"]]:
        """Return the output divided by the total, and the log-sum-exp; zeros and −inf for rows that saw no key."""
        total = self.total.masked_fill(self.total == 0, 1)
        return self.output / total, self.maximum + total.log()


def nothing_seen(q: Float[Tensor, "*rows width"]) -> Partial:
    """Return the partial result before the first key."""
    empty = torch.zeros_like(q[..., :1])
    return Partial(empty - torch.inf, empty, torch.zeros_like(q))


def partial(
    q: Float[Tensor, "*heads rows width"],
    k: Float[Tensor, "*heads keys width"],
    v: Float[Tensor, "*heads keys width"],
    *,
    scale: float | None = None,
    hidden: Bool[Tensor, "... keys"] | None = None,
) -> Partial:
    """Attend from some rows to some keys; `hidden` is True where a row must not see a key.

    Units:   scores are q·k times `scale`, 1 / √width unless given.
    """
    if k.shape[-2] == 0:
        return nothing_seen(q)
    scores = scaled_product(q, k, q.shape[-1] ** -0.5 if scale is None else scale)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    maximum = scores.amax(-1, keepdim=True)
    weights = (scores - pivot(maximum)).exp()
    return Partial(maximum, weights.sum(-1, keepdim=True), weights @ v)


def merge(a: Partial, b: Partial) -> Partial:
    """Join what was learned from two sets of keys: both are brought to the larger maximum, then added."""
    maximum = torch.maximum(a.maximum, b.maximum)
    of_a, of_b = (torch.exp(side.maximum - pivot(maximum)) for side in (a, b))
    return Partial(maximum, of_a * a.total + of_b * b.total, of_a * a.output + of_b * b.output)


def scaled_product(
    q: Float[Tensor, "*heads rows width"], k: Float[Tensor, "*heads keys width"], scale: float
) -> Float[Tensor, "*heads rows keys"]:
    """Return q kᵀ times `scale`; for a batch of matrices the product scales as it goes, which rounds once less."""
    if q.dim() == 3:
        return torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
    return q @ k.mT * scale
