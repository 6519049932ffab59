"""Check of `percentile_range`: an observer that cuts equal shares off both tails."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import ROUNDING, TOPIC, Batches, Ends, ends_of, pair_of, told_of, uniform_batch
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part

HAIR = 1e-6  # of a rank: 1 − percent / 100 is not exact, and a whole rank may come out just below itself

Between = tuple[float, float]


@check(TOPIC, "percentile-range", calibrate.Percentile, points=3)
def check_percentile_range(percentile_range: LearnerFunction, draw: torch.Generator) -> None:
    """Check `percentile_range(batches, percent)`."""
    with part("equal shares are cut off both tails"):
        skewed = [(_skewed(3000, left, draw), percent) for left, percent in ((0.3, 90), (4.0, 96), (0.0, 80))]
        _percentiles(percentile_range, [([x.view(-1, 4)], percent) for x, percent in skewed])
    with part("of all values together: batches of other sizes and other widths"):
        _percentiles(percentile_range, [(_uneven(draw), percent) for percent in (98, 92.5)])
    with part("100 percent keeps every value"):
        _percentiles(percentile_range, [(_uneven(draw), 100), ([uniform_batch(0.5, 2, draw)], 100)])


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
    first, last = torch.randperm(2, generator=draw).tolist()
    narrow = (batches[0], 3 * batches[2] - 2)
    return [narrow[first], 10 * batches[1] + 1, narrow[last]]


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
        lower = math.floor(n * share - HAIR)
        upper = math.ceil(n * share + HAIR) + 1
        return tuple(self.values[min(max(rank, 1), n) - 1].item() for rank in (lower, upper))


def _ranked(batches: Batches) -> Ranked:
    return Ranked(torch.cat([x.flatten() for x in batches]).double().sort().values)


def _percentiles(function: LearnerFunction, cases: list[tuple[Batches, float]]) -> None:
    got, spans = [], []
    for batches, percent in cases:
        got += pair_of(function(batches, percent), call=f"percentile_range(batches, {percent:g})")
        spans += [max(x.abs().max().item() for x in batches)] * 2
    got, allowed = doubles(got), ROUNDING * doubles(spans)

    def near(rule: Callable[[Batches, float], tuple[Between, Between]]) -> Tensor:
        ends = [end for batches, percent in cases for end in rule(batches, (1 - percent / 100) / 2)]
        ends = torch.tensor(ends, dtype=torch.float64)
        inside = (got >= ends[:, 0] - allowed) & (got <= ends[:, 1] + allowed)
        return torch.where(inside, got, ends.mean(1))

    require_values(
        got,
        near(_both_tails),
        given=told_of(cases, "percent"),
        suspects=lambda: [Suspect(name, thought, near(rule)) for name, thought, rule in _slips_of_percentiles()],
    )


def _both_tails(batches: Batches, tail: float) -> tuple[Between, Between]:
    ranked = _ranked(batches)
    return ranked.at(tail), ranked.at(1 - tail)


def _exact(ends: Ends) -> tuple[Between, Between]:
    return (ends[0], ends[0]), (ends[1], ends[1])


def _of_magnitudes(batches: Batches, share: float) -> tuple[Between, Between]:
    low, high = _ranked([x.abs() for x in batches]).at(share)
    return (-high, -low), (low, high)


def _lowest(batches: Batches) -> Between:
    return (min(x.min().item() for x in batches),) * 2


def _of_each(batches: Batches, tail: float, take: Callable[[list[float]], tuple[float, float]]) -> Any:
    """Take low ends and high ends of each batch's own percentiles together; `take` gives one for either end."""
    each = [_both_tails([x], tail) for x in batches]
    lows, highs = ([take([pair[end][side] for pair in each]) for side in (0, 1)] for end in (0, 1))
    return (lows[0][0], lows[1][0]), (highs[0][1], highs[1][1])


def _slips_of_percentiles() -> Iterator[tuple[str, str, Callable[[Batches, float], tuple[Between, Between]]]]:
    yield (
        "keeps-everything",
        "That is the full range: sort, and leave a share out at either end.",
        lambda b, t: _exact(ends_of(torch.cat([x.flatten() for x in b]))),
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
        yield "percentile-of-magnitudes", signs, lambda b, t, s=share: (_lowest(b), _of_magnitudes(b, 1 - s * t)[1])
        yield "percentile-of-magnitudes", signs, lambda b, t, s=share: ((0.0, 0.0), _of_magnitudes(b, 1 - s * t)[1])
    last = "Only one batch is in your range: all of them count."
    yield "last-batch-wins", last, lambda b, t: _both_tails(b[-1:], t)
    yield "first-batch-only", last, lambda b, t: _both_tails(b[:1], t)
    pool = "Percentiles of batches do not combine into the percentile of all values: pool the values first."
    yield "averages-batches", pool, lambda b, t: _of_each(b, t, lambda v: (sum(v) / len(v),) * 2)
    yield "averages-batches", pool, lambda b, t: _of_each(b, 2 * t, lambda v: (sum(v) / len(v),) * 2)
    yield "extremes-of-batches", pool, lambda b, t: _of_each(b, t, lambda v: (min(v), max(v)))
    yield "ends-swapped", "Return (low, high), in this order.", lambda b, t: _both_tails(b, t)[::-1]
    wide = "Here the range is asked for as it is; a grid widens it to contain zero, later."
    yield "widens-to-zero", wide, lambda b, t: _widened_ranks(*_both_tails(b, t))


def _widened_ranks(low: Between, high: Between) -> tuple[Between, Between]:
    return tuple(min(end, 0.0) for end in low), tuple(max(end, 0.0) for end in high)
