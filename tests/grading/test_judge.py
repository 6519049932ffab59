"""The judge on real labs, and on notebooks whose code dies, hangs, floods or waits for somebody to type."""

import contextlib
import dataclasses
import functools
import os
import signal
import time
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from qlab.checks.report import VERDICT_MIME, Outcome, PartResult, Verdict
from qlab.grading import cell_runs, verdicts
from qlab.grading.check_cells import NotACheck, bound_names, check_cells
from qlab.grading.forbidden import Use
from qlab.grading.judge import GradedNotebook, Ungradable, judge_notebook
from qlab.grading.learner_process import LearnerProcess
from qlab.grading.limits import Limits
from qlab.grading.replay import History
from qlab.grading.sandbox import NoIsolation, Sandbox, SandboxFailed, require_isolation
from qlab.grading.session import Session
from qlab.labs import notebooks
from tests.grading import REPOSITORY, TOPIC, fill

SHORT = Limits(cell_seconds=2.0, check_seconds=3.0, submission_seconds=60.0)
CELLS = Limits(cell_seconds=20.0, output_bytes=20_000)
SMALL = ("01_data_types", "08_flash_attention")
ALL = tuple(sorted(folder.name for folder in (REPOSITORY / "labs").iterdir() if folder.is_dir()))
DIES = "import os; os._exit(1)"
DECODE = "def decode(*args):\n"


def _isolated() -> str:
    """Return why the tests of the sandbox cannot run here, or nothing."""
    try:
        require_isolation()
    except NoIsolation as error:
        return str(error)
    return ""


MISSING = _isolated()
sandboxed = pytest.mark.skipif(bool(MISSING) and os.environ.get("QLAB_REQUIRE_SANDBOX") != "1", reason=MISSING or "-")
in_a_sandbox = [pytest.mark.grading, sandboxed, pytest.mark.xdist_group("judge")]


def lab(name: str = TOPIC, *, kind: str = "labs") -> nbformat.NotebookNode:
    return notebooks.read(REPOSITORY / kind / name / f"{name}.ipynb")


def solved(**sources: str) -> nbformat.NotebookNode:
    """Return the solution with other sources in some of its cells."""
    notebook = lab(kind="solutions")
    fill(notebook, **sources)
    return notebook


def release(*checks: str, setup: str = "from qlab.checks import data_types as checks") -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(setup, id="setup")]
    for number, source in enumerate(checks):
        cells.append(nbformat.v4.new_code_cell(source, id=f"check-{number}"))
        cells[-1].metadata["nbgrader"] = {"grade": True, "grade_id": f"check-{number}", "points": 4}
    return nbformat.v4.new_notebook(cells=cells)


def points(graded: GradedNotebook) -> dict[str, int]:
    return {result.grade_id: result.points for result in graded.results}


def lost(graded: GradedNotebook) -> list[str]:
    """Name the exercises that did not win every point."""
    return [result.grade_id for result in graded.results if result.points < result.max_points]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(limits=SHORT) as sandbox:
        yield sandbox


@pytest.fixture
def session(sandbox):
    with Session(sandbox, lab(), limits=CELLS) as session:
        yield session


