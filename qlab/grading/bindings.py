"""What the statements of a learner's source bind, read from their syntax alone."""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import lru_cache

MAGIC = re.compile(r"^(\s*)(?:%(?:time|timeit|prun)\s+(?:-\S+\s+)*|[!?%].*)")


class Unreadable(Exception):
    """A source that is nested too deeply, or whose names lead to too many others, to be read."""


@lru_cache(maxsize=256)
def parsed(source: str) -> ast.Module:
    """Return the syntax tree of a cell, its magics left out; of a cell that is no Python, an empty one.

    Errors:  Unreadable if it is nested too deeply, which a cell may be and yet run.
    """
    lines = textwrap.dedent(source).splitlines()
    if lines and lines[0].startswith("%%"):
        lines[0] = ""
    for text in ("\n".join(lines), "\n".join(MAGIC.sub(_without_magic, line) for line in lines)):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # a magic, or a cell that would not have run
        except (RecursionError, MemoryError):
            raise Unreadable from None
    return ast.Module(body=[], type_ignores=[])


def _without_magic(match: re.Match[str]) -> str:
    return match[1] + ("pass" if match[0].strip() != "%" and not match[0].endswith((" ", "\t")) else "")


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements in order, those inside `if`, `for` and `try` too, but none inside functions or classes."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(statement, part, ()))
        for branch in [*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())]:
            yield from statements(branch.body)


def bound_by(statement: ast.AST) -> set[str]:
    """Return the names a statement binds itself, or whose values it changes by a method, an attribute or an item."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set(imported(statement))
    changed: list[ast.AST] = []
    if isinstance(statement, ast.Assign):
        changed = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For | ast.AsyncFor):
        changed = [statement.target]
    elif isinstance(statement, ast.With | ast.AsyncWith):
        changed = [item.optional_vars for item in statement.items if item.optional_vars]
    elif isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "func", None), ast.Attribute):
        changed = [statement.value.func]
    value = getattr(statement, "value", None)
    return set().union(*map(targets, changed), _walrus(value) if value is not None else ())


def targets(node: ast.AST) -> set[str]:
    """Return the names at the roots of an assignment's target."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    if isinstance(node, ast.Name):
        return {node.id}
    return set().union(*map(targets, node.elts)) if isinstance(node, ast.Tuple | ast.List) else set()


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, set[str]]:
    """Return what an import binds: each name, and the dotted names it may stand for."""
    if isinstance(node, ast.Import):
        return {a.asname or a.name.split(".")[0]: {a.name if a.asname else a.name.split(".")[0]} for a in node.names}
    if node.level:
        return {}
    return {a.asname or a.name: {f"{node.module}.{a.name}"} for a in node.names if a.name != "*"}


def locals_of(body: Iterable[ast.AST]) -> dict[str, list[ast.expr | str]]:
    """Return the local names of a function's body, each with what is known to be bound to it."""
    found: dict[str, list[ast.expr | str]] = {}
    outside: set[str] = set()
    for node in _inside(body):
        if isinstance(node, ast.Global | ast.Nonlocal):
            outside.update(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, dotted in imported(node).items():
                found.setdefault(name, []).extend(dotted)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, [])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, [])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.setdefault(node.name, [])
        if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign) and node.value is not None:
            for name in alias_targets(node):
                found.setdefault(name, []).append(node.value)
    return {name: values for name, values in found.items() if name not in outside}


def alias_targets(node: ast.AST) -> list[str]:
    """Return the plain names that an assignment makes another name of its value."""
    given = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in given if isinstance(target, ast.Name)]


def _inside(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _inside(ast.iter_child_nodes(node))


def _walrus(node: ast.AST) -> set[str]:
    return {name for n in ast.walk(node) if isinstance(n, ast.NamedExpr) for name in targets(n.target)}


def text_of(node: ast.AST) -> str:
    """Return the string an expression is sure to give, or an empty one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return left + right if left and right else ""
    if isinstance(node, ast.JoinedStr):
        parts = [text_of(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values]
        return "".join(parts) if all(parts) else ""
    return ""
