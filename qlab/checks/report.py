"""Verdicts: a check's named parts, what each found, and how the learner and the grader read it."""

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import wraps
from typing import Any

import torch

from qlab.checks import progress, verdict_html
from qlab.checks.learner import (
    Crashed,
    LearnerFunction,
    NotAnswered,
    Said,
    caught_stderr,
    describe,
    plain_torch,
    sources_of,
)

VERDICT_MIME = "application/vnd.qlab.verdict+json"


class Outcome(StrEnum):
    """The four ends a part or a check can come to."""

    EMPTY = "empty"
    CRASHED = "crashed"
    WRONG = "wrong"
    RIGHT = "right"


class Refused(Exception):
    """A requirement that was not met."""

    def __init__(self, message: str, *, misconception: str, thought: str) -> None:
        super().__init__(message)
        self.misconception = misconception
        self.thought = thought


@dataclass(frozen=True)
class PartResult:
    """One part of a check: worth one point if it is right.

    `message` holds what was given, got and expected; it is left out of graded runs.
    """

    name: str
    outcome: Outcome
    message: str = ""
    misconception: str = ""
    thought: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a check found. Its plain text is the number of points, which is what nbgrader reads."""

    topic: str
    exercise: str
    max_points: int
    parts: tuple[PartResult, ...]
    seed: int
    said: str = ""
    sources: tuple[str, str] = field(default=("", ""), repr=False)
    graded: bool = False

    @property
    def points(self) -> int:
        return sum(part.outcome is Outcome.RIGHT for part in self.parts)

    @property
    def outcome(self) -> Outcome:
        found = {part.outcome for part in self.parts}
        if found == {Outcome.RIGHT}:
            return Outcome.RIGHT
        return next(o for o in (Outcome.CRASHED, Outcome.WRONG, Outcome.EMPTY) if o in found)

    @property
    def misconception(self) -> str:
        """The id of the first misconception named, or an empty string."""
        return next((part.misconception for part in self.parts if part.misconception), "")

    @property
    def told_parts(self) -> tuple[PartResult, ...]:
        """The parts as they may be shown: in a graded run nothing of what was drawn or given is in them."""
        return tuple(map(_without_values, self.parts)) if self.graded else self.parts

    def as_json(self) -> dict[str, Any]:
        return {
            "topic": self.topic,
            "exercise": self.exercise,
            "points": self.points,
            "max_points": self.max_points,
            "outcome": self.outcome,
            "misconception": self.misconception,
            "seed": None if self.graded else self.seed,
            "parts": [asdict(part) for part in self.told_parts],
        }

    def show_reference(self) -> "verdict_html.Html":
        """Show qlab's own source beside the learner's, once every point is won."""
        if self.outcome is not Outcome.RIGHT:
            return verdict_html.Html("<p>Win every point first: then qlab's own version is shown here.</p>")
        return verdict_html.Html(verdict_html.side_by_side(*self.sources))

    def __repr__(self) -> str:
        return str(self.points)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": verdict_html.card(self), VERDICT_MIME: self.as_json()}


_parts: ContextVar[list[PartResult]] = ContextVar("parts of the check that is running")
_judging: ContextVar[bool] = ContextVar("whether a judge apart from the learner's code runs the check", default=False)


@contextmanager
def judging() -> Iterator[None]:
    """Grade the checks that run inside: no mark of progress is kept, and no function's source is looked for."""
    token = _judging.set(True)
    try:
        yield
    finally:
        _judging.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Judge one named part of a check: what fails inside it is recorded, and the check goes on."""
    try:
        yield
    except NotAnswered:
        result = PartResult(name, Outcome.EMPTY)
    except Crashed as crash:
        result = PartResult(name, Outcome.CRASHED, str(crash))
    except Refused as refusal:
        result = PartResult(name, Outcome.WRONG, str(refusal), refusal.misconception, refusal.thought)
    except Exception as error:  # whatever the answer returned, our reading of it must not end the notebook
        message = f"what your function returned could not be read ({describe(error)})"
        result = PartResult(name, Outcome.WRONG, message, "unreadable-result", "Return plain tensors or numbers.")
    else:
        result = PartResult(name, Outcome.RIGHT)
    _parts.get().append(result)


def require(condition: object, message: str, *, misconception: str, thought: str) -> None:
    """Refuse the part that is running unless `condition` holds.

    Errors:  Refused, which `part` records.
    """
    if not condition:
        raise Refused(message, misconception=misconception, thought=thought)


def check(
    topic: str,
    exercise: str,
    *references: Callable[..., Any],
    points: int,
    forbids: tuple[str, ...] = (),
    allows: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Make a check of a body that takes learner functions and a generator to draw its inputs from.

    `references` are qlab's own functions of the same idea, shown after a pass. The check takes the functions
    themselves and, to repeat a run, `seed=`. It returns a `Verdict` and never raises. `forbids` are dotted names that
    may not stand in place of an answer either, and `allows` the references that the task gives to the learner.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., Verdict]:
        @wraps(body)
        def run(*functions: Any, seed: int | None = None) -> Verdict:
            seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
            said, parts = Said(), list[PartResult]()
            token = _parts.set(parts)
            try:
                with caught_stderr(said), plain_torch():
                    body(*map(LearnerFunction, functions), torch.Generator().manual_seed(seed))
            finally:
                _parts.reset(token)
            judged = _judging.get()
            sources = ("" if judged else sources_of(functions), sources_of(references))
            graded = judged or os.environ.get("NBGRADER_EXECUTION") == "autograde"
            verdict = Verdict(topic, exercise, points, tuple(parts), seed, said.text, sources, graded)
            if not judged:
                _keep(verdict)
            return verdict

        run.topic, run.exercise, run.points, run.references = topic, exercise, points, references
        run.forbids, run.allows = forbids, allows
        return run

    return decorate


def _without_values(part: PartResult) -> PartResult:
    """Leave out the message; of an error only a name of Python's own stays, which the learner cannot have chosen."""
    name = part.message.partition(":")[0]
    error = getattr(builtins, name, None) if part.outcome is Outcome.CRASHED else None
    is_error = isinstance(error, type) and issubclass(error, Exception)
    return replace(part, message="", thought=part.thought or (f"It stopped with a `{name}`." if is_error else ""))


def _keep(verdict: Verdict) -> None:
    try:
        progress.record(verdict.topic, verdict.exercise, won=verdict.points, of=verdict.max_points)
    except OSError as error:  # a full or read-only disk costs the progress mark, not the verdict
        print(f"Your points are not marked on the landing page: {error}")
