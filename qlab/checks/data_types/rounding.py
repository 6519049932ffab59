"""Check of `round_to_format`: brute force over every number of a format."""

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


@check(TOPIC, "round-to-format", formats.round_to_format, points=5)
def check_round_to_format(round_to_format: LearnerFunction, draw: torch.Generator) -> None:
    """Check `round_to_format(x, exponent_bits, mantissa_bits, saturate)` for IEEE-like formats."""
    with part("the nearest number, for normal numbers"):
        for e, m in [*SPLITS, (3, 4)]:
            _compare(round_to_format, _normal(e, m, 200, draw), e, m, saturate=True)
    with part("a tie goes to the even mantissa, and a hair beside a tie to its own side"):
        for e, m in SPLITS:
            line = _line(e, m)[2**m :]
            lower = torch.randint(0, len(line) - 2, (100,), generator=draw)
            tie = ((line[lower] + line[lower + 1]) / 2).float()
            hair = [tie.nextafter(torch.tensor(end)) for end in (0.0, math.inf)]
            _compare(round_to_format, torch.cat([tie, *hair]), e, m, saturate=True)
    with part("subnormal numbers, down to half of the smallest"):
        for e, m in SPLITS:
            step = _line(e, m)[1].item()
            inside = torch.rand(100, generator=draw) * step * 2**m
            edges = torch.tensor([0.0, 0.5, 0.51, 1.0, 1.5, 2.5, 2**m - 0.5, 2**m - 0.4]) * step
            _compare(round_to_format, torch.cat([inside, edges, _normal(e, m, 50, draw)]), e, m, saturate=True)
    with part("overflow saturates when it is asked to"):
        for e, m in SPLITS:
            _compare(round_to_format, _beyond(e, m, draw), e, m, saturate=True)
    with part("overflow becomes infinity otherwise, and NaN stays NaN"):
        for e, m in SPLITS:
            x = torch.cat([_beyond(e, m, draw), torch.tensor([math.nan])])
            _compare(round_to_format, x, e, m, saturate=False)


def _normal(e: int, m: int, count: int, draw: torch.Generator) -> Tensor:
    """Return normal numbers of every size, with mantissas that the format lacks."""
    exponents = torch.empty(count).uniform_(2 - 2.0 ** (e - 1), 2.0 ** (e - 1) - 1, generator=draw)
    return torch.exp2(exponents).clamp(max=_line(e, m)[-2].item())


def _line(e: int, m: int) -> Tensor:
    """Return the numbers from zero up, and one more: the first that would need a larger exponent."""
    return number_line(e, m, (2**e - 1) << m)


def _beyond(e: int, m: int, draw: torch.Generator) -> Tensor:
    """Return values around and past the largest number, where rounding decides what overflows."""
    line = _line(e, m)
    largest, tie = line[-2].item(), (line[-2] + line[-1]).item() / 2
    inside = largest * torch.empty(20).uniform_(0.4, 1.0, generator=draw)
    past = largest * torch.empty(20).uniform_(1.5, 100.0, generator=draw)
    edges = torch.tensor([largest, (largest + tie) / 2, tie, 1.01 * tie, math.inf])
    return torch.cat([edges, inside, past])


def _compare(function: LearnerFunction, x: Tensor, e: int, m: int, *, saturate: bool) -> None:
    x = torch.cat([x, -x])
    call = f"round_to_format(x, {e}, {m}, {saturate})"
    got = as_tensor(function(x, e, m, saturate), tuple(x.shape), call=call)
    require_values(
        got,
        _brute_force(x, e, m, saturate=saturate),
        given=lambda i: f"x={x[i].item()!r}, exponent_bits={e}, mantissa_bits={m}, saturate={saturate}",
        suspects=lambda: (
            Suspect(misconception, thought, _brute_force(x, e, m, saturate=saturate, rule=rule))
            for misconception, thought, rule in SUSPECTS
        ),
    )


def _overflow_after_rounding(magnitude: Tensor, rounded: Tensor, largest: float, saturate: bool) -> Tensor:
    del magnitude
    return torch.where(rounded > largest, largest if saturate else math.inf, rounded)


def _overflow_before_rounding(magnitude: Tensor, rounded: Tensor, largest: float, saturate: bool) -> Tensor:
    return torch.where(magnitude > largest, largest if saturate else math.inf, rounded)