class TestRealLabs:
    pytestmark = in_a_sandbox

    @pytest.mark.parametrize(
        "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
    )
    def test_a_solution_wins_every_point_and_an_untouched_lab_none(self, sandbox, name):
        right = judge_notebook(lab(name, kind="solutions"), lab(name), sandbox)
        assert not lost(right), [result for result in right.results if result.points < result.max_points]
        untouched = judge_notebook(lab(name), lab(name), sandbox)
        assert set(points(untouched).values()) == {0}
        assert {str(result.outcome) for result in untouched.results} == {"empty"}
        errors = [o for c in right.notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
        assert not errors

    def test_the_notebook_is_what_nbgrader_reads(self, sandbox):
        graded = judge_notebook(solved(), lab(), sandbox).notebook
        nbformat.validate(graded)
        cells = notebooks.graded_cells(graded)
        for grade_id, cell in notebooks.graded_cells(lab()).items():
            (output,) = cells[grade_id].outputs
            assert output.output_type == "execute_result"
            assert output.data["text/plain"] == str(notebooks.points(cell))
            assert output.data[VERDICT_MIME]["seed"] is None

    def test_a_figure_is_in_the_feedback(self, sandbox):
        graded = judge_notebook(solved(), lab(), sandbox).notebook
        assert any("image/png" in output.get("data", {}) for cell in graded.cells for output in cell.get("outputs", []))

    def test_the_submission_itself_is_not_changed(self, sandbox):
        submitted = solved()
        before = nbformat.writes(submitted)
        judge_notebook(submitted, lab(), sandbox)
        assert nbformat.writes(submitted) == before

    def test_a_cell_that_claims_to_be_graded_is_not_run(self, sandbox):
        forged = solved()
        forged.cells.append(nbformat.v4.new_code_cell("4"))
        forged.cells[-1].metadata["nbgrader"] = {"grade": True, "grade_id": "check-decode", "points": 4}
        forged.cells[-1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "4"})]
        graded = judge_notebook(forged, lab(), sandbox)
        assert graded.notebook.cells[-1].outputs == []
        assert not lost(graded)

    def test_a_graded_cell_that_is_gone_is_judged_at_the_end(self, sandbox):
        cut = solved()
        cut.cells = [cell for cell in cut.cells if cell.id != "check-decode"]
        graded = judge_notebook(cut, lab(), sandbox)
        assert not lost(graded)
        assert graded.repairs == ("the graded cell 'check-decode' was missing",)


