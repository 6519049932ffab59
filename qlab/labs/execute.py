"""Executing a lab headlessly and reading the verdicts it ends with."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from qlab import course
from qlab.checks.report import VERDICT_MIME
from qlab.labs import notebooks
from qlab.labs.notebooks import NotALab

SECONDS_PER_CELL = 120


@dataclass(frozen=True)
class ExerciseResult:
    """What one graded cell gave."""

    grade_id: str
    points: int
    max_points: int
    outcome: str
    misconception: str = ""
    remarks: tuple[str, ...] = field(default=())


def check_notebook(path: Path) -> tuple[ExerciseResult, ...]:
    """Execute a lab with the release's own checks and return what each gave; the file itself is not changed.

    Errors:  NotALab if the file is not a notebook, or has no graded cells.
    """
    notebook = notebooks.read(path)
    released = _released(path, notebook)
    missing = _restore_checks(notebook, released)
    execute(notebook, path.parent)
    results = []
    for grade_id, cell in notebooks.graded_cells(released).items():
        most = int(notebooks.marks(cell)["points"])
        if grade_id in missing:
            results.append(ExerciseResult(grade_id, 0, most, "missing", remarks=("its check cell was deleted",)))
        else:
            results.append(_result(grade_id, most, notebooks.graded_cells(notebook)[grade_id]))
    return tuple(results)


def execute(notebook: NotebookNode, folder: Path, *, before: Sequence[str] = ()) -> None:
    """Run every cell in a fresh kernel that works in `folder`; an error in one cell does not stop the next.

    `before` is code that runs first and leaves no cell behind. A cell that runs longer than two minutes is
    interrupted, and a kernel that dies ends the run there: the cells after it have no output.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in before] + notebook.cells
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        interrupt_on_timeout=True,
        allow_errors=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    with contextlib.suppress(DeadKernelError):
        client.execute()
    notebook.cells = notebook.cells[len(before) :]


def labs_under(path: Path) -> tuple[Path, ...]:
    """Return the labs a path stands for: a notebook, or every notebook with graded cells in a folder.

    Errors:  NotALab if there is none.
    """
    if not path.is_dir():
        return (path,)
    found = [
        p for p in sorted(path.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts and ".before-" not in p.name
    ]
    if not found:
        raise NotALab(f"no notebook lies under {path}")
    return tuple(found)


def _released(path: Path, notebook: NotebookNode) -> NotebookNode:
    with contextlib.suppress(FileNotFoundError):
        lab = course.lab_path(path.stem)
        if lab.exists():
            return notebooks.read(lab)
    if not notebooks.graded_cells(notebook):
        raise NotALab(f"{path} has no graded cells and no topic has its name: it is not a lab of this course")
    return notebook


def _restore_checks(notebook: NotebookNode, released: NotebookNode) -> set[str]:
    """Put the release's source into every graded cell and return the ids of those that are gone."""
    own = notebooks.graded_cells(notebook)
    for grade_id, cell in notebooks.graded_cells(released).items():
        if grade_id in own:
            own[grade_id].source = cell.source
            own[grade_id].cell_type = "code"
    return notebooks.graded_cells(released).keys() - own.keys()


def _result(grade_id: str, most: int, cell: NotebookNode) -> ExerciseResult:
    for output in reversed(cell.get("outputs", [])):
        verdict = output.get("data", {}).get(VERDICT_MIME)
        if isinstance(verdict, dict):
            remarks = [
                f"{p['name']}: {p['thought'] or p['message']}" for p in verdict["parts"] if p["outcome"] != "right"
            ]
            points = max(0, min(most, int(verdict["points"])))
            return ExerciseResult(grade_id, points, most, verdict["outcome"], verdict["misconception"], tuple(remarks))
        if output.get("output_type") == "error":
            said = f"{output['ename']}: {output['evalue']}".splitlines()[0]
            return ExerciseResult(grade_id, 0, most, "crashed", remarks=(said,))
    return ExerciseResult(
        grade_id, 0, most, "crashed", remarks=("the cell gave no verdict: the kernel stopped before it",)
    )
