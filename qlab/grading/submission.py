"""Reading a submission without trusting it, and giving it back the release's structure."""

import json
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nbformat import NotebookNode

from qlab.grading import repairs
from qlab.grading.repairs import Cell

MOST_BYTES = 20_000_000
MOST_CELLS = 2_000
LONGEST_SOURCE = 500_000  # characters of one cell
LONGEST_OLD = 2_000_000  # characters; nbformat takes a second to convert so much
MOST_BRACKETS = 1_000_000  # each is a Python object of some sixty bytes or more
DEEPEST = 200
NEWEST_FORMAT = 4
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # linear, also where the last is unclosed
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Refused(ValueError):
    """A submission that cannot be read safely; the text says why in one sentence."""


@dataclass(frozen=True)
class Submission:
    """A learner's code in the release's structure, and what had to be mended for it, a sentence each."""

    notebook: NotebookNode
    repairs: tuple[str, ...]


def normalised(path: Path, release: NotebookNode, *, under: Path, most_bytes: int = MOST_BYTES) -> Submission:
    """Read a submission that lies below the folder `under` and bring it into the release's structure.

    Errors:  Refused, with one sentence, for whatever is no plain notebook file of its own.
    """
    return mended(content_of(path, under=under, most_bytes=most_bytes), release)


def content_of(path: Path, *, under: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a regular file below `under`, going through no link, and blocking on nothing.

    Errors:  Refused if it is a link, a FIFO, a device, a folder, shared with another name, too large, or not there.
    """
    try:
        *folders, name = path.relative_to(under).parts
    except ValueError:
        raise Refused(f"{path} does not lie under {under}") from None
    if ".." in (*folders, name):
        raise Refused(f"{path} leads out of {under}")
    try:
        with _opened_folder(under, folders) as folder:
            return _read_regular(name, folder, most_bytes)
    except OSError as error:
        raise Refused(f"{path.name} cannot be read: {error.strerror or error}") from None


def mended(content: bytes, release: NotebookNode) -> Submission:
    """Read the bytes of a notebook and bring it into the release's structure.

    Errors:  Refused if the bytes are no notebook that can be read safely, or one of another lab.
    """
    found, notes = _cells(_loaded(content))
    try:
        notebook, more = repairs.mended(found, release)
    except repairs.AnotherLab as error:
        raise Refused(str(error)) from None
    return Submission(notebook, (*notes, *more))


@contextmanager
def _opened_folder(under: Path, folders: list[str]) -> Iterator[int]:
    opened = os.open(under, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folders:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
            os.close(opened)
            opened = below
        yield opened
    except NotADirectoryError:
        raise Refused(f"a folder on the way to it is a link or no folder: {'/'.join(folders)}") from None
    finally:
        os.close(opened)


def _read_regular(name: str, folder: int, most_bytes: int) -> bytes:
    _refuse_unless_regular(name, os.stat(name, dir_fd=folder, follow_symlinks=False), most_bytes)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        _refuse_unless_regular(name, os.fstat(descriptor), most_bytes)  # what was opened may not be what was seen
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise Refused(f"{name} is larger than {most_bytes} bytes")
    return content


def _refuse_unless_regular(name: str, found: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"{name} is a symbolic link, not a file of its own")
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{name} is a folder, a pipe or a device, not a plain file")
    if found.st_nlink > 1:
        raise Refused(f"{name} is a hard link: {found.st_nlink} names share its content, and a submission has one")
    if found.st_size > most_bytes:
        raise Refused(f"{name} has {found.st_size} bytes, and at most {most_bytes} are read")


def _loaded(content: bytes) -> dict[str, Any]:
    if not content.strip():
        raise Refused("the notebook is empty")
    brackets = np.frombuffer(STRING.sub(b"", content).translate(None, NO_BRACKETS), dtype=np.uint8)
    if brackets.size > MOST_BRACKETS:
        raise Refused(f"the notebook holds {brackets.size} brackets, and at most {MOST_BRACKETS} are read")
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    if brackets.size and steps.cumsum().max() > DEEPEST:
        raise Refused(f"the notebook's JSON is nested more than {DEEPEST} levels deep")
    try:
        loaded = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused("the notebook is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise Refused(f"the notebook is not JSON: {reason}") from None
    if not isinstance(loaded, dict):
        raise Refused(f"the notebook's JSON holds a {type(loaded).__name__}, not a notebook")
    return loaded


def _cells(loaded: dict[str, Any]) -> tuple[list[Cell], tuple[str, ...]]:
    version, notes = loaded.get("nbformat"), []
    if type(version) is not int or not 1 <= version <= NEWEST_FORMAT:
        raise Refused(
            f"the notebook says it is of format {str(version)[:20]}, and formats 1 to {NEWEST_FORMAT} are read"
        )
    if version < NEWEST_FORMAT:
        loaded = _converted(loaded, version)
        notes.append(f"the notebook was converted from format {version}")
    cells = loaded.get("cells")
    if not isinstance(cells, list):
        raise Refused("the notebook has no list of cells")
    if len(cells) > MOST_CELLS:
        raise Refused(f"the notebook has {len(cells)} cells, and at most {MOST_CELLS} are read")
    read = [_cell(cell) for cell in cells]
    if lost := read.count(None):
        notes.append(f"{lost} of its cells could not be read and were left out")
    return [cell for cell in read if cell is not None], tuple(notes)


def _converted(loaded: dict[str, Any], version: int) -> dict[str, Any]:
    from nbformat import converter, reader  # noqa: PLC0415 - only old notebooks need it

    text = json.dumps(loaded)
    if len(text) > LONGEST_OLD:
        raise Refused(f"the notebook is of format {version} and longer than {LONGEST_OLD}: save it in a newer one")
    try:
        with warnings.catch_warnings(action="ignore"):
            return dict(converter.convert(reader.reads(text), NEWEST_FORMAT))
    except Exception:  # nbformat raises whatever an odd old notebook makes it stumble over
        raise Refused(f"the notebook is of format {version} and could not be converted") from None


def _cell(cell: Any) -> Cell | None:
    """Keep of a cell what grading needs, each of a known type; None if it is no cell."""
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        return None
    source = cell.get("source", "")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    if len(source) > LONGEST_SOURCE:
        raise Refused(f"a cell has {len(source)} characters, and at most {LONGEST_SOURCE} are read")
    metadata = cell.get("metadata")
    noted = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return Cell(
        kind=cell["cell_type"],
        source=LONE_SURROGATE.sub("\ufffd", source),
        id=cell["id"] if isinstance(cell.get("id"), str) else "",
        noted=noted if isinstance(noted, dict) else {},
    )
