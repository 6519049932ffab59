"""Errors across the border: by the names that a check knows them by, and as text."""

import builtins
import re
from typing import Any

from qlab.checks.learner import Crashed, NotAnswered, describe, is_stub
from qlab.grading.peer.budget import TooLarge
from qlab.grading.peer.reading import Malformed

LONGEST = 4_000
SLUG = re.compile(r"[a-z0-9-]{1,60}")
NO_SLUGS = ("right", "wrong", "empty", "crashed")  # ends of a check, which a class's histogram counts beside slugs
OUT_OF_MEMORY = "what it was given takes more memory than the judge has"


def of_a_learner(error: BaseException, *, driven: bool) -> tuple[str, ...]:
    """Return what the judge hears of an error: of the learner's code, or of a check's driver beside it."""
    if isinstance(error, NotAnswered) or is_stub(error):
        return ("stub",)
    if isinstance(error, Crashed) and error.args:
        return ("crashed", str(error.args[0]))
    if driven and type(error).__name__ == "Refused" and type(error).__module__ == "qlab.checks.report":
        return ("refused", str(error), str(error.misconception), str(error.thought))  # type: ignore[attr-defined]
    if isinstance(error, TooLarge):
        return ("crashed", f"what your function returned was not read: {error}")
    return ("other" if driven else "crashed", describe(error))


def raised_by_a_learner(told: Any, *, driven: bool) -> Exception:
    """Return the error that a check sees; only the drivers of checks refuse, or fail in ways of their own.

    Errors:  Malformed if what came is none.
    """
    if type(told) is not tuple or not told or not all(type(word) is str for word in told):
        raise Malformed("no error")
    kind, *texts = (word[:LONGEST] for word in told)
    if kind == "stub":
        return NotAnswered()
    if kind == "refused" and driven and len(texts) == 3 and SLUG.fullmatch(texts[1]) and texts[1] not in NO_SLUGS:
        from qlab.checks.report import Refused  # noqa: PLC0415 - it imports the widgets' pages

        return Refused(texts[0], misconception=texts[1], thought=texts[2])
    failed = RuntimeError if kind == "other" and driven else Crashed
    return failed(texts[0] if texts else "it failed")


def of_the_judge(error: BaseException) -> tuple[str, ...]:
    """Return what the learner's code hears of an error of a function it was given."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error)[:LONGEST]:  # of Python, of torch
        return ("MemoryError", OUT_OF_MEMORY)
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (type(error).__name__, str(text)[:LONGEST])


def raised_by_the_judge(told: Any) -> Exception:
    """Return the error of a function that was given: of Python's own type where it has one."""
    name, text = told
    cls = getattr(builtins, name, None)
    if isinstance(cls, type) and issubclass(cls, Exception) and not issubclass(cls, UnicodeError):
        return cls(text)
    return type(name, (Exception,), {})(text)
