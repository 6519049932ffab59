"""Courses and notebooks for the tests of labs and of grading: real, small, and broken ones."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest

from qlab.checks.report import VERDICT_MIME
from qlab.labs import notebooks

REPOSITORY = Path(__file__).parents[2]
TOPIC = "01_data_types"
EMPTY = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
OLD_CELL = {"cell_type": "code", "input": "1", "outputs": [], "language": "python", "collapsed": False}
OLD_FORMAT = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [OLD_CELL], "metadata": {}}]}
NO_LABS = {
    "empty": b"",
    "list": b"[1, 2]",
    "null": b"null",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "deep metadata": json.dumps(EMPTY).encode().replace(b"{}", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "cut short": json.dumps(EMPTY).encode()[:-9],
    "from the future": json.dumps(EMPTY | {"nbformat": 99}).encode(),
    "without graded cells": json.dumps(EMPTY).encode(),
    "nbformat 3": json.dumps(OLD_FORMAT).encode(),
}
A_POINT = {"points": 1, "outcome": "right", "misconception": "", "parts": []}
GIVES_A_POINT = f"display({{{VERDICT_MIME!r}: {A_POINT}}}, raw=True)"


def copy_course(folder: Path) -> Path:
    """Copy all that labs are made of into `folder`."""
    for name in ("lessons", "labs", "solutions"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "nbgrader_config.py", folder)
    return folder


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_sentence(error: pytest.ExceptionInfo) -> str:
    """Return what was said, which must be one readable line."""
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 400
    return text


def fill(notebook: nbformat.NotebookNode, **sources: str) -> None:
    """Put sources into the cells of these ids; a Python name stands for an id with hyphens."""
    for cell in notebook.cells:
        if (name := cell.id.replace("-", "_")) in sources:
            cell.source = sources[name]


def small_lab(path: Path, *sources: str) -> Path:
    """Write a lab of no topic whose every cell is graded: its kernel needs no torch."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for number, cell in enumerate(cells):
        cell.metadata["nbgrader"] = {"grade": True, "grade_id": f"cell-{number}", "points": 1}
    notebooks.write(nbformat.v4.new_notebook(cells=cells), path)
    return path
