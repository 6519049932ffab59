"""Where a course keeps what is handed in and what is graded: nbgrader's folders, by nbgrader's own settings."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from traitlets.config import Config, PyFileConfigLoader

from qlab.labs import notebooks
from qlab.labs.notebooks import NotALab

SETTINGS = "nbgrader_config.py"
LONGEST_NAME = 128  # characters, in nbgrader's gradebook


@dataclass(frozen=True)
class Places:
    """The folders of one course, and its gradebook."""

    root: Path
    submitted: Path
    autograded: Path
    releases: Path
    records: Path
    database: str
    course_id: str
    settings: Config


@dataclass(frozen=True)
class Found:
    """A notebook that was handed in, or the reason why there is none to grade."""

    student: str
    notebook: str
    path: Path
    note: str = ""
    reason: str = ""


def places_of(root: Path) -> Places:
    """Read a course's settings; its own `nbgrader_config.py` says where things lie, if it has one."""
    root = root.resolve()
    settings = PyFileConfigLoader(SETTINGS, path=str(root)).load_config() if (root / SETTINGS).exists() else Config()
    directory = settings.CourseDirectory
    return Places(
        root=root,
        submitted=root / directory.get("submitted_directory", "submitted"),
        autograded=root / directory.get("autograded_directory", "autograded"),
        releases=root / directory.get("release_directory", "labs"),
        records=root / "grading",
        database=directory.get("db_url", f"sqlite:///{root / 'gradebook.db'}"),
        course_id=directory.get("course_id", ""),
        settings=settings,
    )


def releases_of(assignment: str, places: Places) -> dict[str, NotebookNode]:
    """Return the notebooks of an assignment as they were released, by name.

    Errors:  NotALab if there are none, or one has no graded cells.
    """
    folder = places.releases / assignment
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise NotALab(f"no release lies in {folder}: grading needs it, and learners' notebooks are mended from it")
    found = {path.stem: notebooks.read(path) for path in paths}
    for name, notebook in found.items():
        if not notebooks.graded_cells(notebook):
            raise NotALab(f"{folder / name}.ipynb has no graded cells: there is nothing to grade")
    return found


def named(name: str, places: Places) -> str:
    """Return the assignment called `name`: its folder's name, or a topic's number.

    Errors:  ValueError if there is none.
    """
    names = sorted(folder.name for folder in _folders(places.releases))
    for known in names:
        if name == known or (name.isdecimal() and re.match(rf"0*{int(name)}_", known)):
            return known
    raise ValueError(f"no assignment {name!r}: {places.releases} holds {', '.join(names) or 'nothing'}")


def assignments_with_submissions(places: Places) -> list[str]:
    """Return the assignments of which something was handed in, sorted."""
    handed_in = {entry.name for student in _folders(places.submitted) for entry in _folders(Path(student.path))}
    return sorted(name for name in handed_in if (places.releases / name).is_dir())


def handed_in(assignment: str, releases: set[str], places: Places, *, student: str | None = None) -> Iterator[Found]:
    """Yield what each student handed in for each notebook of an assignment; nothing is opened."""
    for entry in sorted(_entries(places.submitted), key=lambda entry: entry.name):
        folder = Path(entry.path) / assignment
        if student not in (None, entry.name) or not os.path.lexists(folder):
            continue
        reason = _unfit(entry, folder)
        names = set() if reason else {below.name for below in _entries(folder) if below.name.endswith(".ipynb")}
        for name in sorted(releases):
            yield Found(entry.name, name, folder, reason=reason) if reason else _found(name, folder, names, releases)


def _unfit(entry: os.DirEntry, folder: Path) -> str:
    if not entry.name.isprintable() or len(entry.name) > LONGEST_NAME:
        return f"its folder's name is no student's: {ascii(entry.name)[:80]}"
    if entry.is_symlink() or folder.is_symlink() or not folder.is_dir():
        return f"{entry.name}/{folder.name} is a link or no folder: it is not followed"
    return ""


def _found(notebook: str, folder: Path, names: set[str], releases: set[str]) -> Found:
    student, path = folder.parent.name, folder / f"{notebook}.ipynb"
    if path.name in names:
        return Found(student, notebook, path)
    others = sorted(names - {f"{name}.ipynb" for name in releases})
    if len(others) == 1 and len(releases) == 1:
        return Found(student, notebook, folder / others[0], note=f"it was handed in under the name {others[0]!r}")
    several = f": which of {len(others)} other notebooks is it?" if others else ""
    return Found(student, notebook, path, reason=f"no {path.name} was handed in{several}")


def _folders(folder: Path) -> list[os.DirEntry]:
    return [entry for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry]:
    """List a folder without what is hidden; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
