"""Calling a learner's function: on copies, with its warnings caught and its failures named."""

import contextlib
import inspect
import io
import os
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
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


def printable(text: str) -> str:
    """Leave out what a terminal would obey instead of showing it."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


@dataclass
class Said:
    """What the learner's code wrote to stderr, and what it warned of, across all calls of one check."""

    text: str = ""

    def add(self, more: str) -> None:
        more = printable(more)
        if more and more not in self.text:
            self.text = (self.text + more)[:LONGEST_SAID]


class LearnerFunction:
    """A learner's function as a check may use it: called with plain data, never looked into."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on copies of the tensors, so that work in place cannot change what is expected.

        Errors:  NotAnswered for the stub, Crashed for whatever else the function raises.
        """
        with self._guarded():
            result = self._called(args, kwargs)
        if inspect.iscoroutine(result):
            result.close()
            raise Crashed("your function is an `async def`: write `def`")
        return result

    def map(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call the function once for each tuple of plain numbers: one guard for many small calls."""
        elsewhere = getattr(type(self._function), "__qlab_map__", None)
        with self._guarded():
            if elsewhere is not None:
                return elsewhere(self._function, list(calls))
            return [self._function(*args) for args in calls]

    def beside(self, driver: Callable[..., Any], *args: Any) -> Any:
        """Return `driver(function, *args)`, a public function of a check that runs in the process of the learner's own.

        What it returns is plain data and reported by that process: a check compares it with what it alone knows.
        Errors:  NotAnswered and Crashed as when the function is called, and what the driver itself refuses.
        """
        elsewhere = getattr(type(self._function), "__qlab_beside__", None)
        if elsewhere is None:
            return driver(self, *args)
        return elsewhere(self._function, f"{driver.__module__}:{driver.__qualname__}", args)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if hasattr(type(self._function), "__qlab_beside__"):  # a function of another process is called on copies anyway
            return self._function(*args, **kwargs)
        return self._function(*map(_copied, args), **{name: _copied(v) for name, v in kwargs.items()})

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        if not callable(self._function):
            raise Crashed(f"the check was given {_short(self._function)}, which is not a function")
        try:
            with plain_torch():
                yield
        except (KeyboardInterrupt, Crashed, NotAnswered):  # the last two come from a function of another process
            raise
        except BaseException as error:  # SystemExit and its like too: a check never ends the notebook
            if is_stub(error):
                raise NotAnswered from None
            raise Crashed(describe(error)) from None


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Give what runs inside torch's usual defaults, and put back what was there: an answer may have changed them."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device(None)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if device.type != torch.get_default_device().type:
            torch.set_default_device(device)


def is_stub(error: BaseException) -> bool:
    """Tell the stub's own NotImplementedError from torch's, which an answer can run into."""
    try:
        return isinstance(error, NotImplementedError) and (not error.args or error.args[0] == STUB_MESSAGE)
    except Exception:  # an error of the learner's own making may raise when it is looked at
        return False


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
        with contextlib.suppress(Exception):  # OSError and TypeError, and whatever an odd object raises
            sources.append(inspect.getsource(function))
    return "\n\n".join(sources)


@contextlib.contextmanager
def caught_stderr(said: Said) -> Iterator[None]:
    """Keep warnings and stderr out of the cell's output: nbgrader gives no point to a cell that wrote to stderr."""
    caught = io.StringIO()
    warned: list[warnings.WarningMessage] = []
    try:
        with (
            warnings.catch_warnings(record=True) as warned,
            _stream_redirected(sys.stderr, caught),
            contextlib.redirect_stderr(caught),
            _descriptor_redirected(said),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for warning in warned:
            said.add(f"{warning.category.__name__}: {_short(warning.message)}\n")
        said.add(caught.getvalue())


@contextlib.contextmanager
def _stream_redirected(stream: Any, caught: io.StringIO) -> Iterator[None]:
    """Catch what is written through the stream itself: a logging handler made earlier still holds it."""
    try:
        before = vars(stream).get("write")
        stream.write = caught.write
    except (AttributeError, TypeError):  # a stream of C has nothing to replace; its descriptor is caught
        yield
        return
    try:
        yield
    finally:
        if before is None:
            del stream.write
        else:
            stream.write = before


@contextlib.contextmanager
def _descriptor_redirected(said: Said) -> Iterator[None]:
    """Catch what compiled code writes to file descriptor 2."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error to protect
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.add(file.read(LONGEST_SAID).decode(errors="replace"))


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
