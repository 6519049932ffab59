"""`qlab grade` around its judge: workers, journal, gradebook, summary; the judge itself only pretends here."""

import csv
import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook, InvalidEntry
from nbgrader.preprocessors import AssignLatePenalties, SaveAutoGrades
from sqlalchemy import text

from qlab import cli
from qlab.grading import gradebook, judge, summary
from qlab.grading.faults import GradebookNotKept, NoGradebook, gradebook_fault
from qlab.grading.gradebook import Book
from qlab.grading.journal import Taken, locked
from qlab.grading.limits import Limits
from qlab.grading.places import Places, places_of
from qlab.grading.run import Ended, Order, grade
from qlab.grading.sandbox import NoIsolation, Sandbox, lasting, require_isolation
from qlab.grading.work import Judged, Task
from qlab.grading.workers import map_locally
from qlab.labs import notebooks
from qlab.labs.execute import ExerciseResult
from qlab.plots.misconceptions import STOPPED as STOPPED_BARS
from qlab.plots.misconceptions import misconception_bars
from tests.grading import REPOSITORY, TOPIC, fill, one_sentence, standin

pytestmark = [
    pytest.mark.grading,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="grading runs where processes fork"),
]
RELEASE = notebooks.read(REPOSITORY / "labs" / TOPIC / f"{TOPIC}.ipynb")
TEXT = nbformat.writes(RELEASE)
WHEN = "2026-11-20 10:00:00.000000 UTC"


@pytest.fixture
def pretended(monkeypatch):
    """Let the pretended judge judge, in the pretended sandbox."""
    monkeypatch.setattr(judge, "judge_notebook", standin.judge_notebook)
    monkeypatch.setattr(lasting, "Sandbox", standin.PretendedSandbox)


