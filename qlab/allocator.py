"""Out of memory with bytes to spare: a heap that places blocks, and traces that break it into holes.

No memory is allocated here: the heap is a list of intervals, so that every hole can be drawn.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Allocate:
    """A request for `size_bytes` under a name; `long_lived` says that it will outlast its neighbors."""

    name: str
    size_bytes: int
    long_lived: bool = False


@dataclass(frozen=True)
class Free:
    """The end of the block that was allocated under `name`."""

    name: str


@dataclass(frozen=True)
class Block:
    """Bytes in use, from `start` up to but not including `end`."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Hole:
    """Free bytes between two blocks, from `start` up to but not including `end`."""

    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many bytes fit."""
        return self.end - self.start


Place = Callable[[list[Hole], Allocate], int]


def first_fit(holes: list[Hole], request: Allocate) -> int:
    """Place a request at the start of the lowest hole that holds it; `holes` has only such holes."""
    return holes[0].start


def best_fit(holes: list[Hole], request: Allocate) -> int:
    """Place a request at the start of the smallest hole that holds it, the lowest of them if several are equal."""
    return min(holes, key=lambda hole: (hole.size_bytes, hole.start)).start


def two_ended(holes: list[Hole], request: Allocate) -> int:
    """Place what lives long at the bottom and what lives briefly at the top, so that the middle stays whole.

    Source:  Rajbhandari et al. 2020, arXiv:1910.02054, section 6.3: long-lived tensors get a region of their own.
    """
    return holes[0].start if request.long_lived else holes[-1].end - request.size_bytes


class OutOfMemory(MemoryError):
    """No hole is large enough, whatever the sum of the holes."""


class Heap:
    """A stretch of `capacity_bytes` in which `place` decides where each block goes; blocks never move."""

    def __init__(self, capacity_bytes: int, *, place: Place = first_fit):
        if capacity_bytes < 1:
            raise ValueError(f"capacity_bytes must be at least 1, got {capacity_bytes}")
        self.capacity_bytes, self.place = capacity_bytes, place
        self.blocks: list[Block] = []

    def allocate(self, request: Allocate) -> Block:
        """Place `request`.

        Errors:  OutOfMemory if no hole holds it; ValueError if its size is below 1 or its name is in use.
        """
        if request.size_bytes < 1:
            raise ValueError(f"size_bytes must be at least 1, got {request.size_bytes} for {request.name!r}")
        if any(block.name == request.name for block in self.blocks):
            raise ValueError(f"{request.name!r} is allocated already")
        fitting = [hole for hole in self.holes if hole.size_bytes >= request.size_bytes]
        if not fitting:
            raise OutOfMemory(
                f"{request.name!r} asks for {request.size_bytes} bytes: {self.free_bytes} of {self.capacity_bytes} "
                f"are free, but the largest hole has {self.largest_hole_bytes}"
            )
        start = self.place(fitting, request)
        block = Block(request.name, start, start + request.size_bytes)
        self.blocks = sorted([*self.blocks, block], key=lambda block: block.start)
        return block

    def free(self, name: str) -> None:
        """Give back the block called `name`.

        Errors:  ValueError if there is none.
        """
        kept = [block for block in self.blocks if block.name != name]
        if len(kept) == len(self.blocks):
            raise ValueError(f"{name!r} is not allocated")
        self.blocks = kept

    @property
    def holes(self) -> list[Hole]:
        """The free stretches, lowest first; neighbors are one hole."""
        walls = [(0, 0), *((block.start, block.end) for block in self.blocks), (self.capacity_bytes,) * 2]
        return [Hole(low[1], high[0]) for low, high in pairwise(walls) if low[1] < high[0]]

    @property
    def free_bytes(self) -> int:
        """All holes together."""
        return sum(hole.size_bytes for hole in self.holes)

    @property
    def largest_hole_bytes(self) -> int:
        """The largest request that would succeed now."""
        return max((hole.size_bytes for hole in self.holes), default=0)


@dataclass(frozen=True)
class Replay:
    """How a trace ended: the request that failed, or None, and what the heap looked like then."""

    failed: Allocate | None
    free_bytes: int
    largest_hole_bytes: int
    blocks: tuple[Block, ...]


def replay(trace: Iterable[Allocate | Free], *, capacity_bytes: int, place: Place = first_fit) -> Replay:
    """Run `trace` on an empty heap until its end or its first failure."""
    heap, failed = Heap(capacity_bytes, place=place), None
    for event in trace:
        if isinstance(event, Free):
            heap.free(event.name)
            continue
        try:
            heap.allocate(event)
        except OutOfMemory:
            failed = event
            break
    return Replay(failed, heap.free_bytes, heap.largest_hole_bytes, tuple(heap.blocks))


def interleaved_trace(pairs: int, *, brief_bytes: int, lasting_bytes: int, buffer_bytes: int) -> list[Allocate | Free]:
    """Trace blocks that stay, each behind one that goes, and in the end one buffer for everything.

    So it is when layers keep an output (or a gradient) while the scratch tensors that led to it are still there.
    """
    trace: list[Allocate | Free] = []
    for pair in range(pairs):
        trace.append(Allocate(f"brief {pair}", brief_bytes))
        trace.append(Allocate(f"lasting {pair}", lasting_bytes, long_lived=True))
    trace += [Free(f"brief {pair}") for pair in range(pairs)]
    return [*trace, Allocate("buffer", buffer_bytes, long_lived=True)]
