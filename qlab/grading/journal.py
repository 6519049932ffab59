"""What has been graded, line by line on disk: a grader that is killed loses nothing and grades nothing twice."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlab.grading.faults import keeping
from qlab.grading.work import Judged

WHOLE_CLASS, ONE_STUDENT = "class", "student"


class Taken(RuntimeError):
    """Another grader works on the same course."""


@dataclass(frozen=True)
class Entry:
    """One line of the journal: when something was judged, and what was found; the notebook itself lies elsewhere.

    The first line of a run that judges anew says in `again` whose earlier lines no longer count.
    """

    at: str
    judged: Judged
    again: str = ""


class Journal:
    """An append-only file of one JSON object a line; each is on disk before `add` returns.

    `again` says whom this run judges anew: what it has not come to when it is stopped, the next run judges as well.
    Errors:  NotKept, from every method that writes.
    """

    def __init__(self, path: Path, *, again: str = "") -> None:
        self.unreadable = 0
        self._path, self._again = path, again
        self._graded: dict[str, Entry] = {}
        with keeping(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._read()

    def graded(self, key: str) -> Entry | None:
        """Return the last entry that graded what has this key; what was not graded has none."""
        return self._graded.get(key)

    def add(self, judged: Judged) -> Entry:
        """Append what was found, without the notebook, and wait until it is on disk."""
        entry = Entry(datetime.now(UTC).isoformat(timespec="seconds"), replace(judged, graded=""), self._again)
        fields = asdict(entry.judged)
        del fields["graded"]
        marked = {"again": entry.again} if entry.again else {}
        with keeping(self._path):
            self._file.write(json.dumps({"at": entry.at, **marked, **fields}).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._again = ""
        self._remember(entry)
        return entry

    def close(self) -> None:
        with keeping(self._path):
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
        if entry.again:
            own = (entry.judged.student,) if entry.again == ONE_STUDENT else ()
            self._graded = {key: one for key, one in self._graded.items() if own and one.judged.student not in own}
        if not entry.judged.reason:
            self._graded[entry.judged.key] = entry


def _entry(line: bytes) -> Entry | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        at, again = fields.pop("at"), fields.pop("again", "")
        return Entry(at, Judged.from_dict(fields), again)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Errors:  Taken if another grader holds it; NotKept if there can be none.
    """
    import fcntl  # noqa: PLC0415 - not on Windows, where nothing is graded

    with keeping(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)  # what cannot be written is not tried again when it is closed
    with file:
        with keeping(path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(20).decode("ascii", "replace").strip()
                raise Taken(f"another grader is at work on this course (process {holder})") from None
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield
