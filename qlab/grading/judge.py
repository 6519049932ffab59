"""Judging a notebook: its cells in the sandbox, its graded cells by the release's checks, in its order."""

import copy
import time
from dataclasses import dataclass

from nbformat import NotebookNode, from_dict

from qlab.checks.report import Verdict
from qlab.grading.learner_process import Kernels, Ungradable
from qlab.grading.limits import Limits
from qlab.grading.session import USUAL, CellRun, Session
from qlab.labs import notebooks
from qlab.labs.execute import ExerciseResult, judged

__all__ = ["GradedNotebook", "Ungradable", "judge_notebook"]


@dataclass(frozen=True)
class GradedNotebook:
    """A submission with its outputs and what each graded cell of the release gave, in the release's order.

    Units:   `seconds` of wall-clock time; `cpu_seconds` of the sandboxed processes, the judge's own left out.
    """

    results: tuple[ExerciseResult, ...]
    notebook: NotebookNode
    repairs: tuple[str, ...]
    seconds: float
    cpu_seconds: float


def judge_notebook(
    notebook: NotebookNode, release: NotebookNode, sandbox: Kernels, *, limits: Limits = USUAL
) -> GradedNotebook:
    """Run a normalized submission and judge each graded cell of the release.

    Errors:  Ungradable if the sandbox fails, or a graded cell of the release is no check of qlab.
    """
    started = time.monotonic()
    graded = copy.deepcopy(notebook)
    answers = {name: cell.source for name, cell in notebooks.answer_cells(graded).items()}
    found: dict[str, Verdict] = {}
    with Session(sandbox, release, limits=limits) as session:
        for cell in graded.cells:
            grade_id, is_code = notebooks.marks(cell).get("grade_id"), cell.cell_type == "code"
            if is_code and grade_id in session.checks and grade_id not in found:
                found[grade_id] = session.judge(session.checks[grade_id], answers=answers)
                _show(cell, found[grade_id], session.count)
            elif is_code and notebooks.marks(cell).get("grade"):  # a second one of its name, or none of the release
                cell.outputs, cell.execution_count = [], None
            elif is_code:
                _run(cell, session)
        repairs = tuple(f"the graded cell {name!r} was missing" for name in session.checks if name not in found)
        for name in session.checks.keys() - found.keys():
            found[name] = session.judge(session.checks[name], answers=answers)
        results = tuple(judged(name, check.points, found[name].as_json()) for name, check in session.checks.items())
    return GradedNotebook(results, graded, repairs, time.monotonic() - started, session.cpu_seconds)


def _run(cell: NotebookNode, session: Session) -> None:
    name = str(notebooks.marks(cell).get("grade_id") or cell.get("id", ""))
    run = session.run_cell(cell.source, name=name) if cell.source.strip() else CellRun([], "ok")
    cell.outputs = [from_dict(output) for output in run.outputs]
    cell.execution_count = session.count if cell.source.strip() else None


def _show(cell: NotebookNode, verdict: Verdict, count: int) -> None:
    """Put a verdict where the output of its cell goes; its plain text is the points that nbgrader reads."""
    shown = {"output_type": "execute_result", "metadata": {}, "execution_count": count}
    cell.outputs = [from_dict(shown | {"data": verdict._repr_mimebundle_()})]
    cell.execution_count = count
