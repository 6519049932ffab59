"""Reading which dotted names a learner's source uses, without running a line of it."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from qlab.grading.bindings import (
    Unreadable,
    alias_targets,
    bound_by,
    imported,
    locals_of,
    parsed,
    statements,
    targets,
    text_of,
)

UNREADABLE = "code too tangled to be read"  # stands for a name, where it cannot be told which are used
MOST_STEPS = 50_000  # of resolving names: an answer takes some hundreds
MOST_NAMES = 100  # that one expression may stand for
REBINDERS = {"setattr", "exec", "eval", "globals", "locals", "vars", "__setattr__"}
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Scope = dict[str, list[ast.expr | str]]  # a local name, and what is known to be bound to it


@dataclass(frozen=True)
class Named:
    """A dotted name that a source uses, and where: in the answer's own cell, or in a cell that it draws on."""

    dotted: str
    line: int
    in_answer: bool


@dataclass
class Program:
    """What the cells of a notebook bind at their top level: the answer's first, then those it may draw on."""

    bound: dict[str, list[tuple[ast.AST, int]]] = field(default_factory=dict)
    rebinding: list[tuple[ast.AST, int]] = field(default_factory=list)
    stars: list[str] = field(default_factory=list)
    steps: int = 0

    def add(self, source: str, cell: int) -> None:
        bound, rebinding, stars = _top_level(source)
        for name, statement in bound:
            self.bound.setdefault(name, []).append((statement, cell))
        self.rebinding += [(statement, cell) for statement in rebinding]
        self.stars += stars

    def of(self, name: str) -> list[tuple[ast.AST, int]]:
        """Return what a global name may stand for: what the answer's cell binds, else what any other does."""
        found = self.bound.get(name, [])
        return [pair for pair in found if pair[1] == 0] or found

    def reached_by(self, name: str) -> list[tuple[ast.AST, int]]:
        """Return the statements to read because a global name is used; what a module's function was given is not."""
        found = self.of(name)
        imports = [node for node, _ in found if isinstance(node, ast.Import | ast.ImportFrom)]
        return [pair for pair in found if pair[0] not in imports and not (imports and isinstance(pair[0], ast.Expr))]


def dotted_names(source: str, context: Sequence[str], roots: Iterable[str] = ()) -> Iterator[Named]:
    """Yield every dotted name that the answer uses, also through the notebook's other cells that it calls.

    `roots` are the names the check was given; without them all that the answer's cell binds is read. Annotations are
    not read, nor are lines of the answer's cell that only print or compare.
    """
    try:
        yield from _read([source, *context], list(roots))
    except (Unreadable, RecursionError):
        yield Named(UNREADABLE, 1, in_answer=True)


def _read(cells: Sequence[str], roots: list[str]) -> Iterator[Named]:
    program = Program()
    for cell, text in enumerate(cells):
        program.add(text, cell)
    wanted = roots or [name for name, found in program.bound.items() if any(cell == 0 for _, cell in found)]
    queue = [pair for name in wanted for pair in program.bound.get(name, ())]
    queue += program.rebinding
    seen: set[int] = set()
    while queue:
        node, cell = queue.pop(0)
        if id(node) not in seen:
            seen.add(id(node))
            reader = _Reader(program, cell)
            reader.read(node, is_root=True)
            yield from reader.named
            queue += reader.reached


@lru_cache(maxsize=256)
def _top_level(source: str) -> tuple[list[tuple[str, ast.AST]], list[ast.AST], list[str]]:
    """Return the names a cell binds with their statements, the statements that may bind any, and its star imports."""
    everything = list(statements(parsed(source).body))
    bound = [(name, statement) for statement in everything for name in bound_by(statement)]
    may_rebind = any(word in source for word in REBINDERS)
    rebinding = [s for s in everything if may_rebind and _rebinds(s)]
    imports = [s for s in everything if isinstance(s, ast.ImportFrom) and s.names[0].name == "*" and not s.level]
    return bound, rebinding, [statement.module or "" for statement in imports]


def _rebinds(statement: ast.AST) -> bool:
    """Tell whether a statement may give any name a value: by a call that stands alone or on the left of `=`."""
    left = [statement.value] if isinstance(statement, ast.Expr) else getattr(statement, "targets", [])
    calls = [node.func for part in left for node in ast.walk(part) if isinstance(node, ast.Call)]
    return any(getattr(called, "id", getattr(called, "attr", "")) in REBINDERS for called in calls)