def _overflow_a_binade_early(magnitude: Tensor, rounded: Tensor, largest: float, saturate: bool) -> Tensor:
    return _overflow_after_rounding(magnitude, rounded, largest / 2, saturate)


def _even(down: Tensor, up: Tensor, code: Tensor) -> Tensor:
    return (up < down) | ((up == down) & (code % 2 == 1))


@dataclass(frozen=True)
class Rule:
    """How to choose between two neighbors, and what to do at both ends; the defaults are right."""

    goes_up: Callable[[Tensor, Tensor, Tensor], Tensor] = _even
    flushed_below_min_normal: Callable[[Tensor, Tensor], Tensor] | None = None
    fine_subnormals: bool = False
    overflow: Callable[[Tensor, Tensor, float, bool], Tensor] = _overflow_after_rounding


RIGHT_RULE = Rule()


def _brute_force(x: Tensor, e: int, m: int, *, saturate: bool, rule: Rule = RIGHT_RULE) -> Tensor:
    """Look up the neighbors of each `x` among all numbers and choose."""
    line, magnitude = _line(e, m), x.abs().double()
    largest, min_normal = line[-2].item(), line[2**m].item()
    code = torch.searchsorted(line, magnitude.nan_to_num(0.0).clamp(max=largest), right=True) - 1
    below, above = line[code], line[(code + 1).clamp(max=len(line) - 1)]
    rounded = torch.where(rule.goes_up(magnitude - below, above - magnitude, code), above, below)
    if rule.flushed_below_min_normal:
        rounded = torch.where(rule.flushed_below_min_normal(magnitude, rounded) < min_normal, 0.0, rounded)
    if rule.fine_subnormals:
        step = torch.ldexp(torch.ones_like(magnitude), torch.frexp(magnitude).exponent - 1 - m)
        rounded = torch.where(magnitude < min_normal, torch.round(magnitude / step).nan_to_num(0.0) * step, rounded)
    rounded = rule.overflow(magnitude, rounded, largest, saturate)
    return torch.where(x.isnan(), math.nan, torch.copysign(rounded, x.double()))


SUSPECTS = [
    (
        "truncates",
        "You always go toward zero: pick the nearer neighbor instead.",
        Rule(goes_up=lambda down, up, code: down < 0),
    ),
    (
        "ties-away-from-zero",
        "Halfway between two numbers, the one with the even mantissa wins: `torch.round` does that.",
        Rule(goes_up=lambda down, up, code: up <= down),
    ),
    (
        "ties-toward-zero",
        "Halfway between two numbers, the one with the even mantissa wins, not always the smaller.",
        Rule(goes_up=lambda down, up, code: up < down),
    ),
    (
        "flushes-subnormals",
        "Below the smallest normal number the step stays the same down to zero: nothing is cut off there.",
        Rule(flushed_below_min_normal=lambda magnitude, rounded: magnitude),
    ),
    (
        "flushes-subnormals",
        "Below the smallest normal number the step stays the same down to zero: nothing is cut off there.",
        Rule(flushed_below_min_normal=lambda magnitude, rounded: rounded),
    ),
    (
        "subnormals-too-fine",
        "The step does not shrink below the smallest normal number: clamp the exponent at 1 − bias.",
        Rule(fine_subnormals=True),
    ),
    (
        "overflows-one-binade-early",
        "The largest exponent is bias itself: the largest number is (2 − 2^−mantissa_bits) · 2^bias.",
        Rule(overflow=_overflow_a_binade_early),
    ),
    (
        "overflow-tested-before-rounding",
        "A value a little above the largest number still rounds down to it: round first, then compare.",
        Rule(overflow=_overflow_before_rounding),
    ),
    (
        "ignores-saturate",
        "What `saturate` asks for makes no difference in your result.",
        Rule(overflow=lambda magnitude, rounded, largest, saturate: rounded.clamp(max=largest)),
    ),
    (
        "ignores-saturate",
        "With `saturate=True` no result is infinite: the largest number takes its place.",
        Rule(overflow=lambda magnitude, rounded, largest, saturate: rounded.where(rounded <= largest, math.inf)),
    ),
    (
        "never-overflows",
        "Your result is larger than the largest number of the format, which has no code for it.",
        Rule(overflow=lambda magnitude, rounded, largest, saturate: rounded),
    ),
]
