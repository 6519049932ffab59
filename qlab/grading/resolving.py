"""Which dotted names an expression of a learner's source may stand for."""

import ast
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qlab.grading.bindings import alias_targets, imported, text_of
from qlab.grading.cell_syntax import Unreadable
from qlab.grading.program import Program, is_star

MOST_STEPS = 50_000  # of resolving names: an answer takes some hundreds
MOST_NAMES = 100  # that one expression may stand for
MOST_PARTS = 20  # of a dotted name: a longer one of qlab or torch goes in circles
PARTS_AFTER_CALL = 2  # of a dotted name that matter: what an instance offers, and no more
IMPORTERS = {"__import__", "builtins.__import__", "importlib.import_module", "importlib.__import__"}
LOADED = ("sys.modules", "sys.modules.get()")
GLOBALS = {"globals()", "locals()", "vars()", "get_ipython().user_ns"}
ANY = "?"  # stands for what cannot be read of `module.?`: any of its names
Values = Mapping[str, list[ast.expr | str]]  # a local name, and what is known to be bound to it


@dataclass(eq=False)
class Scope:
    """The local names of a function, a comprehension or, so far, a class."""

    values: Values
    is_class: bool = False
    known: dict[str, set[str]] = field(default_factory=dict)

    def add(self, values: Values) -> None:
        self.values = {**self.values, **values}
        self.known = {}


class Resolver:
    """Resolves expressions at a `time`, within the scopes that they stand in."""

    def __init__(self, program: Program, time: int) -> None:
        self.program, self.time = program, time
        self.scopes: list[Scope] = []
        self._known: dict[tuple[str, int], set[str]] = {}
        self._round: set[tuple[str, int]] = set()
        self._settled: set[tuple[str, int]] = set()

    @contextlib.contextmanager
    def within(self, scopes: list[Scope], time: int) -> Iterator[None]:
        kept = self.scopes, self.time
        self.scopes, self.time = scopes, time
        try:
            yield
        finally:
            self.scopes, self.time = kept

    def is_global(self, name: str) -> bool:
        return not any(name in scope.values for scope in self.scopes)

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
            found = _longer(self.names(node.value), f".{node.attr}")
        elif isinstance(node, ast.Subscript):
            found = self._looked_up(self.names(node.value), node.slice)
        elif isinstance(node, ast.Call):
            found = self._names_of_call(node)
        elif isinstance(node, ast.IfExp):
            found = self.names(node.body) | self.names(node.orelse)
        if self.program.steps > MOST_STEPS or len(found) > MOST_NAMES:
            raise Unreadable
        return found

    def text(self, node: ast.AST) -> str:
        """Return the text that an expression is sure to give, also by a name that only ever stood for one."""
        if not isinstance(node, ast.Name):
            return text_of(node)
        if not self.is_global(node.id):
            return ""
        bound = [one.node for one in self.program.of(node.id, self.time)]
        texts = {text_of(one.value) for one in bound if isinstance(one, ast.Assign) and node.id in alias_targets(one)}
        return texts.pop() if len(texts) == len(bound) == 1 else ""

    def is_read(self, call: ast.Call) -> bool:
        """Tell whether a call that could do anything with a text is given one that can be read."""
        return bool(call.args and self.text(call.args[0]))

    def _names_of_name(self, name: str) -> set[str]:
        for place in reversed(range(len(self.scopes))):
            if name in self.scopes[place].values:
                with self.within(self.scopes[: place + 1], self.time):
                    return self._names_of_local(self.scopes[place], name)
        return self._names_of_global(name)

    def _names_of_local(self, scope: Scope, name: str) -> set[str]:
        """Resolve a scope's names together, until none stands for more: they may be made of each other."""
        if not scope.known:
            scope.known = {local: set() for local in scope.values}
            grows = True
            while grows:
                before = sum(map(len, scope.known.values()))
                for local, values in scope.values.items():
                    for value in values:
                        scope.known[local] |= {value} if isinstance(value, str) else self.names(value)
                grows = sum(map(len, scope.known.values())) > before
        return scope.known[name]

    def _names_of_global(self, name: str) -> set[str]:
        """Resolve a global name; names that are made of each other are resolved until none stands for more."""
        key = (name, self.time)
        known = self._known.setdefault(key, set())
        if key in self._settled or key in self._round:
            return known
        is_outermost, size = not self._round, -1
        while True:
            self._round.add(key)
            for bound in self.program.of(name, self.time):
                known |= self._names_bound(name, bound.node, bound.until)
            known |= set() if self.program.bound.get(name) else {name}
            if not is_outermost:
                return known
            if size == (size := sum(len(self._known[one]) for one in self._round)):
                break
            self._round.clear()
        self._settled |= self._round
        self._round.clear()
        return known

    def _names_bound(self, name: str, node: ast.AST, time: int) -> set[str]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return {f"{node.module}.{name}"} if is_star(node) else imported(node).get(name, set())
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None or name not in alias_targets(node):
            return set()
        with self.within([], time):
            return self.names(node.value)

    def _names_of_call(self, node: ast.Call) -> set[str]:
        called = self.names(node.func)
        if "getattr" in called and len(node.args) > 1:
            text = self.text(node.args[1])
            return _longer(self.names(node.args[0]), f".{text or ANY}")
        if called & IMPORTERS and self.is_read(node):
            text = self.text(node.args[0])
            return {text} if "importlib.import_module" in called else {text, text.split(".")[0]}
        if called & {"sys.modules.get"} and self.is_read(node):
            return {self.text(node.args[0])}
        if "vars" in called and node.args:
            return self.names(node.args[0])
        return _longer(called, "()")

    def _looked_up(self, tables: set[str], key: ast.AST) -> set[str]:
        text = self.text(key)
        if not text:
            return set()
        if tables & {*LOADED}:
            return {text}
        if tables & GLOBALS:
            return self._names_of_name(text)
        return _longer(tables, f".{text}")


def _longer(names: Iterable[str], part: str) -> set[str]:
    """Return dotted names with one more part, but those that are too long to matter.

    Errors:  Unreadable for one that goes in circles.
    """
    found = set()
    for name in names:
        _, called, after = name.partition("()")
        if name.count(".") >= MOST_PARTS and not called and name.startswith(("qlab.", "torch.")):
            raise Unreadable
        is_too_long = after.count(".") >= PARTS_AFTER_CALL or part == "()" if called else name.count(".") >= MOST_PARTS
        found |= set() if is_too_long else {name + part}
    return found
