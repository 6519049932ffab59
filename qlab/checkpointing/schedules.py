"""Schedules: which layer runs when, what stays saved, and what that costs in memory and in forward runs.

A chain of n layers has boundaries 0 … n: layer i reads boundary i and makes boundary i + 1. To be differentiated, a
layer needs its boundary i and what it saved *inside*. By default both are one unit, so that a layer saves two. What
the loss holds after boundary n, and the value in flight from one layer to the next, are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Literal


@dataclass(frozen=True)
class Action:
    """One step of a schedule on one layer.

    "run": forward, nothing saved inside, and the layer's boundary saved if `keep`. "record": forward, boundary and
    inside saved. "backward": the layer is differentiated; its boundary and inside are freed.
    """

    kind: Literal["run", "record", "backward"]
    layer: int
    keep: bool = False


Schedule = tuple[Action, ...]


@dataclass(frozen=True)
class Moment:
    """What is saved after one action: boundaries and insides, by layer."""

    boundaries: frozenset[int]
    insides: frozenset[int]


@dataclass(frozen=True)
class Timeline:
    """A schedule played out: what lives after each action, and the bill.

    Units:   `units` and `peak_units` are what `simulate` was given for a boundary and an inside: bytes, if those are.
    """

    schedule: Schedule
    live: tuple[Moment, ...]
    units: tuple[int | float, ...]

    @property
    def peak_units(self) -> int | float:
        """The most that is saved at one time."""
        return max(self.units)

    @property
    def forwards(self) -> int:
        """How many times some layer runs forward, first runs and replays together."""
        return sum(action.kind != "backward" for action in self.schedule)

    @property
    def layers(self) -> int:
        """The depth of the chain."""
        return sum(action.kind == "backward" for action in self.schedule)


def simulate(schedule: Schedule, *, boundary: int | float = 1, inside: int | float = 1) -> Timeline:
    """Play a schedule out and count what it keeps and runs.

    Units:   `boundary` and `inside` are the size of a layer's input and of what else it saves: in bytes, say.
    Errors:  ValueError if an action lacks what it needs, if layers are not differentiated last to first, or if a size
             is negative.
    """
    if boundary < 0 or inside < 0:
        raise ValueError(f"boundary and inside must be at least 0, got {boundary} and {inside}")
    layers = sum(action.kind == "backward" for action in schedule)
    if layers < 1:
        raise ValueError("a schedule must differentiate at least one layer, got none")
    chain, live = _Chain(next_back=layers - 1), []
    for step, action in enumerate(schedule):
        try:
            chain.take(action)
        except ValueError as missing:
            raise ValueError(f"step {step}: {missing}") from None
        live.append(Moment(frozenset(chain.boundaries), frozenset(chain.insides)))
    units = tuple(len(moment.boundaries) * boundary + len(moment.insides) * inside for moment in live)
    return Timeline(schedule, tuple(live), units)


class _Chain:
    """What is saved and in flight while a schedule is played."""

    def __init__(self, *, next_back: int) -> None:
        self.boundaries: set[int] = set()
        self.insides: set[int] = set()
        self.in_flight, self.next_back = 0, next_back

    def take(self, action: Action) -> None:
        """Take one action, or say what it lacks."""
        layer = action.layer
        if action.kind == "backward":
            if layer != self.next_back or layer not in self.insides & self.boundaries:
                raise ValueError(
                    f"backward of layer {layer} needs its boundary and inside, and layer {self.next_back} next"
                )
            self.next_back -= 1
            self.boundaries.discard(layer)
            self.insides.discard(layer)
            return
        if layer not in self.boundaries and self.in_flight != layer:
            raise ValueError(f"layer {layer} runs, but its boundary is neither saved nor in flight")
        if action.keep or action.kind == "record":
            self.boundaries.add(layer)
        if action.kind == "record":
            self.insides.add(layer)
        self.in_flight = layer + 1


def keep_all(n: int) -> Schedule:
    """Save everything in one forward pass: most memory, n runs."""
    return (*_recorded(0, require_depth(n)), *_backwards(0, n))


def keep_none(n: int) -> Schedule:
    """Save the input only, and start from it for each layer: least memory, n (n + 1) / 2 runs."""
    return binomial(n, 1)


def in_segments(n: int, segments: int, *, keep_last: bool = False) -> Schedule:
    """Save the first boundary of each segment and replay segment by segment; `keep_last` records the last at once.

    Errors:  ValueError if `segments` is below 1 or above the depth `n`.
    Source:  Chen et al. 2016, section 4, arXiv:1604.06174; `keep_last` is what `checkpoint_sequential` does.
    """
    lengths = even_segments(n, segments)
    starts = [sum(lengths[:place]) for place in range(segments)]
    spans = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    forward = [action for start, stop in spans for action in _run(start, stop)]
    if keep_last:
        forward[spans[-1][0] :] = _recorded(*spans[-1])
    schedule = forward
    for start, stop in reversed(spans):
        if not (keep_last and stop == n):
            schedule += _recorded(start, stop)
        schedule += _backwards(start, stop)
    return tuple(schedule)


def binomial(n: int, slots: int) -> Schedule:
    """Save at most `slots` boundaries, the input among them, and run the fewest layers that this allows.

    The layer being differentiated has its own boundary and inside beside the slots.
    Errors:  ValueError if `n` or `slots` is below 1.
    Source:  Griewank and Walther 2000, "Algorithm 799: revolve", ACM TOMS 26(1).
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    return tuple(_reverse(0, require_depth(n), min(slots, n)))


