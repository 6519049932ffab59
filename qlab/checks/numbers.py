"""Drawing whole numbers, and comparing returned numbers with expected ones to a stated tolerance."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qlab.checks.expect import Suspect, as_number, require_values

FP32_ROUNDING = 1e-6  # a float32 result of a few operations; the smallest slip that is named changes 4e-4


def doubles(values: Sequence[float]) -> Tensor:
    """Return `values` as a float64 tensor: whole numbers are exact up to 2⁵³."""
    return torch.tensor(values, dtype=torch.float64)


def drawn(low: int, high: int, draw: torch.Generator) -> int:
    """Draw a whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def snapped(values: Tensor, to: Tensor, within: float) -> Tensor:
    """Return `values`, but exactly `to` where they differ from it by at most the share `within`."""
    return torch.where((values - to).abs() <= within * to.abs(), to, values)


def require_numbers(
    returned: Sequence[Any],
    expected: Sequence[float],
    *,
    calls: Sequence[str],
    within: float = 0.0,
    suspects: Callable[[], Iterable[Suspect]] = tuple,
) -> None:
    """Refuse the part unless each number is within a share of the expected one.

    A suspect must fit more closely than that, to a five-hundredth of the share or the rounding of FP32.
    """
    given = doubles([as_number(value, call=call) for value, call in zip(returned, calls, strict=True)])
    want = doubles(expected)
    got = snapped(given, want, within)
    close = max(within / 500, FP32_ROUNDING) if within else 0.0

    def suspects_nearby() -> Iterable[Suspect]:
        for suspect in suspects():
            fits = given.isfinite() & ((suspect.values - given).abs() <= close * given.abs())
            yield Suspect(suspect.misconception, suspect.thought, torch.where(fits, got, suspect.values))

    require_values(got, want, given=lambda i: f"`{calls[i]}`", suspects=suspects_nearby)
