"""Hostile notebook files in one class: `qlab grade` refuses or repairs each, and everybody else is graded."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from qlab.grading.submission import Refused, normalised
from qlab.labs import notebooks
from tests.grading import REPOSITORY
from tests.grading.hostile import files, labs, running
from tests.grading.hostile.files import Handed
from tests.grading.hostile.traps import Traps

LAB = files.LAB
HONEST = ("aaa-first", "mmm-middle", "zzz-last")
CHANGED = "the submission, or the course around it, was changed"
needs_isolation = pytest.mark.skipif(running.skipped(), reason=running.why_not_isolated() or "isolated")
pytestmark = pytest.mark.grading


def student(handed: Handed) -> str:
    return re.sub(r"\W", "-", handed.name)


def lay(handed: Handed, root: Path, outside: Path) -> Path:
    """Hand a notebook in, where nbgrader collects them."""
    path = root / "submitted" / student(handed) / LAB / f"{LAB}.ipynb"
    path.parent.mkdir(parents=True)
    handed.lay(path, json.loads(nbformat.writes(labs.submission(LAB, answers={}))), outside)
    return path


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    with Traps(tmp_path_factory.mktemp("outside")) as traps:
        yield traps


@pytest.mark.parametrize("handed", files.SUBMISSIONS, ids=student)
def test_it_is_refused_in_one_sentence_or_brought_back_into_the_release(handed: Handed, traps: Traps, tmp_path: Path):
    path, release = lay(handed, tmp_path, traps.course), labs.release(LAB)
    try:
        submission = normalised(path, release, under=tmp_path / "submitted")
    except Refused as error:
        said = str(error)
        assert handed.refused and re.search(handed.refused, said), said
        assert "\n" not in said and len(said) < 300
        return
    assert not handed.refused
    assert re.search(handed.repairs, " ".join(submission.repairs)), submission.repairs
    assert all("\n" not in told and len(told) < 400 for told in submission.repairs)
    _require_released(submission.notebook, release)
    traps.require_no_leak(submission.notebook)


def _require_released(notebook: nbformat.NotebookNode, release: nbformat.NotebookNode) -> None:
    """Fail unless what is marked is the release's, in its order, with nothing but the learner's answers in it."""
    marked = [cell for cell in notebook.cells if notebooks.marks(cell)]
    wanted = [cell for cell in release.cells if notebooks.marks(cell)]
    assert [notebooks.marks(c) for c in marked] == [notebooks.marks(c) for c in wanted]
    for cell, known in zip(marked, wanted, strict=True):
        assert cell.cell_type == known.cell_type
        assert cell.source == known.source or notebooks.marks(known)["solution"]
    assert notebook.metadata == release.metadata
    assert not any(cell.get("outputs") or cell.get("attachments") for cell in notebook.cells)
    nbformat.validate(notebook)


@dataclass(frozen=True)
class Graded:
    """What `qlab grade` made of the class."""

    rows: dict[str, list[dict[str, str]]]
    said: str
    status: int

    def points(self, name: str) -> int:
        return sum(int(row["points"] or 0) for row in self.rows.get(name, ()))


@pytest.fixture(scope="module")
def graded(traps, tmp_path_factory) -> Graded:
    """Let a whole class hand in, honest students before, between and after the others, and grade it once."""
    root = tmp_path_factory.mktemp("class")
    notebooks.write(labs.release(LAB), root / "labs" / LAB / f"{LAB}.ipynb")
    for name in HONEST:
        notebooks.write(labs.submission(LAB, answers={}), root / "submitted" / name / LAB / f"{LAB}.ipynb")
    for handed in files.SUBMISSIONS:
        lay(handed, root, traps.course)
    command = [sys.executable, "-m", "qlab", "grade", LAB, "--course", str(root), "--workers", "2", "--csv", "out.csv"]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "Traceback" not in done.stderr, done.stderr
    rows: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader((root / "out.csv").read_text().splitlines()):
        rows.setdefault(row["student"], []).append(row)
    return Graded(rows, done.stdout + done.stderr, done.returncode)


@needs_isolation
def test_honest_students_lose_nothing(graded: Graded):
    assert {name: graded.points(name) for name in HONEST} == dict.fromkeys(HONEST, files.ALL)


@needs_isolation
@pytest.mark.parametrize("handed", files.SUBMISSIONS, ids=student)
def test_each_gets_what_its_code_is_worth(handed: Handed, graded: Graded):
    told = graded.rows[student(handed)]
    if handed.refused:
        assert not any(row["points"] for row in told), "what was not graded has no points, not zero points"
        assert "not graded" in " ".join(value for row in told for value in row.values() if value)
    else:
        assert graded.points(student(handed)) == handed.points


@needs_isolation
def test_what_was_not_graded_is_said_and_nothing_was_touched(graded: Graded, traps: Traps):
    assert graded.status == 1, "some were not graded"
    assert traps.canary not in graded.said
    traps.require_untouched()
