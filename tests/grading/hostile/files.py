"""Hostile notebook files: what lies in a submission's place, and what lies in its metadata."""

import json
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAB = "types"
NONE = 0
ALL = 20  # points of the lab
GRADE_ID = ("metadata", "nbgrader", "grade_id")


@dataclass(frozen=True)
class Handed:
    """What a student handed in: `lay` writes it to a path, from an honest notebook and a folder that is not theirs.

    Either it is not graded, for a reason that matches `refused`, or it earns `points`, and `repairs` is told of.
    """

    name: str
    tries: str
    lay: Callable[[Path, dict[str, Any], Path], None]
    refused: str = ""
    points: int = ALL
    repairs: str = ""


def writes(content: bytes) -> Callable[[Path, dict[str, Any], Path], None]:
    """Write these bytes in the notebook's place."""
    return lambda path, honest, outside: path.write_bytes(content) and None


def changes(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, dict[str, Any], Path], None]:
    """Change an honest notebook's JSON, in place or by returning another."""

    def lay(path: Path, honest: dict[str, Any], outside: Path) -> None:
        changed = change(honest)
        path.write_text(json.dumps(honest if changed is None else changed), errors="surrogatepass")

    return lay


def _cell(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    return next(cell for cell in notebook["cells"] if cell.get("id") == name)


def _of_kind(notebook: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if str(cell.get("id", "")).startswith(kind)]


def _marks(cell: dict[str, Any]) -> dict[str, Any]:
    return cell["metadata"]["nbgrader"]


def _each(kind: str, do: Callable[[dict[str, Any]], Any]) -> Callable[[Path, dict[str, Any], Path], None]:
    return changes(lambda notebook: [do(cell) for cell in _of_kind(notebook, kind)] and None)


def _linked(path: Path, honest: dict[str, Any], outside: Path) -> None:
    path.symlink_to(outside / "solutions" / LAB / f"{LAB}.ipynb")


def _hard_linked(path: Path, honest: dict[str, Any], outside: Path) -> None:
    os.link(outside / "solutions" / LAB / f"{LAB}.ipynb", path)


def _folder_linked(path: Path, honest: dict[str, Any], outside: Path) -> None:
    path.parent.rmdir()
    path.parent.symlink_to(outside / "solutions" / LAB)


def _student_linked(path: Path, honest: dict[str, Any], outside: Path) -> None:
    path.parent.rmdir()
    path.parent.parent.rmdir()
    path.parent.parent.symlink_to(outside / "solutions")


def _socket(path: Path, honest: dict[str, Any], outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the address of a socket may be no longer than 107 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def _sparse(path: Path, honest: dict[str, Any], outside: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


def _shadowed(path: Path, honest: dict[str, Any], outside: Path) -> None:
    """Lay modules beside the notebook that fail the grader who imports them, and give points to the learner."""
    for name in ("torch.py", "qlab.py", "checks.py", "sitecustomize.py", "numpy.py", "json.py", "nbformat.py"):
        (path.parent / name).write_text("raise SystemExit('shadowed')")
    (path.parent / "qlab").mkdir()
    (path.parent / "qlab" / "__init__.py").write_text("raise SystemExit('shadowed')")
    (path.parent / "nbgrader_config.py").write_text("raise SystemExit('shadowed')")
    (path.parent / ".ipython").mkdir()
    path.write_text(json.dumps(honest))


class _Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/qlab-hostile-pickle",)


def _pickled(path: Path, honest: dict[str, Any], outside: Path) -> None:
    for name in ("journal.pkl", "results.pkl", f"{LAB}.pkl"):
        (path.parent / name).write_bytes(pickle.dumps(_Runs()))
    path.write_text(json.dumps(honest))


def _two(path: Path, honest: dict[str, Any], outside: Path) -> None:
    path.write_text(json.dumps(honest))
    path.with_name("types-copy.ipynb").write_text(json.dumps(honest))


def _evil_kernel(notebook: dict[str, Any]) -> None:
    notebook["metadata"]["kernelspec"] = {
        "name": "../../evil",
        "display_name": "x",
        "argv": ["sh", "-c", "touch /tmp/x"],
    }
    notebook["metadata"]["language_info"] = {"name": "bash"}
    notebook["metadata"]["celltoolbar"] = notebook["metadata"]["nbgrader"] = {"max_points": 10**6}


def _forged_outputs(notebook: dict[str, Any]) -> None:
    for cell in _of_kind(notebook, "answer-"):
        cell["source"] = "pass"
    verdict = {"points": 99, "max_points": 99, "outcome": "right", "misconception": "", "parts": []}
    data = {"text/plain": "99", "application/vnd.qlab.verdict+json": verdict}
    for cell in _of_kind(notebook, "check-"):
        cell["outputs"] = [{"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": data}]


def _own_graded(notebook: dict[str, Any]) -> None:
    """Add graded cells of their own, which would give a million points, and answer nothing."""
    for cell in _of_kind(notebook, "answer-"):
        cell["source"] = "pass"
    for name in ("check-extra", "check-decode-2", "../../etc/passwd", "check-decode\n"):
        marks = {
            "grade": True,
            "grade_id": name,
            "points": 10**6,
            "locked": True,
            "schema_version": 3,
            "solution": False,
        }
        extra = {"cell_type": "code", "id": "x", "source": "1000000", "outputs": [], "execution_count": 1}
        notebook["cells"].append(extra | {"metadata": {"nbgrader": marks}})


def _copied_checks(notebook: dict[str, Any]) -> None:
    copies = [json.loads(json.dumps(cell)) for cell in _of_kind(notebook, "check-")]
    for cell in copies:
        cell["source"] = "4"
    notebook["cells"] = copies + notebook["cells"] + copies


def _swapped(notebook: dict[str, Any]) -> None:
    first, second = _marks(_cell(notebook, "answer-decode")), _marks(_cell(notebook, "answer-kahan-sum"))
    first["grade_id"], second["grade_id"] = second["grade_id"], first["grade_id"]


def _claimed(notebook: dict[str, Any]) -> None:
    """Give a cell of their own the marks of a check, and drop the check."""
    for cell in _of_kind(notebook, "answer-"):
        cell["source"] = "pass"
    for cell in _of_kind(notebook, "check-"):
        cell["source"], cell["id"] = "from IPython.display import display\n9", f"own-{cell['id']}"


def _twice(path: Path, honest: dict[str, Any], outside: Path) -> None:
    """Write the key `cells` twice: readers may disagree on which counts."""
    cells = json.dumps(honest.pop("cells"))
    path.write_text(json.dumps(honest)[:-1] + f', "cells": [], "cells": {cells}}}')


def _old(notebook: dict[str, Any]) -> dict[str, Any]:
    cells = []
    for cell in notebook["cells"]:
        text = "input" if cell["cell_type"] == "code" else "source"
        old = {"cell_type": cell["cell_type"], text: cell["source"], "metadata": cell["metadata"]}
        cells.append(old | ({"outputs": [], "language": "python", "collapsed": False} if text == "input" else {}))
    return {
        "nbformat": 3,
        "nbformat_minor": 0,
        "metadata": {"name": "x"},
        "worksheets": [{"cells": cells, "metadata": {}}],
    }


def _surrogates(notebook: dict[str, Any]) -> None:
    _cell(notebook, "answer-decode")["source"] += "\n# \ud800 \udfff"
    notebook["cells"][0]["source"] = "\ud800"


def _odd_values(notebook: dict[str, Any]) -> None:
    """Give every field another type than it has, where that leaves a notebook."""
    for cell, odd in zip(
        notebook["cells"], [None, 1, "x", [1], {"nbgrader": []}, {"nbgrader": {"grade_id": {}}}] * 9, strict=False
    ):
        if not str(cell["id"]).startswith(("answer", "check", "setup")):
            cell["metadata"] = odd
            cell["id"] = odd
    notebook["cells"] += [
        None,
        1,
        [],
        {},
        {"cell_type": []},
        {"cell_type": "code", "source": 1},
        {"cell_type": "heading"},
    ]
    notebook["metadata"] = []


HEAVY = b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": ['
IN_PLACE = (
    Handed("link to a solution", "hands in a link to the solution", _linked, refused="link"),
    Handed("link to a folder", "hands in a link to the folder of solutions", _folder_linked, refused="link"),
    Handed(
        "link to a course", "is a link itself, where the student's folder should be", _student_linked, refused="link"
    ),
    Handed("hard link", "hands in a second name of the solution", _hard_linked, refused="hard link"),
    Handed("FIFO", "hands in a pipe that nobody writes to", lambda path, *_: os.mkfifo(path), refused="pipe"),
    Handed("socket", "hands in a socket", _socket, refused="pipe or a device"),
    Handed(
        "device",
        "hands in a link to a device that never ends",
        lambda path, *_: path.symlink_to("/dev/zero"),
        refused="link",
    ),
    Handed("folder", "hands in a folder", lambda path, *_: path.mkdir(), refused="folder"),
    Handed("terabyte", "hands in a sparse file of a terabyte", _sparse, refused="bytes"),
    Handed("nothing", "hands in an empty file", writes(b""), refused="empty"),
    Handed("spaces", "hands in spaces", writes(b" \n" * 1000), refused="empty"),
    Handed("not UTF-8", "hands in bytes", writes(bytes(range(256))), refused="not|UTF-8"),
    Handed("UTF-16", "hands in another encoding", writes(json.dumps({"cells": []}).encode("utf-16")), refused="UTF-8"),
    Handed("compressed", "hands in what looks compressed", writes(b"\x1f\x8b\x08\x00" + bytes(1000)), refused="not"),
    Handed("pickle", "hands in a pickle", writes(pickle.dumps(_Runs())), refused="not"),
    Handed("list", "hands in a list", writes(b"[1, 2]"), refused="list"),
    Handed("null", "hands in null", writes(b"null"), refused="NoneType|null"),
    Handed("cut short", "hands in half a notebook", writes(HEAVY), refused="not JSON"),
    Handed("deep", "nests lists 100 000 deep", writes(b"[" * 100_000), refused="deep"),
    Handed(
        "deep in metadata",
        "nests metadata 100 000 deep",
        writes(b'{"nbformat": 4, "cells": [], "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
        refused="deep",
    ),
    Handed(
        "many lists", "holds millions of empty lists", writes(HEAVY + b"[]," * 4_000_000 + b"[]]}"), refused="brackets"
    ),
    Handed(
        "many cells",
        "has a hundred thousand cells",
        writes(HEAVY + b'{"cell_type":"raw"},' * 100_000 + b"{}]}"),
        refused="cells",
    ),
    Handed(
        "huge text",
        "has a cell of 15 MB",
        writes(HEAVY + b'{"cell_type":"code","source":"' + b"x" * 15_000_000 + b'"}]}'),
        refused="characters",
    ),
    Handed(
        "huge number",
        "holds a number of a million digits",
        writes(b'{"nbformat": ' + b"9" * 1_000_000 + b', "cells": []}'),
        refused="not JSON|format",
    ),
    Handed(
        "unclosed text", "holds a text of escapes without an end", writes(b'{"a": "' + b"\\" * 5_000_001), refused="not"
    ),
    Handed("from the future", "says it is of format 99", writes(b'{"nbformat": 99, "cells": []}'), refused="99"),
    Handed(
        "odd format", "says its format is infinite", writes(b'{"nbformat": Infinity, "cells": []}'), refused="format"
    ),
    Handed("no cells", "has no cells", writes(b'{"nbformat": 4, "cells": []}'), points=NONE, repairs="missing"),
    Handed(
        "odd old format",
        "is of format 3, with nonsense in it",
        writes(b'{"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "outputs": [7]}]}]}'),
        refused="format 3|cells",
    ),
)
IN_METADATA = (
    Handed("format 3", "is of an old format, and honest", changes(_old), repairs="converted"),
    Handed("evil kernel", "names a kernel and a language of its own", changes(_evil_kernel)),
    Handed("shadowing modules", "lays modules beside its notebook that the grader may import", _shadowed),
    Handed("pickles beside it", "lays pickles beside its notebook that run when they are read", _pickled),
    Handed("two notebooks", "hands in a second notebook", _two),
    Handed(
        "forged outputs", "answers nothing, and brings outputs with full marks", changes(_forged_outputs), points=NONE
    ),
    Handed(
        "graded cells of its own",
        "adds graded cells worth a million",
        changes(_own_graded),
        points=NONE,
        repairs="graded|marked",
    ),
    Handed(
        "checks copied",
        "copies every check in front and behind",
        changes(_copied_checks),
        repairs="cop|twice|more than",
    ),
    Handed(
        "checks replaced",
        "replaces the source of every check",
        _each("check-", lambda c: c.update(source="9")),
        repairs="restored|changed|put back",
    ),
    Handed(
        "checks claimed",
        "puts cells of its own in the place of checks",
        changes(_claimed),
        points=NONE,
        repairs="restored|changed|put back",
    ),
    Handed(
        "checks deleted",
        "deletes every check",
        changes(lambda n: n.update(cells=[c for c in n["cells"] if not c["id"].startswith("check-")])),
        repairs="missing|put back",
    ),
    Handed(
        "answers deleted",
        "deletes every answer",
        changes(lambda n: n.update(cells=[c for c in n["cells"] if not c["id"].startswith("answer-")])),
        points=NONE,
        repairs="missing|put back",
    ),
    Handed(
        "setup replaced",
        "replaces the locked setup",
        changes(lambda n: _cell(n, "setup").update(source="class checks: pass")),
        repairs="restored|changed|put back",
    ),
    Handed(
        "points raised",
        "raises the points in the metadata",
        _each("check-", lambda c: _marks(c).update(points=100)),
        repairs="points|restored|marks",
    ),
    Handed(
        "negative points",
        "makes points negative, infinite and text",
        _each("check-", lambda c: _marks(c).update(points=-1e308)),
        repairs="points|restored|marks",
    ),
    Handed(
        "flags changed",
        "says that answers are graded and checks are not",
        changes(
            lambda n: (
                [
                    _marks(c).update(grade=not _marks(c).get("grade"), solution=True, locked=False)
                    for c in n["cells"]
                    if "nbgrader" in c["metadata"]
                ]
                and None
            )
        ),
        repairs=".",
    ),
    Handed(
        "renamed",
        "renames every marked cell",
        changes(
            lambda n: (
                [_marks(c).update(grade_id=f"my-{i}") for i, c in enumerate(n["cells"]) if "nbgrader" in c["metadata"]]
                and None
            )
        ),
        repairs="renamed|put back|name",
    ),
    Handed(
        "retyped",
        "turns answers and checks into text",
        changes(lambda n: [c.update(cell_type="markdown") for c in n["cells"] if c["cell_type"] == "code"] and None),
        repairs="markdown|code|type",
    ),
    Handed("names swapped", "swaps the names of two answers", changes(_swapped), points=16, repairs="."),
    Handed(
        "reversed",
        "turns the order of all cells around",
        changes(lambda n: n["cells"].reverse()),
        repairs="order|place",
    ),
    Handed(
        "marks removed",
        "removes all metadata",
        changes(lambda n: [c.update(metadata={}) for c in n["cells"]] and None),
        repairs=".",
    ),
    Handed("doubled keys", "writes a key twice", _twice),
    Handed("odd values", "puts other types wherever it can", changes(_odd_values), repairs="could not be read"),
    Handed("lone surrogates", "holds text that is no UTF-8", changes(_surrogates)),
    Handed(
        "attachments",
        "brings attachments and huge metadata",
        changes(
            lambda n: (
                [
                    c.update(attachments={"x.png": {"image/png": "A" * 1_000_000}}, own="y" * 100_000)
                    for c in n["cells"][:3]
                ]
                and None
            )
        ),
    ),
    Handed(
        "byte order mark",
        "begins with a byte order mark",
        lambda path, honest, outside: path.write_bytes(b"\xef\xbb\xbf" + json.dumps(honest).encode()) and None,
    ),
)
SUBMISSIONS = (*IN_PLACE, *IN_METADATA)
