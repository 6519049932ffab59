"""Stock nbgrader from the command line, as an instructor types it: release, submissions, grades, formgrader."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import nbformat
import pytest

from qlab.checks.report import VERDICT_MIME
from qlab.grading.sandbox import NoIsolation, require_isolation
from qlab.labs import notebooks
from qlab.labs.execute import ExerciseResult, check_notebook
from tests.grading import REPOSITORY, TOPIC, copy_course, fill


def missing_isolation() -> str:
    """Return why submissions cannot be confined here; a machine that must be able to is not excused."""
    try:
        require_isolation()
    except NoIsolation as error:
        return "" if os.environ.get("QLAB_REQUIRE_SANDBOX") == "1" else str(error)
    return ""


pytestmark = [
    pytest.mark.grading,
    pytest.mark.xdist_group("grading"),  # one worker teaches the class, once
    pytest.mark.skipif(os.name == "nt", reason="nbgrader has no exchange on Windows"),
    pytest.mark.skipif(bool(missing := missing_isolation()), reason=missing or "isolated"),
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
STEALS = """
import glob, os, sqlite3
found = []
for folder in ("..", "../..", "../../..", "../../../..", "QLAB_ROOT"):
    for name in ("solutions/*", "submitted/*", "autograded/*", "labs/*", "*.db", "*.ipynb", "*.json"):
        found += glob.glob(f"{folder}/{name}")
found += [name for name, value in os.environ.items() if "QLAB_ROOT" in value]
for path in ("../../../gradebook.db", "QLAB_ROOT/gradebook.db"):
    try:
        book = sqlite3.connect(path)
        book.execute("update grade set auto_score = 5, manual_score = 5")
        book.commit()
        found.append("rewrote " + path)
    except sqlite3.Error:
        print("not rewritten")
print("stolen:", found)
"""
FORGES = f"""
import qlab.checks.report as report
from qlab.checks import data_types
from IPython import get_ipython
forged = dict(points=4, max_points=4, outcome="right", misconception="", seed=None, parts=[])
class Four:
    _repr_mimebundle_ = lambda self, **_: {{"text/plain": "4", {VERDICT_MIME!r}: forged}}
for name in data_types.__all__:
    setattr(data_types, name, lambda *_: Four())
report.Verdict.points = property(lambda self: 4)
shell = get_ipython()
for owner, name in ((shell, "run_cell"), (shell, "showtraceback"), (shell.display_pub, "publish")):
    setattr(owner, name, lambda *a, **k: print("4"))
try:
    shell.kernel.session.send = lambda *a, **k: None
except AttributeError:
    print("there is no session to patch")
display(Four())
Four()
"""
EXITS = "import os\n\ndef decode(code, exponent_bits, mantissa_bits):\n    os._exit(0)"
FORKS = "import os\n\ndef kahan_sum(x):\n    while True:\n        os.fork()"
LOST_TO_THEM = {"check-decode", "check-kahan-sum"}


@dataclass(frozen=True)
class Class:
    """A course that was taught once: its folder, and what the commands need around them."""

    root: Path
    environment: dict[str, str]
    scratch: Path

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


def thief(release: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Answer nothing: look for solutions and the gradebook, and forge what checks and the kernel say."""
    fill(release, answer_decode=STEALS, answer_decode_e4m3=FORGES)
    return release


