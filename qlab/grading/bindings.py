"""What the statements of a learner's source bind, read from their syntax alone."""

import ast
from collections.abc import Iterable, Iterator

from qlab.grading.cell_syntax import Unreadable, tree_of

__all__ = ["Unreadable"]


def parsed(source: str) -> ast.Module:
    """Return the syntax tree of a cell; of a cell that is no Python, an empty one.

    Errors:  Unreadable if it is nested too deeply, which a cell may be and yet run.
    """
    return tree_of(source) or ast.Module(body=[], type_ignores=[])


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
        inside = (node.names for node in ast.walk(statement) if isinstance(node, ast.Global))
        return {statement.name}.union(*inside)
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
    elif isinstance(statement, ast.Match):
        return {name for case in statement.cases for node in ast.walk(case.pattern) for name in _captured(node)}
    read = [getattr(statement, part, None) for part in ("value", "test", "iter", "subject")]
    return set().union(*map(targets, changed), *(_walrus(value) for value in read if value is not None))


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
        found |= {name: [] for name in _captured(node) if name not in found}
        if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign) and node.value is not None:
            for name in alias_targets(node):
                found.setdefault(name, []).append(node.value)
    return {name: values for name, values in found.items() if name not in outside}


def alias_targets(node: ast.AST) -> list[str]:
    """Return the plain names that an assignment makes another name of its value."""
    given = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in given if isinstance(target, ast.Name)]


def _captured(node: ast.AST) -> list[str]:
    """Return the names that a pattern of `match` binds itself."""
    if isinstance(node, ast.MatchAs | ast.MatchStar):
        return [node.name] if node.name else []
    return [node.rest] if isinstance(node, ast.MatchMapping) and node.rest else []


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
