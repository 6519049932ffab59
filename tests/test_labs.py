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
from qlab.labs import build, copies, execute, notebooks
from qlab.labs.build import CannotBuild
from qlab.labs.execute import check_notebook
from qlab.labs.notebooks import NotALab
from tests.grading import GIVES_A_POINT, NO_LABS, TOPIC, copy_course, files_of, fill, one_sentence, small_lab


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    return copy_course(tmp_path)


@pytest.fixture
def solution(root):
    return root / "solutions" / TOPIC / f"{TOPIC}.ipynb"


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
        assert own in copies.copy_labs()
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
        assert copies.copy_labs() == tuple(course.copy_path(topic.stem) for topic in course.topics())

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
        with pytest.raises(NotALab, match=f"{TOPIC}.ipynb is not a notebook"):
            copies.refresh(TOPIC)
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
        assert {result.outcome for result in results} == {"right"}
        assert sum(result.points for result in results) == copies.points_of(course.lab_path(TOPIC)) > 0
        assert solution.read_bytes() == before

    @pytest.mark.slow
    def test_the_unanswered_lab_runs_to_its_end_and_wins_nothing(self, root, monkeypatch, capfd):
        ran, run = [], execute.execute
        monkeypatch.setattr(execute, "execute", lambda lab, folder: (run(lab, folder), ran.append(lab)))
        results = check_notebook(course.lab_path(TOPIC))
        assert results and {(result.points, result.outcome) for result in results} == {(0, "empty")}
        code = [cell for cell in ran[0].cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
        assert capfd.readouterr().err == ""  # the kernel has nothing to warn of either

    @pytest.mark.slow
    def test_checks_that_were_deleted_edited_or_doubled(self, solution):
        notebook = notebooks.read(solution)
        fill(notebook, check_kahan_sum="4", answer_kahan_sum="def kahan_sum(x):\n    return x.sum()")
        fill(notebook, check_stochastic_round="print('no verdict')", answer_stochastic_round="del checks")
        noise = "import sys, warnings\nprint('noise', file=sys.stderr)\nwarnings.warn('noise')\n"
        answer = notebooks.answer_cells(notebook)["answer-store-in-16-bits"]
        answer.source = f"{noise}from qlab.checks import data_types as checks\n{answer.source}"
        answer.source = answer.source.replace("    return", "    print('noise', file=sys.stderr)\n    return")
        doubled = notebooks.graded_cells(notebook)["check-pack-int4"]
        cells = [cell for cell in notebook.cells if cell.id != "check-decode"]
        notebook.cells = [*cells[:-1], copy.deepcopy(doubled), cells[-1]]
        solution.write_text(json.dumps(notebook))  # nbformat itself does not write two cells of one id

        results = {result.grade_id.removeprefix("check-"): result for result in check_notebook(solution)}
        assert (results["decode"].points, results["decode"].outcome) == (0, "missing")
        assert results["kahan-sum"].misconception == "accumulates-wider" and results["kahan-sum"].points < 4
        assert results["kahan-sum"].remarks
        assert results["stochastic-round"].remarks == ("NameError: name 'checks' is not defined",)
        assert results["pack-int4"].points == 5
        assert results["store-in-16-bits"].points == 3
        assert sum(result.points < result.max_points for result in results.values()) == 3

    @pytest.mark.slow
    def test_a_kernel_that_dies_keeps_the_points_won_before(self, tmp_path):
        dies = "import os, time\ntime.sleep(0.5)  # until what was said so far has arrived\nos._exit(0)"
        before, during, after = check_notebook(small_lab(tmp_path / "lab.ipynb", GIVES_A_POINT, dies, GIVES_A_POINT))
        assert (before.points, before.outcome) == (1, "right")
        assert (during.points, during.outcome) == (after.points, after.outcome) == (0, "crashed")
        assert after.remarks == ("the run ended before this check was done",)

    @pytest.mark.slow
    def test_endless_loops_are_stopped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(execute, "SECONDS_PER_CELL", 2)
        deaf = "import time\nwhile True:\n    try:\n        time.sleep(0.01)\n    except BaseException:\n        pass"
        lab = small_lab(tmp_path / "lab.ipynb", "while True: pass", GIVES_A_POINT, "'no verdict'", deaf, GIVES_A_POINT)
        looped, after, silent, *others = check_notebook(lab)
        assert looped.remarks == ("it ran for 2 seconds and was stopped",)
        assert after.points == 1
        assert silent.remarks == ("its check gave no verdict",)
        assert [(r.points, r.outcome) for r in others] == [(0, "crashed")] * 2

    @pytest.mark.slow
    def test_the_kernel_listens_on_private_sockets_and_leaves_nothing(self, tmp_path, monkeypatch):
        asks = (
            "from ipykernel.connect import get_connection_info as told\nassert told(unpack=True)['transport'] == 'ipc'"
        )
        lab = small_lab(tmp_path / "lab.ipynb", f"{asks}\n{GIVES_A_POINT}")
        before = files_of(tmp_path)
        with tempfile.TemporaryDirectory(prefix="q") as private:
            monkeypatch.setattr(tempfile, "tempdir", private)
            assert check_notebook(lab)[0].remarks == ()
            assert not list(Path(private).iterdir())
        assert files_of(tmp_path) == before
