"""Check of `mse_clip`: judged by the squared error that its clip achieves, not by the clip itself."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.expect import as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require

ENOUGH = 50  # clips, evenly spaced up to the largest magnitude: this many are a fair search
AS_GOOD = 1.02  # times the best of those: other fair searches, such as 64 clips or a first one at 1 %, stay below 1.015
SURE = 1.01  # a suspect's own objective is this near to its least: one search differs from another by half of that

Errors = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Case:
    """One call, `mse_clip(x, bits)`, and what was returned."""

    x: Tensor
    bits: int
    got: float

    @cached_property
    def flat(self) -> Tensor:
        return self.x.flatten().double()

    @property
    def largest(self) -> float:
        return self.flat.abs().max().item()

    @cached_property
    def clips(self) -> Tensor:
        return self.largest * torch.arange(1, ENOUGH + 1, dtype=torch.float64) / ENOUGH

    def at(self, clip: float, errors: Errors) -> float:
        return errors(self.flat, torch.tensor([clip], dtype=torch.float64), self.bits).item()

    def least(self, errors: Errors) -> float:
        return errors(self.flat, self.clips, self.bits).min().item()

    def good(self, clip: float) -> bool:
        """Tell whether a clip is as good as that of a fair search."""
        return 0 < clip < torch.inf and self.at(clip, squared_errors) <= AS_GOOD * self.least(squared_errors)


@check(TOPIC, "mse-clip", calibrate.clip_errors, calibrate.mse_clip, points=4, forbids=("qlab.calibrate.LeastSquares",))
def check_mse_clip(mse_clip: LearnerFunction, draw: torch.Generator) -> None:
    """Check `mse_clip(x, bits)`."""
    with part("at most 2 % above the best of 50 evenly spaced clips: one long tail, left or right"):
        _judge([_called(mse_clip, sign * _lopsided(draw), bits) for sign, bits in ((-1, 2), (1, 3), (-1, 2))])
    with part("the same for two sides alike, and for a matrix"):
        _judge([_called(mse_clip, _bell(draw), 3), _called(mse_clip, _bell(draw).view(20, 50).T, 4)])
    with part("the clip moves with the bits: 2 to 6 of them on the same values"):
        x = _bell(draw).sign() * _bell(draw).square()
        _judge([_called(mse_clip, x, bits) for bits in (2, drawn(3, 4, draw), 6)])
    with part("a clip is in the units of x: tiny values, and large ones"):
        powers = (drawn(-5, -3, draw), drawn(2, 4, draw))  # of two sets of values: one set would say the same twice
        _judge([_called(mse_clip, _bell(draw) * 10.0**power, 4) for power in powers])


def _bell(draw: torch.Generator) -> Tensor:
    return (0.5 + 4 * torch.rand((), generator=draw)) * torch.randn(1000, generator=draw)


def _lopsided(draw: torch.Generator) -> Tensor:
    """Draw values whose right side is a long tail and whose left side is short."""
    z = torch.randn(1000, generator=draw)
    return 2 * torch.where(z < 0, 0.3 * z, z * z.abs())


def _called(mse_clip: LearnerFunction, x: Tensor, bits: int) -> Case:
    return Case(x, bits, as_number(mse_clip(x, bits), call=f"mse_clip(x, {bits})"))


def _judge(cases: list[Case]) -> None:
    wrong = [case for case in cases if not case.good(case.got)]
    if not wrong:
        return
    case = wrong[0]
    told = f"given {case.flat.numel()} values up to {case.largest:.4g}, bits={case.bits}, got {case.got:.4g}"
    require(
        0 < case.got < torch.inf,
        f"{told}, expected a finite clip above 0",
        misconception="not-a-clip",
        thought="A clip is a magnitude: the value from which on everything is cut. Print what your search compares.",
    )
    errors = case.at(case.got, squared_errors), case.least(squared_errors)
    best = case.clips[squared_errors(case.flat, case.clips, case.bits).argmin()].item()
    message = f"{told}: a mean squared error of {errors[0]:.4g}; clip {best:.4g} has {errors[1]:.4g}"
    for misconception, thought, fits in [*_formulas(), *(_objectives() if len(wrong) > 1 else ())]:
        if all(map(fits, cases)):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Quantize x to the clip you return and to the full range, by hand, and compare the two mean squares.",
    )


def squared_errors(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    """Return the mean squared error of symmetric codes at each clip."""
    return (_quantized(x, clips, bits) - x).square_().mean(1)


def _quantized(x: Tensor, clips: Tensor, bits: int, to_integer: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    largest = 2 ** (bits - 1) - 1
    step = clips[:, None] / largest
    return to_integer(x / step).clamp_(-largest, largest).mul_(step)


def _absolute(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    return (_quantized(x, clips, bits) - x).abs_().mean(1)


def _truncated(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    return (_quantized(x, clips, bits, torch.trunc) - x).square_().mean(1)


def _only_above(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    """Clamp from above only: what lies below is rounded, however far out."""
    largest = 2 ** (bits - 1) - 1
    step = clips[:, None] / largest
    return ((x / step).round_().clamp_(max=largest).mul_(step) - x).square_().mean(1)


def _one_code_lower(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    """Clamp to −8 … 7 where it should be −7 … 7."""
    largest = 2 ** (bits - 1) - 1
    step = clips[:, None] / largest
    return ((x / step).round_().clamp_(-largest - 1, largest).mul_(step) - x).square_().mean(1)


def _positive_half(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    return squared_errors(x[x > 0], clips, bits)


def _up_to_the_largest_value(x: Tensor, clips: Tensor, bits: int) -> Tensor:
    errors = squared_errors(x, clips, bits)
    return errors.masked_fill(clips > x.max(), torch.inf)


def _with_levels(of_bits: Callable[[int], int]) -> Errors:
    return lambda x, clips, bits: squared_errors_of_levels(x, clips, of_bits(bits))


def squared_errors_of_levels(x: Tensor, clips: Tensor, largest: int) -> Tensor:
    """Return the mean squared error with codes from −largest to largest."""
    step = clips[:, None] / largest
    return ((x / step).round_().clamp_(-largest, largest).mul_(step) - x).square_().mean(1)


def _minimizes(errors: Errors) -> Callable[[Case], bool]:
    """Tell whether the clip is the least of another objective, and whether that is what made it a bad one."""

    def fits(case: Case) -> bool:
        its = errors(case.flat, case.clips, case.bits)
        own = case.clips[its.argmin()].item()
        beside = abs(case.got - own) <= 1.01 * case.largest / ENOUGH  # another search of the same valley
        explained = case.good(case.got) or not case.good(own) or beside
        return (
            explained and case.got <= case.largest * (1 + 1e-6) and case.at(case.got, errors) <= SURE * its.min().item()
        )

    return fits


def _rounding(case: Case, clip: float) -> float:
    inside = case.flat[case.flat.abs() <= clip]
    return squared_errors(inside, torch.tensor([clip], dtype=torch.float64), case.bits).item() if len(inside) else 0.0


def _only_rounding(case: Case) -> bool:
    """Tell whether the clip saves rounding alone: less than half of the best, a third of its rounding error."""
    best = case.clips[squared_errors(case.flat, case.clips, case.bits).argmin()].item()
    return case.got < best / 2 and _rounding(case, case.got) < _rounding(case, best) / 3


def _formulas() -> Iterable[tuple[str, str, Callable[[Case], bool]]]:
    """Yield the slips that give one value."""
    yield (
        "returns-the-largest",
        "That is the largest magnitude: nothing is clipped, and the rounding error is as large as it gets."
        " Count both errors, over *all* values, with as many codes as `bits` gives.",
        lambda c: abs(c.got - c.largest) <= 1e-5 * c.largest,
    )
    share = "You found the share of the largest magnitude; the clip itself is that share times the largest magnitude."
    yield "returns-a-share", share, lambda c: c.good(c.got * c.largest)
    scale = "That is the size of a step: the clip is where the largest code lies, 2^(bits−1) − 1 steps out."
    yield "returns-the-scale", scale, lambda c: c.good(c.got * (2 ** (c.bits - 1) - 1))
    error = "That is the least error: return the clip that has it."
    yield "returns-the-error", error, lambda c: abs(c.got - c.least(squared_errors)) <= 0.05 * c.got


def _objectives() -> Iterable[tuple[str, str, Callable[[Case], bool]]]:
    """Yield the slips that minimize something else: told from a bad search only where two clips were bad."""
    lowest = "The grid here is symmetric: codes from −(2^(bits−1) − 1), not from −2^(bits−1)."
    yield "uses-the-lowest-code", lowest, _minimizes(_one_code_lower)
    negative = "Values have two signs: the largest magnitude is x.abs().max(), and the clamp has a lower end too."
    for errors in (_only_above, _positive_half, _up_to_the_largest_value):
        yield "one-sided", negative, _minimizes(errors)
    bits = "With fewer bits steps are wider, and the best clip moves inward: the largest code is 2^(bits−1) − 1."
    for fixed in (8, 4):
        yield "ignores-bits", bits, _minimizes(_with_levels(lambda _, fixed=fixed: 2 ** (fixed - 1) - 1))
    levels = "Signed codes reach 2^(bits−1) − 1, on either side: with 4 bits 7, not 15 and not 8."
    for of_bits in (lambda b: 2**b - 1, lambda b: 2 ** (b - 1), lambda b: 2**b, lambda b: 2 ** (b - 2)):
        yield "wrong-number-of-levels", levels, _minimizes(_with_levels(of_bits))
    yield "absolute-error", "The error is asked for squared: large ones weigh more.", _minimizes(_absolute)
    yield "truncates", "`.int()` cuts toward zero: round to the nearest code.", _minimizes(_truncated)
    rounding = "So narrow a clip makes fine steps and cuts most values: the error of what was cut counts, too."
    yield "only-rounding", rounding, _only_rounding
