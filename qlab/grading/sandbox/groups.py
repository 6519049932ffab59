"""Control groups, where this user may make them: memory and processes of one kernel, counted by the kernel itself."""

import contextlib
import errno
import os
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
NO_LIMIT_OF_PROCESSES = 2**15
_numbers = count(1)
_left: list[Path] = []


@dataclass(frozen=True)
class Group:
    """The groups of one kernel: one folder in version 2, one for each controller in version 1."""

    memory: Path
    pids: Path
    cpu: Path | None = None

    def add(self, pid: int) -> None:
        """Put a process, and all it will start, into the group.

        Errors:  OSError if it has ended.
        """
        for folder in self.folders():
            _write(folder / "cgroup.procs", str(pid))

    def ran_out_of_memory(self) -> bool:
        """Say whether the kernel ended a process of the group for its memory."""
        for name in ("memory.events", "memory.oom_control"):
            told = self.memory / name
            if told.exists():
                fields = dict(line.split() for line in told.read_text().splitlines())
                return int(fields.get("oom_kill", 0)) > 0
        return False

    def remove(self) -> None:
        """Remove the group, or leave it to `remove_left` while a process still ends in it."""
        _left.extend(self.folders())
        remove_left()

    def folders(self) -> tuple[Path, ...]:
        """Return the group's folders, each once."""
        return tuple(dict.fromkeys(folder for folder in (self.memory, self.pids, self.cpu) if folder is not None))


@dataclass(frozen=True)
class Parent:
    """Where groups can be made: a folder for each controller, the same one in version 2.

    A group of its own also gives each kernel an equal share of the processors, however many processes it starts.
    """

    kind: str
    memory: Path
    pids: Path
    cpu: Path | None = None

    def new_group(self, *, memory_bytes: int, processes: int) -> Group:
        """Make a limited, empty group.

        Errors:  OSError if it cannot be made or limited.
        """
        name = f"qlab-{os.getpid()}-{next(_numbers)}"
        group = Group(self.memory / name, self.pids / name, None if self.cpu is None else self.cpu / name)
        try:
            for folder in group.folders():
                folder.mkdir()
            for path, text in self._settings(group, memory_bytes, processes).items():
                _write(path, text)
        except OSError:
            group.remove()
            raise
        return group

    def _settings(self, group: Group, memory_bytes: int, processes: int) -> dict[Path, str]:
        limits = {group.pids / "pids.max": str(processes)}
        if self.kind == "cgroup v2":
            limits |= {group.memory / "memory.max": str(memory_bytes), group.memory / "memory.oom.group": "1"}
            swap = group.memory / "memory.swap.max"
            return limits | ({swap: "0"} if swap.exists() else {})
        limits |= {group.memory / "memory.limit_in_bytes": str(memory_bytes)}
        with_swap = group.memory / "memory.memsw.limit_in_bytes"
        return limits | ({with_swap: str(memory_bytes)} if with_swap.exists() else {})


def remove_left() -> None:
    """Remove the groups that were done with, as far as no process is left in them."""
    for folder in list(_left):
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno == errno.EBUSY:
                continue
        with contextlib.suppress(ValueError):  # another thread took it off
            _left.remove(folder)


@cache
def parent() -> Parent | None:
    """Return where this process can make groups, or None; found by making one and removing it."""
    for candidate in _candidates():
        try:
            group = candidate.new_group(memory_bytes=2**30, processes=NO_LIMIT_OF_PROCESSES)
        except OSError:
            continue
        group.remove()
        _remove_forgotten(candidate)
        return candidate
    return None


def _remove_forgotten(parent: Parent) -> None:
    """Remove the empty groups of graders that were killed."""
    for folder in [found for at in (parent.memory, parent.pids, parent.cpu) if at for found in at.glob("qlab-*-*")]:
        if not Path("/proc", folder.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):  # not empty, or removed meanwhile
                folder.rmdir()


def _candidates() -> list[Parent]:
    """List where groups might be made: below the groups of this process, else below what is mounted."""
    try:
        lines = [line.split(":", 2) for line in OWN.read_text().splitlines()]
    except OSError:
        return []
    own = {name: path.lstrip("/") for _, names, path in lines for name in names.split(",")}
    found = [Parent("cgroup v2", unified, unified) for unified in (MOUNTED / own.get("", ""), MOUNTED)]
    cpu = MOUNTED / "cpu" / own.get("cpu", "")
    for memory in (own.get("memory", ""), ""):
        pids = MOUNTED / "pids" / own.get("pids", "")
        found.append(Parent("cgroup v1", MOUNTED / "memory" / memory, pids, cpu if _is_group(cpu) else None))
    return [parent for parent in found if _is_group(parent.memory) and _is_group(parent.pids)]


def _is_group(folder: Path) -> bool:
    return (folder / "cgroup.procs").exists()


def _write(path: Path, text: str) -> None:
    """Write to a file that is there: a folder that only looks like a group has none of them."""
    with path.open("r+", encoding="ascii") as file:
        file.write(text)
