"""Random changes of honest notebooks: of their bytes, of their structure, of their answers, of what answers return."""

import ast
import copy
import json
import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

KINDS = ("bytes", "structure", "answer", "answer", "answer", "result", "lie")
LOOPS = 0.015  # of the changed answers: each costs the seconds that a check may take
OPERATORS = (
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Pow,
    ast.LShift,
    ast.RShift,
    ast.BitAnd,
    ast.BitOr,
    ast.BitXor,
    ast.MatMult,
)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
CONSTANTS = (
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "1e30",
    "float('nan')",
    "float('inf')",
    "None",
    "True",
    "'x'",
    "2**40",
    "10**400",
)
FAIR = (
    "float({0})",
    "list({0})",
    "tuple({0})",
    "[{0}]",
    "({0},)",
    "{0}[None]",
    "{0}.double()",
    "{0}.half()",
    "{0}.float()",
    "{0}.numpy()",
    "{0}.tolist()",
    "{0}.clone()",
    "{0}.requires_grad_()",
    "{0}.contiguous().t() if {0}.dim() == 2 else {0}",
    "{0}.to_sparse()",
    "{0} + 0",
    "{0} * 1.0",
    "-{0}",
    "{0}.abs()",
    "({0} for _ in [0])",
    "lambda: {0}",
    "str({0})",
    "{0}.item()",
    "{0}.long()",
    "{0}.bool()",
    "{0}.flip(0)",
    "{0}.expand(2, *{0}.shape)",
    "{0}.detach()",
    "None",
    "{0}.cfloat()",
    "torch.nn.Parameter({0})",
    "torch.stack([{0}, {0}]).unbind()[0]",
    "__import__('numpy').asarray({0})",
    "{{'a': {0}}}",
    "__import__('decimal').Decimal(float({0}))",
    "__import__('fractions').Fraction(float({0}))",
    "memoryview({0}.numpy())",
)
ENDLESS = "while True:\n    pass"
STATEMENTS = (
    "raise ValueError('x')",
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "assert False",
    "return None",
    "pass",
    "import os; os._exit(1)",
    "import torch; torch.set_default_dtype(torch.float64)",
    "print('x' * 10_000)",
    "import warnings; warnings.warn('w')",
    "import sys; sys.stderr.write('e')",
    "return NotImplemented",
    "return ...",
    "yield 1",
    "import torch; torch.manual_seed(0)",
    "import torch; torch.use_deterministic_algorithms(False)",
)
DUNDERS = (
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__bool__",
    "__len__",
    "__iter__",
    "__getitem__",
    "__float__",
    "__int__",
    "__index__",
    "__abs__",
    "__sub__",
    "__rsub__",
    "__add__",
    "__array__",
    "__hash__",
    "__contains__",
    "__call__",
    "__getattr__",
    "__torch_function__",
    "__array_ufunc__",
    "__complex__",
    "__round__",
)
RETURNS = ("True", "False", "0.0", "1", "self", "iter([])", "float('nan')", "[self]", "NotImplemented", "None")
BASES = ("", "float", "int", "list", "tuple", "dict", "torch.Tensor", "torch.nn.Module", "Exception", "str")


@dataclass(frozen=True)
class Mutant:
    """A submission's bytes, which exercises were touched, and the answers that are worth as much in one process."""

    kind: str
    content: bytes
    touched: frozenset[str]
    twins: dict[str, str]


def mutant(kind: str, honest: NotebookNode, rng: random.Random) -> Mutant:
    """Change an honest notebook in one way of this kind, drawn from `rng`."""
    notebook = json.loads(json.dumps(honest))
    exercises = [cell["id"].removeprefix("answer-") for cell in _answers(notebook)]
    if kind == "bytes":
        return Mutant(kind, _changed_bytes(json.dumps(notebook).encode(), rng), frozenset(exercises), {})
    if kind == "structure":
        for _ in range(rng.randint(1, 4)):
            rng.choice(STRUCTURE)(notebook, rng)
        return Mutant(kind, json.dumps(notebook).encode(), frozenset(exercises), {})
    exercise = rng.choice(exercises)
    cell = next(cell for cell in notebook["cells"] if cell["id"] == f"answer-{exercise}")
    source = twin = cell["source"]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        source, twin = WAYS[kind](source, rng) if kind == "lie" else (WAYS[kind](source, rng),) * 2
    cell["source"] = source
    return Mutant(kind, json.dumps(notebook).encode(), frozenset({exercise}), {exercise: twin})


def _answers(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["id"].startswith("answer-")]


