"""Noticing, inside the sandbox, that an answer calls what it is compared with: a second look beside its source.

It runs where the learner's code runs, so it can be undone by who tries; reading the source cannot.
"""

import functools
import importlib.abc
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import torch

from qlab.grading.forbidden import find, plain

QLAB = str(Path(__file__).parents[2])
JUDGES = tuple(f"{QLAB}/{place}" for place in ("grading/", "checks/learner.py", "checks/probe.py", "measure.py"))
BOTTOM = f"{QLAB}/grading/inside/main.py"
LIBRARIES = tuple(sysconfig.get_path(place) for place in ("stdlib", "purelib", "platlib"))
TRANSPARENT = (*JUDGES, *LIBRARIES, str(Path(torch.__file__).parent))
IMPORTING = "<frozen importlib"
CALLED = "called while your function ran"
UNDONE = "what takes note of it was changed"
PROBE = "a probe"
USED_BY = {"__init__", "__new__", "__call__"}
MADE_BY = {"__init__", "__new__"}


@dataclass
class _Record:
    """What is watched for now, and what was seen."""

    watched: frozenset[str] = frozenset()
    seen: dict[str, str] = field(default_factory=dict)

    def note(self, names: Iterable[str], how: str, caller: FrameType | None) -> None:
        for name in self.watched.intersection(names) - self.seen.keys():
            if _by_learner(caller):
                self.seen[name] = how


PROBING = compile("probed()", "<the judge's probe>", "exec")
_record = _Record()
_recorders: dict[int, "_Recorder"] = {}  # by the identity of the function, which it keeps alive


def install(names: Iterable[str]) -> None:
    """Put a recorder into each forbidden function and class that is imported, before any learner code runs.

    The function and class objects stay the same ones: their code is replaced, not they.
    """
    for name in names:
        thing = find(name)
        for function in _functions(thing, name):
            _recorder(function).names.add(name)
        if inspect.isbuiltin(thing):
            _replace(thing, name)


def watch(names: Iterable[str], given: Sequence[Any] = ()) -> None:
    """Record from now on who uses these names; `given` are the learner's functions that the check received."""
    _record.watched = frozenset(names)
    _record.seen.clear()
    install(_record.watched)
    _recorder(_probed).names.add(PROBE)
    for name in _record.watched:
        if any(_is_made_of(thing, find(name)) for thing in given):
            _record.seen[name] = "handed to the check as your answer"
    if not any(isinstance(finder, _Imports) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Imports())


def uses() -> list[tuple[str, str]]:
    """Stop recording, and return each forbidden name that was used with how.

    Where a recorder was taken away since, or does not take note, the names count as used.
    """
    watched, seen = _record.watched, dict(_record.seen)
    undone = {name for recorder in _recorders.values() if not recorder.is_in_place() for name in recorder.names}
    _record.watched, _record.seen = frozenset({PROBE}), {}
    exec(PROBING, {"probed": _probed})
    undone |= set() if PROBE in _record.seen else watched
    _record.watched = frozenset()
    return [*seen.items(), *((name, UNDONE) for name in sorted(watched & undone - seen.keys()))]