def fewest_runs(n: int, slots: int) -> int:
    """Count the runs of a binomial schedule: each layer once for its backward pass, and what leads up to it.

    Source:  Griewank and Walther 2000, equation for p(l, s): t·l − C(s + t, t − 1), with the smallest t whose
             C(s + t, s) is at least l.
    """
    if n == 1:
        return 1
    repeats = 0
    while comb(slots + repeats, slots) < n:
        repeats += 1
    return n + repeats * n - comb(slots + repeats, repeats - 1)


def best_split(n: int, slots: int) -> int:
    """Return how far to run from a saved boundary before the next one is saved."""
    if slots == 1:
        return n - 1
    return min(range(1, n), key=lambda m: m + fewest_runs(n - m, slots - 1) + fewest_runs(m, slots))


def even_segments(layers: int, segments: int) -> tuple[int, ...]:
    """Divide `layers` into `segments` lengths that differ by at most one, the longer ones first.

    Errors:  ValueError if `segments` is below 1 or above `layers`.
    """
    require_depth(layers)
    if not 1 <= segments <= layers:
        raise ValueError(f"segments must be 1 to {layers}, the number of layers, got {segments}")
    length, longer = divmod(layers, segments)
    return (length + 1,) * longer + (length,) * (segments - longer)


def require_depth(n: int) -> int:
    """Refuse a chain without layers."""
    if n < 1:
        raise ValueError(f"the number of layers must be at least 1, got {n}")
    return n


def _reverse(start: int, stop: int, slots: int) -> Iterator[Action]:
    """Differentiate layers `start` to `stop`; one of the slots holds the boundary of `start`."""
    while stop - start > 1:
        middle = start + best_split(stop - start, slots)
        yield from _run(start, middle)
        yield from _reverse(middle, stop, max(slots - 1, 1))
        stop = middle
    yield from (*_recorded(start, stop), *_backwards(start, stop))


def _run(start: int, stop: int) -> list[Action]:
    return [Action("run", layer, keep=layer == start) for layer in range(start, stop)]


def _recorded(start: int, stop: int) -> list[Action]:
    return [Action("record", layer) for layer in range(start, stop)]


def _backwards(start: int, stop: int) -> list[Action]:
    return [Action("backward", layer) for layer in reversed(range(start, stop))]
