"""What must not stand in place of an answer: the check's own reference, and what the task forbids."""

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

from qlab.checks.report import Outcome, PartResult, Verdict
from qlab.grading.names import UNREADABLE, Named, dotted_names
from qlab.grading.program import Cell
from qlab.grading.reflection import TOOLS
from qlab.grading.resolving import ANY

MISCONCEPTION = "uses-the-reference"
COURSE_WIDE = ("bitsandbytes", "torchao", "peft", "transformers", "qlab.checks")
LIBRARIES = ("qlab", "torch")  # whose names are looked up: others are only compared
NOT_LIBRARIES = ("qlab.__main__", "qlab.cli")
MISSING = object()


@dataclass(frozen=True)
class Use:
    """A forbidden name in an answer, and how it was found to be used."""

    name: str
    how: str


def forbidden_for(check: Callable[..., Any]) -> tuple[str, ...]:
    """Return the dotted names that may not stand in place of an answer to this check.

    These are its references, unless the task gives them to the learner or they only hold data, what the task forbids
    besides, and the libraries that hold every answer of the course.
    """
    allowed = set(check.allows)
    references = [public_name(reference) for reference in check.references if not _only_holds_data(reference)]
    return tuple(dict.fromkeys(name for name in [*references, *check.forbids, *COURSE_WIDE] if name not in allowed))


def named_in(
    source: str, context: Sequence[str], forbidden: Sequence[str], *, functions: Sequence[str] = ()
) -> tuple[Use, ...]:
    """Return the forbidden names that an answer uses, read from its source and never run.

    `context` holds the sources of the notebook's other cells that ran before the check: for their imports, and for
    what the answer calls. `functions` are the names the check is given; without them the whole answer is read.
    """
    cells = [Cell(source, is_answer=True), *map(Cell, context)]
    return _uses(dotted_names(cells, functions, is_ordered=False), forbidden)


def named_in_run(
    ran: Sequence[str],
    answer: str,
    forbidden: Sequence[str],
    *,
    functions: Sequence[str],
    failed: Collection[str] = (),
) -> tuple[Use, ...]:
    """Return the forbidden names that an answer uses, where the order is known in which the cells ran.

    `ran` are the sources of all cells that ran before the check, the answer's own among them unless it was cut short;
    those in `failed` ended in an error, so that a name may still stand for what it stood for before. What a name was
    given and had lost again by the time it was used does not count.
    """
    cells = [Cell(source, source == answer, source not in failed) for source in ran]
    if answer and answer not in ran:
        cells.append(Cell(answer, is_answer=True, is_whole=False))
    return _uses(dotted_names(cells, functions), forbidden)


def _uses(names: Iterable[Named], forbidden: Sequence[str]) -> tuple[Use, ...]:
    uses: dict[str, Use] = {}
    for named in names:
        name = _match(named, tuple(forbidden))
        if name and name not in uses:
            uses[name] = Use(
                name, f"line {named.line} of your answer" if named.in_answer else "a cell your answer uses"
            )
    return tuple(uses.values())


def refused(verdict: Verdict, uses: Sequence[Use]) -> Verdict:
    """Return the verdict with every part that was right made wrong, and a sentence that names what was used."""
    if not uses:
        return verdict
    name, how = uses[0].name, uses[0].how
    message = f"`{name}` is used in place of an answer ({how})"
    thought = f"{message}: write it yourself. To compare with it in a cell of its own is welcome."

    def judged(part: PartResult) -> PartResult:
        if part.outcome is not Outcome.RIGHT:
            return part
        return replace(part, outcome=Outcome.WRONG, message=message, misconception=MISCONCEPTION, thought=thought)

    return replace(verdict, parts=tuple(map(judged, verdict.parts)))


