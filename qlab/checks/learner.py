"""Calling a learner's function: on copies, with its warnings caught and its failures named."""

import contextlib
import inspect
import io
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STUB_MESSAGE = "replace this line with your answer"
NOT_THE_LEARNERS = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
LONGEST_SAID = 2_000


class NotAnswered(Exception):
    """The stub is still in place."""


class Crashed(Exception):
    """The learner's code raised; the text names its error and its line."""


@dataclass
class Said:
    """What the learner's code wrote to stderr, and what it warned of, across all calls of one check."""

    text: str = ""

    def add(self, more: str) -> None:
        if more and more not in self.text:
            self.text = (self.text + more)[:LONGEST_SAID]


class LearnerFunction:
    """A learner's function as a check may use it: called with plain data, never looked into."""

    def __init__(self, function: Any, said: Said) -> None:
        self._function = function
        self._said = said

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on copies of the tensors, so that work in place cannot change what is expected.

        Errors:  NotAnswered for the stub, Crashed for whatever else the function raises.
        """
        with self._guarded():
            return self._function(*map(_copied, args), **{name: _copied(v) for name, v in kwargs.items()})

    def map(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call the function once for each tuple of plain numbers: one guard for many small calls."""
        with self._guarded():
            return [self._function(*args) for args in calls]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        if not callable(self._function):
            raise Crashed(f"the check was given {_short(self._function)}, which is not a function")
        try:
            with caught_stderr(self._said):
                yield
        except (Exception, SystemExit) as error:
            if is_stub(error):
                raise NotAnswered from None
            raise Crashed(describe(error)) from None


def is_stub(error: BaseException) -> bool:
    """Tell the stub's own NotImplementedError from torch's, which an answer can run into."""
    return isinstance(error, NotImplementedError) and (not error.args or error.args[0] == STUB_MESSAGE)


def describe(error: BaseException) -> str:
    """Name an error and the last line of the learner's code that led to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_THE_LEARNERS)]
    where = f", line {frames[-1].lineno}: `{frames[-1].line}`" if frames and frames[-1].line else ""
    name = f" in `{frames[-1].name}`{where}" if frames else ""
    return f"{type(error).__name__}: {_short(error)}{name}"


def sources_of(functions: tuple[Any, ...]) -> str:
    """Return the source of functions, leaving out those of which Python has kept none."""
    sources = []
    for function in functions:
        with contextlib.suppress(OSError, TypeError):
            sources.append(inspect.getsource(function))
    return "\n\n".join(sources)


@contextlib.contextmanager
def caught_stderr(said: Said) -> Iterator[None]:
    """Keep warnings and stderr out of the cell's output: nbgrader gives no point to a cell that wrote to stderr."""
    caught, stream = io.StringIO(), sys.stderr
    own_write = stream.__dict__.get("write") if hasattr(stream, "__dict__") else None
    with contextlib.suppress(AttributeError, TypeError):
        stream.write = caught.write  # a logging handler made earlier holds the stream itself
    try:
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(caught):
            warnings.simplefilter("always")
            yield
    finally:
        if getattr(stream, "__dict__", {}).get("write") == caught.write:
            if own_write is None:
                del stream.write
            else:
                stream.write = own_write
        for warning in warned:
            said.add(f"{warning.category.__name__}: {warning.message}\n")
        said.add(caught.getvalue())


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()  # keeps the strides of a view
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value))
    return value


def _short(value: object, limit: int = 200) -> str:
    try:
        text = " ".join(str(value).split())
    except Exception:  # a learner's own __str__ may raise
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"
