"""Checks of two observers: the moving average of each batch's ends, and equal shares cut off both tails."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.expect import Suspect, as_number, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.numbers import doubles, drawn
from qlab.checks.quantization.codes import uniform, unpacked
from qlab.checks.report import check, part

TOPIC = "04_calibration"
ROUNDING = 1e-6  # of the largest end: FP32 rounds a product or a sum to 6e-8, and seven batches take some twenty
HAIR = 1e-6  # of a rank: 1 − percent / 100 is not exact, and a whole rank may come out just below itself

Batches = list[Tensor]
Ends = tuple[float, float]
Between = tuple[float, float]


@check(TOPIC, "moving-average-range", calibrate.MovingAverage, points=3)
def check_moving_average_range(moving_average_range: LearnerFunction, draw: torch.Generator) -> None:
    """Check `moving_average_range(batches, momentum)`."""
    with part("the first batch sets the range, whatever the momentum"):
        _averages(moving_average_range, [([_batch(-1, 2, draw)], _momentum(draw)) for _ in range(3)])
    with part("each later batch moves both ends by 1 − momentum of the way"):
        cases = []
        for count in (2, 4, 7):
            batches = [_batch(*(uniform(1, 9, (2,), draw) * torch.tensor([-1, 1])), draw) for _ in range(count)]
            cases.append((batches, _momentum(draw)))
        _averages(moving_average_range, cases)
    with part("a range on one side of zero stays there"):
        above = [_batch(low, low + 3, draw) for low in uniform(1, 5, (5,), draw).tolist()]
        below = [_batch(high - 2, high, draw) for high in uniform(-6, -1, (4,), draw).tolist()]
        _averages(moving_average_range, [(above, _momentum(draw)), (below, _momentum(draw))])


@check(TOPIC, "percentile-range", calibrate.Percentile, points=3)
def check_percentile_range(percentile_range: LearnerFunction, draw: torch.Generator) -> None:
    """Check `percentile_range(batches, percent)`."""
    with part("equal shares are cut off both tails"):
        skewed = [(_skewed(3000, left, draw), percent) for left, percent in ((0.3, 90), (4.0, 96), (0.0, 80))]
        _percentiles(percentile_range, [([x.view(-1, 4)], percent) for x, percent in skewed])
    with part("of all values together: batches of other sizes and other widths"):
        _percentiles(percentile_range, [(_uneven(draw), percent) for percent in (98, 92.5)])
    with part("100 percent keeps every value"):
        _percentiles(percentile_range, [(_uneven(draw), 100), ([_batch(0.5, 2, draw)], 100)])


def _batch(low: float, high: float, draw: torch.Generator) -> Tensor:
    return uniform(float(low), float(high), (drawn(5, 20, draw), 8), draw)


def _momentum(draw: torch.Generator) -> float:
    """Draw a momentum that is not near a half, where old and new weigh the same."""
    return (0.1, 0.25, 0.7, 0.9, 0.95)[drawn(0, 4, draw)]


def _skewed(count: int, left: float, draw: torch.Generator) -> Tensor:
    """Draw a bell with heavy tails, its left half stretched by `left`: 0 makes it a ReLU's output."""
    z = torch.randn(count, generator=draw)
    return torch.where(z < 0, left * z * z.abs(), z * z.abs())


def _uneven(draw: torch.Generator) -> Batches:
    """Draw batches of three shapes, of 400 to 2 400 values, ten times wider one than another, and moved apart."""
    width = uniform(0.5, 1.0, (3,), draw).tolist()
    shapes = [(600, 4), (50, 8), (900,)]
    batches = [
        w * _skewed(2400, 0.6, draw)[: torch.Size(s).numel()].view(s) for w, s in zip(width, shapes, strict=True)
    ]
    order = torch.randperm(3, generator=draw).tolist()
    return [(batches[0], 10 * batches[1] + 1, 3 * batches[2] - 2)[place] for place in order]


def _pair(value: Any, *, call: str) -> Ends:
    """Read (low, high) from a tuple, a list, or a tensor or array of two."""
    if isinstance(value, Tensor | np.ndarray) and tuple(value.shape) == (2,):
        value = tuple(value)
    low, high = unpacked(value, ("low", "high"), call=call)
    return as_number(low, call=f"{call}[0]"), as_number(high, call=f"{call}[1]")


