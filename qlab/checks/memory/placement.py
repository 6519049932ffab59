"""Check of `first_fit` and `place`: where blocks go, and traces that break a heap into holes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qlab import allocator
from qlab.checks.expect import Suspect, as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part, require

Blocks = list[tuple[int, int]]
NOWHERE = -1


@dataclass(frozen=True)
class Case:
    """A heap with blocks in use, and a request."""

    blocks: Blocks
    capacity: int
    size: int

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The free stretches, lowest first, each as start and size."""
        found, at = [], 0
        for start, end in [*sorted(self.blocks), (self.capacity, self.capacity)]:
            found += [(at, start - at)] if start > at else []
            at = end
        return found

    @property
    def fitting(self) -> list[tuple[int, int]]:
        """The holes that hold the request."""
        return [hole for hole in self.holes if hole[1] >= self.size]


@check(TOPIC, "first-fit", allocator.first_fit, allocator.two_ended, points=4)
def check_first_fit(first_fit: LearnerFunction, place: LearnerFunction, draw: torch.Generator) -> None:
    """Check `first_fit(blocks, capacity, size)` and `place(blocks, capacity, size, long_lived)`."""
    with part("first_fit: the lowest hole that is large enough, in any order of the blocks, an exact fit too"):
        _compare(
            first_fit,
            [_with_room(draw) for _ in range(12)]
            + [Case([], 64, 64), Case([(0, 9)], 20, 11), Case([(20, 40), (0, 10)], 60, 10)],
        )
    with part("first_fit: -1 where no hole is large enough, though the free bytes together are"):
        _compare(first_fit, [_without_room(draw) for _ in range(6)] + [Case([(9, 64)], 64, 10)])
    with part("place: every block lies inside the heap and over no other"):
        for long_lived in (True, False):
            tight = [_with_room(draw, share=1.0) for _ in range(6)]
            for case in [*tight, *(_with_room(draw) for _ in range(6)), _without_room(draw), Case([], 64, 64)]:
                _require_legal(place, case, long_lived)
    with part("place: a trace that first fit cannot finish comes to its end"):
        for _ in range(3):
            _require_cure(place, draw)


def _broken_heap(draw: torch.Generator) -> tuple[Blocks, int]:
    """Draw blocks with holes of different sizes between them, in no order; the last two touch."""
    blocks, at = [], 0
    for left in reversed(range(drawn(5, 8, draw))):
        start = at + (drawn(1, 30, draw) if left else 0)
        at = start + drawn(3, 20, draw)
        blocks.append((start, at))
    order = torch.randperm(len(blocks), generator=draw).tolist()
    return [blocks[i] for i in order], at + drawn(1, 30, draw)


def _with_room(draw: torch.Generator, *, share: float = 0.5) -> Case:
    """Draw a request that fits into some hole, one time in two exactly; at least `share` of the holes are no larger."""
    blocks, capacity = _broken_heap(draw)
    sizes = sorted(size for _, size in Case(blocks, capacity, 1).holes)
    size = sizes[drawn(min(int(share * len(sizes)), len(sizes) - 1), len(sizes) - 1, draw)]
    return Case(blocks, capacity, max(1, size - drawn(0, 1, draw)))


def _without_room(draw: torch.Generator) -> Case:
    blocks, capacity = _broken_heap(draw)
    sizes = [size for _, size in Case(blocks, capacity, 1).holes]
    return Case(blocks, capacity, drawn(max(sizes) + 1, sum(sizes), draw))


def _compare(first_fit: LearnerFunction, cases: Sequence[Case]) -> None:
    require_numbers(
        [first_fit(list(case.blocks), case.capacity, case.size) for case in cases],
        [case.fitting[0][0] if case.fitting else NOWHERE for case in cases],
        calls=[f"first_fit({case.blocks}, {case.capacity}, {case.size})" for case in cases],
        suspects=lambda: [
            Suspect(misconception, thought, doubles([slip(case) for case in cases]))
            for misconception, thought, slip in SLIPS
        ],
    )


def _require_legal(place: LearnerFunction, case: Case, long_lived: bool) -> None:
    blocks = list(case.blocks)
    call = f"place({blocks}, {case.capacity}, {case.size}, {long_lived})"
    start = as_number(place(blocks, case.capacity, case.size, long_lived), call=call)
    if not case.fitting:
        require(
            start == NOWHERE,
            f"`{call}` returned {start:g}, but no hole is large enough: expected -1",
            misconception="places-what-does-not-fit",
            thought="Free bytes in several holes do not make one block: return -1.",
        )
        return
    require(
        start != NOWHERE,
        f"`{call}` returned -1, but the block fits at {case.fitting[0][0]}",
        misconception="refuses-what-fits",
        thought="Where its favorite end is full, a policy takes whatever hole is left.",
    )
    _require_inside(start, case, call)


def _require_inside(start: float, case: Case, call: str) -> None:
    require(
        start == int(start) and 0 <= start <= case.capacity - case.size,
        f"`{call}` returned {start:g}: the block would end at {start + case.size:g} of {case.capacity}",
        misconception="outside-the-heap",
        thought="A block that ends at the top starts `size` below it.",
    )
    hit = next(((a, b) for a, b in case.blocks if a < start + case.size and start < b), None)
    require(
        hit is None,
        f"`{call}` returned {start:g}: the block would lie over {hit}",
        misconception="overlaps",
        thought="A hole begins where one block ends and stops where the next begins: stay inside.",
    )


