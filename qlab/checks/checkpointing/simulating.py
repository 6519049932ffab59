"""Check of `simulate_schedule`: what lives after each action, played out for schedules of several kinds."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from qlab import checkpointing
from qlab.checks.checkpointing.topic import TOPIC
from qlab.checks.expect import Suspect, as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import check, part

Step = tuple[str, int, bool]
Schedule = list[Step]
NAMES = ("peak", "repeated")


@dataclass(frozen=True)
class Case:
    """One call."""

    told: str
    schedule: Schedule
    boundary: int
    inside: int

    @property
    def call(self) -> str:
        return f"simulate_schedule(<{self.told}>, {self.boundary}, {self.inside})"


@check(TOPIC, "simulate-schedule", checkpointing.simulate, points=4)
def check_simulate_schedule(simulate_schedule: LearnerFunction, draw: torch.Generator) -> None:
    """Check `simulate_schedule(schedule, boundary, inside)`, which returns the peak and the runs that are repeated."""
    with part("everything recorded: nothing runs twice"):
        cases = [
            _sized(draw, f"{n} layers, all recorded", _recorded(range(n)))
            for n in (drawn(4, 30, draw) for _ in range(3))
        ]
        _compare(simulate_schedule, cases, NAMES)
    longer = drawn(4, 7, draw)  # most insides live in the first segment, most boundaries in the last: two moments
    lengths = [longer, longer - 1, longer - 1]
    segmented = [*(_segments(draw, number) for number in (2, 3, 5, 9)), _in_lengths(draw, lengths)]
    with part("segments of any length: the peak"):
        _compare(simulate_schedule, segmented, NAMES[:1])
    with part("segments of any length: the runs that are repeated"):
        _compare(simulate_schedule, segmented, NAMES[1:])
    with part("one boundary for all, and boundaries inside segments"):
        _compare(simulate_schedule, [_from_the_start(draw), *(_nested(draw) for _ in range(3))], NAMES)


def _sized(draw: torch.Generator, told: str, schedule: Schedule) -> Case:
    """Draw sizes of which no small multiples are equal."""
    boundary = drawn(1_001, 1_999, draw)
    return Case(told, schedule, boundary, boundary * drawn(2, 9, draw) + drawn(101, 499, draw))


def _recorded(layers: Sequence[int]) -> Schedule:
    return [("record", i, False) for i in layers] + [("backward", i, False) for i in reversed(layers)]


def _run(start: int, stop: int) -> Schedule:
    """Return the runs of a segment, of which only the first layer's input is kept."""
    return [("run", i, i == start) for i in range(start, stop)]


def _segments(draw: torch.Generator, number: int) -> Case:
    return _in_lengths(draw, [drawn(2, 6, draw) for _ in range(number)])