class _Reader(ast.NodeVisitor):
    """Collects the dotted names of one statement, and the top-level statements that its global names lead to."""

    def __init__(self, program: Program, cell: int) -> None:
        self.program, self.cell = program, cell
        self.scopes: list[Scope] = []
        self.resolving: list[tuple[int, str]] = []
        self.named: list[Named] = []
        self.reached: list[tuple[ast.AST, int]] = []

    def read(self, node: ast.AST, *, is_root: bool = False) -> None:
        if is_root and isinstance(node, ast.Import | ast.ImportFrom):  # the check was given an imported name
            for names in imported(node).values():
                self._keep(names, node)
        else:
            self.visit(node)

    def visit_Import(self, node: ast.AST) -> None:
        """Leave an import alone: what it binds counts where it is used."""

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: Function) -> None:
        arguments = node.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for outside in [
            *getattr(node, "decorator_list", ()),
            *arguments.defaults,
            *filter(None, arguments.kw_defaults),
        ]:
            self.visit(outside)
        body = node.body if isinstance(node.body, list) else [node.body]
        scope = locals_of(body)
        scope.update({argument.arg: [] for argument in given if argument is not None})
        self.scopes.append(scope)
        for statement in body:
            self.visit(statement)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        self.scopes.append({name: [] for generator in node.generators for name in targets(generator.target)})
        self.generic_visit(node)
        self.scopes.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_Name(self, node: ast.Name) -> None:
        self._keep(self.names(node), node)
        if isinstance(node.ctx, ast.Load) and not any(node.id in scope for scope in self.scopes):
            self.reached += self.program.reached_by(node.id)

    def visit_Attribute(self, node: ast.Attribute | ast.Subscript) -> None:
        self._keep(self.names(node), node)
        self.generic_visit(node)

    visit_Subscript = visit_Attribute

    def visit_Call(self, node: ast.Call) -> None:
        names = self.names(node)
        self._keep(names, node)
        if self.names(node.func) & {"exec", "eval", "compile"} and node.args:
            for statement in parsed(text_of(node.args[0])).body:
                self.read(statement, is_root=True)
        self.generic_visit(node)

    def names(self, node: ast.AST) -> set[str]:
        """Return the dotted names that an expression may stand for; `x()` is what calling `x` gives.

        Errors:  Unreadable if there is no end of them.
        """
        self.program.steps += 1
        found: set[str] = set()
        if isinstance(node, ast.Name):
            found = self._names_of_name(node.id)
        elif isinstance(node, ast.NamedExpr) or (isinstance(node, ast.Attribute) and node.attr == "__dict__"):
            found = self.names(node.value)
        elif isinstance(node, ast.Attribute):
            found = {f"{name}.{node.attr}" for name in self.names(node.value)}
        elif isinstance(node, ast.Subscript):
            found = self._looked_up(node)
        elif isinstance(node, ast.Call):
            found = self._names_of_call(node)
        if self.program.steps > MOST_STEPS or len(found) > MOST_NAMES:
            raise Unreadable
        return found

    def _names_of_name(self, name: str) -> set[str]:
        scope = next((scope for scope in reversed(self.scopes) if name in scope), None)
        if (id(scope), name) in self.resolving:
            return set()
        self.resolving.append((id(scope), name))
        try:
            if scope is None:
                return self._names_of_global(name)
            return set().union(*({v} if isinstance(v, str) else self.names(v) for v in scope[name]))
        finally:
            self.resolving.pop()

    def _names_of_global(self, name: str) -> set[str]:
        found: set[str] = set()
        for node, _ in self.program.of(name):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found |= imported(node).get(name, set())
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value and name in alias_targets(node):
                inner, self.scopes = self.scopes, []
                found |= self.names(node.value)
                self.scopes = inner
        if not self.program.of(name):
            found |= {name, *(f"{module}.{name}" for module in self.program.stars)}
        return found

    def _names_of_call(self, node: ast.Call) -> set[str]:
        called = self.names(node.func)
        texts = [text_of(argument) for argument in node.args]
        if "getattr" in called and len(texts) > 1 and texts[1]:
            return {f"{name}.{texts[1]}" for name in self.names(node.args[0])}
        if called & {"__import__", "builtins.__import__", "importlib.import_module"} and texts and texts[0]:
            return {texts[0], texts[0].split(".")[0]} if "importlib.import_module" not in called else {texts[0]}
        if "vars" in called and node.args:
            return self.names(node.args[0])
        return {f"{name}()" for name in called}

    def _looked_up(self, node: ast.Subscript) -> set[str]:
        text, tables = text_of(node.slice), self.names(node.value)
        if not text:
            return set()
        if "sys.modules" in tables:
            return {text}
        if tables & {"globals()", "locals()"}:
            return self._names_of_name(text)
        return {f"{name}.{text}" for name in tables}

    def _keep(self, names: Iterable[str], node: ast.AST) -> None:
        self.named += [Named(name, getattr(node, "lineno", 0), self.cell == 0) for name in sorted(names)]