@pytest.fixture(scope="module")
def empty_book(tmp_path_factory) -> Path:
    """Return a gradebook without a course: making one takes nbgrader more than a second."""
    path = tmp_path_factory.mktemp("book") / "gradebook.db"
    with gradebook.own_tools():
        Gradebook(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def places(tmp_path, empty_book) -> Places:
    """Return a course of one assignment, in which nothing was handed in yet."""
    shutil.copy(empty_book, tmp_path)
    for folder in ("lessons", "submitted"):
        (tmp_path / folder).mkdir()
    notebooks.write(RELEASE, tmp_path / "labs" / TOPIC / f"{TOPIC}.ipynb")
    (tmp_path / "nbgrader_config.py").write_text('c = get_config()\nc.CourseDirectory.course_id = "qlab"\n')
    return places_of(tmp_path)


def hand_in(places: Places, student: str, code: str = "", name: str = TOPIC) -> Path:
    notebook = notebooks.read(REPOSITORY / "labs" / TOPIC / f"{TOPIC}.ipynb")
    next(cell for cell in notebook.cells if cell.id == "answer-decode").source = f"# {student}\n{code}"
    path = places.submitted / student / TOPIC / f"{name}.ipynb"
    notebooks.write(notebook, path)
    (path.parent / "timestamp.txt").write_text(WHEN)
    return path


def the_order(places: Places, mapper=None, **options) -> Order:
    return Order(TOPIC, places, mapper or partial(map_locally, workers=1), **options)


def graded(places: Places, mapper=None, **options) -> dict[str, Ended]:
    with closing(grade(the_order(places, mapper, **options))) as ends:
        return {one.judged.student: one for one in ends}


def points_of(ended: Ended) -> dict[str, float]:
    return {result.grade_id: float(result.points) for result in ended.judged.results}


def book_of(places: Places) -> dict[str, dict[str, float | None]]:
    """Read the grades of a course with nbgrader's own API."""
    with Gradebook(places.database, "qlab") as book:
        return {s.student.id: {g.name: g.auto_score for g in s.notebooks[0].grades} for s in _submissions(book)}


def _submissions(book: Gradebook) -> list:
    return book.assignment_submissions(TOPIC)


def journal_of(places: Places) -> list[dict]:
    path = places.records / f"{TOPIC}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def rows_of(places: Places) -> dict[str, list]:
    """Return all rows that nbgrader's autograde sets, as they are."""
    with Gradebook(places.database, "qlab") as book:
        return {
            submission.student.id: [
                submission.timestamp,
                submission.notebooks[0].late_submission_penalty,
                sorted(
                    (g.name, g.auto_score, g.manual_score, g.needs_manual_grade) for g in submission.notebooks[0].grades
                ),
                sorted((c.name, c.auto_comment, c.manual_comment) for c in submission.notebooks[0].comments),
            ]
            for submission in _submissions(book)
        }


def test_a_class_is_graded_into_the_gradebook(places, pretended):
    for student in ("ann", "bob", "eve"):
        hand_in(places, student)
    ends = graded(places, partial(map_locally, workers=2))
    assert set(ends) == {"ann", "bob", "eve"} and not any(one.judged.reason or one.before for one in ends.values())
    assert book_of(places) == {student: points_of(one) for student, one in ends.items()}
    for student in ends:
        written = notebooks.read(places.autograded / student / TOPIC / f"{TOPIC}.ipynb")
        assert list(notebooks.graded_cells(written)) == list(notebooks.graded_cells(RELEASE))


def test_nbgraders_own_autograde_would_write_the_same_rows(places, pretended):
    for student in ("ann", "bob"):
        hand_in(places, student)
    graded(places)
    ours = rows_of(places)
    for student in ("ann", "bob"):
        written = notebooks.read(places.autograded / student / TOPIC / f"{TOPIC}.ipynb")
        where = {"notebook": TOPIC, "assignment": TOPIC, "student": student, "db_url": places.database}
        for step in (SaveAutoGrades, AssignLatePenalties):
            step().preprocess(written, {"nbgrader": where})
    assert rows_of(places) == ours
    comments = dict((name, said) for name, said, _ in ours["ann"][3])
    assert comments.pop("answer-decode") is None and set(comments.values()) == {"No response."}


def test_feedback_and_export_find_what_they_need(places, pretended):
    for student in ("ann", "bob"):
        hand_in(places, student)
    ends = graded(places)
    own_bin = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(places.root)}
    for words in (["generate_feedback", TOPIC], ["export", "--to", "grades.csv"]):
        command = [Path(sys.executable).parent / "nbgrader", *words]
        done = subprocess.run(
            command, cwd=places.root, env=os.environ | own_bin, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
    with (places.root / "grades.csv").open() as file:
        exported = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert exported == {student: sum(points_of(one).values()) for student, one in ends.items()}
    page = (places.root / "feedback" / "ann" / TOPIC / f"{TOPIC}.html").read_text()
    assert "off-by-one" in page or "truncates" in page or "wrong-value" in page


def must_not_be_asked(tasks, **_):
    assert not list(tasks)
    yield from ()


def test_a_second_run_judges_nothing_and_changes_nothing(places, pretended):
    hand_in(places, "ann")
    first = graded(places)
    rows, lines = rows_of(places), journal_of(places)
    second = graded(places, must_not_be_asked)
    assert second["ann"].before and second["ann"].judged == first["ann"].judged
    assert (rows_of(places), journal_of(places)) == (rows, lines)


def test_what_a_broken_off_run_was_to_judge_anew_is_left_for_the_next(places, pretended, capsys):
    for student in ("ann", "bob", "eve"):
        hand_in(places, student)
    graded(places)
    with closing(grade(the_order(places, again=True))) as ends:
        assert not next(ends).before
    assert [one.before for one in graded(places).values()] == [True, False, False]
    assert all(one.before for one in graded(places).values())


@pytest.mark.parametrize("change", ["submission", "release", "again", "notebook gone"])
def test_what_has_changed_is_judged_again(change, places, pretended):
    path = hand_in(places, "ann")
    graded(places)
    if change == "submission":
        hand_in(places, "ann", "x = 1")
    if change == "release":
        release = notebooks.read(places.releases / TOPIC / f"{TOPIC}.ipynb")
        release.cells[0].source += "\nmore"
        notebooks.write(release, places.releases / TOPIC / f"{TOPIC}.ipynb")
    if change == "notebook gone":
        (places.autograded / "ann" / TOPIC / path.name).unlink()
    ends = graded(places, again=change == "again")
    assert not ends["ann"].before and len(journal_of(places)) == 2
    assert book_of(places) == {"ann": points_of(ends["ann"])}


def test_a_lost_gradebook_is_written_again_from_the_journal(places, pretended):
    hand_in(places, "ann")
    ends = graded(places)
    (places.root / "gradebook.db").unlink()
    again = graded(places, must_not_be_asked)
    assert again["ann"].before and book_of(places) == {"ann": points_of(ends["ann"])}


def told_of(places: Places, capsys, *words: str) -> str:
    """Run the command, which must fail, and return what it says in the end: one sentence."""
    assert run_command(places, *words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("qlab grade: ") and 20 < len(said) < 500
    return said


def test_a_damaged_gradebook_is_moved_away_and_written_again(places, pretended, capsys):
    for student in ("ann", "bob"):
        hand_in(places, student)
    graded(places)
    rows, path = rows_of(places), places.root / "gradebook.db"
    path.write_text("this was a gradebook\n" * 100)
    said = told_of(places, capsys)
    assert f"the gradebook {path} is damaged (file is not a database): move it away" in said
    assert "run the same command again" in said and path.read_text().startswith("this was")
    path.rename(places.root / "damaged.db")
    assert all(one.before for one in graded(places, must_not_be_asked).values())
    assert rows_of(places) == rows


def full_from(number: int, monkeypatch, path: str) -> None:
    """Let the disk be full once `path` was written so many times."""
    sync, written = os.fsync, []

    def fails(descriptor: int) -> None:
        if path in os.readlink(f"/proc/self/fd/{descriptor}"):
            written.append(descriptor)
            if len(written) > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="files are told apart by /proc")
@pytest.mark.parametrize("path", [f"grading/{TOPIC}.jsonl", "/autograded/"])
@pytest.mark.parametrize("again", [(), ("--again",)], ids=["first", "again"])
def test_a_full_disk_ends_the_run_with_what_was_graded_safe(path, again, places, pretended, capsys):
    for student in ("ann", "bob", "eve"):
        hand_in(places, student)
    with pytest.MonkeyPatch.context() as patched:
        full_from(1, patched, path)
        said = told_of(places, capsys, *again)
    assert path in said and "cannot be written: No space left on device: make room there; 1 of 3 are graded" in said
    assert f"the same command{' without --again' if again else ''} goes on with the rest" in said
    assert book_of(places).keys() >= {"ann"} and not list(places.autograded.rglob("*.tmp"))
    ends = graded(places)
    assert ends["ann"].before and not any(one.judged.reason for one in ends.values())
    assert book_of(places) == {student: points_of(one) for student, one in ends.items()}


def fills_the_disk(self: Book, graded) -> None:
    """Write more than SQLite may: it has no more pages than now."""
    connection = self._book.db.connection()
    connection.execute(text(f"PRAGMA max_page_count = {connection.execute(text('PRAGMA page_count')).scalar()}"))
    connection.execute(text("CREATE TABLE filler (x BLOB)"))
    connection.execute(text("INSERT INTO filler VALUES (zeroblob(10000000))"))


def test_a_full_disk_under_the_gradebook(places, pretended, monkeypatch, capsys):
    hand_in(places, "ann")
    with monkeypatch.context() as patched:
        patched.setattr(Book, "_set_comments", fills_the_disk)
        said = told_of(places, capsys)
    where = places.root / "gradebook.db"
    assert f"the gradebook {where} could not be written: database or disk is full: make room there; 1 of 1" in said
    ends = graded(places, must_not_be_asked)
    assert book_of(places) == {"ann": points_of(ends["ann"])}


@pytest.mark.parametrize("is_new", [True, False])
def test_half_a_new_gradebook_is_not_left_behind(is_new, places, pretended, monkeypatch, capsys):
    hand_in(places, "ann")
    path = places.root / "gradebook.db"
    if is_new:
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Gradebook, "check_course", lambda *_, **__: 1 / 0)
        assert "could not be written: division by zero, and run the same command again" in told_of(places, capsys)
    assert path.exists() != is_new
    assert graded(places) and book_of(places)