class TestOneExerciseIsLost:
    pytestmark = in_a_sandbox

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("import os; os._exit(7)", "exit status 7"),
            ("import ctypes; ctypes.string_at(0)", "SEGV"),
            ("import os; os.closerange(3, 100)", "is not defined"),
            ("while True:\n    pass", "is not defined"),
            ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "was stopped"),
            ("1 / 0", "ZeroDivisionError"),
            ("decode = (", "SyntaxError"),
            ("decode = 5", "crashed"),
        ],
    )
    def test_by_a_cell_that_does_not_end_well(self, sandbox, source, said):
        graded = judge_notebook(solved(answer_decode=source), lab(), sandbox, limits=SHORT)
        assert lost(graded) == ["check-decode"]
        assert said in " ".join(graded.results[0].remarks)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("    import os; os._exit(7)", "exit status 7"),
            ("    while True: pass", "was stopped"),
            ("    raise SystemExit", "crashed"),
            ("    raise KeyboardInterrupt", "crashed"),
            ("    return decode(*args)", "crashed"),
            ("    import signal, os; os.kill(os.getpid(), signal.SIGKILL); return 1.0", ""),
        ],
    )
    def test_by_a_function_that_does_not_return(self, sandbox, body, said):
        mute = dict.fromkeys(("try_decode", "look_decode"), "pass")
        graded = judge_notebook(solved(answer_decode=DECODE + body, **mute), lab(), sandbox, limits=SHORT)
        assert lost(graded) == ["check-decode"]
        assert said in " ".join((graded.results[0].outcome, *graded.results[0].remarks))

    def test_by_a_name_that_is_deleted_later(self, sandbox):
        graded = judge_notebook(solved(try_decode="del decode"), lab(), sandbox, limits=SHORT)
        assert lost(graded) == ["check-decode"]

    def test_what_ran_before_a_death_is_there_after_it(self, sandbox):
        helper = "import math\n\ndef helper(x):\n    return x\n"
        uses = "def kahan_sum(x):\n    return helper(SOLVED(x))\n"
        own = lab(kind="solutions")
        kahan = notebooks.answer_cells(own)["answer-kahan-sum"].source.replace("def kahan_sum", "def SOLVED")
        dies = {"try_pack_int4": "import os; os._exit(1)", "try_kahan_sum": "import os; os._exit(1)"}
        graded = judge_notebook(solved(try_decode=helper, answer_kahan_sum=kahan + "\n" + uses, **dies), lab(), sandbox)
        assert not lost(graded)

    def test_cells_that_end_their_process_cost_what_they_were_to_define(self, sandbox):
        own = [cell.id for cell in lab().cells if cell.id.startswith(("try-", "look-", "see-", "wrap-", "answer-pack"))]
        graded = judge_notebook(solved(**{name.replace("-", "_"): DIES for name in own}), lab(), sandbox)
        assert lost(graded) == ["check-pack-int4"]

    def test_a_process_that_ends_later_costs_no_other_exercise(self, sandbox):
        thread = "import threading, os\nthreading.Timer(0.3, os._exit, (1,)).start()"
        slow = {"try_round_to_format": "import time; time.sleep(0.5)", "try_kahan_sum": "import time; time.sleep(0.5)"}
        assert not lost(judge_notebook(solved(try_decode=thread, **slow), lab(), sandbox))

    def test_processes_that_are_used_up_are_said(self, sandbox, monkeypatch):
        monkeypatch.setattr("qlab.grading.session.RESTARTS_EACH", 0)
        own = [cell.id for cell in lab().cells if cell.id.startswith(("try-", "answer-"))]
        graded = judge_notebook(solved(**{name.replace("-", "_"): DIES for name in own}), lab(), sandbox)
        assert sum(points(graded).values()) == 0
        assert "too often" in graded.results[-1].remarks[0]

    def test_time_that_is_used_up_is_said(self, sandbox):
        hurried = Limits(submission_seconds=3.0)
        slow = dict.fromkeys(("try_decode", "try_decode_e4m3"), "import time; time.sleep(1.7)")
        graded = judge_notebook(solved(**slow), lab(), sandbox, limits=hurried)
        assert graded.results[0].points == 4
        assert graded.results[-1].points == 0
        assert graded.results[-1].remarks[0].endswith("the notebook ran for 3 seconds and was stopped.")
        assert graded.seconds < 15

    def test_time_that_the_judges_own_questions_use_up_is_said(self, sandbox):
        slow = "import time, qlab.grading.inside.guard as g\ng.watch = lambda *a: time.sleep(4)"
        graded = judge_notebook(solved(try_decode=slow), lab(), sandbox, limits=Limits(submission_seconds=3.0))
        assert sum(points(graded).values()) == 0
        assert graded.results[-1].remarks[0].endswith("the notebook ran for 3 seconds and was stopped.")

    def test_a_part_that_came_after_a_death_says_that_it_was_not_checked(self, sandbox):
        mute = dict.fromkeys(("try_decode", "look_decode"), "pass")
        dies = DECODE + "    import os; os._exit(7)"
        graded = judge_notebook(solved(answer_decode=dies, **mute), lab(), sandbox, limits=SHORT)
        first, *others = graded.results[0].remarks
        assert "While this was checked, its process ended (exit status 7)" in first
        for said in others:
            assert "This was not checked: the process had ended before (its process ended (exit status 7))." in said


class TestForbidden:
    pytestmark = in_a_sandbox
    REFERENCE = "fp32_bits_to_bf16_bits"

    @pytest.mark.parametrize(
        ("place", "cheat"),
        [
            ("answer", "from qlab.formats import REFERENCE"),
            ("answer", "from qlab import formats as f\ndef REFERENCE(x):\n    return f.REFERENCE(x)"),
            ("try", "from qlab import formats\nREFERENCE = formats.REFERENCE"),
            ("try", "from qlab import formats\nglobals()['REFERENCE'] = formats.REFERENCE"),
        ],
    )
    def test_the_reference_is_no_answer(self, sandbox, place, cheat):
        cheating = {f"{place}_{self.REFERENCE}": cheat.replace("REFERENCE", self.REFERENCE)}
        graded = judge_notebook(solved(**cheating), lab(), sandbox)
        assert lost(graded) == ["check-fp32-bits-to-bf16-bits"]
        (result,) = [result for result in graded.results if result.points < result.max_points]
        assert (result.points, result.misconception) == (0, "uses-the-reference")

    def test_a_comparison_with_it_is_fair(self, sandbox):
        compares = f"from qlab import formats\nx = torch.ones(3).view(torch.int32)\nformats.{self.REFERENCE}(x)"
        assert not lost(judge_notebook(solved(try_fp32_bits_to_bf16_bits=compares), lab(), sandbox))


