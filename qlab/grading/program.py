"""What the cells of a notebook bind at their top level, and which of it a name stands for when it is read."""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from qlab.grading.bindings import alias_targets, bound_by, parsed, statements, targets, text_of
from qlab.grading.cell_syntax import Unreadable

MOST_LOOKED_THROUGH = 2_000_000  # bindings: an answer asks for some thousands
END = 1_000_000_000  # when the check runs, after every cell
TABLES = {"globals", "locals", "vars"}
NAMESPACES = ("user_ns", "user_global_ns")  # the shell's own names for the notebook's globals
WRITERS = {"update", "setdefault", "__setitem__", "__ior__", "push"}
NO_TEXTS: Mapping[str, str] = MappingProxyType({})
LOOPS = ast.For | ast.AsyncFor | ast.While
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Cell:
    """A cell that ran: whether it is the answer's, and whether it ran to its end, so that all in it is bound."""

    source: str
    is_answer: bool = False
    is_whole: bool = True


@dataclass(frozen=True)
class Bound:
    """A statement that gives a name its value at a `time`, and by which time its expressions have been read."""

    node: ast.AST
    is_answer: bool
    time: int
    until: int
    replaces: bool = False  # whatever the name stood for before


class Program:
    """The statements of a notebook's cells by the names they bind.

    Where the order in which the cells ran is not known, all that binds a name counts, the answer's own cell first.
    """

    def __init__(self, cells: Sequence[Cell], *, is_ordered: bool) -> None:
        self.is_ordered = is_ordered
        self.bound: dict[str, list[Bound]] = {}
        self.rebinding: list[Bound] = []
        self.stars: list[Bound] = []
        self.steps = self.looked_through = 0
        time = 0
        for cell in cells:
            time = self._add(cell, time)

    def of(self, name: str, time: int = END) -> list[Bound]:
        """Return what a global name may stand for at a time.

        Errors:  Unreadable if too much was asked for.
        """
        found = self.bound.get(name, [])
        self.looked_through += len(found) + len(self.stars)
        if self.looked_through > MOST_LOOKED_THROUGH:
            raise Unreadable
        if not self.is_ordered:
            return [one for one in found if one.is_answer] or found or self.stars
        found = sorted((one for one in [*found, *self.stars] if one.time < time), key=lambda one: one.time)
        last = max((place for place, one in enumerate(found) if one.replaces), default=0)
        return found[last:]

    def all_of(self, name: str) -> list[Bound]:
        """Return all by which the check may have been given its function of this name."""
        return self.of(name) if self.is_ordered else self.bound.get(name, [])

    def reached_by(self, name: str, time: int) -> list[Bound]:
        """Return the statements to read because a global name is used; what a module's function was given is not."""
        found = self.of(name, time)
        left_alone: tuple[type[ast.AST], ...] = (ast.Import, ast.ImportFrom)
        if any(isinstance(one.node, left_alone) and not is_star(one.node) for one in found):
            left_alone = (*left_alone, ast.Expr)
        return [one for one in found if not isinstance(one.node, left_alone)]

    def _add(self, cell: Cell, time: int) -> int:
        found = _top_level(cell.source)
        for name, node, start, until, is_certain in found.bound:
            replaces = is_certain and cell.is_whole
            one = Bound(node, cell.is_answer, time + start, time + until if self.is_ordered else END, replaces)
            self.bound.setdefault(name, []).append(one)
        self.stars += [Bound(node, cell.is_answer, time + start, time + start) for node, start in found.stars]
        self.rebinding += [Bound(node, cell.is_answer, END, END) for node in found.rebinding]
        return time + found.length


def is_star(node: ast.AST) -> bool:
    """Tell whether a statement imports all that a module offers."""
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and not node.level


@dataclass(frozen=True)
class _TopLevel:
    bound: list[tuple[str, ast.AST, int, int, bool]]
    rebinding: list[ast.AST]
    stars: list[tuple[ast.AST, int]]
    length: int


