"""Progress: the best result of each exercise, on disk, whole or not at all, and never in the way of a verdict."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlab import course
from qlab.checks import progress
from qlab.checks.report import check, part

TOPIC = "01_data_types"


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Work in the learner's own folder of a course that is empty but for it."""
    for name in ("lessons", "labs", f"work/{TOPIC}"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work" / TOPIC)
    return tmp_path


@check(TOPIC, "one-point", points=1)
def check_nothing(function, generator):
    with part("is callable"):
        function()


def stored(exercise: str = "decode") -> Path:
    return course.work_folder() / ".qlab" / "progress" / TOPIC / f"{exercise}.json"


def test_the_best_result_is_kept(own):
    assert progress.read(TOPIC, "decode") is None
    for won in (1, 3, 2):
        progress.record(TOPIC, "decode", won=won, of=4)
    progress.record(TOPIC, "kahan-sum", won=4, of=4)
    assert progress.read(TOPIC, "decode").won == 3
    assert progress.points_won(TOPIC) == 7


def test_a_result_out_of_other_points_replaces_the_old_one(own):
    progress.record(TOPIC, "decode", won=4, of=4)
    progress.record(TOPIC, "decode", won=2, of=5)
    assert (progress.read(TOPIC, "decode").won, progress.read(TOPIC, "decode").of) == (2, 5)


def test_it_survives_a_restart(own):
    progress.record(TOPIC, "decode", won=3, of=4)
    progress.remember_prediction(TOPIC, "largest", 448.0)
    told = f"progress.read({TOPIC!r}, 'decode').won, progress.remembered_prediction({TOPIC!r}, 'largest')"
    program = f"from qlab.checks import progress; print({told})"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.split() == ["3", "448.0"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"won": 1}',
        b'{"won": "many", "of": 4, "when": "today"}',
        b"[" * 100_000,
    ],
    ids=["empty", "torn", "list", "null", "binary", "incomplete", "of another type", "deep"],
)
def test_a_corrupt_file_is_ignored_and_replaced(own, content):
    stored().parent.mkdir(parents=True)
    stored().write_bytes(content)
    assert progress.read(TOPIC, "decode") is None
    assert progress.points_won(TOPIC) == 0
    progress.record(TOPIC, "decode", won=1, of=4)
    assert progress.read(TOPIC, "decode").won == 1


def test_a_corrupt_prediction_is_ignored(own):
    path = course.work_folder() / ".qlab" / "predictions" / TOPIC / "largest.json"
    progress.write_json(path, {"value": "large"})
    assert progress.remembered_prediction(TOPIC, "largest") is None
    path.write_text("{")
    assert progress.remembered_prediction(TOPIC, "largest") is None


@pytest.mark.parametrize("folder", [".", "labs", "lessons"])
def test_only_work_in_the_own_copy_is_marked(own, monkeypatch, folder):
    monkeypatch.chdir(own / folder)
    progress.record(TOPIC, "decode", won=4, of=4)
    assert progress.read(TOPIC, "decode") is None
    assert not (own / "work" / ".qlab").exists()


def test_a_deleted_folder_and_one_outside_any_course(own, monkeypatch):
    Path.cwd().rmdir()
    assert not progress.in_own_copy()
    monkeypatch.chdir(own)
    monkeypatch.setenv("QLAB_ROOT", str(own / "work"))
    (own / "labs").rmdir()
    assert not progress.in_own_copy()


def test_a_work_folder_on_another_disk(own, monkeypatch):
    monkeypatch.chdir(own)
    (own / "work").rename(own / "large-disk")
    (own / "work").symlink_to(own / "large-disk", target_is_directory=True)
    monkeypatch.chdir(own / "work" / TOPIC)
    progress.record(TOPIC, "decode", won=4, of=4)
    assert progress.read(TOPIC, "decode").won == 4


@pytest.mark.parametrize("failing", ["os.replace", "json.dump"])
def test_a_crash_in_a_write_leaves_the_old_result(own, monkeypatch, failing):
    progress.record(TOPIC, "decode", won=1, of=4)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space left"):
        progress.record(TOPIC, "decode", won=4, of=4)
    assert json.loads(stored().read_text())["won"] == 1
    assert list(stored().parent.iterdir()) == [stored()]


def test_a_disk_that_takes_nothing_costs_the_mark_and_not_the_verdict(own, capsys):
    (own / "work" / ".qlab").write_text("a file where the folder should be")
    verdict = check_nothing(lambda: None)
    assert verdict.points == 1
    said = capsys.readouterr()
    assert said.out.startswith("Your points are not marked on the landing page: ") and said.err == ""


def test_a_check_marks_what_it_found(own):
    check_nothing(lambda: 1 / 0)
    assert progress.read(TOPIC, "one-point").won == 0
    check_nothing(lambda: None)
    assert progress.read(TOPIC, "one-point").won == 1
