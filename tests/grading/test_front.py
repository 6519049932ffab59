"""The front kernel alone: what it judges, what it sends to the sandbox, and what it does when judging fails."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest

from qlab.checks.report import VERDICT_MIME, Outcome, PartResult, Verdict
from qlab.grading import front
from qlab.grading.front import FrontKernel, Order, check_sources
from qlab.grading.provisioner import JudgeKernelManager, JudgeProvisioner
from qlab.labs import notebooks
from tests.grading import REPOSITORY, TOPIC

RIGHT = Verdict("00_none", "none", 1, (PartResult("a part", Outcome.RIGHT),), seed=0, graded=True)
PRINTED = {"output_type": "stream", "name": "stdout", "text": "4\n"}
SHOWN = {"output_type": "display_data", "data": {"text/plain": "a figure"}, "metadata": {}}
RESULT = {"output_type": "execute_result", "data": {"text/plain": "4"}, "metadata": {}, "execution_count": 99}
RAISED = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["ValueError: no"]}


@dataclass
class Ran:
    outputs: list[dict] = field(default_factory=list)
    status: str = "ok"


@dataclass
class FakeSession:
    """Stands for a submission in the sandbox: says what it was asked, and gives what it was told to."""

    ran: Ran = field(default_factory=Ran)
    fails: Exception | None = None
    asked: list[tuple] = field(default_factory=list)
    closed: bool = False

    def run_cell(self, source: str, *, name: str) -> Ran:
        self.asked.append(("cell", source, name))
        if self.fails:
            raise self.fails
        return self.ran

    def run_check(self, source: str, *, answers: dict[str, str]) -> Verdict:
        self.asked.append(("check", source, answers))
        if self.fails:
            raise self.fails
        return RIGHT

    def close(self) -> None:
        self.closed = True


@dataclass
class Front:
    """A front with nothing around it: its messages are kept."""

    kernel: FrontKernel
    session: FakeSession
    sent: list[tuple[str, dict]] = field(default_factory=list)

    def execute(self, code: str) -> dict:
        return asyncio.run(self.kernel.do_execute(code, False))


@pytest.fixture
def fronted() -> Front:
    made = Front(FrontKernel(), FakeSession())
    made.kernel.judged, made.kernel.checks = made.session, frozenset({"checks.check_it(it)"})
    made.kernel.answers = {"answer-it": "def it(): ..."}
    made.kernel.send_response = lambda _, kind, content: made.sent.append((kind, content))
    return made


def test_a_check_is_judged_here_with_the_answers(fronted):
    reply = fronted.execute("checks.check_it(it)\n")
    assert reply["status"] == "ok"
    assert fronted.session.asked == [("check", "checks.check_it(it)\n", {"answer-it": "def it(): ..."})]
    ((kind, content),) = fronted.sent
    assert kind == "execute_result" and content["data"]["text/plain"] == "1"
    assert content["data"][VERDICT_MIME]["points"] == 1


@pytest.mark.parametrize("code", ["checks.check_it(it) #", "checks.check_it( it)", "x = checks.check_it(it)", "1 + 1"])
def test_everything_else_goes_to_the_sandbox(fronted, code):
    fronted.session.ran = Ran([PRINTED, SHOWN, RESULT])
    assert fronted.execute(code)["status"] == "ok"
    assert fronted.session.asked == [("cell", code, "")]
    assert [kind for kind, _ in fronted.sent] == ["stream", "display_data", "execute_result"]
    assert fronted.sent[0][1] == {"name": "stdout", "text": "4\n"}
    assert fronted.sent[2][1]["execution_count"] == fronted.kernel.execution_count != 99


def test_an_answer_is_known_by_its_source(fronted):
    fronted.execute("def it(): ...")
    assert fronted.session.asked == [("cell", "def it(): ...", "answer-it")]


def test_an_empty_cell_asks_nobody(fronted):
    assert fronted.execute(" \n")["status"] == "ok"
    assert not fronted.session.asked and not fronted.sent


def test_an_error_is_published_once_and_told_in_the_reply(fronted):
    fronted.session.ran = Ran([RAISED], status="error")
    reply = fronted.execute("raise ValueError('no')")
    assert (reply["status"], reply["ename"]) == ("error", "ValueError")
    assert [kind for kind, _ in fronted.sent] == ["error"]


@pytest.mark.parametrize("status", ["timeout", "died"])
def test_an_end_without_words_gets_some(fronted, status):
    fronted.session.ran = Ran([], status=status)
    assert fronted.execute("while True: pass")["status"] == "error"
    ((kind, content),) = fronted.sent
    assert kind == "error" and content["evalue"]


def test_an_interrupt_ends_the_cell_only(fronted):
    fronted.session.fails = KeyboardInterrupt()
    assert fronted.execute("1 + 1")["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("code", ["checks.check_it(it)", "1 + 1"])
def test_a_failure_of_the_judge_is_no_grade(fronted, monkeypatch, capfd, code):
    def ended(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(front.os, "_exit", ended)
    fronted.session.fails = RuntimeError("the sandbox ended")
    with pytest.raises(SystemExit) as end:
        fronted.execute(code)
    assert end.value.code == front.NOT_GRADED and not fronted.sent
    assert "the submission was not graded: the sandbox ended" in capfd.readouterr().err


def test_shutting_down_ends_the_submission(fronted):
    assert fronted.kernel.do_shutdown(False)["status"] == "ok"
    assert fronted.session.closed


def test_the_checks_are_the_release_s():
    release = notebooks.read(REPOSITORY / "labs" / TOPIC / f"{TOPIC}.ipynb")
    assert check_sources(release) == {cell.source for cell in notebooks.graded_cells(release).values()}
    by_hand = nbformat.v4.new_markdown_cell("an essay")
    by_hand.metadata["nbgrader"] = {"grade": True, "solution": True, "grade_id": "essay", "points": 5}
    release.cells.append(by_hand)
    assert "an essay" not in check_sources(release)


def test_an_order_is_read_as_it_was_written(tmp_path):
    order = Order(release="labs/x.ipynb", answers={"answer-é": "def f():\n    return '\ud7ff'"}, unsafe=True)
    order.write(tmp_path)
    assert Order.read(tmp_path) == order


def test_the_front_is_a_kernel_that_no_menu_shows():
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - slow to import
    from jupyter_client.provisioning import KernelProvisionerFactory  # noqa: PLC0415

    manager = JudgeKernelManager(release="labs/x.ipynb", answers={"a": "b"}, unsafe=True)
    spec = manager.kernel_spec
    made = KernelProvisionerFactory.instance().create_provisioner_instance("id", spec, parent=manager)
    assert isinstance(made, JudgeProvisioner)
    assert (made.release, made.answers, made.unsafe) == ("labs/x.ipynb", {"a": "b"}, True)
    assert "-P" in spec.argv, "a module beside the notebook must not be imported by the front"
    assert not [name for name in KernelSpecManager().find_kernel_specs() if "judge" in name]


def test_nothing_starts_without_isolation(monkeypatch, tmp_path):
    from qlab.grading import sandbox  # noqa: PLC0415 - only here

    def refuse() -> None:
        raise sandbox.NoIsolation("bubblewrap is missing: install it")

    monkeypatch.setattr(sandbox, "require_isolation", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    manager = JudgeKernelManager(release="labs/x.ipynb")
    with pytest.raises(sandbox.NoIsolation, match="bubblewrap is missing"):
        asyncio.run(manager.start_kernel())
    assert not list(Path(tmp_path).iterdir()), "a folder was left behind"