class Broken:
    """A sandbox that starts nothing."""

    def start_kernel(self) -> None:
        raise SandboxFailed("no process could be made")


class TestInfrastructure:
    def test_a_sandbox_that_does_not_start_grades_nothing(self):
        with pytest.raises(Ungradable, match=r"^the sandbox failed: no process could be made$"):
            judge_notebook(lab(), lab(), Broken())

    def test_a_process_that_serves_nothing_grades_nothing(self):
        class Deaf:
            def start_kernel(self) -> "Deaf":
                import socket  # noqa: PLC0415 - used by this stand-in alone

                from qlab.grading.wire import Connection  # noqa: PLC0415 - as above

                ours, theirs = socket.socketpair()
                theirs.close()
                self.connection = Connection(ours)
                return self

            def why_ended(self) -> str:
                return "it was never alive"

            def kill(self) -> None:
                self.connection.close()

        with pytest.raises(Ungradable, match="it was never alive"):
            judge_notebook(lab(), lab(), Deaf())

    @pytest.mark.parametrize("source", ["assert True", "checks.check_decode(decode)\n1", "checks.check_decode(f())"])
    def test_a_release_with_other_graded_cells_is_refused(self, source):
        with pytest.raises(Ungradable, match="'check-0' is not a qlab check"):
            Session(Broken(), release(source))