@lru_cache(maxsize=256)
def _top_level(source: str) -> _TopLevel:
    """Return the names a cell binds with statements and times, the calls that may bind any, and its star imports."""
    found = _TopLevel([], [], [], 0)
    time = 0
    for outermost in _with_executed(parsed(source).body):
        inside = list(statements([outermost]))
        until = time + len(inside)
        for statement in inside:
            own_until = until if isinstance(outermost, LOOPS) or statement is not inside[-1] else time
            certain = _certain(statement) if statement is outermost else set[str]()
            table, rebinding = _written(statement)
            found.rebinding.extend(rebinding)
            for name in sorted(bound_by(statement) | table | certain):
                found.bound.append((name, statement, time, own_until, name in certain))
            if is_star(statement):
                found.stars.append((statement, time))
            time += 1
    return _TopLevel(found.bound, found.rebinding, found.stars, time)


def _certain(statement: ast.AST) -> set[str]:
    """Return the names whose values a statement replaces whenever it runs."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return bound_by(statement)
    is_assignment = isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None
    return set(alias_targets(statement)) if is_assignment else set()


def _with_executed(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, and those in a text that `exec` is given at the top level."""
    texts: dict[str, str] = {}
    for statement in body:
        yield statement
        if isinstance(statement, ast.Assign):
            texts |= dict.fromkeys(alias_targets(statement), text_of(statement.value))
        yield from parsed(_executed(statement, texts)).body


def _executed(statement: ast.AST, texts: Mapping[str, str] = NO_TEXTS) -> str:
    match statement:
        case ast.Expr(ast.Call(func=ast.Name(id="exec"), args=[text, *_])):
            return text_of(text) or texts.get(getattr(text, "id", ""), "")
    return ""


def _written(statement: ast.AST) -> tuple[set[str], list[ast.AST]]:
    """Return the names that a statement binds in a table of the globals, and what in it may bind any name."""
    names, rebinding = set[str](), list[ast.AST]()
    if isinstance(statement, DEFINITIONS) or _executed(statement):
        return names, rebinding
    for target in getattr(statement, "targets", ()):
        if isinstance(target, ast.Subscript) and _is_table(target.value):
            text = text_of(target.slice)
            names |= {text} if text else set()
            rebinding += [] if text else [statement]
    for part in ast.iter_child_nodes(statement):
        if not isinstance(part, ast.stmt):
            for call in [node for node in ast.walk(part) if isinstance(node, ast.Call)]:
                names |= _changed_by(call)
                rebinding += [call] if _may_rebind(call) else []
    return names, rebinding


def _called(call: ast.Call) -> str:
    """Return the plain name of a builtin that is called, or nothing."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="builtins" | "__builtins__"), attr=name):
            return name
        case ast.Attribute(value=ast.Name(id="object" | "type"), attr="__setattr__"):
            return "setattr"
    return ""


def _changed_by(call: ast.Call) -> set[str]:
    """Return the names whose values a call is seen to change: of `setattr`, or of `globals().update(name=…)`."""
    if _called(call) == "setattr" and call.args:
        return targets(call.args[0])
    return {keyword.arg for keyword in call.keywords if keyword.arg} if _writes_a_table(call) else set()


def _writes_a_table(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in WRITERS and _is_table(call.func.value)


def _may_rebind(call: ast.Call) -> bool:
    """Tell whether a call may give a value to names that cannot be told from it."""
    called = _called(call)
    if called == "setattr":
        return not (call.args and targets(call.args[0]))
    if called in {"exec", "eval"}:
        text = text_of(call.args[0]) if call.args else ""
        return not text or any(_is_risky(node) for node in ast.walk(parsed(text.strip())))
    return _writes_a_table(call) and (bool(call.args) or any(not keyword.arg for keyword in call.keywords))


def _is_risky(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _may_rebind(node) or bool(_changed_by(node))
    return isinstance(node, ast.NamedExpr | ast.stmt) and not isinstance(node, ast.Expr)


def _is_table(node: ast.AST) -> bool:
    """Tell whether an expression is a table of the notebook's globals."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[]):
            return name in TABLES or name == "get_ipython"
        case ast.Attribute(attr=attribute):
            return attribute in NAMESPACES
    return False
