"""What cannot be put on disk while a class is graded: one sentence for it, with the path and what to do."""

import contextlib
import errno
import logging
import re
from collections.abc import Iterator
from pathlib import Path

WHAT_TO_DO = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
}
DAMAGED = ("file is not a database", "malformed", "file is encrypted")  # SQLite's own words
DATABASE_TO_DO = {
    "disk is full": "make room there",
    "readonly": "make it and its folder writable",
    "unable to open": "make it and its folder writable",
    "locked": "end what holds it",
}


class NotKept(RuntimeError):
    """Something could not be put on disk; the text says in one sentence what, and what to do first."""


class NoGradebook(RuntimeError):
    """The gradebook cannot be used; the text says why in one sentence."""


class GradebookNotKept(NoGradebook, NotKept):
    """The gradebook cannot be written now, and can be later."""


@contextlib.contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Name the file, and what to do, where what is done inside cannot write it.

    Errors:  NotKept for every OSError.
    """
    try:
        yield
    except OSError as error:
        todo = WHAT_TO_DO.get(error.errno or 0)
        said = f"{path} cannot be written: {error.strerror or error}"
        raise NotKept(f"{said}: {todo}" if todo else said) from error


def gradebook_fault(error: Exception, database: str) -> NoGradebook:
    """Return what to raise instead of an error of the gradebook at the URL `database`, which may hold a password."""
    where, said = _shown(database), first_line(error)
    if any(sign in said for sign in DAMAGED):
        return NoGradebook(
            f"the gradebook {where} is damaged ({said}): move it away and run the same command again, for each "
            "assignment: grades are restored from the journal, but for changes made by hand"
        )
    todo = "".join(f": {todo}" for sign, todo in DATABASE_TO_DO.items() if sign in said)
    return GradebookNotKept(f"the gradebook {where} could not be written: {said}{todo}")


@contextlib.contextmanager
def whole_or_none(database: str) -> Iterator[None]:
    """Remove the file of a new gradebook whose making fails: half a gradebook would pass for a whole one."""
    file = _file(database)
    is_new = file is not None and not file.exists()
    try:
        yield
    except BaseException:
        if file is not None and is_new:
            file.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def quiet_nbgrader() -> Iterator[None]:
    """Keep nbgrader from logging the tracebacks of what it raises as well."""
    log = logging.getLogger("tornado.application")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _shown(database: str) -> str:
    from sqlalchemy import make_url  # noqa: PLC0415 - comes with nbgrader
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        return str(_file(database) or make_url(database).render_as_string(hide_password=True))
    except ArgumentError:
        return "that db_url names in the course's settings"


def _file(database: str) -> Path | None:
    from sqlalchemy import make_url  # noqa: PLC0415 - comes with nbgrader

    url = make_url(database)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def first_line(error: BaseException) -> str:
    """Return how an error begins, or its name if it says nothing; not which class of a database's it came from."""
    lines = re.sub(r"\A\([\w.]+\) ", "", str(error)).splitlines()
    return lines[0][:200] if lines else type(error).__name__