def test_nbgrader_prints_no_traceback_beside_the_sentence(places, pretended, monkeypatch, caplog, capsys):
    hand_in(places, "ann")

    def fails(self, *_, **__):
        logging.getLogger("tornado.application").error("Traceback")
        raise InvalidEntry("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]")

    monkeypatch.setattr(Gradebook, "update_or_create_assignment", fails)
    assert "could not be written: database or disk is full: make room there, and run" in told_of(places, capsys)
    assert not caplog.records


def test_a_gradebook_that_cannot_be_read_again_after_a_failure_takes_nothing_on_trust(places, pretended, monkeypatch):
    monkeypatch.setattr("qlab.grading.run.SECONDS_UNWRITTEN", 0.0)
    for student in ("ann", "bob"):
        hand_in(places, student)
    write, read, failed = Book._set_comments, Book._read_ids, []

    def fails_once(self, graded):
        if len(failed) < 2:
            failed.append(monkeypatch.setattr(Book, "_read_ids", lambda self: 1 / 0))
            raise OSError("once")
        write(self, graded)

    monkeypatch.setattr(Book, "_set_comments", fails_once)
    with pytest.raises(GradebookNotKept, match="division by zero"):
        graded(places)
    monkeypatch.setattr(Book, "_read_ids", read)
    failed.extend([None, None])
    ends = graded(places)
    assert book_of(places) == {student: points_of(one) for student, one in ends.items()}


@pytest.mark.parametrize("url", ["postgresql://teacher:secret@host/grades", "no url"])
def test_what_is_said_of_a_gradebook_holds_no_password(url):
    said = str(gradebook_fault(RuntimeError("it is gone"), url))
    assert "secret" not in said and "could not be written: it is gone" in said


def test_a_course_folder_that_cannot_be_written(places, pretended, capsys):
    hand_in(places, "ann")
    places.records.write_text("a file where the folder of the journal should be")
    said = told_of(places, capsys)
    assert f"{places.records}/lock cannot be written: " in said and "run the same command again" in said
    assert book_of(places) == {}


def test_a_manual_score_stays_and_asks_for_a_look(places, pretended):
    hand_in(places, "ann")
    graded(places)
    with Gradebook(places.database, "qlab") as book:
        book.find_grade("check-decode", TOPIC, TOPIC, "ann").manual_score = 4.0
        book.db.commit()
    ends = graded(places, again=True)
    with Gradebook(places.database, "qlab") as book:
        grade_of = book.find_grade("check-decode", TOPIC, TOPIC, "ann")
        assert (grade_of.manual_score, grade_of.needs_manual_grade) == (4.0, True)
        assert grade_of.auto_score == points_of(ends["ann"])["check-decode"]