class TestCells:
    pytestmark = in_a_sandbox

    @pytest.mark.parametrize(
        ("source", "shown"),
        [
            ("print('a'); 1 + 1", ["a\n", "2"]),
            ("import os; os.write(1, b'low'); os.system('echo level');", ["lowlevel\n"]),
            ("import ctypes; ctypes.CDLL(None).printf(b'of C');", ["of C"]),
            ("%matplotlib inline\n3", ["3"]),
            ("%time 1;", None),
            ("%%timeit -n1 -r1\n1", None),
            ("!echo $((40 + 2))", ["42\n"]),
            ("import asyncio\nawait asyncio.sleep(0)\n7", ["7"]),
            ("exit()", []),
            ("quit", []),
            ("from IPython.display import clear_output\nprint(1)\nclear_output()\nprint(2)", ["2\n"]),
            ("h = display('a', display_id=True)\nh.update('b')", ["'b'"]),
            ("import ipywidgets\nipywidgets.IntSlider()", ["IntSlider(value=0)"]),
            ("display({'application/javascript': 'x', 'text/plain': 'y'}, raw=True)", ["y"]),
            ("import logging; logging.getLogger().warning('said')", ["said\n"]),
        ],
    )
    def test_run_as_in_a_notebook(self, session, source, shown):
        run = session.run_cell(source)
        assert run.status == "ok"
        said = [output["text"] if "text" in output else output["data"]["text/plain"] for output in run.outputs]
        assert said == shown if shown is not None else len(said) == 1

    @pytest.mark.parametrize(
        ("source", "name"),
        [
            ("input()", "RuntimeError"),
            ("breakpoint()", "RuntimeError"),
            ("import pdb; pdb.set_trace()", "RuntimeError"),
            ("import getpass; getpass.getpass()", "RuntimeError"),
            ("1 / 0", "ZeroDivisionError"),
            ("raise SystemExit(3)", "SystemExit"),
            ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()", "E"),
            ("def f(): f()\nf()", "RecursionError"),
            ("x = (", "SyntaxError"),
        ],
    )
    def test_end_with_an_error_and_the_next_one_runs(self, session, source, name):
        run = session.run_cell(source)
        assert run.outputs[-1 if name != "E" else 0]["ename"] == name
        assert run.status == "error"
        assert session.run_cell("6 * 7").outputs[0]["data"]["text/plain"] == "42"

    def test_one_that_takes_too_long_is_interrupted_and_the_process_lives(self, sandbox):
        with Session(sandbox, lab(), limits=SHORT) as session:
            session.run_cell("kept = 42")
            run = session.run_cell("import time; time.sleep(60)")
            assert (run.status, run.outputs[-1]["ename"]) == ("timeout", "TimeoutError")
            assert session.run_cell("kept").outputs[0]["data"]["text/plain"] == "42"

    @pytest.mark.parametrize(
        "source",
        [
            "print('x' * 20_000_000)",
            "for number in range(100_000): print(number)",
            "for number in range(3_000): display(number)",
            "import os\nfor _ in range(1000): os.write(1, b'x' * 20_000)",
            "import os; os.system('yes | head -c 20000000');",
            "from IPython.display import Markdown\nMarkdown('x' * 2_000_000)",
        ],
    )
    def test_a_flood_is_cut_with_a_sentence(self, session, source):
        run = session.run_cell(source)
        assert run.status == "ok"
        assert sum(len(str(output)) for output in run.outputs) < 3 * CELLS.output_bytes
        assert "is cut here: it may put out 20,000 bytes" in run.outputs[-1]["text"]
        assert session.run_cell("print('short')").outputs[0]["text"] == "short\n"

    def test_what_a_notebook_puts_out_is_bounded_as_it_is_written(self, sandbox):
        limits = dataclasses.replace(CELLS, notebook_output_bytes=500_000)
        with Session(sandbox, lab(), limits=limits) as session:
            runs = [session.run_cell("print('\\x01' * 15_000)") for _ in range(20)]
            assert session.run_cell("1 / 0").status == "error"
        assert len(runs[0].outputs[0]["text"]) == 15_001
        assert {run.status for run in runs} == {"ok"}
        written = [nbformat.v4.new_code_cell("", outputs=[nbformat.from_dict(o) for o in run.outputs]) for run in runs]
        assert 300_000 < len(nbformat.writes(nbformat.v4.new_notebook(cells=written))) < 600_000
        assert "what this notebook puts out is too large" in runs[-1].outputs[0]["text"]

    def test_one_that_was_stopped_says_so_on_a_page(self, sandbox):
        with Session(sandbox, lab(), limits=SHORT) as session:
            run = session.run_cell("import time; time.sleep(60)")
        assert run.outputs[-1]["traceback"] == ["TimeoutError: this cell ran for 2 seconds and was stopped"]

    def test_streams_that_a_cell_broke_are_whole_in_the_next(self, session):
        session.run_cell("import os, sys\nsys.stdout = sys.stderr = None\nos.close(1); os.close(2)")
        run = session.run_cell("print('here'); os.write(1, b'there');")
        assert [output["text"] for output in run.outputs] == ["here\nthere"]

    @pytest.mark.parametrize(
        "source",
        ["import os; os.fork()", "import multiprocessing as m; m.get_context('fork').Process(target=print).start()"],
    )
    def test_a_fork_does_not_answer_in_place_of_its_parent(self, session, source):
        session.run_cell("import os; kept, parent = 42, os.getpid()")
        assert session.run_cell(source).status == "ok"
        for _ in range(3):
            assert session.run_cell("kept").outputs[0]["data"]["text/plain"] == "42"
        assert session.run_cell("os.getpid() == parent").outputs[0]["data"]["text/plain"] == "True"

    def test_what_is_printed_while_a_check_runs_is_shown_nowhere(self, session):
        session.run_cell(DECODE + "    import os; print('in', args); os.write(1, b'hidden'); return 1.0")
        session.run_check("checks.check_decode(decode)")
        assert session.run_cell("print('after')").outputs == [
            {"output_type": "stream", "name": "stdout", "text": "after\n"}
        ]

    def test_what_takes_the_judge_too_long_to_read_ends_the_process(self, sandbox, monkeypatch):
        @functools.wraps(check_cells(lab())["check-decode"].check)
        def endless(function, *, seed):
            while True:
                time.sleep(0.01)

        monkeypatch.setattr("qlab.grading.verdicts.READING_SECONDS", 0.2)
        with Session(sandbox, lab(), limits=Limits(check_seconds=0.2)) as session:
            session.run_cell("decode = len")
            verdict = session.judge(dataclasses.replace(session.checks["check-decode"], check=endless))
            assert (verdict.points, str(verdict.outcome)) == (0, "crashed")
            assert "took longer than 0.4 seconds to read" in verdict.parts[0].thought
            assert session.run_cell("decode").status == "ok"

    def test_more_code_than_the_judge_reads_is_not_run(self, session):
        run = session.run_cell(f"'{'x' * 100_000}'")
        assert (run.status, run.outputs[0]["ename"]) == ("error", "NotRun")

    def test_threads_of_an_earlier_cell_do_not_fail_a_later_one(self, session):
        session.run_cell("import threading, time\ndef late():\n    time.sleep(0.1)\n    raise ValueError('late')")
        session.run_cell("threading.Thread(target=late).start()")
        assert session.run_cell("time.sleep(0.2); 5").status == "ok"

    def test_what_a_cell_sets_outlives_it(self, session):
        session.run_cell(
            "import torch, warnings\nwarnings.simplefilter('ignore')\ntorch.set_default_dtype(torch.float64)"
        )
        run = session.run_cell("warnings.warn('unheard')\nprint(torch.get_default_dtype())")
        assert [output["text"] for output in run.outputs] == ["torch.float64\n"]

    def test_the_seeds_differ_from_process_to_process(self, sandbox):
        drawn = set()
        for _ in range(3):
            with Session(sandbox, lab(), limits=SHORT) as session:
                run = session.run_cell(
                    "import torch, random, numpy\n(torch.rand(1), random.random(), numpy.random.rand())"
                )
                drawn.add(run.outputs[0]["data"]["text/plain"])
        assert len(drawn) == 3