def _require_cure(place: LearnerFunction, draw: torch.Generator) -> None:
    """Replay pairs of a brief and a lasting block, free the brief ones, and ask for most of what is free."""
    sizes = [(drawn(10, 30, draw), drawn(10, 30, draw)) for _ in range(drawn(6, 9, draw))]
    capacity = sum(brief + lasting for brief, lasting in sizes) + drawn(0, 5, draw)
    blocks: Blocks = []
    brief_blocks: Blocks = []
    for brief, lasting in sizes:
        brief_blocks.append(_placed(place, Case(blocks, capacity, brief), long_lived=False))
        blocks.append(brief_blocks[-1])
        blocks.append(_placed(place, Case(blocks, capacity, lasting), long_lived=True))
    left = [block for block in blocks if block not in brief_blocks]
    free = capacity - sum(end - start for start, end in left)
    case = Case(left, capacity, round(0.9 * free))
    largest = max(size for _, size in case.holes)
    require(
        case.fitting,
        f"{free} of {capacity} bytes are free at the end, but the largest hole has {largest}:"
        f" a buffer of {case.size} does not fit between {sorted(left)}",
        misconception="does-not-cure",
        thought="Blocks that stay are strewn between those that went: give each kind its own end of the heap.",
    )
    _placed(place, case, long_lived=True)


def _placed(place: LearnerFunction, case: Case, *, long_lived: bool) -> tuple[int, int]:
    blocks = list(case.blocks)
    call = f"place({blocks}, {case.capacity}, {case.size}, {long_lived})"
    start = as_number(place(blocks, case.capacity, case.size, long_lived), call=call)
    require(
        start != NOWHERE,
        f"`{call}` returned -1: {case.capacity - sum(b - a for a, b in blocks)} bytes are free,"
        f" the largest hole has {max((size for _, size in case.holes), default=0)}",
        misconception="refuses-what-fits" if case.fitting else "does-not-cure",
        thought="Keep what stays and what goes apart, so that the free bytes stay in one piece.",
    )
    _require_inside(start, case, call)
    return int(start), int(start) + case.size


def _first(case: Case, found: Callable[[tuple[int, int]], bool]) -> int:
    return next((start for start, size in case.holes if found((start, size))), NOWHERE)


def _unsorted(case: Case) -> int:
    """Walk the blocks in the order they come in."""
    at = 0
    for start, end in [*case.blocks, (case.capacity, case.capacity)]:
        if start - at >= case.size:
            return at
        at = end
    return NOWHERE


def _end_of_last(case: Case) -> int:
    at = max((end for _, end in case.blocks), default=0)
    return at if case.capacity - at >= case.size else NOWHERE


def _at_the_end_of_the_hole(case: Case) -> int:
    return sum(case.fitting[0]) - case.size if case.fitting else NOWHERE


def _no_tail(case: Case) -> int:
    return _first(case, lambda hole: hole[1] >= case.size and sum(hole) < case.capacity)


SLIPS: tuple[tuple[str, str, Callable[[Case], int]], ...] = (
    (
        "best-fit",
        "This is the smallest hole that holds the request: first fit takes the lowest.",
        lambda case: min(case.fitting, key=lambda hole: (hole[1], hole[0]), default=(NOWHERE, 0))[0],
    ),
    (
        "worst-fit",
        "This is the largest hole: first fit takes the lowest that holds the request.",
        lambda case: max(case.fitting, key=lambda hole: (hole[1], -hole[0]), default=(NOWHERE, 0))[0],
    ),
    (
        "last-fit",
        "This is the highest hole that holds the request: first fit takes the lowest.",
        lambda case: case.fitting[-1][0] if case.fitting else NOWHERE,
    ),
    (
        "refuses-an-exact-fit",
        "A hole of exactly `size` bytes holds the request.",
        lambda case: _first(case, lambda hole: hole[1] > case.size),
    ),
    ("takes-any-hole", "The hole must hold all of the request.", lambda case: _first(case, lambda hole: True)),
    (
        "adds-up-free-bytes",
        "Free bytes in several holes do not make one block: where no single hole is large enough, return -1.",
        lambda case: case.holes[0][0] if sum(size for _, size in case.holes) >= case.size else NOWHERE,
    ),
    ("relies-on-the-order", "The blocks come in any order: sort them first.", _unsorted),
    ("only-at-the-end", "Holes between the blocks count too.", _end_of_last),
    (
        "takes-the-last-hole-untested",
        "The hole below the capacity must hold the request too.",
        lambda case: case.fitting[0][0] if case.fitting else max((end for _, end in case.blocks), default=0),
    ),
    ("returns-the-end-of-the-hole", "First fit begins where the hole begins.", _at_the_end_of_the_hole),
    (
        "refuses-an-empty-heap",
        "A heap without blocks is one hole, from 0 to the capacity.",
        lambda case: case.fitting[0][0] if case.fitting and case.blocks else NOWHERE,
    ),
    ("forgets-the-last-hole", "Between the last block and the capacity is a hole as well.", _no_tail),
)
