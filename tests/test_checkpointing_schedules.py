"""Schedules: the simulator against measured bytes and counted runs, and the binomial one against brute force."""

import heapq
import math
from functools import cache, partial

import pytest
import torch
from torch import nn

from qlab.checkpointing import (
    Action,
    best_split,
    binomial,
    checkpoint_binomially,
    checkpoint_segments,
    even_segments,
    fewest_runs,
    in_segments,
    keep_all,
    keep_none,
    simulate,
)
from qlab.measure import SavedForBackward

WIDTH, BATCH = 16, 4
UNIT = WIDTH * BATCH * 4
POLICIES = {
    "all": keep_all,
    "none": keep_none,
    "root": lambda n: in_segments(n, max(1, math.isqrt(n))),
    "last": lambda n: in_segments(n, max(1, math.isqrt(n)), keep_last=True),
    "binomial": lambda n: binomial(n, 3),
}


# ------------------------------------------------------------------ the bill


def test_the_figure_to_meet():
    bills = {k: simulate(in_segments(64, k)) for k in (1, 8, 16, 64)}
    assert simulate(keep_all(64)).peak_units == 128
    assert {k: bill.peak_units for k, bill in bills.items()} == {1: 128, 8: 23, 16: 23, 64: 65}
    assert {bill.forwards for bill in bills.values()} == {128}
    assert simulate(in_segments(64, 8, keep_last=True)).forwards == 120


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 25])
def test_closed_forms_of_every_policy(n):
    assert (simulate(keep_all(n)).peak_units, simulate(keep_all(n)).forwards) == (2 * n, n)
    none = simulate(keep_none(n))
    assert (none.peak_units, none.forwards) == (3 if n > 1 else 2, n * (n + 1) // 2)
    for segments in range(1, n + 1):
        longest = even_segments(n, segments)
        # at the last segment every boundary is saved, earlier ones fewer: its length is the shortest, though
        peak = max(k + 2 * length - 1 for k, length in enumerate(longest, start=1))
        bill = simulate(in_segments(n, segments))
        assert (bill.peak_units, bill.forwards) == (peak, 2 * n)
        last = simulate(in_segments(n, segments, keep_last=True))
        assert (last.peak_units, last.forwards) == (peak, 2 * n - longest[-1])


@pytest.mark.parametrize("policy", POLICIES)
def test_sizes_in_bytes_count_boundaries_and_insides_apart(policy):
    schedule = POLICIES[policy](12)
    both = simulate(schedule)
    for moment, units in zip(both.live, both.units, strict=True):
        assert units == len(moment.boundaries) + len(moment.insides)
    weighted = simulate(schedule, boundary=1000, inside=7)
    assert weighted.units == tuple(1000 * len(m.boundaries) + 7 * len(m.insides) for m in weighted.live)
    assert weighted.units[-1] == 0 and weighted.layers == 12 and weighted.schedule == schedule


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ((), "at least one layer, got none"),
        ((Action("run", 0),), "at least one layer, got none"),
        ((Action("backward", 0),), "backward of layer 0 needs its boundary and inside"),
        ((Action("record", 1), Action("backward", 1)), "step 0: layer 1 runs, but its boundary is neither"),
        ((Action("run", 0), Action("backward", 0)), "step 1: backward of layer 0 needs"),
        (
            (Action("record", 0), Action("record", 1), Action("backward", 0), Action("backward", 1)),
            "and layer 1 next",
        ),
        ((Action("record", 0), Action("record", 1), Action("backward", 1)), "layer 0 next"),
        ((Action("record", 0), Action("backward", 0), Action("backward", 0)), "and layer 1 next"),
        (
            (Action("run", 0), Action("record", 1), Action("backward", 1), Action("record", 0), Action("backward", 0)),
            "step 3: layer 0 runs, but its boundary is neither saved nor in flight",
        ),
    ],
)
def test_a_schedule_that_cannot_be_played_is_refused(schedule, sentence):
    with pytest.raises(ValueError, match=sentence):
        simulate(schedule)