@pytest.mark.parametrize("penalized", [False, True])
def test_what_comes_late_is_judged_by_the_courses_own_settings(penalized, places, pretended):
    hand_in(places, "ann")
    if penalized:
        with (places.root / "nbgrader_config.py").open("a") as file:
            file.write('c.LateSubmissionPlugin.penalty_method = "zero"\n')
    with Gradebook(places.database, "qlab") as book:
        book.add_assignment(TOPIC, duedate="2026-11-19 00:00:00 UTC")
    graded(places_of(places.root))
    with Gradebook(places.database, "qlab") as book:
        notebook = book.find_submission_notebook(TOPIC, TOPIC, "ann")
        assert notebook.late_submission_penalty == (notebook.score if penalized else None)


def test_a_gradebook_with_other_cells_is_refused(places, pretended):
    hand_in(places, "ann")
    graded(places)
    release = notebooks.read(places.releases / TOPIC / f"{TOPIC}.ipynb")
    release.cells = [cell for cell in release.cells if cell.id != "check-decode"]
    notebooks.write(release, places.releases / TOPIC / f"{TOPIC}.ipynb")
    with pytest.raises(NoGradebook) as refusal:
        graded(places)
    one_sentence(refusal)


def test_what_cannot_be_graded_is_neither_zero_nor_a_pass(places, pretended):
    for student, code in {"ann": "", "bad": "UNGRADABLE", "die": "DIE", "fault": "FAULT"}.items():
        hand_in(places, student, code)
    hand_in(places, "empty").write_bytes(b"")
    hand_in(places, "two", name="a")
    hand_in(places, "two", name="b")
    hand_in(places, "other-name", name="mine")
    (places.submitted / "nothing" / TOPIC).mkdir(parents=True)
    for name in ("a.zip", "b.txt", "timestamp.txt", f"{TOPIC}.ipynb.txt", "z"):
        path = places.submitted / "others" / TOPIC / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (places.submitted / "linked").symlink_to(places.submitted / "ann")
    (places.submitted / "evil\x1b[31m").mkdir()
    (places.submitted / "evil\x1b[31m" / TOPIC).mkdir()
    ends = graded(places, partial(map_locally, workers=2))
    reasons = {student: one.judged.reason for student, one in ends.items() if one.judged.reason}
    assert reasons.pop("bad") == "the sandbox is gone"
    assert "died twice" in reasons.pop("die")
    assert reasons.pop("fault") == "the judge itself failed: KeyError: 'two\\nlines'"
    assert "empty" in reasons.pop("empty")
    assert "which of 2" in reasons.pop("two")
    assert reasons.pop("nothing") == f"no {TOPIC}.ipynb was handed in"
    held = f"its folder holds '{TOPIC}.ipynb.txt', 'a.zip', 'b.txt' and 1 more"
    assert reasons.pop("others") == f"no {TOPIC}.ipynb was handed in: {held}"
    assert "link" in reasons.pop("linked")
    assert "no student's" in reasons.pop("evil\x1b[31m")
    assert not reasons
    assert "it was handed in under the name 'mine.ipynb'" in ends["other-name"].judged.repairs
    assert set(book_of(places)) == {"ann", "other-name"}
    again = graded(places)
    assert [name for name, one in again.items() if one.before] == ["ann", "other-name"]


@pytest.mark.parametrize(
    "lies", [f"{TOPIC}.ipynb", f"{TOPIC} (1)/{TOPIC}.ipynb", f"{TOPIC}.ipynb.txt", f"{TOPIC.upper()}/mine.ipynb"]
)
@pytest.mark.parametrize("beside", [False, True])
def test_what_lies_wrong_is_told_and_not_graded(lies, beside, places, pretended):
    hand_in(places, "ann")
    hand_in(places, "bob").rename(places.root / "own.ipynb")
    if not beside:
        shutil.rmtree(places.submitted / "bob")
    path = places.submitted / "bob" / lies
    path.parent.mkdir(parents=True, exist_ok=True)
    (places.root / "own.ipynb").rename(path)
    notebooks.write(RELEASE, places.submitted / "eve" / "02_memory" / "02_memory.ipynb")
    ends = graded(places)
    belongs = f"belongs at submitted/bob/{TOPIC}/{TOPIC}.ipynb"
    first = lies.partition("/")[0]
    assert ends["bob"].judged.reason == f"no {TOPIC}.ipynb was handed in: {first!r} lies beside, and {belongs}"
    assert set(ends) == {"ann", "bob"} and set(book_of(places)) == {"ann"}


def test_the_work_of_another_assignment_is_not_taken_for_this_one(places, pretended):
    other = f"{TOPIC}_more"
    notebooks.write(RELEASE, places.releases / other / f"{other}.ipynb")
    notebooks.write(RELEASE, places.submitted / "ann" / other / f"{other}.ipynb")
    (places.submitted / "ann" / f"{other}.ipynb").touch()
    assert graded(places) == {}


