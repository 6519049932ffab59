"""The syntax of a notebook's cell: the Python that IPython makes of it, its magics and questions included."""

import ast
import re
from functools import lru_cache

from IPython.core.inputtransformer2 import TransformerManager

MOST_WORK = 1_000_000  # characters × lines that IPython may rewrite: it reads the cell anew for each of them
MOST_NESTED = 4  # magics that run a cell of magics
PROMPTS = (">>>", "In [", "[In [")  # IPython strips them, also where they could be read as Python
REWRITTEN = re.compile(r"^\s*[%!,;/]|[?]|=\s*[%!]")
RUN_PYTHON = ("time", "timeit", "prun", "capture")
MOST_OPTIONS = 6  # words of a magic's line before its code


class Unreadable(Exception):
    """A source that is nested too deeply, or whose names lead to too many others, to be read."""


@lru_cache(maxsize=256)
def tree_of(source: str) -> ast.Module | None:
    """Return the syntax tree of what IPython runs for a cell, or None if that is no Python.

    The code that `%time` and its like run stands in their place.
    Errors:  Unreadable if it is nested too deeply, which a cell may be and yet run.
    """
    return _tree(source, MOST_NESTED)


@lru_cache(maxsize=256)
def python_of(source: str) -> str:
    """Return what IPython runs for a cell as Python without magics; of a cell that is no Python, nothing.

    Errors:  Unreadable if it is nested too deeply.
    """
    tree = tree_of(source)
    try:
        return "" if tree is None else source if _is_plain(source) and _parsed(source) else ast.unparse(tree)
    except (RecursionError, MemoryError):
        raise Unreadable from None


def _is_plain(source: str) -> bool:
    return not source.lstrip().startswith(PROMPTS) and "get_ipython" not in source


def _tree(source: str, depth: int) -> ast.Module | None:
    tree = _parsed(source) if _is_plain(source) else None
    if tree is not None:
        return tree
    changed = _transformed(source)
    tree = _parsed(changed)
    if tree is None and len(changed.splitlines()) == 1:  # IPython takes a line alone for a magic without its %
        tree = _parsed(_transformed(f"%{source.strip()}"))
    try:
        return None if tree is None else _Unwrapped(depth).visit(tree)
    except (RecursionError, MemoryError):
        raise Unreadable from None


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    except (RecursionError, MemoryError):
        raise Unreadable from None


def _transformed(source: str) -> str:
    rewritten = [line for line in source.splitlines() if REWRITTEN.search(line)]
    if len(rewritten) * len(source) > MOST_WORK:
        raise Unreadable
    try:
        return TransformerManager().transform_cell(source)
    except (RecursionError, MemoryError):
        raise Unreadable from None
    except (SyntaxError, ValueError, RuntimeError, IndexError):
        return source  # IPython would not have run it either


class _Unwrapped(ast.NodeTransformer):
    """Puts the code that a magic runs in the magic's place."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.stmt]:
        code = _code_run_by(node.value)
        if code is None:
            return self.generic_visit(node)
        if not self.depth:
            raise Unreadable
        words = code.lstrip()
        options = MOST_OPTIONS if words.startswith("-") else 0
        while options and _parsed(words) is None:
            words, options = words.partition(" ")[2].lstrip(), options - 1
        tree = _tree(words, self.depth - 1)
        statements = tree.body if tree is not None else []
        return [ast.increment_lineno(statement, node.lineno - 1) for statement in statements] or ast.copy_location(
            ast.Pass(), node
        )


def _code_run_by(node: ast.AST) -> str | None:
    """Return the Python code that a call of IPython's shell runs among the notebook's names, if it is one."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=method),
            args=[*args],
        ):
            texts = [arg.value if isinstance(arg, ast.Constant) and isinstance(arg.value, str) else "" for arg in args]
        case _:
            return None
    match method, texts:
        case "run_line_magic", [name, code] if name in RUN_PYTHON and name != "capture":
            return code
        case "run_cell_magic", [name, line, code] if name in RUN_PYTHON:
            kept = line.split()[0] if name == "capture" and line and line.split()[0].isidentifier() else ""
            return f"{code}\n{kept} = None" if kept else code
        case (("run_cell" | "ex" | "ev"), [code, *_]):
            return code
    return None
