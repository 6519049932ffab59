"""Check of `round_to_format`: brute force over every number of a format, and the slips that give other numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import formats
from qlab.checks.data_types.decoding import TOPIC, number_line
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part

SPLITS = [(5, 2), (4, 3), (5, 10)]
FAR_OUT = [3e38, 1e20, 1e-20, 1e-45]


@check(TOPIC, "round-to-format", formats.round_to_format, points=5, forbids=("qlab.formats.encode",))
def check_round_to_format(round_to_format: LearnerFunction, draw: torch.Generator) -> None:
    """Check `round_to_format(x, exponent_bits, mantissa_bits, saturate)` for IEEE-like formats."""
    drawn = (int(torch.randint(2, 6, (), generator=draw)), int(torch.randint(1, 9, (), generator=draw)))
    with part("the nearest number, for normal numbers"):
        for e, m in [*SPLITS, drawn]:
            _compare(round_to_format, _normal(e, m, 200, draw), e, m, saturate=True)
    with part("a tie goes to the even mantissa, and a hair beside a tie to its own side"):
        for e, m in SPLITS:
            line = _line(e, m)[2**m :]
            lower = torch.randint(0, len(line) - 2, (100,), generator=draw)
            tie = ((line[lower] + line[lower + 1]) / 2).float()
            hair = [tie.nextafter(torch.tensor(end)) for end in (0.0, math.inf)]
            _compare(round_to_format, torch.cat([tie, *hair, _normal(e, m, 50, draw)]), e, m, saturate=True)
    with part("subnormal numbers, down to half of the smallest"):
        for e, m in [*SPLITS, drawn]:
            step = _line(e, m)[1].item()
            inside = torch.rand(100, generator=draw) * step * 2**m
            edges = torch.tensor([0.0, 0.5, 0.51, 1.0, 1.5, 2.5, 2**m - 0.5, 2**m - 0.4]) * step
            _compare(round_to_format, torch.cat([inside, edges, _normal(e, m, 50, draw)]), e, m, saturate=True)
    with part("overflow saturates when it is asked to; NaN stays NaN"):
        for e, m in [*SPLITS, drawn]:
            _compare(round_to_format, _beyond(e, m, draw), e, m, saturate=True)
    with part("overflow becomes infinity otherwise; NaN stays NaN"):
        for e, m in [*SPLITS, drawn]:
            _compare(round_to_format, _beyond(e, m, draw), e, m, saturate=False)


def _line(e: int, m: int) -> Tensor:
    """Return the numbers from zero up, and one more: the first that would need a larger exponent."""
    return number_line(e, m, (2**e - 1) << m)


def _normal(e: int, m: int, count: int, draw: torch.Generator) -> Tensor:
    """Return normal numbers of every size, with mantissas that the format lacks."""
    exponents = torch.empty(count).uniform_(2 - 2.0 ** (e - 1), 2.0 ** (e - 1) - 1, generator=draw)
    return torch.exp2(exponents).clamp(max=_line(e, m)[-2].item())


def _beyond(e: int, m: int, draw: torch.Generator) -> Tensor:
    """Return values around and past the largest number, where rounding decides what overflows, and NaN."""
    line = _line(e, m)
    largest, tie = line[-2].item(), (line[-2] + line[-1]).item() / 2
    inside = largest * torch.empty(20).uniform_(0.4, 1.0, generator=draw)
    past = largest * torch.empty(20).uniform_(1.5, 100.0, generator=draw)
    edges = torch.tensor([largest, (largest + tie) / 2, tie, 1.01 * tie, math.inf, math.nan, *FAR_OUT])
    return torch.cat([edges, inside, past])


def _compare(function: LearnerFunction, x: Tensor, e: int, m: int, *, saturate: bool) -> None:
    x = torch.cat([x, -x])
    got = as_tensor(function(x, e, m, saturate), tuple(x.shape), call=f"round_to_format(x, {e}, {m}, {saturate})")
    expected = _brute_force(x, e, m, saturate=saturate)
    require_values(
        got,
        expected,
        given=lambda i: f"x={x[i].item()!r}, exponent_bits={e}, mantissa_bits={m}, saturate={saturate}",
        suspects=lambda: [
            *(
                Suspect("split-hard-coded", SPLIT_HARD_CODED, _by_formula(x, other_e, other_m, saturate, Slip()))
                for other_e, other_m in SPLITS
            ),
            Suspect("rounds-twice", ROUNDS_TWICE, _by_formula(x.half().float(), e, m, saturate, Slip())),
            *(Suspect(id, thought, _by_formula(x, e, m, saturate, slip)) for id, thought, slip in SLIPS),
            *(
                Suspect("ignores-sign", "A negative value rounds to a negative one, infinity too.", values)
                for values in (expected.abs(), torch.where(expected.isinf(), math.inf, expected))
            ),
            Suspect("ignores-nan", "NaN must come out as NaN, whatever `saturate` says.", _nan_replaced(got, expected)),
        ],
    )


def _brute_force(x: Tensor, e: int, m: int, *, saturate: bool) -> Tensor:
    """Look up the two neighbors of each `x` among all numbers and choose the nearer, or the even code."""
    line, magnitude = _line(e, m), x.abs().double()
    largest = line[-2].item()
    code = torch.searchsorted(line, magnitude.nan_to_num(0.0).clamp(max=largest), right=True) - 1
    below, above = line[code], line[(code + 1).clamp(max=len(line) - 1)]
    down, up = magnitude - below, above - magnitude
    rounded = torch.where((up < down) | ((up == down) & (code % 2 == 1)), above, below)
    rounded = torch.where(rounded > largest, largest if saturate else math.inf, rounded)
    return torch.where(x.isnan(), math.nan, torch.copysign(rounded, x.double()))


@dataclass(frozen=True)
class Slip:
    """A way to round by the formula with one thing of it changed; the defaults are right.

    `overflows(value, rounded, largest)` says, of magnitudes, which results are too large.
    """

    to_integer: Callable[[Tensor], Tensor] = torch.round
    exponent_shift: int = 0
    lowest_exponent_shift: int | None = 0
    flushed: Callable[[Tensor, Tensor], Tensor] | None = None
    overflows: Callable[[Tensor, Tensor, float], Tensor] = lambda value, rounded, largest: rounded > largest
    largest_factor: float = 1.0
    saturates: bool | None = None


def _by_formula(x: Tensor, e: int, m: int, saturate: bool, slip: Slip) -> Tensor:
    bias = 2 ** (e - 1) - 1
    largest = (2 - 2.0**-m) * 2.0**bias * slip.largest_factor
    value = x.double()
    exponent = torch.frexp(value).exponent - 1 + slip.exponent_shift
    if slip.lowest_exponent_shift is not None:
        exponent = exponent.clamp(min=1 - bias + slip.lowest_exponent_shift)
    step = torch.ldexp(torch.ones_like(value), exponent - m)
    rounded = slip.to_integer(value / step) * step
    if slip.flushed is not None:
        rounded = torch.where(slip.flushed(value, rounded).abs() < 2.0 ** (1 - bias), 0.0, rounded)
    saturate = saturate if slip.saturates is None else slip.saturates
    limit = torch.copysign(torch.tensor(largest if saturate else math.inf), value)
    return torch.where(slip.overflows(value.abs(), rounded.abs(), largest), limit, rounded)


def _nan_replaced(got: Tensor, expected: Tensor) -> Tensor:
    """Return what is expected, with whatever was returned in place of each NaN."""
    return torch.where(expected.isnan() & ~got.isnan(), got.double(), expected)


def _half_away(quotient: Tensor) -> Tensor:
    return torch.copysign(torch.floor(quotient.abs() + 0.5), quotient)


def _half_toward(quotient: Tensor) -> Tensor:
    return torch.copysign(torch.ceil(quotient.abs() - 0.5), quotient)


SPLIT_HARD_CODED = "Your result is right for another format: use `exponent_bits` and `mantissa_bits` as they are given."
ROUNDS_TWICE = "A cast to FP16 rounds first, and your rounding rounds its result again: a tie may be made on the way."
SMALLEST_STEP = "Below the smallest normal number the step stays the same down to zero: nothing is cut off there."
SLIPS = [
    ("truncates", "You always go toward zero: pick the nearer neighbor instead.", Slip(torch.trunc)),
    ("rounds-down", "You always go down: pick the nearer neighbor instead.", Slip(torch.floor)),
    ("rounds-up", "You always go up: pick the nearer neighbor instead.", Slip(torch.ceil)),
    (
        "ties-away-from-zero",
        "Halfway between two numbers, the one with the even mantissa wins: `torch.round` does that.",
        Slip(_half_away),
    ),
    (
        "ties-away-from-zero",
        "Adding ½ and flooring sends every tie up: the even mantissa wins instead, as `torch.round` does it.",
        Slip(lambda quotient: torch.floor(quotient + 0.5)),
    ),
    (
        "ties-toward-zero",
        "Halfway between two numbers, the one with the even mantissa wins, not always the smaller.",
        Slip(_half_toward),
    ),
    ("flushes-subnormals", SMALLEST_STEP, Slip(flushed=lambda value, rounded: value)),
    ("flushes-subnormals", SMALLEST_STEP, Slip(flushed=lambda value, rounded: rounded)),
    (
        "subnormals-too-fine",
        "The step does not shrink below the smallest normal number: clamp the exponent at 1 − bias.",
        Slip(lowest_exponent_shift=None),
    ),
    (
        "subnormals-too-fine",
        "The smallest exponent is 1 − bias, not −bias: subnormals share it with the first normal numbers.",
        Slip(lowest_exponent_shift=-1),
    ),
    (
        "step-one-binade-too-wide",
        "`torch.frexp` gives a fraction in [½, 1): the exponent of 1.xxx is one less than the one it returns.",
        Slip(exponent_shift=1),
    ),
    (
        "overflows-one-binade-early",
        "The largest exponent is bias itself: the largest number is (2 − 2^−mantissa_bits) · 2^bias.",
        Slip(largest_factor=0.5),
    ),
    (
        "overflow-tested-before-rounding",
        "A value a little above the largest number still rounds down to it: round first, then compare.",
        Slip(overflows=lambda value, rounded, largest: value > largest),
    ),
    ("ignores-saturate", "What `saturate` asks for makes no difference in your result.", Slip(saturates=True)),
    (
        "ignores-saturate",
        "With `saturate=True` no result is infinite: the largest number takes its place.",
        Slip(saturates=False),
    ),
    (
        "never-overflows",
        "Your result is larger than the largest number of the format, which has no code for it.",
        Slip(overflows=lambda value, rounded, largest: torch.zeros_like(value, dtype=torch.bool)),
    ),
]
