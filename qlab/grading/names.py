"""Reading which dotted names a learner's source uses, without running a line of it."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qlab.grading.bindings import alias_targets, imported, locals_of, parsed, targets, text_of
from qlab.grading.cell_syntax import Unreadable
from qlab.grading.program import DEFINITIONS, END, Bound, Cell, Program, is_star
from qlab.grading.reflection import REFLECTION
from qlab.grading.resolving import ANY, Resolver, Scope

UNREADABLE = "code too tangled to be read"  # stands for a name, where it cannot be told which are used
HARMLESS_STARTS = ("torch.", "0b", "0o", "0x")  # of a text that is put together and evaluated
RUNNERS = {"exec", "eval", "compile"}
LOOKERS = {"getattr", "hasattr", "dir", "isinstance", "print", "vars"}  # they give away nothing of a module
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
COMPOUND = ast.For | ast.AsyncFor | ast.While | ast.If | ast.With | ast.AsyncWith | ast.Try | ast.Match


@dataclass(frozen=True)
class Named:
    """A dotted name that a source uses, and where: in the answer's own cell, or in a cell that it draws on.

    `is_answers` tells what the answer does by it from what stands beside it, or can be read to do no harm.
    """

    dotted: str
    line: int
    in_answer: bool
    is_answers: bool = True


def dotted_names(cells: Sequence[Cell], roots: Iterable[str] = (), *, is_ordered: bool = True) -> Iterator[Named]:
    """Yield every dotted name that the answer uses, also through the notebook's other cells that it calls.

    `cells` are those that ran. `roots` are the names the check was given; without them all that the answer's cell
    binds is read. Annotations are not read, nor are lines that only print or compare.
    """
    try:
        yield from _read(Program(cells, is_ordered=is_ordered), list(roots))
    except (Unreadable, RecursionError):
        yield Named(UNREADABLE, 1, in_answer=True)


def _read(program: Program, roots: list[str]) -> Iterator[Named]:
    wanted = roots or [name for name, found in program.bound.items() if any(one.is_answer for one in found)]
    found = {name: program.all_of(name) for name in wanted}
    if program.is_ordered and not all(found.values()):
        raise Unreadable  # nothing that can be read gives the check its function
    for name in wanted:
        for star in [one for one in found[name] if isinstance(one.node, ast.ImportFrom) and is_star(one.node)]:
            yield Named(f"{star.node.module}.{name}", star.node.lineno, star.is_answer)
    queue = [(one, END, True) for name in wanted for one in found[name]]
    queue += [(one, END, False) for one in program.rebinding]
    seen: set[tuple[int, int, bool]] = set()
    while queue:
        bound, time, is_answers = queue.pop(0)
        if (key := (id(bound.node), time, is_answers)) not in seen:
            seen.add(key)
            reader = _Reader(program, bound, time, is_answers=is_answers)
            reader.read(bound.node)
            yield from reader.named
            queue += [(one, at, is_answers) for one, at in reader.reached]


class _Reader(ast.NodeVisitor):
    """Collects the dotted names of one statement, and the top-level statements that its global names lead to.

    A function's body is read as of the time of the call, what stands outside of functions as of when it ran.
    """

    def __init__(self, program: Program, bound: Bound, time: int, *, is_answers: bool) -> None:
        self.bound, self.inside, self.is_answers = bound, time, is_answers
        self.program, self.resolver = program, Resolver(program, bound.until)
        self.named: list[Named] = []
        self.reached: list[tuple[Bound, int]] = []

    def read(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):  # the check was given an imported name
            for names in imported(node).values():
                self._keep(names, node)
        elif isinstance(node, COMPOUND):  # what stands inside is read for what it binds itself
            for part in _outside_of(node):
                self.visit(part)
        else:
            self.visit(node)

    def visit_Import(self, node: ast.AST) -> None:
        """Leave an import alone: what it binds counts where it is used."""

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: Function) -> None:
        arguments = node.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        outside = [*getattr(node, "decorator_list", ()), *arguments.defaults, *filter(None, arguments.kw_defaults)]
        for part in outside:
            self.visit(part)
        body = node.body if isinstance(node.body, list) else [node.body]
        values = locals_of(body) | {argument.arg: [] for argument in given if argument is not None}
        enclosing = [scope for scope in self.resolver.scopes if not scope.is_class]
        with self.resolver.within([*enclosing, Scope(values)], self.inside):
            for statement in body:
                self.visit(statement)

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(part)
        scope = Scope({}, is_class=True)
        with self.resolver.within([*self.resolver.scopes, scope], self.resolver.time):
            for statement in node.body:
                self.visit(statement)
                is_sure = isinstance(statement, ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom | DEFINITIONS)
                scope.add(locals_of([statement]) if is_sure else {})

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._visit_value(node.value, is_alias=isinstance(node.target, ast.Name))
        self.visit(node.target)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_value(node.value, is_alias=len(alias_targets(node)) == len(node.targets))
        for target in node.targets:
            self.visit(target)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        scope = Scope({name: [] for generator in node.generators for name in targets(generator.target)})
        with self.resolver.within([*self.resolver.scopes, scope], self.resolver.time):
            self.generic_visit(node)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_Compare(self, node: ast.Compare) -> None:
        asks = all(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops)
        for part in [node.left, *node.comparators]:
            self._visit_value(part, is_alias=asks, is_tool=not asks)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._visit_value(node, is_alias=False)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._visit_value(node, is_alias=isinstance(node.ctx, ast.Store))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        names = self.resolver.names(node)
        self._keep(names, node)
        self._visit_value(node.value, is_alias=bool(names), is_tool=not names)
        self.visit(node.slice)

    def visit_Call(self, node: ast.Call) -> None:
        self._visit_value(node, is_alias=False)

    def _visit_value(self, node: ast.AST, *, is_alias: bool, is_tool: bool = True) -> None:
        """Visit an expression; unless it only gets another name or is looked up in, all of a module is given away."""
        if not isinstance(node, ast.Name | ast.Attribute | ast.Call):
            self.visit(node)
            return
        names = self.resolver.names(node)
        self._keep(names, node, is_tool=is_tool)
        if not is_alias:
            self._keep({f"{name}.{ANY}" for name in names}, node)
        if isinstance(node, ast.Call):
            self._visit_parts(node)
        elif isinstance(node, ast.Attribute):
            self._keep({f".{node.attr}"} if node.attr in REFLECTION else (), node)
            self._visit_value(node.value, is_alias=not _is_table(node.value), is_tool=is_tool)
        elif self.resolver.is_global(node.id):
            time = self.resolver.time
            self.reached += [(one, time) for one in self.program.reached_by(node.id, time)]

    def _visit_parts(self, node: ast.Call) -> None:
        called = {name.removeprefix("builtins.") for name in self.resolver.names(node.func)}
        texts = [self.resolver.text(part) for part in node.args[:2]]
        if called & RUNNERS and texts and texts[0]:
            for statement in parsed(texts[0].strip()).body:
                self.read(statement)
        if "getattr" in called and len(texts) > 1 and texts[1] in REFLECTION:
            self._keep({f".{texts[1]}"}, node)
        is_read = bool(texts and texts[0]) or _leading(node).startswith(HARMLESS_STARTS)
        self._visit_value(node.func, is_alias=True, is_tool=not is_read)
        for place, part in enumerate([*node.args, *node.keywords]):
            self._visit_value(part, is_alias=not place and bool(called & LOOKERS))

    def _keep(self, names: Iterable[str], node: ast.AST, *, is_tool: bool = True) -> None:
        line, is_answers = getattr(node, "lineno", 0), self.is_answers and is_tool
        self.named += [Named(name, line, self.bound.is_answer, is_answers) for name in sorted(names)]


def _outside_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions of a compound statement that stand before its blocks."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.match_case):
            yield from filter(None, (part.pattern, part.guard))
        elif not isinstance(part, ast.stmt | ast.ExceptHandler):
            yield part


def _is_table(node: ast.AST) -> bool:
    """Tell whether an expression is the table of all that a module offers."""
    return getattr(node, "attr", "") == "__dict__" or (
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "vars"
    )


def _leading(call: ast.Call) -> str:
    """Return the text that the first argument of a call is sure to begin with."""
    node = call.args[0] if call.args else None
    while isinstance(node, ast.BinOp):
        node = node.left
    if isinstance(node, ast.JoinedStr):
        node = node.values[0] if node.values else None
    return text_of(node) if node is not None else ""
