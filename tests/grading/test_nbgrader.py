"""Stock nbgrader from the command line, as an instructor types it: release, three submissions, grades, formgrader."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import nbformat
import pytest

from qlab.checks.report import VERDICT_MIME
from qlab.labs import notebooks
from qlab.labs.execute import ExerciseResult, check_notebook
from tests.grading import REPOSITORY, TOPIC, copy_course, fill

pytestmark = [
    pytest.mark.grading,
    pytest.mark.xdist_group("grading"),  # one worker teaches the class, once
    pytest.mark.skipif(os.name == "nt", reason="nbgrader has no exchange on Windows"),
]
LAB = f"{TOPIC}/{TOPIC}.ipynb"
NOISE = 'import sys, warnings\n    print("said on stderr", file=sys.stderr)\n    warnings.warn("warned of")\n    '
TREATS_1111_AS_SPECIAL = """import math
def decode_e4m3(code):
    return float("nan") if code >> 3 & 15 == 15 else SOLVED(code)
"""
CRASHES = "def kahan_sum(x):\n    raise KeyError('a secret of the learner')"
IN_PART = {"check-decode-e4m3": "treats-1111-as-special", "check-store-in-16-bits": "fp16-range"}
FP16 = "def store_in_16_bits(x):\n    return x.half()"


@dataclass(frozen=True)
class Class:
    """A course that was taught once: its folder, and what the commands need around them."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=cwd or self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def exchange(self) -> tuple[str, str]:
        return f"--Exchange.root={self.root / 'exchange'}", f"--Exchange.cache={self.root / 'cache'}"

    def submitted(self, student: str) -> Path:
        return self.root / "submitted" / student / LAB

    def autograded(self, student: str) -> nbformat.NotebookNode:
        return notebooks.read(self.root / "autograded" / student / LAB)


