"""Where a course keeps what is handed in and what is graded: nbgrader's folders, by nbgrader's own settings."""

import difflib
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
MOST_NAMED = 3  # files that lie where a notebook should
TIMESTAMP = "timestamp.txt"


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
    """Read a course's settings; its own `nbgrader_config.py` says where things lie, if it has one.

    Errors:  ValueError if that file does not run.
    """
    root = root.resolve()
    try:
        is_there = (root / SETTINGS).exists()
        settings = PyFileConfigLoader(SETTINGS, path=str(root)).load_config() if is_there else Config()
    except Exception as error:  # it is Python, and raises what it likes
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{root / SETTINGS} cannot be used: {type(error).__name__}: {said}") from error
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
    near = difflib.get_close_matches(name, names, n=1)
    raise ValueError(
        f"no assignment {name!r}; did you mean {near[0]}?"
        if near
        else f"no assignment {name!r}: {places.releases} holds {', '.join(names) or 'nothing'}"
    )


def home(student: str, assignment: str, notebook: str, places: Places) -> Path:
    """Return where a notebook belongs that is handed in."""
    return places.submitted / student / assignment / f"{notebook}.ipynb"


def assignments_with_submissions(places: Places) -> list[str]:
    """Return the assignments of which something was handed in, sorted."""
    handed_in = {entry.name for student in _folders(places.submitted) for entry in _folders(Path(student.path))}
    return sorted(name for name in handed_in if (places.releases / name).is_dir())


def handed_in(assignment: str, releases: set[str], places: Places, *, student: str | None = None) -> Iterator[Found]:
    """Yield what each student handed in for each notebook of an assignment; nothing is opened."""
    for entry in sorted(_entries(places.submitted), key=lambda entry: entry.name):
        if student in (None, entry.name):
            yield from _of_student(entry, assignment, releases, places)


def misplaced(assignment: str, releases: set[str], places: Places) -> list[str]:
    """Return a sentence for each thing in the folder of submissions that seems handed in, but lies in no student's."""
    belongs = home("NAME", assignment, min(releases), places)
    return [
        f"{entry.path!r} lies in no student's folder, and is not graded: it belongs at {belongs}"
        for entry in sorted(_entries(places.submitted), key=lambda entry: entry.name)
        if _is_like(entry.name, {assignment, *releases}, places)
        and not any(_of_student(entry, assignment, releases, places))
    ]


def _of_student(entry: os.DirEntry, assignment: str, releases: set[str], places: Places) -> Iterator[Found]:
    folder = Path(entry.path) / assignment
    is_there = os.path.lexists(folder)
    reason = _unfit(entry, folder) if is_there else _unfit_name(entry)
    names = {below.name for below in _entries(folder)} if is_there and not reason else set()
    astray = "" if any(name.endswith(".ipynb") for name in names) else _astray(entry, {assignment, *releases}, places)
    if not (is_there or astray):
        return
    for name in sorted(releases):
        belongs = home(entry.name, assignment, name, places).relative_to(places.submitted.parent)
        lies = f": {astray!r} lies beside, and belongs at {belongs}" if astray else ""
        yield Found(entry.name, name, folder, reason=reason) if reason else _found(name, folder, names, releases, lies)


def _unfit(entry: os.DirEntry, folder: Path) -> str:
    if reason := _unfit_name(entry):
        return reason
    if entry.is_symlink() or folder.is_symlink() or not folder.is_dir():
        return f"{entry.name}/{folder.name} is a link or no folder: it is not followed"
    return ""


def _unfit_name(entry: os.DirEntry) -> str:
    if not entry.name.isprintable() or len(entry.name) > LONGEST_NAME:
        return f"its folder's name is no student's: {ascii(entry.name)[:80]}"
    return ""


def _found(notebook: str, folder: Path, names: set[str], releases: set[str], lies: str) -> Found:
    student, path = folder.parent.name, folder / f"{notebook}.ipynb"
    if path.name in names:
        return Found(student, notebook, path)
    others = sorted(name for name in names - {f"{one}.ipynb" for one in releases} if name.endswith(".ipynb"))
    if len(others) == 1 and len(releases) == 1:
        return Found(student, notebook, folder / others[0], note=f"it was handed in under the name {others[0]!r}")
    instead = f": which of {len(others)} other notebooks is it?" if others else lies or _held(names)
    return Found(student, notebook, path, reason=f"no {path.name} was handed in{instead}")


def _held(names: set[str]) -> str:
    held = sorted(names - {TIMESTAMP})
    more = f" and {len(held) - MOST_NAMED} more" if len(held) > MOST_NAMED else ""
    return f": its folder holds {', '.join(map(repr, held[:MOST_NAMED]))}{more}" if held else ""


def _astray(entry: os.DirEntry, wanted: set[str], places: Places) -> str:
    """Return what lies in a student's folder as if it were the assignment; nothing if that is not so."""
    if not entry.is_dir(follow_symlinks=False):
        return ""
    names = sorted(below.name for below in _entries(Path(entry.path)))
    return next((name for name in names if name not in wanted and _is_like(name, wanted, places)), "")


def _is_like(name: str, wanted: set[str], places: Places) -> bool:
    """Tell whether a name is a wanted one with something added, as `01_data_types (1)` or `01_data_types.ipynb`."""
    stem = name.partition(".")[0]
    if stem not in wanted and (places.releases / stem).is_dir():
        return False
    return any(f"{_words(name)}_".startswith(f"{_words(one)}_") for one in wanted if _words(one))


def _words(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _folders(folder: Path) -> list[os.DirEntry]:
    return [entry for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry]:
    """List a folder without what is hidden; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