class TestReadingARelease:
    def test_every_lab_is_read(self):
        for name in ALL:
            found = check_cells(lab(name))
            assert found.keys() == notebooks.graded_cells(lab(name)).keys()
            assert all(cell.points == cell.check.points for cell in found.values())
            answers = notebooks.answer_cells(lab(name))
            assert all(bound_names(answers[cell.answer].source) >= set(cell.names) for cell in found.values())

    @pytest.mark.parametrize(
        ("setup", "source"),
        [
            ("import os as checks", "checks.system(decode)"),
            ("from qlab.checks import report as checks", "checks.require(decode)"),
            ("from qlab import checks", "checks.check_decode(decode)"),
            ("from qlab.checks import data_types as checks", "checks.check_decode(decode, seed=1)"),
            ("from qlab.checks import data_types as checks", "checks.check_decode(*decode)"),
            ("from qlab.checks import data_types as checks", "x = checks.check_decode(decode)"),
            ("from qlab.checks import nothing as checks", "checks.check_decode(decode)"),
            ("from qlab.checks import data_types as checks", "checks.Outcome(decode)"),
        ],
    )
    def test_nothing_but_a_check_is_called(self, setup, source):
        with pytest.raises(NotACheck):
            check_cells(release(source, setup=setup))

    def test_sources_that_break_a_parser_bind_nothing(self):
        for source in ("(" * 100_000, "-" * 100_000 + "1", "x = '\0'", "a." * 50_000 + "b", "%%bash\nls"):
            assert bound_names(source) == set()


