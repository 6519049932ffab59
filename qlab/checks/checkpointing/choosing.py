"""Check of `choose_segments`: the fewest segments whose peak a budget holds, by trying every number of them."""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from qlab import checkpointing
from qlab.checks.checkpointing.topic import TOPIC
from qlab.checks.expect import as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part

KIB = 1024
Choice = int | None
Peak = Callable[["Case", int], float]


@dataclass(frozen=True)
class Case:
    """One call, in the order of the arguments."""

    layers: int
    boundary: int
    inside: int
    budget: int

    @property
    def layer(self) -> int:
        """Return all that one layer saves: its input, and what lies inside."""
        return self.boundary + self.inside

    @property
    def call(self) -> str:
        return f"choose_segments({', '.join(f'{size:_}' for size in astuple(self))})"

    def longest(self, segments: int) -> int:
        """Return how many layers the longest of so many even segments has."""
        return -(-self.layers // segments)

    def peak(self, segments: int) -> int:
        """Return the bytes kept when the longest segment has run again; 0 segments keep everything."""
        if not segments:
            return self.layers * self.layer
        return segments * self.boundary + self.longest(segments) * self.layer - self.boundary


def _chosen(case: Case, peak: Peak = Case.peak, *, strictly: bool = False) -> Choice:
    for segments in range(case.layers + 1):
        needed = peak(case, segments)
        if needed < case.budget or (needed == case.budget and not strictly):
            return segments
    return None


@check(TOPIC, "choose-segments", checkpointing.even_segments, checkpointing.in_segments, points=4)
def check_choose_segments(choose_segments: LearnerFunction, draw: torch.Generator) -> None:
    """Check `choose_segments(layers, boundary_bytes, inside_bytes, budget_bytes)`."""
    with part("segments of equal length"):
        several = [c for _ in range(6) for c in _around(_case(draw, divides=True), draw)]
        _compare(choose_segments, [*several, _each_alone(draw)])
    with part("a number of layers that cannot be divided evenly"):
        _compare(choose_segments, [c for _ in range(6) for c in _around(_case(draw, divides=False), draw)])
    with part("a budget filled to the byte holds it, one byte less does not"):
        some = [_case(draw, divides=bool(even)) for even in range(2) for _ in range(4)]
        short = [replace(case, budget=case.budget - 1) for case in some]
        _compare(choose_segments, [*some, *short, *(c for case in some for c in _around(case, draw))])
    with part("0 where all activations fit, None where nothing does"):
        some = [_case(draw, divides=False) for _ in range(4)]
        plenty = [replace(case, budget=case.peak(0) + more) for case in some[:2] for more in (0, 9_999)]
        nearly = [replace(case, budget=case.peak(0) - less) for case in some for less in (1, case.boundary)]
        least = [min(case.peak(segments) for segments in range(case.layers + 1)) for case in some]
        scarce = [replace(case, budget=low - less) for case, low in zip(some, least, strict=True) for less in (1, 99)]
        _compare(choose_segments, [*plenty, *nearly, *scarce, *_around(some[0], draw)])


def _case(draw: torch.Generator, *, divides: bool) -> Case:
    """Draw sizes, and as a budget the peak of some number of segments that is lower than the peak of all fewer ones."""
    while True:
        boundary = drawn(200, 900, draw) * KIB + drawn(0, 999, draw)
        case = Case(drawn(17, 90, draw), boundary, boundary * drawn(4, 15, draw) + drawn(1, 999, draw), 0)
        peaks = [case.peak(segments) for segments in range(1, case.layers)]
        lowest = list(accumulate(peaks, min))
        lower = [s for s in range(2, case.layers) if peaks[s - 1] < lowest[s - 2]]
        numbers = [s for s in lower if (case.layers % s == 0) == divides]
        if numbers:
            return replace(case, budget=case.peak(numbers[drawn(0, len(numbers) - 1, draw)]))


def _each_alone(draw: torch.Generator) -> Case:
    """Draw insides so large that only one layer at a time fits: two of them exceed one and all boundaries."""
    boundary = drawn(200, 900, draw) * KIB
    case = Case(drawn(4, 8, draw), boundary, boundary * drawn(10, 15, draw), 0)
    return replace(case, budget=case.peak(case.layers) + drawn(1, boundary - 1, draw))


def _around(case: Case, draw: torch.Generator) -> list[Case]:
    """Return the case with budgets a part of a boundary, one to two, and a part of a layer away on either side."""
    b, a = case.boundary, case.layer
    steps = (drawn(1, b - 1, draw), drawn(b + 1, 2 * b - 1, draw), drawn(2 * b + 1, a - 1, draw))
    return [replace(case, budget=case.budget + way * step) for step in steps for way in (1, -1)]


def _compare(choose_segments: LearnerFunction, cases: list[Case]) -> None:
    got = [_read(choose_segments(*astuple(case)), case) for case in cases]
    expected = [_chosen(case) for case in cases]
    wrong = [place for place, (g, e) in enumerate(zip(got, expected, strict=True)) if g != e]
    if not wrong:
        return
    case, given, wanted = cases[wrong[0]], got[wrong[0]], expected[wrong[0]]
    message = f"`{case.call}` returned {given}, expected {wanted} (wrong on {len(wrong)} of {len(cases)})"
    if not any(given is not None for given in got) and any(wanted is not None for wanted in expected):
        ends = "Your function computes something but does not hand it back: does it end in `return`?"
        raise Refused(message, misconception="returns-nothing", thought=ends)
    for misconception, thought, choose in _slips():
        if [choose(case) for case in cases] == got:
            raise Refused(message, misconception=misconception, thought=thought)
    rule = "Write down the peak for 1, 2, 3 … segments on paper and take the first that fits."
    raise Refused(message, misconception="wrong-value", thought=rule)


def _read(returned: Any, case: Case) -> Choice:
    if returned is None:
        return None
    number = float(as_number(returned, call=case.call))
    if not number.is_integer():
        raise Refused(
            f"`{case.call}` returned {number:g}",
            misconception="returns-a-fraction",
            thought="A number of segments is a whole number.",
        )
    return int(number)


BOUNDARIES = "Every segment keeps its input from the forward pass on: S of them, beside the segment that runs again."
RECOMPUTED = "When a segment runs again it keeps all that its layers keep: that counts at the peak."
SHARED = "The first layer's activations hold its input already: that boundary is one storage, counted once."
LONGEST = "The longest of S segments has ⌈layers / S⌉ layers: round up."


def _slips() -> Iterator[tuple[str, str, Callable[[Case], Choice]]]:
    """List what each slip chooses."""

    def by(peak: Peak) -> Callable[[Case], Choice]:
        return lambda case: _chosen(case, lambda c, s: peak(c, s) if s else c.peak(0))

    yield "refuses-an-exact-fit", "A peak that is the budget itself fits: `<=`.", lambda c: _chosen(c, strictly=True)
    for misconception, thought, peak in _other_peaks():
        yield misconception, thought, by(peak)
    more = "Any number from 1 to `layers` will do, whether it divides them or not."
    yield "only-divisors", more, lambda c: _among(c, [s for s in range(1, c.layers + 1) if c.layers % s == 0])
    each = "`layers` segments of one layer each are allowed: `range(1, layers + 1)`."
    yield "never-each-layer-alone", each, lambda c: _among(c, list(range(1, c.layers)))
    whole = "Without checkpointing every layer keeps its boundary as well as what lies inside."
    yield "forgets-boundaries", whole, lambda c: 0 if c.layers * c.inside <= c.budget else _chosen(c)
    yield "only-powers-of-two", more, lambda c: _among(c, [2**power for power in range(c.layers.bit_length())])
    yield "only-down-to-the-root", more, lambda c: _among(c, list(range(1, int(c.layers**0.5) + 1)))
    for root in (int, round, lambda value: int(value) + 1):
        lone = "√layers is where equal costs would meet: ask what fits this budget, with these bytes."
        yield "returns-the-square-root", lone, lambda c, root=root: root(c.layers**0.5)
        yield "returns-the-square-root", lone, lambda c, root=root: _among(c, [root(c.layers**0.5)])
    least = "The smallest peak is not asked for: the first number of segments that fits is."
    yield "smallest-peak", least, lambda c: min(range(c.layers + 1), key=c.peak)
    yield "smallest-peak", least, lambda c: _among(c, [min(range(1, c.layers + 1), key=c.peak)])
    yield "most-segments", "The fewest are asked for.", lambda c: _among(c, list(range(c.layers, 0, -1)))
    zero = "Where everything fits, nothing need run again: 0."
    yield "checkpoints-for-nothing", zero, lambda c: _among(c, list(range(1, c.layers + 1)), zero=False)
    nothing = "Where no number of segments fits, return None."
    for otherwise in (0, -1, "layers"):
        yield (
            "no-none",
            nothing,
            lambda c, otherwise=otherwise: _otherwise(c, c.layers if otherwise == "layers" else otherwise),
        )
    yield "no-none", nothing, lambda c: _otherwise(c, min(range(c.layers + 1), key=c.peak))
    yield "one-too-many", "One fewer fits as well.", lambda c: None if (s := _chosen(c)) is None else s + 1
    yield "one-too-few", "This one does not fit: one more does.", lambda c: None if (s := _chosen(c)) is None else s - 1


def _among(case: Case, numbers: list[int], *, zero: bool = True) -> Choice:
    if zero and case.peak(0) <= case.budget:
        return 0
    return next((s for s in numbers if case.peak(s) <= case.budget), None)


def _otherwise(case: Case, instead: int) -> int:
    chosen = _chosen(case)
    return instead if chosen is None else chosen


def _other_peaks() -> Iterator[tuple[str, str, Peak]]:
    yield "forgets-boundaries", BOUNDARIES, lambda c, s: c.longest(s) * c.layer
    yield "forgets-boundaries", BOUNDARIES, lambda c, s: c.longest(s) * c.inside
    yield "forgets-boundaries", BOUNDARIES, lambda c, s: c.longest(s) * c.layer + c.boundary
    yield "forgets-boundaries", BOUNDARIES, lambda c, s: c.layers / s * c.layer
    yield "forgets-the-recomputed-segment", RECOMPUTED, lambda c, s: s * c.boundary
    yield "forgets-the-recomputed-segment", RECOMPUTED, lambda c, s: s * c.boundary + c.layer
    yield "forgets-the-recomputed-segment", RECOMPUTED, lambda c, s: s * c.boundary + c.layer - c.boundary
    yield "counts-the-boundary-twice", SHARED, lambda c, s: s * c.boundary + c.longest(s) * c.layer
    yield "miscounts-the-longest", LONGEST, lambda c, s: (s - 1) * c.boundary + c.layers // s * c.layer
    yield "miscounts-the-longest", LONGEST, lambda c, s: s * c.boundary + c.layers // s * c.layer
    yield "miscounts-the-longest", LONGEST, lambda c, s: (s - 1) * c.boundary + c.layers / s * c.layer
    yield "miscounts-the-longest", LONGEST, lambda c, s: s * c.boundary + c.layers / s * c.layer
    yield (
        "miscounts-the-longest",
        LONGEST,
        lambda c, s: (s - 1) * c.boundary + round(c.layers / s) * c.layer,
    )
    yield "miscounts-the-longest", LONGEST, lambda c, s: (s - 1) * c.boundary + (c.layers // s + 1) * c.layer
    each = "Boundaries are kept one for each segment, not one for each layer."
    yield "a-boundary-for-each-layer", each, lambda c, s: (c.layers - 1) * c.boundary + c.longest(s) * c.layer
    yield "a-boundary-for-each-layer", each, lambda c, s: c.layers * c.boundary + c.longest(s) * c.layer
    inputs = "Inside the segment that runs again every layer's input is kept as well, not what lies inside alone."
    yield "forgets-inputs-in-the-segment", inputs, lambda c, s: s * c.boundary + c.longest(s) * c.inside
    yield "forgets-inputs-in-the-segment", inputs, lambda c, s: (s - 1) * c.boundary + c.longest(s) * c.inside
    keeps = "S segments keep S inputs: the first segment's counts too."
    yield "one-boundary-too-few", keeps, lambda c, s: (s - 2) * c.boundary + c.longest(s) * c.layer
