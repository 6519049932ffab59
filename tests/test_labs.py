"""Labs: built the same every time, copied once, refreshed with the answers kept, executed whatever they hold."""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from qlab import course
from qlab.checks.report import VERDICT_MIME
from qlab.labs import build, copies, execute, notebooks
from qlab.labs.build import CannotBuild
from qlab.labs.execute import check_notebook
from qlab.labs.notebooks import NotALab

REPOSITORY = Path(__file__).parents[1]
TOPIC = "01_data_types"
EMPTY = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
OLD_CELL = {"cell_type": "code", "input": "1", "outputs": [], "language": "python", "collapsed": False}
OLD_FORMAT = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [OLD_CELL], "metadata": {}}]}
NO_LABS = {
    "empty": b"",
    "list": b"[1, 2]",
    "null": b"null",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "deep metadata": json.dumps(EMPTY).encode().replace(b"{}", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "cut short": json.dumps(EMPTY).encode()[:-9],
    "from the future": json.dumps(EMPTY | {"nbformat": 99}).encode(),
    "without graded cells": json.dumps(EMPTY).encode(),
    "nbformat 3": json.dumps(OLD_FORMAT).encode(),
}
A_POINT = {"points": 1, "outcome": "right", "misconception": "", "parts": []}
GIVES_A_POINT = f"display({{{VERDICT_MIME!r}: {A_POINT}}}, raw=True)"


def copy_course(folder: Path) -> Path:
    """Copy all that labs are made of into `folder`."""
    for name in ("lessons", "labs", "solutions"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "nbgrader_config.py", folder)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    return copy_course(tmp_path)


@pytest.fixture
def solution(root):
    return root / "solutions" / TOPIC / f"{TOPIC}.ipynb"


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill(notebook: nbformat.NotebookNode, **sources: str) -> None:
    """Put sources into the cells of these ids; a Python name stands for an id with hyphens."""
    for cell in notebook.cells:
        if (name := cell.id.replace("-", "_")) in sources:
            cell.source = sources[name]


def small_lab(path: Path, *sources: str) -> Path:
    """Write a lab of no topic whose every cell is graded: its kernel needs no torch."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for number, cell in enumerate(cells):
        cell.metadata["nbgrader"] = {"grade": True, "grade_id": f"cell-{number}", "points": 1}
    notebooks.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def one_sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 400
    return text


class TestBuild:
    def test_the_labs_in_git_are_what_a_build_makes_twice(self, root):
        labs, before = files_of(root / "labs"), files_of(root)
        assert build.differing() == ()
        shutil.rmtree(root / "labs" / TOPIC)
        assert build.build() == (course.lab_path(TOPIC),)
        assert files_of(root / "labs") == labs
        assert build.build() == ()
        assert files_of(root) == before  # no gradebook, no log, no temporary file

    def test_a_changed_lab_is_found_and_left(self, root):
        lab = course.lab_path(TOPIC)
        lab.write_bytes(lab.read_bytes() + b"\n")
        changed = lab.read_bytes()
        assert build.differing() == (lab,)
        assert lab.read_bytes() == changed

    @pytest.mark.parametrize(
        ("right", "broken", "said"),
        [
            ("    ### END SOLUTION", "    pass", "no end solution statement"),
            ('"grade_id": "check-kahan-sum"', '"grade_id": "check-decode"', "metadata may be corrupted"),
            ('"schema_version": 3', '"schema_version": 99', "newer version"),
        ],
    )
    def test_a_solution_that_nbgrader_refuses(self, root, solution, right, broken, said):
        labs = files_of(root / "labs")
        solution.write_text(solution.read_text().replace(right, broken, 1))
        course.lab_path(TOPIC).touch()
        with pytest.raises(CannotBuild) as error:
            build.build()
        assert said in one_sentence(error) and TOPIC in str(error.value)
        assert files_of(root / "labs") == labs

    @pytest.mark.parametrize("content", NO_LABS.values(), ids=NO_LABS)
    def test_a_solution_that_is_no_lab(self, root, solution, content):
        solution.write_bytes(content)
        before = files_of(root)
        with pytest.raises(NotALab) as error:
            build.build()
        assert str(solution) in one_sentence(error)
        assert files_of(root) == before

    def test_one_broken_solution_keeps_every_lab_as_it_was(self, root, solution):
        course.lab_path(TOPIC).write_text("stale")
        (root / "solutions" / "99_last").mkdir()
        with pytest.raises(NotALab, match=r"99_last.*does not exist"):
            build.build()
        assert course.lab_path(TOPIC).read_text() == "stale"

    def test_without_nbgrader_it_says_how_to_get_it(self, root, monkeypatch):
        monkeypatch.setitem(sys.modules, "nbgrader.converters", None)
        with pytest.raises(CannotBuild, match=r"needs nbgrader: pip install .*teach"):
            build.build()


class TestCopies:
    def test_a_copy_is_made_once_and_never_overwritten(self, root):
        own = course.copy_path(TOPIC)
        assert copies.copy_labs() == (own,)
        assert own.read_bytes() == course.lab_path(TOPIC).read_bytes()
        own.write_text("mine")
        assert copies.copy_labs() == ()
        assert own.read_text() == "mine"

    def test_a_crash_while_copying_leaves_no_half_copy(self, root, monkeypatch):
        with monkeypatch.context() as crash:
            crash.setattr("os.replace", self.fail)
            with pytest.raises(OSError, match="disk is full"):
                copies.copy_labs()
        assert not any(path.is_file() for path in course.work_folder().rglob("*"))
        assert copies.copy_labs() == (course.copy_path(TOPIC),)

    def test_refresh_carries_answers_and_keeps_the_old_copy(self, root):
        copies.copy_labs()
        assert not copies.is_stale(TOPIC)
        own, lab = course.copy_path(TOPIC), course.lab_path(TOPIC)
        answered = notebooks.read(own)
        fill(answered, answer_decode="mine", answer_kahan_sum="mine too", check_decode="not carried")
        notebooks.write(answered, own)
        old = own.read_bytes()
        changed = lab.read_text().replace('"grade_id": "answer-kahan-sum"', '"grade_id": "answer-new-sum"')
        lab.write_text(changed.replace("Return the value of", "Give the value of"))
        assert copies.is_stale(TOPIC)

        done = copies.refresh(TOPIC)

        assert done.backup.read_bytes() == old and done.left_behind == ("answer-kahan-sum",)
        assert "answer-decode" in done.carried and "answer-new-sum" not in done.carried
        fresh, expected = notebooks.read(own), notebooks.read(lab)
        fill(expected, answer_decode="mine")
        assert fresh == expected
        assert not copies.is_stale(TOPIC)
        assert copies.refresh(TOPIC).backup != done.backup

    @pytest.mark.parametrize("content", [NO_LABS["empty"], NO_LABS["deep"], NO_LABS["cut short"]])
    def test_refresh_of_a_corrupt_copy_changes_nothing(self, root, content):
        copies.copy_labs()
        course.copy_path(TOPIC).write_bytes(content)
        before = files_of(root)
        with pytest.raises(NotALab) as error:
            copies.refresh(TOPIC)
        assert str(course.copy_path(TOPIC)) in one_sentence(error)
        assert files_of(root) == before

    def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = small_lab(tmp_path / "lab.ipynb", "1")
        before = files_of(tmp_path)
        monkeypatch.setattr("os.replace", self.fail)
        with pytest.raises(OSError, match="disk is full"):
            notebooks.write(nbformat.v4.new_notebook(), path)
        assert files_of(tmp_path) == before

    @staticmethod
    def fail(source, target):
        raise OSError("the disk is full")


class TestExecute:
    @pytest.mark.parametrize("content", NO_LABS.values(), ids=NO_LABS)
    def test_what_is_no_lab_gets_one_sentence(self, tmp_path, content):
        path = tmp_path / "mine.ipynb"
        path.write_bytes(content)
        with pytest.raises(NotALab) as error:
            check_notebook(path)
        assert str(path) in one_sentence(error)
        assert path.read_bytes() == content

    def test_a_folder_and_a_missing_file(self, tmp_path):
        with pytest.raises(NotALab, match="is a folder"):
            check_notebook(tmp_path)
        with pytest.raises(NotALab, match="does not exist"):
            check_notebook(tmp_path / "none.ipynb")
        with pytest.raises(NotALab, match="no lab lies under"):
            execute.labs_under(tmp_path)

    def test_labs_are_found_in_a_folder(self, tmp_path):
        lab, unread = small_lab(tmp_path / "a" / "lab.ipynb", "1"), tmp_path / "broken.ipynb"
        unread.write_text("{")
        notebooks.write(nbformat.v4.new_notebook(), tmp_path / "notes.ipynb")
        small_lab(tmp_path / ".ipynb_checkpoints" / "lab.ipynb", "1")
        small_lab(tmp_path / "lab.before-2026.ipynb", "1")
        assert execute.labs_under(tmp_path) == (lab, unread)

    def test_a_path_too_long_for_a_socket_uses_tcp(self):
        assert execute._connection(Path("/" + "long" * 30)).ConnectionFileMixin.transport == "tcp"

    @pytest.mark.slow
    def test_solutions_win_every_point(self, solution):
        before = solution.read_bytes()
        results = check_notebook(solution)
        assert [result.outcome for result in results] == ["right"] * 8
        assert sum(result.points for result in results) == copies.points_of(course.lab_path(TOPIC)) == 32
        assert solution.read_bytes() == before