class _Imports(importlib.abc.MetaPathFinder):
    """Records that a forbidden package is imported while the learner's function runs; it finds nothing itself."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        names = [name for name in _record.watched if f"{fullname}.".startswith(f"{name}.")]
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(IMPORTING):
            frame = frame.f_back
        _record.note(names, "imported while your function ran", frame)


class _Recorder:
    """What a forbidden function's new code calls: it records the call, and goes on to the old code."""

    def __init__(self, function: FunctionType) -> None:
        old = function.__code__
        self.names: set[str] = set()
        self.kept = function
        self.original = FunctionType(
            old, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        self.original.__kwdefaults__ = function.__kwdefaults__
        signature = inspect.signature(function)
        function.__code__ = _calls_another.__code__.replace(
            co_consts=tuple(self if value == "another" else value for value in _calls_another.__code__.co_consts),
            co_freevars=old.co_freevars,
            co_name=old.co_name,
            co_qualname=old.co_qualname,
            co_filename=old.co_filename,
            co_firstlineno=old.co_firstlineno,
        )
        function.__signature__ = signature
        self.code = function.__code__

    def is_in_place(self) -> bool:
        return self.kept.__code__ is self.code

    def put_back(self) -> None:
        self.kept.__code__ = self.code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _record.note(self.names, CALLED, sys._getframe(2))
        return self.original(*args, **kwargs)


def _calls_another(*args: Any, **kwargs: Any) -> Any:
    another = "another"  # its place among the constants is taken by a recorder
    return another(*args, **kwargs)


def _recorder(function: FunctionType) -> _Recorder:
    if id(function) not in _recorders:
        _recorders[id(function)] = _Recorder(function)
    _recorders[id(function)].put_back()
    return _recorders[id(function)]


def _probed() -> None:
    """Do nothing: to call it shows whether calls are noted."""


def _functions(thing: Any, name: str) -> Iterator[FunctionType]:
    """Yield the Python functions by which a forbidden thing is used; of a module, those that it offers itself.

    Of a module of qlab below it, what makes its classes: what drives a check hands some of its functions and objects
    to the learner's code, which may use them.
    """
    if isinstance(thing, FunctionType):
        yield thing
    elif isinstance(thing, type):
        yield from _methods(thing, lambda key: not key.startswith("_") or key in USED_BY)
    elif isinstance(thing, ModuleType):
        for value in _offered_by(thing):
            yield from _functions(value, name)
        for below in [found for other, found in list(sys.modules.items()) if other.startswith(f"{name}.")]:
            for value in _offered_by(below) if below.__name__.startswith("qlab.") else ():
                if isinstance(value, type):
                    yield from _methods(value, MADE_BY.__contains__)


def _offered_by(module: ModuleType) -> Iterator[type | FunctionType]:
    for key, value in list(vars(module).items()):
        is_own = isinstance(value, type | FunctionType) and f"{value.__module__}.".startswith(f"{module.__name__}.")
        if is_own and not key.startswith("_"):
            yield value


def _methods(thing: type, is_wanted: Callable[[str], bool]) -> Iterator[FunctionType]:
    members = (_plain(value) for key, value in vars(thing).items() if is_wanted(key))
    own = (member for member in members if isinstance(member, FunctionType))
    yield from (member for member in own if member.__module__ == thing.__module__)  # not what all enums share


def _plain(value: Any) -> Any:
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def _replace(builtin: Any, name: str) -> None:
    """Put a recorder in the place of a function of C, wherever torch's own modules name it."""

    @functools.wraps(builtin)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        _record.note((name,), CALLED, sys._getframe(1))
        return builtin(*args, **kwargs)

    for home in (torch, torch.functional, torch.nn.functional, torch._C._nn):
        for attribute in [attribute for attribute, value in vars(home).items() if value is builtin]:
            setattr(home, attribute, recorded)


def _by_learner(frame: FrameType | None) -> bool:
    """Tell whether the learner's code made a call: the first frame that is not torch's, Python's or the judge's.

    What a module does while it is imported is nobody's answer, nor what the judge does on its own account.
    """
    while frame is not None:
        module = sys.modules.get(frame.f_globals.get("__name__", ""))
        is_genuine = module is not None and vars(module) is frame.f_globals
        file = frame.f_code.co_filename
        if is_genuine and file == BOTTOM:
            return False
        if not is_genuine or not file.startswith(TRANSPARENT):
            return not file.startswith(IMPORTING) and not (is_genuine and file.startswith(QLAB))
        frame = frame.f_back
    return False


def _is_made_of(thing: Any, forbidden: Any) -> bool:
    """Tell whether a learner's object is a forbidden one, or is made of one: partly applied, bound, or inherited."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = plain(getattr(thing, "__func__", thing))
    family = thing.__mro__ if isinstance(thing, type) else (thing,)
    if isinstance(forbidden, ModuleType):
        home = f"{forbidden.__name__}."
        return any(f"{getattr(one, '__module__', '')}.".startswith(home) for one in family)
    return any(one is forbidden for one in family)
