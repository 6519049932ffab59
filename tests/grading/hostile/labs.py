"""Small labs for hostile hands, cut from the course's own: their releases, and the right answers to them."""

import copy
from collections.abc import Mapping
from functools import cache

import nbformat
from nbformat import NotebookNode

from qlab.labs import notebooks
from tests.grading import REPOSITORY

SETUPS = {
    "types": ("data_types", "import math\n\nimport torch"),
    "scalers": ("mixed_precision", "import torch\nfrom torch import nn"),
    "adapters": ("qlora", "import math\n\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn"),
    "replays": ("checkpointing", "import math\n\nimport torch\nimport torch.nn.functional as F"),
}
TOPICS = {
    "types": "01_data_types",
    "scalers": "06_mixed_precision",
    "adapters": "10_qlora",
    "replays": "07_checkpointing",
}
EXERCISES = {
    "types": ("decode", "fp32-bits-to-bf16-bits", "kahan-sum", "pack-int4", "store-in-16-bits"),
    "scalers": ("loss-scaler", "training-step"),
    "adapters": ("lora-linear", "merge-adapter", "qlora-linear"),
    "replays": ("checkpoint", "choose-segments", "accumulate"),
}
MARKERS = ("### BEGIN SOLUTION", "### END SOLUTION")


@cache
def _topic(lab: str, folder: str) -> NotebookNode:
    name = TOPICS[lab]
    return notebooks.read(REPOSITORY / folder / name / f"{name}.ipynb")


def _setup(lab: str) -> NotebookNode:
    checks, imports = SETUPS[lab]
    source = f"{imports}\n\nfrom qlab.checks import {checks} as checks\n\ntorch.manual_seed(0)"
    cell = nbformat.v4.new_code_cell(source, id="setup")
    marks = {"grade": False, "grade_id": "setup", "locked": True, "schema_version": 3, "solution": False, "task": False}
    cell.metadata["nbgrader"] = marks
    return cell


@cache
def _release(lab: str) -> str:
    """Write the lab that learners get: a locked setup, then a task, an answer and a check for each exercise."""
    given = {cell.id: cell for cell in _topic(lab, "labs").cells}
    cells = [nbformat.v4.new_markdown_cell(f"# {lab}", id="title"), _setup(lab)]
    for exercise in EXERCISES[lab]:
        names = (f"task-{exercise}", f"answer-{exercise}", f"check-{exercise}")
        cells += [copy.deepcopy(given[name]) for name in names if name in given]
    made = nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(_topic(lab, "labs").metadata))
    return nbformat.writes(made)


def release(lab: str) -> NotebookNode:
    """Return a fresh copy of the release of a lab."""
    return nbformat.reads(_release(lab), as_version=4)


@cache
def right_answers(lab: str) -> Mapping[str, str]:
    """Return the source of a right answer to each exercise, with nothing in it that marks a solution."""
    cells = {cell.id: cell.source for cell in _topic(lab, "solutions").cells}
    found = {exercise: cells[f"answer-{exercise}"] for exercise in EXERCISES[lab]}
    return {
        exercise: "\n".join(line for line in source.splitlines() if line.strip() not in MARKERS)
        for exercise, source in found.items()
    }


def submission(
    lab: str, *, answers: Mapping[str, str], answered: bool = True, opening: str = "", closing: str = ""
) -> NotebookNode:
    """Fill a lab with right answers, or leave it as it came, with `answers` over that and own cells."""
    notebook = release(lab)
    sources = {**(right_answers(lab) if answered else {}), **answers}
    for cell in notebook.cells:
        exercise = cell.id.removeprefix("answer-")
        if cell.id.startswith("answer-") and exercise in sources:
            cell.source = sources[exercise]
    place = next(i for i, cell in enumerate(notebook.cells) if cell.id == "setup") + 1
    if opening:
        notebook.cells.insert(place, nbformat.v4.new_code_cell(opening, id="opening"))
    if closing:
        notebook.cells.append(nbformat.v4.new_code_cell(closing, id="closing"))
    return notebook


def most_points(lab: str) -> dict[str, int]:
    """Return the points of each exercise."""
    return {
        grade_id.removeprefix("check-"): notebooks.points(cell)
        for grade_id, cell in notebooks.graded_cells(release(lab)).items()
    }