def _changed_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 50))):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 3, 40, 1000))
        way = rng.randrange(5)
        if way == 0:
            del changed[place : place + length]
        elif way == 1:
            changed[place:place] = rng.randbytes(length)
        elif way == 2:
            other = rng.randrange(len(changed) + 1)
            changed[place:place] = changed[other : other + length]
        elif way == 3:
            changed[place:place] = rng.choice(
                (b"[", b"{", b'"', b"\\", b"}", b"]", b"null", b"\\ud800", b"1e999", b"\x00")
            )
        elif place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _any_cell(notebook: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    if not notebook["cells"]:
        notebook["cells"].append({"cell_type": "code", "source": "", "metadata": {}, "outputs": [], "id": "x"})
    return rng.choice(notebook["cells"])


def _moved(notebook: dict[str, Any], rng: random.Random) -> None:
    cell = _any_cell(notebook, rng)
    notebook["cells"].remove(cell)
    notebook["cells"].insert(rng.randint(0, len(notebook["cells"])), cell)


def _doubled(notebook: dict[str, Any], rng: random.Random) -> None:
    notebook["cells"].insert(rng.randint(0, len(notebook["cells"])), copy.deepcopy(_any_cell(notebook, rng)))


def _marked(notebook: dict[str, Any], rng: random.Random) -> None:
    marks = _any_cell(notebook, rng)["metadata"]
    marks = marks.setdefault("nbgrader", {}) if isinstance(marks, dict) else {}
    values = (True, False, None, 100, -1, 1e308, "decode", [], {}, "check-decode", "answer-decode", "setup")
    if isinstance(marks, dict):
        marks[rng.choice(("grade", "solution", "locked", "task", "points", "grade_id", "schema_version"))] = rng.choice(
            values
        )


def _odd_field(notebook: dict[str, Any], rng: random.Random) -> None:
    where = rng.choice((notebook, notebook["metadata"], _any_cell(notebook, rng)))
    names = [name for name in where if name != "cells"] or ["x"]
    where[rng.choice(names)] = rng.choice((None, 0, "", [], {}, "code", "markdown", 4, [[[]]], {"a": 1}, "\ud800"))


def _emptied(notebook: dict[str, Any], rng: random.Random) -> None:
    _any_cell(notebook, rng)["source"] = rng.choice(
        ("", "pass", "1", "%%bash\nls /", "!ls", "%reset -f", "raise", "\x00")
    )


STRUCTURE: tuple[Callable[[dict[str, Any], random.Random], Any], ...] = (
    _moved,
    _doubled,
    _marked,
    _marked,
    _odd_field,
    _emptied,
    lambda notebook, rng: notebook["cells"].remove(_any_cell(notebook, rng)),
    lambda notebook, rng: _any_cell(notebook, rng).update(cell_type=rng.choice(("code", "markdown", "raw", "heading"))),
    lambda notebook, rng: _any_cell(notebook, rng).update(
        id=rng.choice(("x", "check-decode", "setup", "answer-decode"))
    ),
    lambda notebook, rng: rng.shuffle(notebook["cells"]),
)


def _changed_answer(source: str, rng: random.Random) -> str:
    """Change one node of the program: an operator, a constant, a condition, a statement, a name."""
    tree = ast.parse(source)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    if rng.random() < 0.25:
        body = rng.choice(bodies)
        statement = ENDLESS if rng.random() < 4 * LOOPS else rng.choice(STATEMENTS)
        added = ast.parse(f"def f():\n{textwrap.indent(statement, ' ')}").body[0]
        place = rng.randrange(len(body) + 1)
        body[place:place] = added.body
        return ast.unparse(ast.fix_missing_locations(tree))
    if rng.random() < 0.2:
        body = rng.choice(bodies)
        if len(body) > 1:
            body.pop(rng.randrange(len(body)))
        rng.shuffle(body) if rng.random() < 0.2 else None
        return ast.unparse(ast.fix_missing_locations(tree))
    known = (
        ast.BinOp,
        ast.Compare,
        ast.Constant,
        ast.If,
        ast.IfExp,
        ast.Name,
        ast.AugAssign,
        ast.UnaryOp,
        ast.Attribute,
    )
    nodes = [node for body in bodies for statement in body for node in ast.walk(statement) if isinstance(node, known)]
    if nodes:
        _change(rng.choice(nodes), nodes, rng)
    return ast.unparse(ast.fix_missing_locations(tree))


def _change(node: Any, nodes: list[Any], rng: random.Random) -> None:
    if isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = rng.choice(OPERATORS)()
    elif isinstance(node, ast.Compare):
        node.ops = [rng.choice(COMPARISONS)() for _ in node.ops]
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.UnaryOp):
        node.op = rng.choice((ast.USub, ast.Not, ast.Invert, ast.UAdd))()
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = (
            ast.literal_eval("0") if rng.random() < 0.1 else node.value + rng.choice((1, -1, 0.5, node.value, 2**33))
        )
    elif isinstance(node, ast.Name):
        node.id = rng.choice([other.id for other in nodes if isinstance(other, ast.Name)])
    elif isinstance(node, ast.Attribute):
        node.attr = rng.choice([other.attr for other in nodes if isinstance(other, ast.Attribute)])


def _returns(tree: ast.AST) -> list[ast.Return]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]


def _changed_result(source: str, rng: random.Random) -> str:
    """Wrap, turn or replace what the answer returns."""
    tree = ast.parse(source)
    if found := _returns(tree):
        node, pattern = rng.choice(found), rng.choice((*FAIR, *CONSTANTS))
        node.value = ast.parse(pattern.format(f"({ast.unparse(node.value)})"), mode="eval").body
    return ast.unparse(ast.fix_missing_locations(tree))


def _lying(source: str, rng: random.Random) -> tuple[str, str]:
    """Return an object with odd methods in place of the result; its twin returns a constant that is no answer."""
    tree = ast.parse(source)
    for node in _returns(tree):
        node.value = ast.parse("Odd()", mode="eval").body
    chosen = rng.sample(DUNDERS, rng.randint(1, 12))
    methods = "\n".join(f"    def {name}(self, *a, **k):\n        return {rng.choice(RETURNS)}" for name in chosen)
    told = rng.choice(
        ("", "    __class__ = torch.Tensor\n", "    __class__ = float\n", "    shape = ()\n    dtype = torch.float32\n")
    )
    base = rng.choice(BASES)
    odd = f"class Odd{base and f'({base})'}:\n{told}{methods}\n\n"
    return odd + ast.unparse(tree), ast.unparse(tree).replace("Odd()", f"{base or 'object'}()")


WAYS: dict[str, Callable[[str, random.Random], Any]] = {
    "answer": _changed_answer,
    "result": _changed_result,
    "lie": _lying,
}
