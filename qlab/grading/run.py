"""Grading a class: what is handed in goes to the workers, what comes back to the journal and the gradebook."""

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat

import qlab
from qlab.grading.faults import NoGradebook, keeping
from qlab.grading.gradebook import Book, Graded
from qlab.grading.journal import ONE_STUDENT, WHOLE_CLASS, Journal, locked
from qlab.grading.places import TIMESTAMP, Found, Places, handed_in, releases_of
from qlab.grading.submission import Refused, content_of
from qlab.grading.work import Judged, Task

Mapper = Callable[..., Iterator[Judged]]
MOST_UNWRITTEN = 25  # submissions in one transaction of the gradebook
SECONDS_UNWRITTEN = 3.0
LONGEST_TIMESTAMP = 200


@dataclass(frozen=True)
class Order:
    """What is to be graded, and how."""

    assignment: str
    places: Places
    mapper: Mapper
    student: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Ended:
    """The end of one submission: what was found, and whether an earlier run found it."""

    judged: Judged
    before: bool = False


def count(order: Order) -> int:
    """Return how many notebooks were handed in."""
    releases = set(releases_of(order.assignment, order.places))
    return sum(1 for _ in handed_in(order.assignment, releases, order.places, student=order.student))


def grade(order: Order) -> Iterator[Ended]:
    """Grade what was handed in and is not graded yet, and yield each submission's end once it is safely recorded.

    Errors:  Taken if another grader is at work; NoIsolation, NoGradebook, NotALab, each before anything is graded;
             NotKept once something cannot be put on disk: what was yielded is there.
    """
    releases = releases_of(order.assignment, order.places)
    anew = (ONE_STUDENT if order.student else WHOLE_CLASS) if order.again else ""
    with (
        locked(order.places.records / "lock"),
        Journal(order.places.records / f"{order.assignment}.jsonl", again=anew) as journal,
        Book(order.assignment, releases, order.places) as book,
        contextlib.closing(_Run(order, journal, book)) as run,
    ):
        texts = {name: nbformat.writes(notebook) for name, notebook in releases.items()}
        yield from run.all(texts)


class _Run:
    """One run over all that was handed in."""

    def __init__(self, order: Order, journal: Journal, book: Book) -> None:
        self._order, self._journal, self._book = order, journal, book
        self._ended: deque[Ended] = deque()
        self._unwritten: list[Graded] = []
        self._notes: dict[str, str] = {}  # of those that are being judged, by key
        self._written_at = time.monotonic()

    def all(self, releases: Mapping[str, str]) -> Iterator[Ended]:
        judging = self._order.mapper(self._tasks(releases), releases=releases)
        with contextlib.closing(judging):
            for judged in judging:
                self._record(judged)
                yield from self._drained()
        yield from self._drained()

    def close(self) -> None:
        """Write what is judged and not yet in the gradebook; a run that cannot is made up for by the next.

        Errors:  NoGradebook if it still cannot be written.
        """
        self._write()

    def _tasks(self, releases: Mapping[str, str]) -> Iterator[Task]:
        """Yield what is to be judged; all else ends here, and is waiting to be yielded as such."""
        order = self._order
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in releases.items()}
        for found in handed_in(order.assignment, set(releases), order.places, student=order.student):
            try:
                content = self._content(found)
            except Refused as refusal:
                self._record(Judged(found.student, found.notebook, key="", reason=str(refusal)))
                continue
            key = _key(found, content, hashes[found.notebook])
            entry = None if order.again else self._journal.graded(key)
            if entry is not None and _graded_path(entry.judged, order).exists():
                self._restore(entry.judged)
                continue
            self._notes[key] = found.note
            yield Task(found.student, found.notebook, key, content)

    def _content(self, found: Found) -> bytes:
        if found.reason:
            raise Refused(found.reason)
        return content_of(found.path, under=self._order.places.submitted)

    def _restore(self, judged: Judged) -> None:
        """See to it that the gradebook holds what an earlier run found."""
        if not self._book.holds(judged):
            self._later(judged)
        self._ended.append(Ended(judged, before=True))

    def _record(self, judged: Judged) -> None:
        """Keep what was found: the notebook first, then the journal, which makes it count, then the gradebook."""
        note = self._notes.pop(judged.key, "")
        judged = replace(judged, repairs=(note, *judged.repairs)) if note else judged
        if not judged.reason:
            write_durably(judged.graded.encode() + b"\n", _graded_path(judged, self._order))
        entry = self._journal.add(judged)
        if not judged.reason:
            self._later(entry.judged)
        self._ended.append(Ended(entry.judged))

    def _later(self, judged: Judged) -> None:
        self._unwritten.append(Graded(judged, _timestamp(judged.student, self._order)))
        waited = time.monotonic() - self._written_at
        if len(self._unwritten) % MOST_UNWRITTEN == 0 or waited > SECONDS_UNWRITTEN:
            with contextlib.suppress(NoGradebook):  # formgrader may hold it for a while: it is tried again, and last
                self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        if self._unwritten:
            self._book.write(self._unwritten)
            self._unwritten = []

    def _drained(self) -> Iterator[Ended]:
        while self._ended:
            yield self._ended.popleft()


def write_durably(content: bytes, path: Path) -> None:
    """Write a file whole, and wait until it is on disk.

    Errors:  NotKept if it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with keeping(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _key(found: Found, content: bytes, release: str) -> str:
    parts = (found.student, found.notebook, hashlib.sha256(content).hexdigest(), release, qlab.__version__)
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _graded_path(judged: Judged, order: Order) -> Path:
    return order.places.autograded / judged.student / order.assignment / f"{judged.notebook}.ipynb"


def _timestamp(student: str, order: Order) -> datetime | None:
    """Return when a submission was handed in, in UTC, as `timestamp.txt` says; None if it says nothing readable."""
    path = order.places.submitted / student / order.assignment / TIMESTAMP
    try:
        said = content_of(path, under=order.places.submitted, most_bytes=LONGEST_TIMESTAMP).decode().strip()
    except (Refused, UnicodeDecodeError):
        return None
    return _parsed(said)


def _parsed(said: str) -> datetime | None:
    from nbgrader.utils import parse_utc  # noqa: PLC0415 - only instructors have nbgrader

    try:
        return parse_utc(said) if said else None
    except (ValueError, OverflowError, TypeError):
        return None


def ordered(ended: Iterable[Ended]) -> list[Any]:
    """Sort the ends of submissions by student, for a table."""
    return sorted(ended, key=lambda one: (one.judged.student, one.judged.notebook))
