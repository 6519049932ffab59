"""One submission as it travels to a worker, and what comes back: JSON and bytes, never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode

from qlab.grading.limits import Limits
from qlab.grading.submission import Refused, mended
from qlab.labs import notebooks
from qlab.labs.execute import ExerciseResult

if TYPE_CHECKING:
    from qlab.grading.sandbox import Sandbox

USUAL = Limits()


@dataclass(frozen=True)
class Task:
    """One notebook of one student, as it lay on disk: nothing has looked into it yet."""

    student: str
    notebook: str
    key: str
    content: bytes

    def as_bytes(self) -> bytes:
        header = json.dumps({"student": self.student, "notebook": self.notebook, "key": self.key})
        return header.encode() + b"\n" + self.content

    @classmethod
    def from_bytes(cls, data: bytes) -> "Task":
        header, _, content = data.partition(b"\n")
        return cls(content=content, **json.loads(header))


@dataclass(frozen=True)
class Judged:
    """What became of a task: its points and the graded notebook, or the reason why it was not graded."""

    student: str
    notebook: str
    key: str
    results: tuple[ExerciseResult, ...] = ()
    graded: str = ""
    untouched: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    reason: str = ""

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Judged":
        return cls.from_dict(json.loads(data))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Judged":
        results = tuple(ExerciseResult(**{**r, "remarks": tuple(r["remarks"])}) for r in fields["results"])
        tuples = {name: tuple(fields[name]) for name in ("untouched", "repairs")}
        return cls(**{**fields, **tuples, "results": results})


def judge_task(task: Task, release: NotebookNode, sandbox: "Sandbox", *, limits: Limits = USUAL) -> Judged:
    """Bring a submission into the release's structure and judge it; whatever prevents that becomes the reason."""
    from qlab.grading.judge import Ungradable, judge_notebook  # noqa: PLC0415 - the grader itself never judges

    who = {"student": task.student, "notebook": task.notebook, "key": task.key}
    try:
        submission = mended(task.content, release)
        found = judge_notebook(submission.notebook, release, sandbox, limits=limits)
    except (Refused, Ungradable) as error:
        return Judged(**who, reason=str(error))
    except Exception as error:  # a fault of the judge's own must not cost a grade, nor stop the others
        return Judged(**who, reason=f"the judge itself failed: {type(error).__name__}: {' '.join(str(error).split())}")
    repairs = (*submission.repairs, *found.repairs)
    graded = _with_note(found.notebook, repairs) if repairs else found.notebook
    return Judged(
        **who,
        results=found.results,
        graded=nbformat.writes(graded).encode("utf-8", "replace").decode(),  # an output may hold half a letter
        untouched=_untouched(submission.notebook, release),
        repairs=repairs,
        seconds=found.seconds,
        cpu_seconds=found.cpu_seconds,
    )


def _with_note(notebook: NotebookNode, repairs: tuple[str, ...]) -> NotebookNode:
    """Say on top of a graded notebook what was mended in it."""
    text = "\n".join(["**Mended before it was graded:**", "", *(f"- {repair}" for repair in repairs)])
    note = NotebookNode(cell_type="markdown", id="repairs", metadata=NotebookNode(), source=text)
    return NotebookNode(notebook | {"cells": [note, *notebook.cells]})


def _untouched(notebook: NotebookNode, release: NotebookNode) -> tuple[str, ...]:
    released = notebooks.answer_cells(release)
    own = notebooks.answer_cells(notebook)
    return tuple(name for name, cell in released.items() if name in own and own[name].source == cell.source)
