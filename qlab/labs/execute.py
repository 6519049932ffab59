"""Executing a lab headlessly and reading the verdicts it ends with."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from qlab import course
from qlab.checks.report import VERDICT_MIME
from qlab.labs import notebooks
from qlab.labs.notebooks import NotALab

SECONDS_PER_CELL = 120
INTERRUPTED = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
LONGEST_SOCKET_PATH = 95  # characters: macOS allows 103 in all, and "-ipc-5" replaces ".json"


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
        most = notebooks.points(cell)
        if grade_id in missing:
            results.append(ExerciseResult(grade_id, 0, most, "missing", remarks=("its check cell was deleted",)))
        else:
            results.append(_result(grade_id, most, notebooks.graded_cells(notebook)[grade_id]))
    return tuple(results)


def execute(notebook: NotebookNode, folder: Path, *, before: Sequence[str] = ()) -> None:
    """Run every cell in a fresh kernel that works in `folder`; an error in one cell does not stop the next.

    `before` is code that runs first and leaves no cell behind. A cell that runs longer than two minutes is
    interrupted. A kernel that dies, or a cell that will not be interrupted, ends the run there: the cells after it
    have no output.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in before] + notebook.cells
    with tempfile.TemporaryDirectory(prefix="qlab-") as private:
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            iopub_timeout=SECONDS_PER_CELL,
            interrupt_on_timeout=True,
            error_on_timeout=INTERRUPTED,  # else nbclient waits forever where a bare `except:` eats the interrupt
            raise_on_iopub_timeout=True,
            allow_errors=True,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            config=_connection(Path(private)),
        )
        with contextlib.suppress(DeadKernelError, CellTimeoutError):
            client.execute()
    notebook.cells = notebook.cells[len(before) :]


def labs_under(path: Path) -> tuple[Path, ...]:
    """Return the labs a path stands for: a notebook, or every lab in a folder, with the notebooks that cannot be read.

    Errors:  NotALab if there is none.
    """
    if not path.is_dir():
        return (path,)
    below = [p for p in sorted(path.rglob("*.ipynb")) if ".before-" not in p.name]
    seen = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    found = tuple(p for p in seen if _may_be_a_lab(p))
    if not found:
        raise NotALab(f"no lab lies under {path}")
    return found


def _may_be_a_lab(path: Path) -> bool:
    try:
        return bool(notebooks.graded_cells(notebooks.read(path)))
    except NotALab:
        return True


def _connection(private: Path) -> Config:
    """Let the kernel listen on sockets in a folder of its own, where the system has them: no open port, no warning."""
    file = private / "kernel.json"
    has_sockets = os.name == "posix" and len(str(file)) <= LONGEST_SOCKET_PATH
    return Config(ConnectionFileMixin={"connection_file": str(file), "transport": "ipc" if has_sockets else "tcp"})


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
    remark = "its check gave no verdict" if cell.execution_count else "the run ended before this check was done"
    for output in reversed(cell.outputs):
        verdict = output.get("data", {}).get(VERDICT_MIME)
        if isinstance(verdict, dict):
            return judged(grade_id, most, verdict)
        if output.output_type == "error":
            remark = f"{output.ename}: {output.evalue}".splitlines()[0]
            if output.ename == INTERRUPTED["ename"]:
                remark = f"it ran for {SECONDS_PER_CELL} seconds and was stopped"
            break
    return ExerciseResult(grade_id, 0, most, "crashed", remarks=(remark,))


def judged(grade_id: str, most: int, verdict: dict[str, Any]) -> ExerciseResult:
    """Read the JSON of a verdict; a part that says nothing else says how it ended."""
    parts = [part for part in verdict["parts"] if part["outcome"] != "right"]
    remarks = [f"{part['name']}: {part['thought'] or part['message'] or part['outcome']}" for part in parts]
    points = max(0, min(most, int(verdict["points"])))
    return ExerciseResult(grade_id, points, most, verdict["outcome"], verdict["misconception"], tuple(remarks))
