"""Check of `underflow_fraction`: what FP16 makes zero, of what was not zero before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import loss_scaling
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part

LIMIT = 2.0**-25  # half of the smallest subnormal 2⁻²⁴: the tie goes to the even neighbor, which is zero
WITHIN = 2e-4  # 1 − share in FP32 errs by 1e-7, 1e-4 of a share of 1 in 800; one value more or less changes 1e-3


@dataclass(frozen=True)
class Case:
    """One call."""

    x: Tensor
    scale: float = 1.0

    @property
    def scaled(self) -> Tensor:
        return self.x.double() * self.scale

    @property
    def told(self) -> str:
        """What was given, in words."""
        zeros, strange = int((self.x == 0).sum()), int((~self.x.isfinite()).sum())
        among = f", {zeros} zeros and {strange} not finite among them" if zeros or strange else ""
        return f"underflow_fraction(x, {self.scale:g}) for {self.x.numel()} values{among}"


Rule = Callable[[Case], float]


@check(TOPIC, "underflow-fraction", loss_scaling.underflow_fraction, points=4, forbids=("qlab.loss_scaling.census",))
def check_underflow_fraction(underflow_fraction: LearnerFunction, draw: torch.Generator) -> None:
    """Check `underflow_fraction(x, scale=1.0)`."""
    with part("gradients of every size and either sign"):
        _compare(underflow_fraction, [Case(_values(draw, -34, -6)) for _ in range(3)])
    with part("exactly at the limit 2⁻²⁵, just above, and the subnormals, which are not zero"):
        _compare(underflow_fraction, [Case(_at_the_limit(draw)) for _ in range(2)])
    with part("zeros, infinities and NaN do not count; with nothing to lose the share is 0"):
        some = [Case(_with_others(draw)) for _ in range(2)]
        _compare(underflow_fraction, [*some, Case(torch.zeros(drawn(3, 9, draw), 4))])
    with part("after a loss scale, of any size"):
        up, down = 2.0 ** drawn(6, 10, draw), 2.0 ** -drawn(3, 6, draw)
        cases = [Case(_values(draw, -34, -6), scale) for scale in (up, down, uniform(20, 50, (), draw).item())]
        edges = Case(_at_the_limit(draw).repeat(2) / up, up)
        _compare(underflow_fraction, [*cases, edges, Case(_values(draw, -30, 10), 2.0**12)])


def _values(draw: torch.Generator, low: int, high: int) -> Tensor:
    """Draw magnitudes 2^low to 2^high of either sign: from FP32 rounding none is near a limit of any scale drawn."""
    shape = (drawn(8, 20, draw), drawn(8, 20, draw))
    signs = torch.randint(2, shape, generator=draw) * 2 - 1
    exponents = torch.randint(64 * low, 64 * high, shape, generator=draw) / 64 + 1 / 128
    return signs * 2.0**exponents


def _at_the_limit(draw: torch.Generator) -> Tensor:
    just_above = LIMIT * (1 + 2.0**-23)
    values = (LIMIT, -LIMIT, just_above, -just_above, 2.0**-24, 2.0**-20, -(2.0**-15), 2.0**-14, 2.0**-26, 3.0)
    counts = [drawn(1, 12, draw) for _ in values]
    return torch.cat([torch.full((count,), value) for count, value in zip(counts, values, strict=True)])


def _with_others(draw: torch.Generator) -> Tensor:
    parts = [_values(draw, -34, -6).flatten(), torch.zeros(drawn(60, 200, draw))]
    parts += [
        torch.full((drawn(5, 30, draw),), strange) for strange in (float("inf"), float("-inf"), float("nan"), 1e5, -1e6)
    ]
    return torch.cat(parts)


def _compare(underflow_fraction: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [underflow_fraction(c.x, c.scale) for c in cases],
        [_share(c) for c in cases],
        calls=[c.told for c in cases],
        within=WITHIN,
        suspects=lambda: [Suspect(name, thought, doubles([rule(c) for c in cases])) for name, thought, rule in SLIPS],
    )


def _counted(case: Case) -> Tensor:
    return (case.x != 0) & case.x.isfinite()


def _share(case: Case, limit: float = LIMIT, *, strictly: bool = False) -> float:
    size, counted = case.scaled.abs(), _counted(case)
    lost = counted & ((size < limit) if strictly else (size <= limit))
    return lost.sum().item() / max(int(counted.sum()), 1)


def _mean(mask: Tensor) -> float:
    return mask.double().mean().item()


def _slips() -> Iterator[tuple[str, str, Rule]]:
    was_zero = "A gradient that is 0 in FP32 loses nothing in FP16: leave it out, above and below the line."
    yield "counts-zeros", was_zero, lambda c: _mean(c.scaled.abs() <= LIMIT)
    yield "counts-zeros", was_zero, lambda c: (c.scaled.abs() <= LIMIT).sum().item() / max(int(_counted(c).sum()), 1)
    yield (
        "counts-zeros",
        was_zero,
        lambda c: (c.scaled.abs() <= LIMIT).sum().item() / max(int(c.x.isfinite().sum()), 1),
    )
    yield "divides-by-all", was_zero, lambda c: _share(c) * _mean(_counted(c))
    yield "divides-by-all", was_zero, lambda c: _share(c) * _counted(c).sum().item() / max(1, int(c.x.isfinite().sum()))
    finite = "Infinities and NaN are no gradients that could round to zero: count the finite values."
    yield "counts-non-finite", finite, lambda c: _share(c) * _counted(c).sum().item() / max(1, int((c.x != 0).sum()))
    for strange in (Tensor.isnan, Tensor.isinf):
        yield "counts-non-finite", finite, lambda c, strange=strange: _of_more(c, strange(c.x))
    yield "no-values-no-share", "Nothing was lost where nothing was: 0, not 0 / 0.", _or_nan
    subnormal = "From 2⁻¹⁴ down FP16 has subnormals, which lose bits but are not zero until 2⁻²⁵."
    yield "subnormals-are-zero", subnormal, lambda c: _share(c, 2.0**-14, strictly=True)
    yield "subnormals-are-zero", subnormal, lambda c: _share(c, 2.0**-14)
    smallest = "Rounding is to the *nearest*: from half of the smallest subnormal, 2⁻²⁵, values round up to 2⁻²⁴."
    yield "smallest-is-the-limit", smallest, lambda c: _share(c, 2.0**-24, strictly=True)
    yield "smallest-is-the-limit", smallest, lambda c: _share(c, 2.0**-24)
    tie = "2⁻²⁵ lies halfway between 0 and 2⁻²⁴, and a tie goes to the even neighbor: to 0."
    yield "tie-goes-up", tie, lambda c: _share(c, strictly=True)


def _slips_of_scaling() -> Iterator[tuple[str, str, Rule]]:
    scaled = "The loss scale multiplies first: what rounds is x · scale."
    yield "forgets-the-scale", scaled, lambda c: _share(Case(c.x))
    after = "Multiply *before* the cast: what FP16 has made zero stays zero under any scale."
    yield "scales-after-the-cast", after, _cast_first
    yield "divides-by-the-scale", scaled, lambda c: _share(Case(c.x, 1 / c.scale))
    yield "forgets-the-sign", "Half of the gradients are negative: compare magnitudes.", _without_sign
    overflow = "What grows past 65504 becomes infinite, not zero: that is overflow, another count."
    yield "counts-overflow", overflow, lambda c: _share(c) + _overflown(c)
    yield "leaves-out-overflow", overflow, lambda c: _of_more(c, _counted(c) & (c.scaled.abs() >= 65520), -1)
    yield "share-that-survives", "Asked for is the share that is lost.", lambda c: 1 - _share(c)
    yield "returns-a-count", "A share lies between 0 and 1.", lambda c: _share(c) * int(_counted(c).sum())
    yield "returns-percent", "A share lies between 0 and 1.", lambda c: 100 * _share(c)
    nothing = "Nothing is lost in your count: BF16, with the exponents of FP32, loses nothing. Ask `torch.float16`."
    yield "nothing-underflows", nothing, lambda c: _share(c, 2.0**-134)


def _of_more(case: Case, others: Tensor, sign: int = 1) -> float:
    """Return the share with other values counted below the line as well, or left out there."""
    counted = int(_counted(case).sum())
    return _share(case) * counted / max(1, counted + sign * int(others.sum()))


def _or_nan(case: Case) -> float:
    return _share(case) if _counted(case).any() else float("nan")


def _without_sign(case: Case) -> float:
    counted = _counted(case)
    return (counted & (case.scaled <= LIMIT)).sum().item() / max(int(counted.sum()), 1)


def _cast_first(case: Case) -> float:
    counted = _counted(case)
    return (counted & (case.x.half() * case.scale == 0)).sum().item() / max(int(counted.sum()), 1)


def _overflown(case: Case) -> float:
    counted = _counted(case)
    return (counted & (case.scaled.abs() >= 65520)).sum().item() / max(int(counted.sum()), 1)


SLIPS = (*_slips(), *_slips_of_scaling())