def test_what_lies_in_no_students_folder_is_told(places, pretended, capsys):
    hand_in(places, "ann")
    notebooks.write(RELEASE, places.submitted / f"{TOPIC}.ipynb")
    notebooks.write(RELEASE, places.submitted / TOPIC / "bob" / f"{TOPIC}.ipynb")
    assert run_command(places) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qlab grade: ")]
    belongs = f"it belongs at {places.submitted}/NAME/{TOPIC}/{TOPIC}.ipynb"
    assert [line.split("'")[1] for line in told] == [f"{places.submitted}/{name}" for name in (TOPIC, f"{TOPIC}.ipynb")]
    assert all(line.endswith(belongs) for line in told)


def test_without_isolation_nothing_is_graded(places, monkeypatch, capsys):
    def refuse(**_):
        raise NoIsolation("bubblewrap (bwrap) is not on PATH: install bubblewrap")

    monkeypatch.setattr(lasting, "Sandbox", refuse)
    hand_in(places, "ann")
    assert cli.main(["grade", "--course", str(places.root)]) == 1
    assert capsys.readouterr().err == "qlab grade: bubblewrap (bwrap) is not on PATH: install bubblewrap\n"
    assert book_of(places) == {} and journal_of(places) == []


def test_a_gradebook_that_is_held_for_a_while_is_written_later(places, pretended, monkeypatch):
    monkeypatch.setattr("qlab.grading.run.SECONDS_UNWRITTEN", 0.0)
    for student in ("ann", "bob", "eve"):
        hand_in(places, student)
    write, tried = Book.write, []

    def held(self, graded):
        tried.append(len(graded))
        if len(tried) < 3:
            raise NoGradebook("the gradebook could not be written: database is locked")
        write(self, graded)

    monkeypatch.setattr(Book, "write", held)
    ends = graded(places)
    assert tried == [1, 2, 3]
    assert book_of(places) == {student: points_of(one) for student, one in ends.items()}


def test_a_gradebook_that_stays_locked_is_made_up_for_by_the_next_run(places, pretended, monkeypatch, capsys):
    hand_in(places, "ann")
    with monkeypatch.context() as patched:
        patched.setattr(Book, "_set_grades", lambda self, graded: 1 / 0)
        assert run_command(places) == 1
    assert "could not be written: division by zero" in capsys.readouterr().err
    assert run_command(places) == 0
    assert "1 graded, 1 of them by an earlier run" in capsys.readouterr().out
    assert sum(book_of(places)["ann"].values()) > 0


def test_a_second_grader_is_refused(places, pretended):
    hand_in(places, "ann")
    with locked(places.records / "lock"), pytest.raises(Taken):
        graded(places)


def tasks(*codes: str) -> list[Task]:
    found = []
    for number, code in enumerate(codes):
        notebook = nbformat.reads(TEXT, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(code))
        found.append(Task(f"s{number}", TOPIC, f"k{number}", nbformat.writes(notebook).encode()))
    return found


def test_workers_take_tasks_as_they_need_them(pretended):
    taken = []

    def watched():
        for task in tasks(*["pass"] * 12):
            taken.append(task)
            yield task

    for done, judged in enumerate(map_locally(watched(), releases={TOPIC: TEXT}, workers=2), start=1):
        assert not judged.reason and len(taken) <= done + 3
    assert len(taken) == 12


def test_a_stuck_worker_is_ended_and_its_task_tried_once_more(pretended, monkeypatch):
    monkeypatch.setattr("qlab.grading.workers.GRACE_SECONDS", 1.0)
    mapped = map_locally(tasks("HANG", ""), releases={TOPIC: TEXT}, workers=2, limits=Limits(submission_seconds=0.5))
    reasons = {judged.student: judged.reason for judged in mapped}
    assert reasons == {"s0": "judging it took longer than 2 seconds, twice", "s1": ""}


def test_nobody_outlives_a_run_that_is_broken_off(pretended):
    before = set(_children())
    threads = threading.active_count()
    mapped = map_locally(tasks("", "HANG", "HANG"), releases={TOPIC: TEXT}, workers=3)
    next(mapped)
    assert set(_children()) > before
    mapped.close()
    deadline = time.monotonic() + 10
    while (set(_children()) > before or threading.active_count() > threads) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(_children()) <= before and threading.active_count() <= threads


def _children() -> list[str]:
    """Return the processes below this one that still run."""
    below, found = {str(os.getpid())}, []
    stats = [path.read_text().rpartition(")") for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    parents = {head.split(" ", 1)[0]: rest.split()[:2] for head, _, rest in stats}
    for _ in range(4):
        below |= {pid for pid, (_, parent) in parents.items() if parent in below}
    found = [pid for pid in below if pid != str(os.getpid()) and parents.get(pid, ["Z"])[0] != "Z"]
    return found


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="got 0"):
        next(map_locally([], releases={}, workers=0))