class TestReplay:
    """The cells that a second process runs, and only those."""

    def history(self, *sources: str) -> History:
        history = History(release("checks.check_decode(decode)"))
        for source in ("import torch", *sources):
            history.add(source, "")
        return history

    def needed(self, history: History, *names: str) -> list[str]:
        return [entry.source for entry in history.needed(names)]

    def test_an_exercise_needs_the_setup_and_the_answers_it_builds_on(self):
        history = History(lab())
        for cell in lab(kind="solutions").cells:
            if cell.cell_type == "code" and not notebooks.marks(cell).get("grade"):
                history.add(cell.source, cell.id)
        for grade_id, cell in check_cells(lab()).items():
            again = [entry.name for entry in history.needed(cell.names)]
            assert again[0] == "setup" and cell.answer in again, grade_id
            assert all(name.startswith("answer-") for name in again[1:]) and len(again) <= 3

    @pytest.mark.parametrize(
        "source",
        ["a = 1", "def a(): ...", "class a: ...", "import a", "a.b = 1", "a[0] = 1", "a.append(1)", "for a in []: ..."],
    )
    def test_what_binds_or_may_change_a_name_is_needed(self, source):
        history = self.history(source, "other = torch.ones(1)", "def unread(): return a")
        assert self.needed(history, "a") == ["import torch", source]

    def test_what_those_cells_read_is_needed_too(self):
        chain = ("helper = 1", "def g(): return helper", "f = g")
        assert self.needed(self.history(*chain, "h = 2"), "f") == ["import torch", *chain]

    def test_nothing_is_missing_where_everything_ran(self):
        history = self.history("a = 1")
        assert history.missing({"a"}, history.needed({"a"})) == []

    def test_a_long_chain_of_cells_is_followed_in_time(self):
        history = self.history(*(f"def f{i}(): return f{i + 1}()\nf{i}.x = {[0] * 50}" for i in range(400)))
        started = time.process_time()
        assert len(history.needed({"f0"})) == 401
        assert time.process_time() - started < 5

    def test_it_can_be_too_late_to_run_a_cell(self):
        history = self.history("a = b = 1", "a = 2")
        first, _, last = history.needed({"a"})
        assert history.missing({"b"}, [first, last]) is None
        assert [entry.source for entry in history.missing({"a"}, [first]) or ()] == ["a = b = 1", "a = 2"]


