"""What both checks of observers share: batches, and reading the two ends that were returned."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.checks.expect import as_number
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform, unpacked

TOPIC = "04_calibration"
ROUNDING = 1e-6  # of the largest end: FP32 rounds a product or a sum to 6e-8, and seven batches take some twenty

Batches = list[Tensor]
Ends = tuple[float, float]


def uniform_batch(low: float, high: float, draw: torch.Generator) -> Tensor:
    return uniform(float(low), float(high), (drawn(5, 20, draw), 8), draw)


def pair_of(value: Any, *, call: str) -> Ends:
    """Read (low, high) from a tuple, a list, or a tensor or array of two."""
    if isinstance(value, Tensor | np.ndarray) and tuple(value.shape) == (2,):
        value = tuple(value)
    low, high = unpacked(value, ("low", "high"), call=call)
    return as_number(low, call=f"{call}[0]"), as_number(high, call=f"{call}[1]")


def told_of(cases: Sequence[tuple[Batches, float]], name: str) -> Callable[[int], str]:
    """Describe the call behind an end: low and high of each case follow each other."""

    def told(i: int) -> str:
        batches, setting = cases[i // 2]
        ends = ", ".join(f"{x.min().item():.5g} to {x.max().item():.5g}" for x in batches)
        return f"batches from {ends}, {name} {setting:g} ({('low', 'high')[i % 2]})"

    return told


def ends_of(x: Tensor) -> Ends:
    return x.min().item(), x.max().item()
