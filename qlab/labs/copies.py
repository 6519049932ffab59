"""The learner's own copies: made once, never overwritten, refreshed with the answers kept."""

import hashlib
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nbformat import NotebookNode

from qlab import course
from qlab.checks import progress
from qlab.labs import notebooks


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did: where the old copy lies, which answers moved, and which have no place any more."""

    backup: Path
    carried: tuple[str, ...]
    left_behind: tuple[str, ...]


def copy_labs() -> tuple[Path, ...]:
    """Copy every lab into `work/` where no copy is yet, and return the new copies."""
    made = []
    for topic in course.topics():
        copy, lab = course.copy_path(topic.stem), course.lab_path(topic.stem)
        if not copy.exists() and lab.exists():
            _note_version(topic.stem)
            notebooks.write_whole(lab.read_bytes(), copy)
            made.append(copy)
    return tuple(made)


def is_stale(stem: str) -> bool:
    """Tell whether the lab has changed since the learner's copy was made."""
    noted, lab = progress.read_json(_version_file(stem)), course.lab_path(stem)
    return bool(noted) and course.copy_path(stem).exists() and lab.exists() and noted.get("lab") != _digest(lab)


def refresh(stem: str) -> Refreshed:
    """Replace a learner's copy by the lab of today, with the answers carried over by `grade_id`.

    A cell the learner never touched is no answer: it gets the stub of today.

    Errors:  NotALab if there is no copy, or it cannot be read; then nothing is changed.
    """
    path = course.copy_path(stem)
    old, fresh = notebooks.read(path), notebooks.read(course.lab_path(stem))
    stubs = (progress.read_json(_version_file(stem)) or {}).get("stubs", {})
    answers = {name: source for name, source in _answers(old).items() if source != stubs.get(name)}
    places = notebooks.answer_cells(fresh)
    for name in answers.keys() & places:
        places[name].source = answers[name]
    backup = path.with_name(f"{stem}.before-{datetime.now():%Y%m%d-%H%M%S-%f}.ipynb")
    shutil.copyfile(path, backup)
    notebooks.write(fresh, path)
    _note_version(stem)
    return Refreshed(backup, tuple(sorted(answers.keys() & places)), tuple(sorted(answers.keys() - places)))


def points_of(lab: Path) -> int:
    """Return the points a lab gives in all, or zero where there is no lab."""
    if not lab.exists():
        return 0
    return sum(map(notebooks.points, notebooks.graded_cells(notebooks.read(lab)).values()))


def _note_version(stem: str) -> None:
    lab = course.lab_path(stem)
    progress.write_json(_version_file(stem), {"lab": _digest(lab), "stubs": _answers(notebooks.read(lab))})


def _answers(notebook: NotebookNode) -> dict[str, str]:
    return {name: cell.source for name, cell in notebooks.answer_cells(notebook).items()}


def _version_file(stem: str) -> Path:
    return course.work_folder() / ".qlab" / "copies" / f"{stem}.json"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
