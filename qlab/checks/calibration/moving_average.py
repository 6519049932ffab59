"""Check of `moving_average_range`: an observer that averages each batch's ends."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import ROUNDING, TOPIC, Batches, Ends, ends_of, pair_of, told_of, uniform_batch
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part


@check(TOPIC, "moving-average-range", calibrate.MovingAverage, points=3)
def check_moving_average_range(moving_average_range: LearnerFunction, draw: torch.Generator) -> None:
    """Check `moving_average_range(batches, momentum)`."""
    with part("the first batch sets the range, whatever the momentum"):
        _averages(moving_average_range, [([uniform_batch(-1, 2, draw)], _momentum(draw)) for _ in range(3)])
    with part("each later batch moves both ends by 1 − momentum of the way"):
        cases = []
        for count in (2, 4, 7):
            batches = [
                uniform_batch(-uniform(1, 9, (), draw).item(), uniform(1, 9, (), draw).item(), draw)
                for _ in range(count)
            ]
            cases.append((batches, _momentum(draw)))
        _averages(moving_average_range, cases)
    with part("a range on one side of zero stays there"):
        above = [uniform_batch(low, low + 3, draw) for low in uniform(1, 5, (5,), draw).tolist()]
        below = [uniform_batch(high - 2, high, draw) for high in uniform(-6, -1, (4,), draw).tolist()]
        _averages(moving_average_range, [(above, _momentum(draw)), (below, _momentum(draw))])


def _momentum(draw: torch.Generator) -> float:
    """Draw a momentum that is not near a half, where old and new weigh the same."""
    return (0.1, 0.25, 0.7, 0.9, 0.95)[drawn(0, 4, draw)]


def _averages(function: LearnerFunction, cases: list[tuple[Batches, float]]) -> None:
    got, spans = [], []
    for batches, momentum in cases:
        got += pair_of(function(batches, momentum), call=f"moving_average_range(batches, {momentum:g})")
        spans += [max(x.abs().max().item() for x in batches)] * 2
    got, allowed = doubles(got), ROUNDING * doubles(spans)

    def near(rule: Callable[[Batches, float], Ends]) -> Tensor:
        values = doubles([end for batches, momentum in cases for end in rule(batches, momentum)])
        return torch.where((got - values).abs() <= allowed, got, values)

    require_values(
        got,
        near(_folded),
        given=told_of(cases, "momentum"),
        suspects=lambda: [Suspect(name, thought, near(rule)) for name, thought, rule in _slips_of_averages()],
    )


def _folded(batches: Batches, momentum: float, start: Ends | None = None) -> Ends:
    """Return the moving average of the ends, from the first batch's or from `start`."""
    ends = [ends_of(x) for x in batches]
    average = ends.pop(0) if start is None else start
    for now in ends:
        average = tuple(momentum * old + (1 - momentum) * new for old, new in zip(average, now, strict=True))
    return average


def _mean(batches: Batches) -> Ends:
    ends = [ends_of(x) for x in batches]
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
    yield "last-batch-wins", last, lambda b, m: ends_of(b[-1])
    yield "first-batch-only", "The batches after the first one move the range, too.", lambda b, m: ends_of(b[0])
    everything = "That is min-max over all batches: one odd batch sets it for good, and here it should fade."
    yield "global-min-max", everything, lambda b, m: ends_of(torch.cat([x.flatten() for x in b]))
    plain = "All batches weigh the same in your average: here each later batch makes the older ones fade."
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
