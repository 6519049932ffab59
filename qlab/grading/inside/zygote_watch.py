"""What one child and all it started use, read from outside of it: memory, processes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

KIB = 1024
MIB = 2**20
LAST_IN_LINE = 19
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ANONYMOUS = ("RssAnon:", "RssShmem:")
PROPORTIONAL = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants use: memory that is theirs, threads, processor time so far."""

    pid: int
    memory_bytes: int
    threads: int
    cpu_seconds: float


def family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it, as far as they are still there."""
    waiting = [pid]
    while waiting:
        process = waiting.pop()
        yield process
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                waiting += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
        except OSError:
            continue  # it has just ended


def usage(pid: int, *, most_processes: int) -> Usage:
    """Return what a process and its descendants use; memory shared among them may count more than once.

    Of more processes than `most_processes` one too many is counted: a fork bomb is seen before it has grown.
    """
    memory = threads = 0
    seconds = 0.0
    for process in islice(family(pid), most_processes + 1):
        fields = _fields(f"/proc/{process}/status")
        memory += sum(fields.get(name, 0) for name in ANONYMOUS) * KIB
        threads += fields.get("Threads:", 0)
        seconds += _cpu_seconds(process)
    return Usage(pid, memory, threads, seconds)


def exact_memory_bytes(pid: int) -> int:
    """Return their memory with what is shared counted in parts; slower, and asked for only near the limit."""
    total = 0
    for process in family(pid):
        fields = _fields(f"/proc/{process}/smaps_rollup")
        total += sum(fields.get(name, 0) for name in PROPORTIONAL) * KIB
    return total


def step_back(pid: int) -> None:
    """Give a process and its descendants the processor when nobody else wants it."""
    for process in family(pid):
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                os.setpriority(os.PRIO_PROCESS, int(task), LAST_IN_LINE)
        except OSError:
            continue  # it has just ended


def excess(now: Usage, *, memory_bytes: int, processes: int) -> str:
    """Return what they use too much of, in words, or nothing."""
    if now.threads > processes:
        return f"it started more than {processes} processes or threads"
    if now.memory_bytes > memory_bytes and exact_memory_bytes(now.pid) > memory_bytes:
        return f"it used more than {memory_bytes // MIB} MiB of memory"
    return ""


def _cpu_seconds(process: int) -> float:
    """Return the processor time of a process and of its children that it has waited for."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS_PER_SECOND


def _fields(path: str) -> dict[str, int]:
    """Read the lines `Name: number …` of a file under /proc; a file that has gone has none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    cut = (line.split(None, 2) for line in lines)
    return {words[0]: int(words[1]) for words in cut if len(words) > 1 and words[1].isdigit()}