def _in_lengths(draw: torch.Generator, lengths: list[int]) -> Case:
    stops = [sum(lengths[: place + 1]) for place in range(len(lengths))]
    spans = [(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
    forward = [step for span in spans for step in _run(*span)]
    backward = [step for span in reversed(spans) for step in _recorded(range(*span))]
    return _sized(draw, f"segments of {lengths} layers", forward + backward)


def _from_the_start(draw: torch.Generator) -> Case:
    """Keep the first input alone, once, and start from it each time: a run without keep frees nothing."""
    n = drawn(6, 12, draw)
    schedule = []
    for layer in reversed(range(4, n)):
        schedule += [("run", i, i == 0 and layer == n - 1) for i in range(layer)] + _recorded([layer])
    schedule += [("run", 0, False), *_recorded(range(1, 4)), *_recorded([0])]
    return _sized(draw, f"{n} layers, each time from the first input", schedule)


def _nested(draw: torch.Generator) -> Case:
    n = drawn(9, 24, draw)
    return _sized(draw, f"{n} layers, each half from a boundary of its own", _halves(0, n))


def _halves(start: int, stop: int) -> Schedule:
    if stop - start == 1:
        return _recorded([start])
    middle = start + (stop - start + 1) // 2
    return _run(start, middle) + _halves(middle, stop) + _halves(start, middle)


def _compare(simulate_schedule: LearnerFunction, cases: list[Case], names: Sequence[str]) -> None:
    read = _read(simulate_schedule, cases, names)

    def suspects() -> Iterator[Suspect]:
        read_again = _read(simulate_schedule, WITNESSES, names)  # a slip shows on all schedules, or it is another one
        for misconception, thought, simulate in _slips():
            if _of(simulate, WITNESSES, names) == read_again:
                yield Suspect(misconception, thought, doubles(_of(simulate, cases, names)))

    calls = [f"{case.call}, {name}" for case in cases for name in names]
    require_numbers(read, _of(_simulated, cases, names), calls=calls, suspects=suspects)


def _read(simulate_schedule: LearnerFunction, cases: Sequence[Case], names: Sequence[str]) -> list[float]:
    read = []
    for case in cases:
        returned = unpacked(simulate_schedule(case.schedule, case.boundary, case.inside), NAMES, call=case.call)
        values = dict(zip(NAMES, returned, strict=True))
        read += [as_number(values[name], call=f"{case.call}, {name}") for name in names]
    return read


def _of(simulate: "Simulate", cases: Sequence[Case], names: Sequence[str]) -> list[float]:
    results = [dict(zip(NAMES, simulate(case), strict=True)) for case in cases]
    return [result[name] for result in results for name in names]


WITNESSES = (
    Case("two segments", [*_run(0, 3), *_run(3, 5), *_recorded(range(3, 5)), *_recorded(range(3))], 1_009, 5_003),
    Case("seven layers, halved", _halves(0, 7), 1_013, 4_007),
)
Simulate = Callable[[Case], tuple[float, float]]
Count = Callable[[Schedule], float]
Size = Callable[[Case, Counter, Counter], float]


def _repeated(schedule: Schedule) -> int:
    return sum(kind != "backward" for kind, *_ in schedule) - len({layer for _, layer, _ in schedule})


def _size(case: Case, boundaries: Counter, insides: Counter) -> float:
    return len(+boundaries) * case.boundary + len(+insides) * case.inside


def _size_with_repeats(case: Case, boundaries: Counter, insides: Counter) -> float:
    return boundaries.total() * case.boundary + insides.total() * case.inside


@dataclass(frozen=True)
class Rules:
    """Which action keeps and frees what: the right rules unless told otherwise."""

    keeps_input: Callable[[str, bool], bool] = lambda kind, keep: keep or kind == "record"
    keeps_inside: Callable[[str], bool] = lambda kind: kind == "record"
    frees_input: bool = True
    frees_inside: bool = True
    frees_at: str = "backward"
    looks: Callable[[str], bool] = lambda kind: True
    size: Size = _size


def _played(case: Case, rules: Rules) -> list[float]:
    """Return the bytes that live after each action that is looked at."""
    boundaries, insides, sizes = Counter(), Counter(), [0.0]
    for kind, layer, keep in case.schedule:
        if kind != "backward":
            boundaries[layer] += rules.keeps_input(kind, keep)
            insides[layer] += rules.keeps_inside(kind)
        if kind == rules.frees_at and rules.frees_input:
            boundaries[layer] = 0
        if kind == "backward" and rules.frees_inside:
            insides[layer] = 0
        if rules.looks(kind):
            sizes.append(rules.size(case, boundaries, insides))
    return sizes


def _simulated(case: Case, rules: Rules = Rules(), count: Count = _repeated) -> tuple[float, float]:
    return max(_played(case, rules)), count(case.schedule)


TWICE = "A layer's input that is kept already is one storage: recording the layer adds what lies inside, no more."
FREED = "When a layer is differentiated both its input and what lies inside are freed."
PASSES = 'A "run" without keep saves nothing: its input only passes.'
INPUT = 'A "record" saves the layer\'s input too, unless it is kept already.'
KEPT = 'A "run" with keep saves the layer\'s input: one boundary.'
RECORDS = 'A "record" runs the layer as well: it counts like a "run".'
PEAK = "The peak is the most that lives after any action."

SLIPS: tuple[tuple[str, str, Rules], ...] = (
    ("counts-the-boundary-twice", TWICE, Rules(size=_size_with_repeats)),
    ("never-frees", FREED, Rules(frees_input=False, frees_inside=False)),
    ("never-frees", FREED, Rules(frees_input=False, frees_inside=False, size=_size_with_repeats)),
    ("never-frees-boundaries", FREED, Rules(frees_input=False)),
    ("never-frees-boundaries", FREED, Rules(frees_input=False, size=_size_with_repeats)),
    ("never-frees-insides", FREED, Rules(frees_inside=False)),
    ("keeps-what-passes", PASSES, Rules(keeps_input=lambda kind, keep: True)),
    ("keeps-what-passes", PASSES, Rules(keeps_input=lambda kind, keep: True, size=_size_with_repeats)),
    ("keeps-what-passes", PASSES, Rules(keeps_inside=lambda kind: True)),
    ("forgets-the-input-of-a-record", INPUT, Rules(keeps_input=lambda kind, keep: keep)),
    ("forgets-kept-boundaries", KEPT, Rules(keeps_input=lambda kind, keep: kind == "record")),
    ("forgets-all-boundaries", KEPT, Rules(keeps_input=lambda kind, keep: False)),
    ("forgets-the-insides", 'A "record" saves what lies inside too.', Rules(keeps_inside=lambda kind: False)),
    ("frees-too-early", "A boundary lives until its own layer is differentiated.", Rules(frees_at="record")),
    ("looks-after-freeing", PEAK, Rules(looks=lambda kind: kind == "backward")),
    ("looks-at-the-forward-pass-only", PEAK, Rules(looks=lambda kind: kind == "run")),
)


def _slips() -> Iterator[tuple[str, str, Simulate]]:
    first = "Every layer has to run once in any case: take those off, and what is left was repeated."
    counts: tuple[tuple[str, str, Count], ...] = (
        ("counts-first-runs", first, lambda s: sum(kind != "backward" for kind, *_ in s)),
        ("forgets-records", RECORDS, lambda s: sum(kind == "run" for kind, *_ in s) - len({i for _, i, _ in s})),
        ("forgets-records", RECORDS, lambda s: max(0, sum(k == "run" for k, *_ in s) - len({i for _, i, _ in s}))),
        ("counts-records-only", 'A "run" after the first is repeated work too.', _records),
        ("counts-backwards", "A backward step is no run of the layer.", len),
        ("one-too-many", first, lambda s: _repeated(s) + 1),
        ("one-too-few", first, lambda s: _repeated(s) - 1),
        ("counts-layers-not-runs", "A layer that runs four times repeats three.", _layers_repeated),
    )
    for misconception, thought, rules in SLIPS:
        yield misconception, thought, partial(_simulated, rules=rules)
    for misconception, thought, count in counts:
        yield misconception, thought, partial(_simulated, count=count)
    for misconception, thought, rules in SLIPS:
        for _, _, count in counts:
            yield misconception, thought, partial(_simulated, rules=rules, count=count)
    yield "sum-not-peak", PEAK, lambda case: (sum(_played(case, Rules())), _repeated(case.schedule))
    yield "adds-two-peaks", PEAK, lambda case: (_two_peaks(case), _repeated(case.schedule))
    yield "end-not-peak", PEAK, lambda case: (_played(case, Rules())[-1], _repeated(case.schedule))


def _two_peaks(case: Case) -> float:
    return sum(max(_played(part_of, Rules())) for part_of in (replace(case, boundary=0), replace(case, inside=0)))


def _records(schedule: Schedule) -> int:
    return sum(kind == "record" for kind, *_ in schedule)


def _layers_repeated(schedule: Schedule) -> int:
    runs = Counter(layer for kind, layer, _ in schedule if kind != "backward")
    return sum(count > 1 for count in runs.values())
