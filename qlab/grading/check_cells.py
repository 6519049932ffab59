"""The check cells of a release: which check each calls, and with which of the learner's names; read, never executed."""

import ast
import builtins
import importlib
import symtable
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nbformat import NotebookNode

from qlab.grading.cell_syntax import Unreadable, python_of
from qlab.labs import notebooks

CHECKS = "qlab.checks"
UNREADABLE = (Unreadable, SyntaxError, ValueError, RecursionError, MemoryError)
IPYTHONS = "get_ipython"  # what a magic reads: no cell gives it


class NotACheck(ValueError):
    """A graded cell of a release that is not one call of a check of qlab; the text says which."""


@dataclass(frozen=True)
class CheckCell:
    """One graded cell: `check(*names)`, worth `points`, about the answer cell called `answer`."""

    grade_id: str
    source: str
    points: int
    check: Callable[..., Any]
    names: tuple[str, ...]
    answer: str = ""


def check_cells(release: NotebookNode) -> dict[str, CheckCell]:
    """Return the graded cells of a release by `grade_id`, in its order.

    Errors:  NotACheck for a graded cell that is anything but one call of a check on plain names.
    """
    imported, answer, found = _imports(release), "", dict[str, CheckCell]()
    for cell in release.cells:
        marks = notebooks.marks(cell)
        if marks.get("grade") and isinstance(grade_id := marks.get("grade_id"), str):
            check, names = _call(grade_id, cell.source, imported)
            found[grade_id] = CheckCell(grade_id, cell.source.strip(), notebooks.points(cell), check, names, answer)
        elif marks.get("solution"):
            answer = str(marks.get("grade_id", ""))
    return found


@lru_cache(maxsize=256)
def bound_names(source: str) -> frozenset[str]:
    """Return the global names that a cell gives a value."""
    return frozenset(symbol.get_name() for symbol, outermost in _globals(source) if _binds(symbol, outermost=outermost))


@lru_cache(maxsize=256)
def used_names(source: str) -> frozenset[str]:
    """Return the global names that a cell, or a function in it, reads."""
    return frozenset(symbol.get_name() for symbol, _ in _globals(source) if symbol.is_referenced())


@lru_cache(maxsize=256)
def touched_names(source: str) -> frozenset[str]:
    """Return the global names that a cell itself, outside its functions, reads: it may change what they stand for."""
    read = {symbol.get_name() for symbol, outermost in _globals(source) if outermost and symbol.is_referenced()}
    return frozenset(read.difference(vars(builtins)))


@lru_cache(maxsize=256)
def imported_names(source: str) -> frozenset[str]:
    """Return the global names that a cell imports."""
    return frozenset(symbol.get_name() for symbol, _ in _globals(source) if symbol.is_imported())


def _call(grade_id: str, source: str, imported: Mapping[str, str]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    match _parsed(source).body:
        case [ast.Expr(ast.Call(func=function, args=[*args], keywords=[]))] if all(
            isinstance(a, ast.Name) for a in args
        ):
            check = _resolved(ast.unparse(function), imported)
            if check is not None:
                return check, tuple(arg.id for arg in args if isinstance(arg, ast.Name))
    line = " ".join(source.split())
    raise NotACheck(f"the graded cell {grade_id!r} is not a qlab check: `{line[:80]}`")


def _resolved(path: str, imported: Mapping[str, str]) -> Callable[..., Any] | None:
    """Return the check that a dotted path leads to through the release's imports, or None."""
    first, *rest = path.split(".")
    steps = imported.get(first, "").split(".") + rest
    if steps[:2] != CHECKS.split(".") or len(steps) != 4:
        return None
    try:
        module = importlib.import_module(".".join(steps[:3]))
    except ModuleNotFoundError:
        return None
    check = getattr(module, steps[3], None)
    return check if callable(check) and hasattr(check, "exercise") and hasattr(check, "points") else None


def _imports(release: NotebookNode) -> dict[str, str]:
    """Return what the names that the release imports from `qlab.checks` stand for."""
    found = {}
    for cell in release.cells:
        if cell.cell_type == "code" and CHECKS in cell.source and not notebooks.marks(cell).get("solution"):
            for node in ast.walk(_parsed(cell.source)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[:2] == CHECKS.split("."):
                    found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _globals(source: str) -> Iterator[tuple[symtable.Symbol, bool]]:
    """Yield each global name of a cell, once for every scope that has it, and whether that is the outermost."""
    try:
        scopes = [symtable.symtable(python_of(source), "cell", "exec")]
    except UNREADABLE:
        return
    while scopes:
        scope = scopes.pop()
        outermost = scope.get_type() == "module"
        found = [symbol for symbol in scope.get_symbols() if symbol.get_name() != IPYTHONS]
        yield from ((symbol, outermost) for symbol in found if outermost or symbol.is_global())
        scopes += scope.get_children()


def _binds(symbol: symtable.Symbol, *, outermost: bool) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or (outermost and symbol.is_namespace())


def _parsed(source: str) -> ast.Module:
    """Parse a cell without its magics; a cell that is no Python is an empty one."""
    try:
        return ast.parse(python_of(source))
    except UNREADABLE:
        return ast.Module([], [])
