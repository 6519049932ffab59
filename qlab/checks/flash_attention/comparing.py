"""Comparing what an answer of topic 08 returned with FP64: each value has its own room, infinities and NaN too."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import torch
from torch import Tensor

from qlab.checks.expect import Suspect
from qlab.checks.quantization.products import require_within

# of its largest value: a slip's sums may be far larger than the right ones, and cancel; the nearer fit goes first
SLIP_ROUNDINGS = (1e-6, 3e-5)
Slip = tuple[str, str, Tensor]  # a misconception, the thought that helps, and the values it gives


def require_near(
    got: Tensor,
    expected: Tensor,
    allowed: Tensor,
    *,
    given: Callable[[int], str],
    slips: Callable[[], Iterable[Slip]] = tuple,
) -> None:
    """Refuse the part unless each value is as near to the expected one as `allowed` there, and name the slip that fits.

    A slip that gives infinity fits infinity only: no finite value is near it. One that changes nothing is passed over.
    """
    got, expected, allowed = (t.double().flatten() for t in (got, expected, allowed))

    def suspects() -> Iterator[Suspect]:
        found = [(misconception, thought, values.double().flatten()) for misconception, thought, values in slips()]
        for rounding, (misconception, thought, flat) in product(SLIP_ROUNDINGS, found):
            if bool(((flat - expected).abs() <= allowed).all()):
                continue
            room = rounding * flat[flat.isfinite()].abs().amax() if flat.isfinite().any() else 0.0
            yield Suspect(misconception, thought, torch.where((got - flat).abs() <= room, got, flat))

    require_within(got, expected, allowed, given=given, suspects=suspects)
