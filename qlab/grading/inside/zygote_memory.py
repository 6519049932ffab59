"""Make a fork cheap: the memory of the warm process in huge pages, of which a fork copies a five-hundredth as many."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

from qlab.grading.inside import confine_calls as calls

HUGE = 2**21
MADV_COLLAPSE = 25  # Linux 6.1


def collapse() -> int:
    """Move this process's memory into huge pages where the kernel can, and return how many bytes it moved."""
    moved = 0
    for start, end in _private_memory():
        first, last = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        size = last - first
        if size > 0 and calls.libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_COLLAPSE) == 0:
            moved += size
    return moved


def _private_memory() -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, _, _, _, *name = line.split(None, 5)
        if rights == "rw-p" and not (name and name[0].startswith("/")):
            start, end = span.split("-")
            yield int(start, 16), int(end, 16)