def right(release: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Fill every answer from the solutions."""
    answers = notebooks.answer_cells(notebooks.read(REPOSITORY / "solutions" / LAB))
    for grade_id, cell in notebooks.answer_cells(release).items():
        cell.source = answers[grade_id].source
    return release


def half_right(release: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Answer one exercise well but noisily, two in part, one with an error, and leave the rest."""
    solved = notebooks.answer_cells(notebooks.read(REPOSITORY / "solutions" / LAB))
    noisy = solved["answer-decode"].source.replace("### BEGIN SOLUTION\n    ", NOISE)
    e4m3 = solved["answer-decode-e4m3"].source.replace("def decode_e4m3", "def SOLVED")
    fill(release, answer_decode=noisy, answer_decode_e4m3=f"{e4m3}\n\n{TREATS_1111_AS_SPECIAL}")
    fill(release, answer_kahan_sum=CRASHES, answer_store_in_16_bits=FP16)
    return release


STUDENTS = {"right": right, "half-right": half_right, "untouched": lambda release: release}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Class:
    """Generate, release, fetch, submit, collect and autograde, each by its own command."""
    root = copy_course(tmp_path_factory.mktemp("course"))
    (root / "home").mkdir()
    own_bin = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader looks for alembic there
    home = {"HOME": str(root / "home"), "JUPYTER_CONFIG_DIR": str(root / "home"), "QLAB_ROOT": str(root)}
    taught = Class(root, os.environ | home | {"PATH": own_bin})
    taught.run("nbgrader", "generate_assignment", TOPIC)
    taught.run("nbgrader", "release_assignment", TOPIC, *taught.exchange())
    for student, answer in STUDENTS.items():
        desk = root / "home" / student
        desk.mkdir()
        taught.run("nbgrader", "fetch_assignment", TOPIC, "--course=qlab", *taught.exchange(), cwd=desk)
        notebooks.write(answer(notebooks.read(desk / LAB)), desk / LAB)
        named = ("--course=qlab", f"--student={student}")
        taught.run("nbgrader", "submit", TOPIC, *named, *taught.exchange(), cwd=desk)
    taught.run("nbgrader", "collect", TOPIC, *taught.exchange())
    taught.run("nbgrader", "autograde", TOPIC)
    return taught


@pytest.fixture(scope="module")
def checked(taught) -> dict[str, tuple[ExerciseResult, ...]]:
    """Return what `qlab check` gives for the notebooks that nbgrader graded."""
    return {student: check_notebook(taught.submitted(student)) for student in STUDENTS}


@pytest.fixture(scope="module")
def grades(taught) -> dict[str, dict[str, float]]:
    """Read the grade book with nbgrader's own API: the points of each cell of each student."""
    program = f"""
import json
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db", "qlab") as book:
    graded = {{s.student.id: s.notebooks[0].grades for s in book.assignment_submissions({TOPIC!r})}}
    assert not any(grade.needs_manual_grade for grades in graded.values() for grade in grades)
    print(json.dumps({{student: {{g.name: g.score for g in grades}} for student, grades in graded.items()}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=taught.root, env=taught.environment, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def verdicts(notebook: nbformat.NotebookNode) -> dict[str, dict]:
    """Return what the one result of each graded cell holds, by media type."""
    shown = {}
    for grade_id, cell in notebooks.graded_cells(notebook).items():
        (output,) = cell.outputs
        assert output.output_type == "execute_result"
        shown[grade_id] = output.data
    return shown


def test_the_release_is_the_lab_in_git(taught):
    assert (taught.root / "labs" / LAB).read_bytes() == (REPOSITORY / "labs" / LAB).read_bytes()


def test_every_grade_is_what_qlab_check_gives(grades, checked):
    assert grades == {s: {r.grade_id: float(r.points) for r in results} for s, results in checked.items()}


def test_the_grades_are_those_that_were_earned(taught, grades):
    cells = notebooks.graded_cells(notebooks.read(taught.root / "labs" / LAB))
    most = {name: notebooks.points(cell) for name, cell in cells.items()}
    assert grades["right"] == most
    assert grades["untouched"] == dict.fromkeys(most, 0)
    half = grades["half-right"]
    assert {name for name, points in half.items() if points} == {"check-decode", *IN_PART}
    assert half["check-decode"] == most["check-decode"]
    assert all(0 < half[name] < most[name] for name in IN_PART)


def test_the_same_misconceptions_are_named(taught, checked):
    for student, results in checked.items():
        named = {
            name: data[VERDICT_MIME]["misconception"] for name, data in verdicts(taught.autograded(student)).items()
        }
        assert named == {result.grade_id: result.misconception for result in results}
        if student == "half-right":
            assert IN_PART.items() <= named.items()


def test_noise_is_shown_and_costs_nothing(taught):
    shown = verdicts(taught.autograded("half-right"))["check-decode"]
    assert shown["text/plain"] == "4"
    assert "said on stderr" in shown["text/html"] and "UserWarning: warned of" in shown["text/html"]


def test_feedback_tells_the_thought_and_not_the_inputs(taught):
    shown = verdicts(taught.autograded("half-right"))
    for data in shown.values():
        verdict = data[VERDICT_MIME]
        assert verdict["seed"] is None and not any(part["message"] for part in verdict["parts"])
        assert data["text/plain"] == str(verdict["points"])
        assert "seed" not in data["text/html"]
    thought = next(part["thought"] for part in shown["check-decode-e4m3"][VERDICT_MIME]["parts"] if part["thought"])
    text = unescape(re.sub("<[^>]+>", "", shown["check-decode-e4m3"]["text/html"]))
    assert thought.replace("`", "") in text and "treats-1111-as-special" in text
    assert shown["check-kahan-sum"][VERDICT_MIME]["outcome"] == "crashed"
    assert "a secret" not in json.dumps(shown["check-kahan-sum"])


def test_formgrader_serves_the_grades(taught, grades):
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=t", "--no-browser"]
    command = [Path(sys.executable).parent / "jupyter", "server", "--allow-root", *options]
    address = f"http://127.0.0.1:{port}/formgrader/api/submissions/{TOPIC}?token=t"
    with subprocess.Popen(
        command, cwd=taught.root, env=taught.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            scores = {entry["student"]: entry["score"] for entry in answer_of(address, seconds=60)}
        finally:
            server.terminate()
    assert scores == {student: sum(points.values()) for student, points in grades.items()}


def answer_of(address: str, *, seconds: int) -> list[dict]:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=seconds) as response:
                return json.load(response)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