def public_name(thing: Any) -> str:
    """Return the shortest dotted name under which qlab offers a function or class: a package's before a module's."""
    thing = plain(thing)
    module, name = thing.__module__, thing.__qualname__
    parts = module.split(".")
    for length in range(2, len(parts)):
        shorter = ".".join([*parts[:length], name])
        if find(shorter) is thing:
            return shorter
    return f"{module}.{name}"


def find(dotted: str) -> Any:
    """Return the object that a dotted name stands for, or `MISSING`; only qlab's own modules are imported for it.

    `x()` in a name stands for what calling the class `x` gives: it is looked up on the class.
    """
    first, *parts = dotted.split(".")
    thing = sys.modules.get(first, MISSING)
    name = first
    for part in parts:
        name += f".{part}"
        found = _member(thing, part.removesuffix("()"))
        thing = _module(name) if found is MISSING and isinstance(thing, ModuleType) else found
        if thing is MISSING or (part.endswith("()") and not isinstance(thing, type)):
            return MISSING
    return plain(thing)


def plain(thing: Any) -> Any:
    """Return the function under its decorators; anything else as it is."""
    return inspect.unwrap(thing) if callable(thing) and not isinstance(thing, type) else thing


def _match(named: Named, forbidden: tuple[str, ...]) -> str:
    used = named.dotted.removesuffix("()")
    if used == UNREADABLE:
        return used
    if named.is_answers and (tool := _tool(named.dotted)):
        return tool
    for name in forbidden:
        if used == name or used.startswith((f"{name}.", f"{name}().")):
            return name
    if used.split(".", maxsplit=1)[0] not in LIBRARIES:
        return ""
    return _given_away(used.removesuffix(ANY), forbidden) if used.endswith(ANY) else _found_as(find(used), forbidden)


def _found_as(thing: Any, forbidden: tuple[str, ...]) -> str:
    """Return the forbidden name under which an object is known, or of a module that it comes from."""
    if thing is MISSING or thing is None or isinstance(thing, bool | int | float | str):
        return ""
    home = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None) or ""
    for name, there in _found(forbidden):
        if thing is there or (isinstance(there, ModuleType) and f"{home}.".startswith(f"{name}.")):
            return name
    return ""


def _tool(used: str) -> str:
    """Return by which tool a name reaches what has no name in the source, or nothing."""
    if used.startswith("."):
        return used
    return next((tool for tool in TOOLS if used == tool or used.startswith(f"{tool}.")), "")


def _given_away(module: str, forbidden: tuple[str, ...]) -> str:
    """Return what is forbidden of a module of qlab that is used as a whole, so that any of its names may be meant."""
    thing = find(module.removesuffix("."))
    if not isinstance(thing, ModuleType) or not f"{thing.__name__}.".startswith("qlab."):
        return ""
    return next((name for name in forbidden if name.startswith(f"{thing.__name__}.")), "")


@cache
def _found(forbidden: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, thing) for name in forbidden if (thing := find(name)) is not MISSING]


def _module(name: str) -> Any:
    is_ours = name.startswith("qlab.") and name not in NOT_LIBRARIES and name.replace(".", "").isidentifier()
    return sys.modules.get(name, MISSING) if not is_ours or _is_there(name) else MISSING


@cache
def _is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:  # it is no module, or needs an extra that is not installed
        return False
    return True


def _member(owner: Any, name: str) -> Any:
    if isinstance(owner, ModuleType):
        return vars(owner).get(name, MISSING)
    found = inspect.getattr_static(owner if isinstance(owner, type) else type(owner), name, MISSING)
    if isinstance(found, staticmethod | classmethod):
        return found.__func__
    return found.fget if isinstance(found, property) else found


def _only_holds_data(thing: Any) -> bool:
    """Tell a record that computes nothing: to return one is no answer."""
    if not isinstance(thing, type) or not (is_dataclass(thing) or hasattr(thing, "_fields")):
        return False
    own = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
    return not any(
        callable(value) or isinstance(value, property | classmethod | staticmethod) for value in own.values()
    )
