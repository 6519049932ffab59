"""Processor time of this process and of all that it starts, whoever waits for them: a control group counts it."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup")
BURNER_SECONDS, PATIENCE_SECONDS = 0.5, 10
BURNER = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # nobody's child, as a process of a sandbox may become
        while time.process_time() < {BURNER_SECONDS}:
            pass
    os._exit(0)
"""


@dataclass
class Spent:
    """What a stretch of work cost.

    Units:   seconds, of processor time over all processes and of wall-clock time.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


class Meter:
    """A control group with this process in it, version 1 or 2; without one, only processes that were waited for count.

    The group is made below the one this process is in, so that it counts for that one as before.
    """

    def __init__(self) -> None:
        self._group: Path | None = None
        self._home: Path | None = None

    def __enter__(self) -> "Meter":
        with contextlib.suppress(OSError):
            self._home = _own_group()
            group = self._home / f"qlab-bench-{os.getpid()}"
            group.mkdir()
            (group / "cgroup.procs").write_text(str(os.getpid()))
            self._group = group
        before = self._cpu_seconds()
        subprocess.run([sys.executable, "-c", BURNER], check=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._cpu_seconds() < before + BURNER_SECONDS and time.monotonic() < deadline:
            time.sleep(0.1)
        if time.monotonic() >= deadline:
            print("no control group counts processor time here: processes nobody waits for are missing from it")
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None and self._home is not None:
            (self._home / "cgroup.procs").write_text(str(os.getpid()))
            with contextlib.suppress(OSError):  # something in it still ends
                self._group.rmdir()

    @contextlib.contextmanager
    def measured(self) -> Iterator[Spent]:
        """Fill in what the work inside cost once it is done."""
        spent, cpu, start = Spent(), self._cpu_seconds(), time.perf_counter()
        yield spent
        spent.cpu_seconds, spent.wall_seconds = self._cpu_seconds() - cpu, time.perf_counter() - start

    def resident_bytes(self) -> dict[str, int]:
        """Return the memory of each process below this one, shared pages divided, by process id and name."""
        found = {}
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(OSError, ValueError, StopIteration):  # it has ended meanwhile
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                found[f"{pid} {name}"] = 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
        return found

    def _cpu_seconds(self) -> float:
        if self._group is None:
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            return sum(each.ru_utime + each.ru_stime for each in used)
        if (self._group / "cpuacct.usage").exists():
            return 1e-9 * int((self._group / "cpuacct.usage").read_text())
        fields = dict(line.split() for line in (self._group / "cpu.stat").read_text().splitlines())
        return 1e-6 * int(fields["usage_usec"])


def _own_group() -> Path:
    """Return the group this process is in, of the controller that counts processor time."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpuacct" in controllers.split(","):
            return VERSION_1 / path.lstrip("/")
    unified = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return VERSION_2 / unified[3:].strip().lstrip("/")


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                yield child
                yield from _descendants(child)
