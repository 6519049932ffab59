"""Reading what the answers of topic 05 return: dimensions, and a norm's gain with the weights that read it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.checks.expect import as_tensor
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import require

TOPIC = "05_outliers"


def as_mask(value: Any, width: int, *, call: str) -> Tensor:
    """Read dimensions as a mask of `width` booleans: from their numbers in any order, or from a mask.

    Errors:  Refused, with the misconception `returns-nothing`, `returns-shares` or `not-a-dimension`.
    """
    if isinstance(value, set | frozenset):
        value = sorted(value)
    shape = tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    got = as_tensor(value, shape, call=call).double().flatten()
    broken = got[got != got.round()].tolist()
    require(
        not broken,
        f"`{call}` returned {broken[:3]} among its dimensions",
        misconception="returns-shares",
        thought="Return which dimensions they are, not a share or a magnitude of each: compare, then `.nonzero()`.",
    )
    if len(got) == width > 2 and bool(((got == 0) | (got == 1)).all()):  # as numbers, most would be there twice
        return got.bool()
    numbers = got.long().tolist()
    strange = [n for n in numbers if not 0 <= n < width] or [n for n in set(numbers) if numbers.count(n) > 1]
    require(
        not strange,
        f"`{call}` returned {strange[:3]} among its dimensions, expected numbers from 0 to {width - 1}, each once",
        misconception="not-a-dimension",
        thought="A dimension is a column: its number counts along the last axis, and each is named once.",
    )
    return torch.zeros(width, dtype=torch.bool).index_fill(0, got.long(), True)


def as_gain_and_weights(value: Any, gain: Tensor, weights: list[Tensor], *, call: str) -> tuple[Tensor, list[Tensor]]:
    """Read a new gain and the new weights of every reader, in FP64 and in the shapes of the old ones.

    Errors:  Refused, with the misconception `returns-nothing`, `returns-wrong-type` or `wrong-shape`.
    """
    new_gain, new_weights = unpacked(value, ("gain", "weights"), call=call)
    by_reader = list(new_weights) if isinstance(new_weights, list | tuple) or _is_stack(new_weights) else []
    require(
        len(by_reader) == len(weights),
        f"`{call}[1]` held {len(by_reader)} weights, expected a list of {len(weights)}",
        misconception="returns-wrong-type",
        thought="Return two things: the gain, and a list of the weights of all readers.",
    )
    read = [
        as_tensor(w, tuple(old.shape), call=f"{call}[1][{i}]").double()
        for i, (w, old) in enumerate(zip(by_reader, weights, strict=True))
    ]
    return as_tensor(new_gain, tuple(gain.shape), call=f"{call}[0]").double(), read


def _is_stack(weights: Any) -> bool:
    return getattr(weights, "ndim", 0) == 3


def flat(gain: Tensor, weights: list[Tensor]) -> Tensor:
    """Return a gain and its readers' weights as one row of FP64 numbers."""
    return torch.cat([t.double().flatten() for t in (gain, *weights)])


def where_in(index: int, gain: Tensor, weights: list[Tensor]) -> str:
    """Name the place of one number of `flat`."""
    if index < len(gain):
        return f"gain[{index}]"
    index -= len(gain)
    for number, weight in enumerate(weights):
        if index < weight.numel():
            return f"weights[{number}][{index // weight.shape[1]}, {index % weight.shape[1]}]"
        index -= weight.numel()
    raise IndexError(index)
