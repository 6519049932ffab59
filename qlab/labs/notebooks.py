"""Reading and writing notebooks: one sentence for a file that is none, and the cells nbgrader marks."""

import os
import warnings
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode


class NotALab(ValueError):
    """A file that cannot be used as a lab; the text says why in one sentence."""


def read(path: Path) -> NotebookNode:
    """Read a notebook.

    Errors:  NotALab if the file is missing, is not a notebook, or is one of an unknown format.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # nbformat repairs missing and doubled cell ids, and warns of it
            notebook = nbformat.from_dict(nbformat.read(path, as_version=4))  # what it converts is of another type
            nbformat.validate(notebook)
    except FileNotFoundError:
        raise NotALab(f"{path} does not exist") from None
    except IsADirectoryError:
        raise NotALab(f"{path} is a folder, not a notebook") from None
    except UnicodeDecodeError:
        raise NotALab(f"{path} is not a notebook: it is not UTF-8 text") from None
    except RecursionError:
        raise NotALab(f"{path} is not a notebook: it is nested too deeply") from None
    except (AttributeError, TypeError):
        raise NotALab(f"{path} is not a notebook: its JSON holds something else") from None
    except Exception as error:  # nbformat raises what json, jsonschema and its own reader raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise NotALab(f"{path} is not a notebook that can be read: {reason}") from None
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    write_whole((nbformat.writes(notebook) + "\n").encode(), path)


def write_whole(content: bytes, path: Path) -> None:
    """Write a file so that a crash leaves the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def marks(cell: NotebookNode) -> dict[str, Any]:
    """Return what nbgrader noted on a cell: `grade_id`, `grade`, `solution`, `points`."""
    noted = cell.get("metadata", {}).get("nbgrader", {})
    return noted if isinstance(noted, dict) else {}


def points(cell: NotebookNode) -> int:
    """Return the points a cell can give; zero where none are noted."""
    noted = marks(cell).get("points")
    return int(noted) if isinstance(noted, int | float) else 0


def graded_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Return the cells that give points, by `grade_id`."""
    return _marked(notebook, "grade")


def answer_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Return the cells the learner fills in, by `grade_id`."""
    return _marked(notebook, "solution")


def _marked(notebook: NotebookNode, mark: str) -> dict[str, NotebookNode]:
    marked = [cell for cell in notebook.cells if marks(cell).get(mark)]
    return {grade_id: cell for cell in marked if isinstance(grade_id := marks(cell).get("grade_id"), str)}