@contextmanager
def forked_grader(places: Places, said: Path, seconds: float) -> Iterator[int]:
    """Run the command in a process of its own, which needs no second import of torch; give its process id."""
    pid = os.fork()
    if pid == 0:
        os.environ[standin.SLOW] = str(seconds)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = sys.stderr = said.open("w")
        status = 99
        try:
            status = cli.main(["grade", "--workers", "2", "--course", str(places.root)])
        finally:
            sys.stderr.flush()
            os._exit(status)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait_until(condition, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_grader_that_is_killed_at_any_moment_loses_nothing_and_grades_nothing_twice(places, pretended):
    students = [f"s{number:02}" for number in range(40)]
    for student in students:
        hand_in(places, student)
    chosen = random.Random(5)
    for _ in range(12):
        before = len(journal_of(places))
        with forked_grader(places, places.root / "said", 0.02):
            if before < len(students):
                wait_until(lambda before=before: len(journal_of(places)) > before)
            time.sleep(chosen.random() * 0.1)
        counted = Counter(line["key"] for line in journal_of(places))
        assert max(counted.values(), default=1) == 1
    ends = graded(places)
    said = {
        line["student"]: {r["grade_id"]: float(r["points"]) for r in line["results"]} for line in journal_of(places)
    }
    assert sorted(said) == sorted(ends) == students and book_of(places) == said
    assert len(journal_of(places)) == len(students)


def test_ctrl_c_says_how_to_go_on(places, pretended):
    for number in range(8):
        hand_in(places, f"s{number}")
    said = places.root / "said"
    with forked_grader(places, said, 0.3) as grader:
        wait_until(lambda: journal_of(places))
        os.kill(grader, signal.SIGINT)
        wait_until(lambda: "the same command goes on with the rest" in said.read_text(), seconds=30)
    assert "Traceback" not in said.read_text()
    assert 0 < len(journal_of(places)) < 8
    ends = graded(places)
    assert len(journal_of(places)) == 8
    assert book_of(places) == {student: points_of(one) for student, one in ends.items()}


def test_ctrl_c_tells_the_truth_of_a_run_that_judges_anew(places, pretended, monkeypatch, capsys):
    hand_in(places, "ann")
    hand_in(places, "bad", "UNGRADABLE")
    hand_in(places, "eve")
    graded(places)

    def interrupted(tasks, **options):
        for number, judged in enumerate(map_locally(tasks, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield judged

    monkeypatch.setattr("qlab.grading.workers.map_locally", interrupted)
    assert run_command(places, "--again") == 130
    said = capsys.readouterr().err
    assert "stopped: 1 of 3 are graded and safe; the same command without --again goes on with the rest" in said


def run_command(places: Places, *words: str) -> int:
    return cli.main(["grade", *words, "--course", str(places.root), "--workers", "1"])


def test_the_command_tells_and_writes_what_was_found(places, pretended, capsys):
    for student in ("=cmd|x", "ann"):
        hand_in(places, student)
    hand_in(places, "bad").write_text("[]")
    files = {name: places.root / f"grades.{name}" for name in ("csv", "svg")}
    assert run_command(places, "--csv", str(files["csv"]), "--picture", str(files["svg"])) == 1
    told = capsys.readouterr().out
    assert "2 graded; 1 not graded" in told and "not graded: the notebook's JSON holds a list" in told
    assert "1 decode · 2 decode-e4m3" in told and "█" in told
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == summary.COLUMNS and len(rows) == 2 * 8 + 1
    assert {row["student"] for row in rows} == {"'=cmd|x", "ann", "bad"}
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())
    (bad,) = [row for row in rows if row["student"] == "bad"]
    assert (bad["outcome"], bad["points"]) == ("not graded", "")
    assert "<svg" in files["svg"].read_text() and f"{TOPIC}: 2 submissions" in files["svg"].read_text()
    (places.submitted / "bad" / TOPIC / f"{TOPIC}.ipynb").unlink()
    hand_in(places, "bad")
    assert run_command(places, "01") == 0
    assert "3 graded, 2 of them by an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["99"], "no assignment '99'"),
        (["01_datatypes"], "no assignment '01_datatypes'; did you mean 01_data_types?"),
        (
            ["--student", "zoe", TOPIC],
            f"nothing was handed in for {TOPIC} by zoe: it belongs at HERE/submitted/zoe/{TOPIC}/{TOPIC}.ipynb",
        ),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--cluster", "tcp://127.0.0.1:1"], "nothing was handed in"),
        (["--picture", "a.jpg"], "--picture writes .svg or .png, got a.jpg"),
        (["01", "--csv", "submitted"], "--csv submitted is a folder: name a file in it"),
        (["01", "--picture", "folder.svg"], "--picture folder.svg is a folder: name a file in it"),
        (["01", "--csv", "none/a.csv"], "--csv none/a.csv: there is no folder none: make it first"),
        (["01", "--picture", "none/a.svg"], "--picture none/a.svg: there is no folder none: make it first"),
        (["01", "--csv", "/dev/null"], "--csv /dev/null is no plain file: name another"),
        (["01", "--csv", "x" * 250], "cannot be written: File name too long"),
        (["01", "--picture", "/proc/a.svg"], "--picture /proc/a.svg cannot be written: "),
    ],
)
def test_odd_requests_get_a_sentence(words, said, places, monkeypatch, capsys):
    monkeypatch.chdir(places.root)
    (places.root / "folder.svg").mkdir()
    before = sorted(places.root.rglob("*"))
    assert cli.main(["grade", "--course", str(places.root), *words]) == 1
    assert said.replace("HERE", str(places.root)) in capsys.readouterr().err
    assert sorted(places.root.rglob("*")) == before