def _told(cases: Sequence[tuple[Batches, float]], name: str) -> Callable[[int], str]:
    """Describe the call behind an end: low and high of each case follow each other."""

    def told(i: int) -> str:
        batches, setting = cases[i // 2]
        ends = ", ".join(f"{x.min().item():.5g} to {x.max().item():.5g}" for x in batches)
        return f"batches from {ends}, {name} {setting:g} ({('low', 'high')[i % 2]})"

    return told


# --- the moving average


def _averages(function: LearnerFunction, cases: list[tuple[Batches, float]]) -> None:
    got, spans = [], []
    for batches, momentum in cases:
        got += _pair(function(batches, momentum), call=f"moving_average_range(batches, {momentum:g})")
        spans += [max(x.abs().max().item() for x in batches)] * 2
    got, allowed = doubles(got), ROUNDING * doubles(spans)

    def near(rule: Callable[[Batches, float], Ends]) -> Tensor:
        values = doubles([end for batches, momentum in cases for end in rule(batches, momentum)])
        return torch.where((got - values).abs() <= allowed, got, values)

    require_values(
        got,
        near(lambda batches, momentum: _folded(batches, momentum)),
        given=_told(cases, "momentum"),
        suspects=lambda: [Suspect(name, thought, near(rule)) for name, thought, rule in _slips_of_averages()],
    )


def _ends(x: Tensor) -> Ends:
    return x.min().item(), x.max().item()


def _folded(batches: Batches, momentum: float, start: Ends | None = None) -> Ends:
    """Return the moving average of the ends, from the first batch's or from `start`."""
    ends = [_ends(x) for x in batches]
    average = ends.pop(0) if start is None else start
    for now in ends:
        average = tuple(momentum * old + (1 - momentum) * new for old, new in zip(average, now, strict=True))
    return average


def _mean(batches: Batches) -> Ends:
    ends = [_ends(x) for x in batches]
    return sum(low for low, _ in ends) / len(ends), sum(high for _, high in ends) / len(ends)


def _widened(ends: Ends) -> Ends:
    return min(ends[0], 0.0), max(ends[1], 0.0)


def _slips_of_averages() -> Iterator[tuple[str, str, Callable[[Batches, float], Ends]]]:
    zero = "An average that starts at zero is pulled toward zero by it: the first batch is taken as it is."
    yield "starts-from-zero", zero, lambda b, m: _folded(b, m, (0.0, 0.0))
    yield "starts-from-zero", zero, lambda b, m: _folded(b, 1 - m, (0.0, 0.0))
    swapped = "`momentum` is the share of what was known that is *kept*; the new batch gets 1 − momentum."
    yield "momentum-swapped", swapped, lambda b, m: _folded(b, 1 - m)
    last = "Only the last batch is in your range: what the ones before said is part of the average."
    yield "last-batch-wins", last, lambda b, m: _ends(b[-1])
    yield "first-batch-only", "The batches after the first one move the range, too.", lambda b, m: _ends(b[0])
    everything = "That is min-max over all batches: one odd batch sets it for good, and here it should fade."
    yield "global-min-max", everything, lambda b, m: _ends(torch.cat([x.flatten() for x in b]))
    plain = "All batches weigh the same in your average: here the weight of a batch shrinks by `momentum` at each later one."
    yield "plain-mean", plain, lambda b, m: _mean(b)
    infinite = "∞ · momentum stays ∞: an average needs a real start, the ends of the first batch."
    yield "starts-from-infinity", infinite, lambda b, m: (float("inf"), float("-inf"))
    wide = "Here the range is asked for as it is; a grid widens it to contain zero, later."
    yield "widens-to-zero", wide, lambda b, m: _widened(_folded(b, m))
    yield "ends-swapped", "Return (low, high), in this order.", lambda b, m: _folded(b, m)[::-1]
    sides = "Two averages are asked for, one of the smallest and one of the largest values: not ± the magnitude."
    yield "symmetric-range", sides, lambda b, m: _symmetric(_folded([x.abs() for x in b], m)[1])


def _symmetric(end: float) -> Ends:
    return -end, end


# --- percentiles


@dataclass(frozen=True)
class Ranked:
    """Values in order, and between which two of them any usual quantile lies."""

    values: Tensor

    def at(self, share: float) -> Between:
        """Return the values that every definition of the quantile lies between.

        The nine of Hyndman and Fan 1996 interpolate at a rank from n·share to n·share + 1, counted from 1; who sorts
        and indexes cuts that rank to a whole number, down or up.
        """
        n = len(self.values)
        lower = int(np.floor(n * share - HAIR))
        upper = int(np.ceil(n * share + HAIR)) + 1
        return tuple(self.values[min(max(rank, 1), n) - 1].item() for rank in (lower, upper))


def _ranked(batches: Batches) -> Ranked:
    return Ranked(torch.cat([x.flatten() for x in batches]).double().sort().values)


def _percentiles(function: LearnerFunction, cases: list[tuple[Batches, float]]) -> None:
    got, spans = [], []
    for batches, percent in cases:
        got += _pair(function(batches, percent), call=f"percentile_range(batches, {percent:g})")
        spans += [max(x.abs().max().item() for x in batches)] * 2
    got, allowed = doubles(got), ROUNDING * doubles(spans)

    def near(rule: Callable[[Batches, float], tuple[Between, Between]]) -> Tensor:
        ends = doubles([end for batches, percent in cases for end in rule(batches, (1 - percent / 100) / 2)])
        inside = (got >= ends[:, 0] - allowed) & (got <= ends[:, 1] + allowed)
        return torch.where(inside, got, ends.mean(1))

    require_values(
        got,
        near(_both_tails),
        given=_told(cases, "percent"),
        suspects=lambda: [Suspect(name, thought, near(rule)) for name, thought, rule in _slips_of_percentiles()],
    )


def _both_tails(batches: Batches, tail: float) -> tuple[Between, Between]:
    ranked = _ranked(batches)
    return ranked.at(tail), ranked.at(1 - tail)


def _exact(ends: Ends) -> tuple[Between, Between]:
    return (ends[0], ends[0]), (ends[1], ends[1])


def _of_magnitudes(batches: Batches, share: float, *, smallest: float | None = None) -> tuple[Between, Between]:
    low, high = _ranked([x.abs() for x in batches]).at(share)
    return ((-high, -low) if smallest is None else (smallest, smallest)), (low, high)


def _of_each(batches: Batches, tail: float, take: Callable[[list[float]], tuple[float, float]]) -> Any:
    """Take low ends and high ends of each batch's own percentiles together; `take` gives one for either end."""
    each = [_both_tails([x], tail) for x in batches]
    lows, highs = ([take([pair[end][side] for pair in each]) for side in (0, 1)] for end in (0, 1))
    return (lows[0][0], lows[1][0]), (highs[0][1], highs[1][1])


def _slips_of_percentiles() -> Iterator[tuple[str, str, Callable[[Batches, float], tuple[Between, Between]]]]:
    yield (
        "keeps-everything",
        "That is the full range: sort, and leave a share out at either end.",
        lambda b, t: _exact(_ends(torch.cat([x.flatten() for x in b]))),
    )
    full = "`percent` is what is *kept*: the rest is shared by two tails, half of it each."
    yield "full-share-on-each-side", full, lambda b, t: _both_tails(b, 2 * t)
    one = "There are two tails: cut the same share off the low end as off the high end."
    for share in (1, 2):
        yield "cuts-one-tail", one, lambda b, t, s=share: (_ranked(b).at(0.0)[:1] * 2, _ranked(b).at(1 - s * t))
        yield "cuts-one-tail", one, lambda b, t, s=share: (_ranked(b).at(s * t), _ranked(b).at(1.0)[1:] * 2)
    signs = "Magnitudes forget the sign: a long right tail then sets the left end too. Rank the values themselves."
    for share in (1, 2):
        yield "percentile-of-magnitudes", signs, lambda b, t, s=share: _of_magnitudes(b, 1 - s * t)
        yield (
            "percentile-of-magnitudes",
            signs,
            lambda b, t, s=share: _of_magnitudes(b, 1 - s * t, smallest=_ends(torch.cat([x.flatten() for x in b]))[0]),
        )
        yield "percentile-of-magnitudes", signs, lambda b, t, s=share: _of_magnitudes(b, 1 - s * t, smallest=0.0)
    pool = "Percentiles of batches do not combine into the percentile of all values: pool the values first."
    yield "averages-batches", pool, lambda b, t: _of_each(b, t, lambda v: (sum(v) / len(v),) * 2)
    yield "averages-batches", pool, lambda b, t: _of_each(b, 2 * t, lambda v: (sum(v) / len(v),) * 2)
    yield "extremes-of-batches", pool, lambda b, t: _of_each(b, t, lambda v: (min(v), max(v)))
    last = "Only one batch is in your range: all of them count."
    yield "last-batch-wins", last, lambda b, t: _both_tails(b[-1:], t)
    yield "first-batch-only", last, lambda b, t: _both_tails(b[:1], t)
    yield "ends-swapped", "Return (low, high), in this order.", lambda b, t: _both_tails(b, t)[::-1]
    wide = "Here the range is asked for as it is; a grid widens it to contain zero, later."
    yield "widens-to-zero", wide, lambda b, t: _widened_ranks(*_both_tails(b, t))


def _widened_ranks(low: Between, high: Between) -> tuple[Between, Between]:
    return tuple(min(end, 0.0) for end in low), tuple(max(end, 0.0) for end in high)