class TestWhatTheSandboxSends:
    @pytest.mark.parametrize(
        "sent",
        [
            None,
            5,
            {"outputs": 3, "status": []},
            {
                "outputs": [None, {}, {"output_type": "pickle"}, {"output_type": "display_data", "data": 1}],
                "status": "ok!",
            },
            {"outputs": {}, "status": object()},
            {"outputs": [{"output_type": np.zeros(2)}], "status": np.zeros(2)},
        ],
    )
    def test_nonsense_is_an_error_without_outputs(self, sent):
        run = cell_runs.read(sent, count=1, seconds=0.1, most_bytes=1000)
        assert (run.outputs, run.status) == ([], "error")

    def test_only_fields_of_nbformat_are_kept(self):
        data = {"text/plain": "1", VERDICT_MIME: {"points": 9}, "application/javascript": "steal()", "image/png": b"x"}
        sent = {"output_type": "execute_result", "data": data, "metadata": {"a": 1}, "execution_count": 99, "x": 1}
        stream = {"output_type": "stream", "name": "elsewhere", "text": "\ud800"}
        run = cell_runs.read({"outputs": [sent, stream], "status": "ok"}, count=3, seconds=0.1, most_bytes=1000)
        result, text = run.outputs
        assert result == {
            "output_type": "execute_result",
            "data": {"text/plain": "1"},
            "metadata": {},
            "execution_count": 3,
        }
        assert text == {"output_type": "stream", "name": "stdout", "text": "?"}

    @pytest.mark.parametrize("lines", [None, [], [""], ["", " "], [np.zeros(2)]])
    def test_an_error_without_lines_has_one(self, lines):
        error = {"output_type": "error", "ename": "TimeoutError", "evalue": "too long", "traceback": lines}
        run = cell_runs.read({"outputs": [error]}, count=1, seconds=0.1, most_bytes=1000)
        assert run.outputs[0]["traceback"] == ["TimeoutError: too long"]

    @pytest.mark.parametrize(
        "output",
        [
            {"output_type": "stream", "name": "stdout", "text": "\x01" * 5_000},
            {"output_type": "stream", "name": "stdout", "text": "\n" * 5_000},
            {"output_type": "stream", "name": "stdout", "text": "\U0001f600" * 5_000},
            {"output_type": "error", "ename": "", "evalue": "", "traceback": [""] * 5_000},
            {"output_type": "display_data", "data": {}, "metadata": {}},
        ],
    )
    def test_what_is_kept_is_no_larger_on_disk_than_allowed(self, output):
        run, taken = cell_runs.kept(cell_runs.CellRun([output] * 1_000, "ok"), 400_000)
        assert taken <= 400_000 and "too large" in run.outputs[-1]["text"]
        cell = nbformat.v4.new_code_cell("", outputs=[nbformat.from_dict(o) for o in run.outputs])
        assert len(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])).encode()) < 402_000

    def test_an_array_in_place_of_a_name_is_no_use(self):
        told = [(np.zeros(2), "x"), ("a.b", np.zeros(2)), ("a.b", "called"), ("c", "called")]
        process = object.__new__(LearnerProcess)
        process.peer = SimpleNamespace(call=lambda *_, **__: told)
        assert process.uses(["a.b"]) == [Use("a.b", "called")]

    def test_too_much_is_left_out(self):
        stream = {"output_type": "stream", "name": "stdout", "text": "x" * 600}
        run = cell_runs.read({"outputs": [stream] * 3, "status": "ok"}, count=1, seconds=0.1, most_bytes=1000)
        assert [len(output["text"]) for output in run.outputs] == [600, 35]


class Alive(LearnerProcess):
    """A process that defines everything, and dies of nothing but the judge's alarm."""

    def __init__(self) -> None:
        self.peer = SimpleNamespace(within=contextlib.nullcontext, ended="")

    def look_up(self, names: tuple[str, ...]) -> tuple[list[object], str]:
        return [len for _ in names], ""

    def give_up(self, why: str) -> None:
        self.peer.ended = why


class TestVerdicts:
    def test_the_parts_after_a_death_were_not_checked(self):
        outcomes = [Outcome.RIGHT, Outcome.CRASHED, Outcome.WRONG, Outcome.CRASHED]
        ended = "it ran for 60 seconds and was stopped"
        parts = tuple(PartResult(str(o), o, ended if o is Outcome.CRASHED else "") for o in outcomes)
        verdict = verdicts.after_death(Verdict("t", "e", 4, parts, seed=0), ended, ended)
        assert [part.thought for part in verdict.parts] == [
            "",
            f"While this was checked, {ended}.",
            "",
            f"This was not checked: the process had ended before ({ended}).",
        ]

    @pytest.mark.parametrize("seconds", [20.0, -30.0])
    def test_an_alarm_that_rings_last_of_all_stays_inside(self, monkeypatch, seconds):
        @functools.wraps(check_cells(lab())["check-decode"].check)
        def done(function, *, seed):
            return Verdict("t", "e", 4, (), seed=0)

        def setitimer(which, left):
            set_before(which, left)
            if left == 0:
                signal.raise_signal(signal.SIGALRM)

        set_before, before = signal.setitimer, signal.getsignal(signal.SIGALRM)
        cell = dataclasses.replace(check_cells(lab())["check-decode"], check=done)
        with monkeypatch.context() as patched:
            patched.setattr(signal, "setitimer", setitimer)
            verdict = verdicts.judged(cell, Alive(), verdicts.fresh_draw(), seconds=seconds, lost={})
        assert (verdict.points, str(verdict.outcome)) == (0, "crashed")
        assert signal.getsignal(signal.SIGALRM) is before