def test_a_schedule_that_keeps_the_input_can_be_played():
    keeping = Action("run", 0, keep=True)
    rest = (Action("record", 1), Action("backward", 1), Action("record", 0), Action("backward", 0))
    assert simulate((keeping, *rest)).forwards == 3


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: simulate(keep_all(2), boundary=-1), "at least 0, got -1 and 1"),
        (lambda: keep_all(0), "layers must be at least 1, got 0"),
        (lambda: keep_none(0), "layers must be at least 1, got 0"),
        (lambda: binomial(4, 0), "slots must be at least 1, got 0"),
        (lambda: in_segments(4, 5), "segments must be 1 to 4, the number of layers, got 5"),
        (lambda: in_segments(4, 0), "segments must be 1 to 4, the number of layers, got 0"),
        (lambda: even_segments(0, 1), "layers must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_even_segments_differ_by_one_at_most():
    assert even_segments(10, 4) == (3, 3, 2, 2)
    for n in range(1, 20):
        for k in range(1, n + 1):
            lengths = even_segments(n, k)
            assert sum(lengths) == n and len(lengths) == k and max(lengths) - min(lengths) <= 1


# ------------------------------------------------------------------ optimal


def fewest_by_search(n: int, slots: int) -> int:
    """Find the fewest runs by searching every way to run, save and drop, with at most `slots` boundaries saved.

    A state is what is saved, where the value in flight stands, and how many layers are still to be differentiated.
    """
    start = (frozenset([0]), 0, n)
    best, queue = {start: 0}, [(0, 0, start)]
    pushed = 0
    while queue:
        cost, _, state = heapq.heappop(queue)
        if cost > best[state]:
            continue
        saved, at, left = state
        if left == 0:
            return cost
        after = []
        if at == left - 1:
            after.append((cost + 1, (saved, -1, left - 1)))  # record and differentiate
        elif at >= 0:
            after.append((cost + 1, (saved, at + 1, left)))
        if at >= 0 and at not in saved and len(saved) < slots:
            after.append((cost, (saved | {at}, at, left)))
        after += [(cost, (saved, place, left)) for place in saved if place != at and place < left]
        after += [(cost, (saved - {place}, at, left)) for place in saved]
        for price, reached in after:
            if price < best.get(reached, math.inf):
                best[reached] = price
                pushed += 1
                heapq.heappush(queue, (price, pushed, reached))
    raise AssertionError("no way through")


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("n", range(1, 9))
def test_no_way_of_running_and_saving_is_shorter_than_the_binomial_schedule(n, slots):
    bill = simulate(binomial(n, slots))
    assert bill.forwards == fewest_runs(n, slots) == fewest_by_search(n, slots)
    assert bill.peak_units <= min(slots, n) + 2


@cache
def fewest_by_recurrence(n: int, slots: int) -> int:
    if n == 1:
        return 1
    if slots == 1:
        return n * (n + 1) // 2
    return min(m + fewest_by_recurrence(n - m, slots - 1) + fewest_by_recurrence(m, slots) for m in range(1, n))


def test_the_closed_form_is_the_recurrence_and_the_schedule_reaches_it():
    for n in range(1, 41):
        for slots in (1, 2, 3, 5, 8, 60):
            assert fewest_runs(n, slots) == fewest_by_recurrence(n, slots)
            bill = simulate(binomial(n, slots))
            assert bill.forwards == fewest_runs(n, slots)
            boundaries = max(len(moment.boundaries - moment.insides) for moment in bill.live)
            assert boundaries <= slots and max(len(moment.insides) for moment in bill.live) == 1


def test_long_chains_need_no_deep_recursion():
    assert simulate(binomial(3000, 12)).forwards == fewest_runs(3000, 12)
    assert 1 <= best_split(3000, 12) < 3000


# ------------------------------------------------------------------ measured


def chain(n: int) -> nn.Sequential:
    """Layers that save two tensors of one unit each: the linear map its input, GELU its own."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(n)))


def measured(layers: nn.Sequential, run) -> tuple[float, int]:
    """Return the peak in units and the number of times a layer ran, of a forward and a backward pass."""
    calls = []
    handles = [layer.register_forward_pre_hook(lambda *_: calls.append(1)) for layer in layers]
    with SavedForBackward() as saved:
        run(torch.randn(BATCH, WIDTH)).sum().backward()
    for handle in handles:
        handle.remove()
    return saved.peak_bytes / UNIT, len(calls)


@pytest.mark.parametrize("n", [1, 2, 9, 64])
def test_measured_bytes_and_runs_are_the_simulated_ones(n):
    layers = chain(n)
    pairs = [(keep_all(n), layers)]
    for segments in {1, 2, math.isqrt(n), n} & set(range(1, n + 1)):
        pairs.append((in_segments(n, segments), partial(checkpoint_segments, layers, segments=segments)))
    for slots in (2, 3, 7):
        pairs.append((binomial(n, slots), partial(checkpoint_binomially, layers, slots=slots)))
    for schedule, run in pairs:
        bill = simulate(schedule)
        assert measured(layers, run) == (bill.peak_units, bill.forwards)
