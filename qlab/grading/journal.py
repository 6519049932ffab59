"""What has been graded, line by line on disk: a grader that is killed loses nothing and grades nothing twice."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlab.grading.work import Judged


class Taken(RuntimeError):
    """Another grader works on the same course."""


@dataclass(frozen=True)
class Entry:
    """One line of the journal: when something was judged, and what was found; the notebook itself lies elsewhere."""

    at: str
    judged: Judged


class Journal:
    """An append-only file of one JSON object a line; each is on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.unreadable = 0
        self._graded: dict[str, Entry] = {}
        self._file = path.open("a+b")
        self._read()

    def graded(self, key: str) -> Entry | None:
        """Return the last entry that graded what has this key; what was not graded has none."""
        return self._graded.get(key)

    def add(self, judged: Judged) -> Entry:
        """Append what was found, without the notebook, and wait until it is on disk."""
        entry = Entry(datetime.now(UTC).isoformat(timespec="seconds"), replace(judged, graded=""))
        fields = asdict(entry.judged)
        del fields["graded"]
        self._file.write(json.dumps({"at": entry.at, **fields}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._remember(entry)
        return entry

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        """Read all lines; a line that was cut short by a crash is passed over, and ended so that the next is whole."""
        self._file.seek(0)
        line = b"\n"
        for line in self._file:
            entry = _entry(line)
            self.unreadable += entry is None
            if entry is not None:
                self._remember(entry)
        if not line.endswith(b"\n"):
            self._file.write(b"\n")

    def _remember(self, entry: Entry) -> None:
        if not entry.judged.reason:
            self._graded[entry.judged.key] = entry


def _entry(line: bytes) -> Entry | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        return Entry(fields.pop("at"), Judged.from_dict(fields))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Errors:  Taken if another grader holds it.
    """
    import fcntl  # noqa: PLC0415 - not on Windows, where nothing is graded

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Taken(f"another grader is at work on this course (process {file.read(20).strip()})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
