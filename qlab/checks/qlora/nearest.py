"""Which codes a value may have: the nearest level's, and either neighbor's where rounding decides between two."""

from collections.abc import Callable

import torch
from torch import Tensor

# of values from -1 to 1: x / absmax or x · (1 / absmax) moves a value in FP32 by 1.2e-7, the midpoint of two levels or
# two distances by 6e-8 each; together 3e-7
TIE = 1e-6

Rule = Callable[[Tensor, Tensor], Tensor]


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the level nearest to each value."""
    return (values[:, None] - levels).abs().argmin(1)


def level_below(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the last level that is not above each value."""
    return (torch.bucketize(values, levels, right=True) - 1).clamp(0, len(levels) - 1)


def level_above(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the first level that is not below each value."""
    return torch.bucketize(values, levels).clamp(0, len(levels) - 1)


def toward_zero(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the level that a value reaches when it is cut toward zero."""
    return torch.where(values >= 0, level_below(values, levels), level_above(values, levels))


def evenly(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index that even steps from -1 to 1 give."""
    return ((values + 1) / 2 * (len(levels) - 1)).round().clamp(0, len(levels) - 1).long()


def admitted(got: Tensor, values: Tensor, levels: Tensor, rule: Rule = nearest) -> Tensor:
    """Return the codes by `rule`, but what was got wherever a value that differs by a hair has that code."""
    values, levels = values.double(), levels.double()
    codes = rule(values, levels)
    for hair in (-TIE, TIE):
        codes = torch.where(rule(values + hair, levels) == got, got, codes)
    return codes
