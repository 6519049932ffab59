"""The journal: what was written is there after any crash, and nothing half-written is believed."""

import json
import os
import subprocess
import sys

import pytest

from qlab.grading.faults import NotKept
from qlab.grading.journal import Journal, Taken, locked
from qlab.grading.work import Judged, Task
from qlab.labs.execute import ExerciseResult
from tests.grading import one_sentence

pytestmark = pytest.mark.skipif(os.name == "nt", reason="grading runs where there are namespaces and flock")
RESULT = ExerciseResult("check-a", 2, 4, "wrong", "off-by-one", ("a part: think",))
JUDGED = Judged("ann", "lab", "k1", (RESULT,), untouched=("answer-b",), repairs=("mended",), seconds=1.5)


def test_what_was_added_is_there_after_reopening(tmp_path):
    with Journal(tmp_path / "deep" / "j.jsonl") as journal:
        added = journal.add(JUDGED)
    with Journal(tmp_path / "deep" / "j.jsonl") as journal:
        assert journal.graded("k1") == added
        assert journal.graded("k1").judged == JUDGED
        assert journal.graded("k2") is None


def test_the_notebook_itself_is_not_kept(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add(Judged("ann", "lab", "k1", (RESULT,), graded="a whole notebook"))
    assert "a whole notebook" not in (tmp_path / "j.jsonl").read_text()


def test_what_was_not_graded_is_told_and_not_taken_for_done(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add(Judged("bob", "lab", "k2", reason="the sandbox is gone"))
        assert journal.graded("k2") is None
    assert "the sandbox is gone" in (tmp_path / "j.jsonl").read_text()


@pytest.mark.parametrize(("again", "left"), [("class", {"k3"}), ("student", {"k2", "k3"})])
def test_the_first_entry_of_a_run_that_judges_anew_makes_earlier_ones_void(again, left, tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add(JUDGED)
        journal.add(Judged("bob", "lab", "k2", (RESULT,)))
    with Journal(tmp_path / "j.jsonl", again=again) as journal:
        assert journal.graded("k1") is not None
    with Journal(tmp_path / "j.jsonl", again=again) as journal:
        added = journal.add(Judged("ann", "lab", "k3", (RESULT,)))
        journal.add(Judged("eve", "lab", "k4", (RESULT,)))
        assert journal.graded("k3") == added
    with Journal(tmp_path / "j.jsonl") as journal:
        assert {key for key in ("k1", "k2", "k3", "k4") if journal.graded(key)} == left | {"k4"}


def test_a_journal_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(NotKept, match=r"j\.jsonl cannot be written: Is a directory"):
        Journal(tmp_path / "j.jsonl")
    with pytest.raises(NotKept, match=r"j\.jsonl cannot be written: Is a directory"), locked(tmp_path / "j.jsonl"):
        pass


def test_every_cut_of_the_file_leaves_a_journal_that_goes_on(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add(JUDGED)
        whole = path.stat().st_size
        journal.add(Judged("bob", "lab", "k2", (RESULT,)))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with Journal(path) as journal:
            assert (journal.graded("k1") is not None) == (length >= whole - 1)  # a newline is all that may be missing
            assert (journal.graded("k2") is not None) == (length >= len(content) - 1)
            journal.add(Judged("eve", "lab", "k3", (RESULT,)))
        with Journal(path) as journal:
            assert journal.graded("k3") is not None
            assert journal.unreadable <= 1


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"at": 1}', b'{"at": "x", "results": 4}'])
def test_a_line_that_is_no_entry_is_passed_over(line, tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add(JUDGED)
    with (tmp_path / "j.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.graded("k1") is not None and journal.unreadable == 1


def test_a_task_and_its_end_travel_as_bytes():
    task = Task("ann\udcff é", "lab", "k1", b"\x00\xff\n{}\n")
    assert Task.from_bytes(task.as_bytes()) == task
    assert Judged.from_bytes(JUDGED.as_bytes()) == JUDGED
    assert isinstance(json.loads(JUDGED.as_bytes()), dict)


def test_a_second_grader_is_refused_and_a_dead_one_is_not(tmp_path):
    program = "import sys, time; from pathlib import Path; from qlab.grading.journal import locked\n"
    program += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    path = tmp_path / "records" / "lock"
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(Taken) as refusal, locked(path):
                pass
            assert str(other.pid) in one_sentence(refusal)
        finally:
            other.kill()
    with locked(path):
        assert path.read_text() == str(os.getpid())
