"""Gradient accumulation: a large batch in the memory of a small one, with the large batch's gradient."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor


def accumulate(
    loss_sum: Callable[[Any], Tensor],
    parameters: Iterable[Tensor],
    micro_batches: Sequence[Any],
    *,
    tokens: Sequence[int],
) -> Tensor:
    """Add to each parameter's `.grad` the gradient of the mean loss over all tokens; return that mean.

    `loss_sum(micro_batch)` is the sum, not the mean, of the losses of the `tokens` it holds; every sum is divided by
    the tokens of *all* micro-batches. A mean of the micro-batches' means would give a token of a short one more
    weight. What `.grad` held before stays in it, as with `backward`; a parameter that no loss uses keeps None.
    Errors:  ValueError if counts and micro-batches differ in number, a count is negative or all are 0, a loss is not
             one number, or no parameter has a gradient in the end.
    """
    if len(tokens) != len(micro_batches):
        raise ValueError(f"tokens must count each of the {len(micro_batches)} micro-batches, got {len(tokens)} counts")
    total = sum(tokens)
    if min(tokens, default=0) < 0 or total < 1:
        raise ValueError(f"tokens must be counts of at least 0 with at least 1 in all, got {list(tokens)}")
    parameters, mean = list(parameters), None
    for micro_batch in micro_batches:
        share = loss_sum(micro_batch) / total
        if share.numel() != 1:
            raise ValueError(f"loss_sum must return one number, got a tensor of shape {list(share.shape)}")
        if not share.requires_grad:
            raise ValueError("loss_sum must depend on the parameters, got a loss without a gradient (a detached one?)")
        share.backward()
        mean = share.detach() if mean is None else mean + share.detach()
    if all(parameter.grad is None for parameter in parameters):
        raise ValueError(f"none of the {len(parameters)} parameters has a gradient: the losses do not depend on them")
    return mean