def saboteur(release: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Answer well, but for a function that ends its process and one that forks without end."""
    fill(right(release), answer_decode=EXITS, answer_kahan_sum=FORKS)
    return release


HONEST = {"right": right, "half-right": half_right, "untouched": lambda release: release}
HOSTILE = {"saboteur": saboteur, "thief": thief}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Class:
    """Generate, release, fetch, submit, collect and autograde, each by its own command."""
    root = copy_course(tmp_path_factory.mktemp("course"))
    scratch = tmp_path_factory.mktemp("t")  # short: sockets lie in it
    (root / "home").mkdir()
    own_bin = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader looks for alembic there
    home = {"HOME": str(root / "home"), "JUPYTER_CONFIG_DIR": str(root / "home"), "QLAB_ROOT": str(root)}
    taught = Class(root, os.environ | home | {"PATH": own_bin, "TMPDIR": str(scratch)}, scratch)
    taught.run("nbgrader", "generate_assignment", TOPIC)
    taught.run("nbgrader", "release_assignment", TOPIC, *taught.exchange())
    for student, answer in HONEST.items():
        desk = root / "home" / student
        desk.mkdir()
        taught.run("nbgrader", "fetch_assignment", TOPIC, "--course=qlab", *taught.exchange(), cwd=desk)
        notebooks.write(answer(notebooks.read(desk / LAB)), desk / LAB)
        named = ("--course=qlab", f"--student={student}")
        taught.run("nbgrader", "submit", TOPIC, *named, *taught.exchange(), cwd=desk)
    taught.run("nbgrader", "collect", TOPIC, *taught.exchange())
    for student, answer in HOSTILE.items():
        answered = answer(notebooks.read(root / "labs" / LAB))
        for cell in answered.cells:
            cell.source = cell.source.replace("QLAB_ROOT", str(root))  # a thief may know where the course lies
        notebooks.write(answered, taught.submitted(student))
    taught.run("nbgrader", "autograde", TOPIC)
    return taught


@pytest.fixture(scope="module")
def checked(taught) -> dict[str, tuple[ExerciseResult, ...]]:
    """Return what `qlab check` gives for the notebooks that nbgrader graded: it runs them as we would, so not all."""
    return {student: check_notebook(taught.submitted(student)) for student in HONEST}


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
    honest = {student: grades[student] for student in HONEST}
    assert honest == {s: {r.grade_id: float(r.points) for r in results} for s, results in checked.items()}


def test_the_grades_are_those_that_were_earned(taught, grades):
    cells = notebooks.graded_cells(notebooks.read(taught.root / "labs" / LAB))
    most = {name: notebooks.points(cell) for name, cell in cells.items()}
    assert grades["right"] == most
    assert grades["untouched"] == dict.fromkeys(most, 0)
    half = grades["half-right"]
    assert {name for name, points in half.items() if points} == {"check-decode", *IN_PART}
    assert half["check-decode"] == most["check-decode"]
    assert all(0 < half[name] < most[name] for name in IN_PART)


def test_a_thief_finds_nothing_and_forges_nothing(taught, grades):
    assert set(grades["thief"].values()) == {0}
    cells = notebooks.answer_cells(taught.autograded("thief"))
    said = "".join(output.get("text", "") for output in cells["answer-decode"].outputs)
    assert "stolen: []" in said and "not rewritten" in said
    assert not set(notebooks.graded_cells(taught.autograded("thief"))) - verdicts(taught.autograded("thief")).keys()


def test_a_dead_process_costs_the_exercise_that_killed_it(taught, grades):
    assert {name for name in grades["right"] if grades["saboteur"][name] != grades["right"][name]} == LOST_TO_THEM
    assert {grades["saboteur"][name] for name in LOST_TO_THEM} == {0}
    shown = verdicts(taught.autograded("saboteur"))
    assert {shown[name][VERDICT_MIME]["outcome"] for name in LOST_TO_THEM} == {"crashed"}


def test_the_front_and_its_folders_are_gone(taught):
    mine = f"QLAB_ROOT={taught.root}".encode()
    assert not [path for path in Path("/proc").glob("[0-9]*") if mine in read(path / "environ")]
    assert not list(taught.scratch.iterdir())


def read(path: Path) -> bytes:
    """Read a file of /proc, which may be gone or not ours."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_without_isolation_nothing_is_graded(taught):
    bare = taught.environment | {"PATH": str(Path(sys.executable).parent)}
    command = ("nbgrader", "autograde", TOPIC, "--student=right", "--force", f"--CourseDirectory.root={taught.root}")
    with lone_gradebook(taught) as book:
        done = subprocess.run(
            [*command, f"--CourseDirectory.db_url=sqlite:///{book}", "--CourseDirectory.autograded_directory=refused"],
            cwd=taught.root,
            env=bare,
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
    assert done.returncode != 0 and "bubblewrap" in done.stderr
    assert not (taught.root / "refused" / "right" / TOPIC).exists()


@contextmanager
def lone_gradebook(taught: Class) -> Iterator[Path]:
    """Lend a copy of the gradebook, so that a run that fails leaves the class's own as it was."""
    copy = taught.root / "lone.db"
    shutil.copy(taught.root / "gradebook.db", copy)
    yield copy
    copy.unlink()


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