@pytest.mark.parametrize("again", [(), ("--again",)], ids=["first", "again"])
def test_a_table_that_cannot_be_written_in_the_end(again, places, pretended, monkeypatch, capsys):
    hand_in(places, "ann")

    def full(content, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = places.root / "grades.csv"
    with monkeypatch.context() as patched:
        patched.setattr(summary, "write_whole", full)
        said = told_of(places, capsys, *again, "--csv", str(path))
    assert f"{path} cannot be written: No space left on device: make room there; every grade is safe" in said
    assert said.endswith(f"the same command{' without --again' if again else ''} writes it")
    assert run_command(places, "--csv", str(path)) == 0 and path.exists()


def test_the_layout_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["grade", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "submitted/NAME/ASSIGNMENT/ASSIGNMENT.ipynb" in told and "`nbgrader export`" in told


def test_a_reader_that_leaves_ends_it_quietly_and_costs_no_file(places):
    hand_in(places, "ann").write_text("[]")
    command = [sys.executable, "-m", "qlab", "grade", "--course", str(places.root), "--csv", "grades.csv"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as gone, (places.root / "said").open("w") as said:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=places.root, env=environment, stdout=gone, stderr=said, check=False)
    told = (places.root / "said").read_text()
    assert done.returncode == 141 and "roken pipe" not in told and "Traceback" not in told
    assert "not graded" in (places.root / "grades.csv").read_text()


def test_what_was_not_graded_has_no_histogram_and_what_was_mended_has_points(places, pretended, capsys):
    hand_in(places, "bad").write_text("[]")
    assert run_command(places) == 1
    assert "what the answers came to" not in capsys.readouterr().out
    hand_in(places, "mended", name="mine")
    assert run_command(places) == 1
    progress = capsys.readouterr().err
    assert re.search(r"mended: \d+ points?; repaired: it was handed in under the name 'mine.ipynb'", progress)


@pytest.mark.parametrize("settings", ["c = (", "c = given_by_nobody()", "raise KeyError('two\\nlines')"])
def test_settings_that_do_not_run_get_a_sentence(settings, places, capsys):
    (places.root / "nbgrader_config.py").write_text(settings)
    assert f"{places.root}/nbgrader_config.py cannot be used: " in told_of(places, capsys)


def test_the_assignment_is_found_or_asked_for(places, pretended, capsys):
    assert run_command(places) == 1
    belongs = f"{places.submitted}/NAME/ASSIGNMENT/ASSIGNMENT.ipynb"
    assert capsys.readouterr().err == f"qlab grade: nothing was handed in: it belongs at {belongs}\n"
    hand_in(places, "ann")
    assert run_command(places) == 0
    notebooks.write(RELEASE, places.releases / "02_memory" / "02_memory.ipynb")
    notebooks.write(RELEASE, places.submitted / "ann" / "02_memory" / "02_memory.ipynb")
    capsys.readouterr()
    assert run_command(places) == 1
    assert "say which one: 01_data_types, 02_memory" in capsys.readouterr().err


def test_one_student_alone(places, pretended):
    for student in ("ann", "bob"):
        hand_in(places, student)
    assert set(graded(places, student="bob")) == {"bob"}
    assert set(book_of(places)) == {"bob"}


def test_without_nbgrader_one_sentence_says_what_to_install(places, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    hand_in(places, "ann")
    assert run_command(places) == 1
    assert capsys.readouterr().err == f"qlab grade: {gradebook.NEEDS_NBGRADER}\n"


def required_isolation() -> None:
    """Skip where there is no sandbox."""
    try:
        require_isolation()
    except NoIsolation as error:
        if os.environ.get("QLAB_REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(str(error))


@pytest.mark.slow
def test_a_real_class_is_graded_in_real_sandboxes(places):
    """Grade an honest submission, an unanswered one, and one that ends its process while it is judged."""
    required_isolation()
    solved = notebooks.answer_cells(notebooks.read(REPOSITORY / "solutions" / TOPIC / f"{TOPIC}.ipynb"))
    for student in ("right", "ends", "unanswered"):
        notebook = nbformat.reads(TEXT, as_version=4)
        for name, cell in notebooks.answer_cells(notebook).items():
            cell.source = solved[name].source if student != "unanswered" else cell.source
        if student == "ends":
            notebooks.answer_cells(notebook)["answer-kahan-sum"].source = "import os\nos._exit(0)"
        notebooks.write(notebook, places.submitted / student / TOPIC / f"{TOPIC}.ipynb")
    command = [sys.executable, "-m", "qlab", "grade", "--workers", "1", "--course", str(places.root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    most = {name: float(notebooks.points(cell)) for name, cell in notebooks.graded_cells(RELEASE).items()}
    ends = most | {"check-kahan-sum": 0.0}
    assert book_of(places) == {"right": most, "ends": ends, "unanswered": dict.fromkeys(most, 0.0)}
    spent = {line["student"]: line["cpu_seconds"] for line in journal_of(places)}
    assert all(0 < seconds < 30 for seconds in spent.values())


def results(*ends: tuple[str, str]) -> Judged:
    found = tuple(ExerciseResult(f"check-{n}", 0, 4, outcome, name) for n, (outcome, name) in enumerate(ends))
    return Judged("ann", "lab", "k", found)


def test_misconceptions_are_counted_by_exercise():
    judged = [results(("wrong", "truncates"), ("empty", "")), results(("crashed", ""), ("right", ""))]
    judged += [results(("wrong", "truncates"), ("right", ""))]
    counted = summary.misconceptions(judged)
    assert counted == {"check-0": {"truncates": 2, "crashed": 1}, "check-1": {"not answered": 1, "right": 2}}
    assert summary.histogram(counted).splitlines()[1].startswith("  truncates                            2  ██")
    axes = misconception_bars(counted)
    assert axes.get_xlabel() and axes.get_ylabel()
    assert [bar.get_width() for bar in axes.patches] == [2, 1, 2, 1]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["0: truncates", "crashed", "1: right", "not answered"]
    assert misconception_bars(counted, title="a lab: 3 submissions").get_title() == "a lab: 3 submissions"
    assert "0  (3 answers)" in summary.histogram(counted)
    assert summary.histogram({"check-0": Counter(right=1)}).splitlines()[0] == "0  (1 answer)"


def test_the_table_and_the_picture_use_the_same_words(places):
    hand_in(places, "ann")
    ends = [("empty", ""), ("crashed", ""), ("wrong", "truncates"), ("right", "")]
    summary.write_csv([results(*ends)], places.root / "grades.csv")
    with (places.root / "grades.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == ["not answered", "crashed", "wrong", "right"]
    assert rows[0]["submission_seconds"] == "0.00"


STOPPED = {
    "while True: pass": "stopped: out of time",
    "def decode(*args):\n    while True: pass": "stopped: out of time",
    "import os; os._exit(7)": "stopped: its process ended",
    "def decode(*args):\n    import os; os._exit(7)": "stopped: its process ended",
    "1 / 0": "crashed",
    "def decode(*args):\n    raise TimeoutError('it ran for 9 seconds and was stopped')": "crashed",
}


@pytest.mark.slow
def test_an_answer_that_was_stopped_is_told_from_one_that_raised():
    """Judge answers in real sandboxes: what the judge says of them is what the table goes by."""
    required_isolation()
    release = nbformat.reads(TEXT, as_version=4)
    setup = next(cell for cell in release.cells if cell.cell_type == "code")
    release.cells = [setup, *(cell for cell in release.cells if cell.id in ("answer-decode", "check-decode"))]
    limits, found = Limits(cell_seconds=2.0, check_seconds=2.0), {}
    with Sandbox(limits=limits) as sandbox:
        for source in STOPPED:
            notebook = nbformat.from_dict(release)
            fill(notebook, answer_decode=source)
            (result,) = judge.judge_notebook(notebook, release, sandbox, limits=limits).results
            found[source] = summary.outcome(result)
    assert found == STOPPED
    assert set(found.values()) - {"crashed"} == set(STOPPED_BARS)


def test_the_last_of_many_cost_no_more_than_the_first(places):
    """Grade a class without judging: what the grader itself does for each stays the same, in time and in memory."""
    hand_in(places, "s0000")
    content = (places.submitted / "s0000" / TOPIC / f"{TOPIC}.ipynb").read_bytes()
    for number in range(1, 200):
        path = places.submitted / f"s{number:04}" / TOPIC / f"{TOPIC}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    found = tuple(ExerciseResult(name, 1, 4, "wrong", "x") for name in notebooks.graded_cells(RELEASE))

    def judged_at_once(tasks, **_):
        for task in tasks:
            yield Judged(task.student, task.notebook, task.key, found, graded="{}" * 10_000)

    moments, memory = [], []
    tracemalloc.start()
    try:
        with closing(grade(the_order(places, judged_at_once))) as ends:
            for _ in ends:
                moments.append(time.process_time())
                memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    first, last = moments[100] - moments[50], moments[-1] - moments[-51]
    assert len(moments) == 200 and last < 2.5 * first
    assert memory[-1] - memory[100] < 100 * 10_000  # the results are kept, the notebooks are not
    assert len(journal_of(places)) == 200


def test_what_was_mended_stands_on_top_of_the_graded_notebook(places, pretended):
    path = hand_in(places, "ann")
    notebook = notebooks.read(path)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "check-decode"]
    notebooks.write(notebook, path)
    graded(places)
    top = notebooks.read(places.autograded / "ann" / TOPIC / f"{TOPIC}.ipynb").cells[0]
    assert top.source.startswith("**Mended before it was graded:**") and "'check-decode' was missing" in top.source
