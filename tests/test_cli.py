"""The command `qlab`: its exit statuses, and one sentence instead of a traceback."""

import os
import re
import shutil
import socket
import subprocess
import sys

import nbformat
import pytest

from qlab import cli, course
from qlab.labs import copies, notebooks
from tests.grading import GIVES_A_POINT, NO_LABS, TOPIC, copy_course, files_of, fill, small_lab


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return copy_course(tmp_path)


@pytest.fixture
def refused(capsys):
    """Run a command that must fail and return the one sentence it says."""

    def run(*arguments: str) -> str:
        assert cli.main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == "" and re.fullmatch(rf"qlab {arguments[0]}: .+\n", said.err)
        return said.err

    return run


def run_qlab(*arguments: str, cwd) -> subprocess.CompletedProcess:
    command, ascii_only = [sys.executable, "-m", "qlab", *arguments], os.environ | {"PYTHONIOENCODING": "ascii"}
    return subprocess.run(command, cwd=cwd, env=ascii_only, capture_output=True, text=True, check=False, timeout=120)


def test_build_and_its_check(root, capsys):
    lab = course.lab_path(TOPIC)
    built, named = lab.read_bytes(), f"labs/{TOPIC}/{TOPIC}.ipynb"
    assert cli.main(["build", "--check"]) == 0
    assert capsys.readouterr().out == ""
    lab.write_text("edited by hand")
    assert cli.main(["build", "--check"]) == 1
    assert capsys.readouterr().out == f"{named} differs from its solution: run qlab build\n"
    assert lab.read_text() == "edited by hand"
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out == f"built {named}\n"
    assert lab.read_bytes() == built
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out == "every lab is as its solution says\n"


@pytest.mark.slow
def test_python_dash_m_builds_in_silence(root):
    course.lab_path(TOPIC).unlink()
    before = files_of(root)
    checked, built = run_qlab("build", "--check", cwd=root), run_qlab("build", cwd=root)
    assert (checked.returncode, checked.stderr) == (1, "")
    assert (built.returncode, built.stderr) == (0, "")
    assert files_of(root).keys() - before.keys() == {course.lab_path(TOPIC)}


@pytest.mark.parametrize("option", [(), ("--check",)])
@pytest.mark.parametrize("content", [NO_LABS["binary"], NO_LABS["cut short"], NO_LABS["without graded cells"]])
def test_build_refuses_a_broken_solution(root, refused, option, content):
    (root / "solutions" / TOPIC / f"{TOPIC}.ipynb").write_bytes(content)
    before = files_of(root)
    assert f"{TOPIC}.ipynb" in refused("build", *option)
    assert files_of(root) == before


def test_build_without_solutions_or_settings(root, refused):
    (root / "nbgrader_config.py").unlink()
    assert "nbgrader_config.py is missing" in refused("build")
    shutil.rmtree(root / "solutions")
    assert "solutions" in refused("build")


@pytest.mark.parametrize("name", ["99", "00", "0"])
def test_a_topic_that_does_not_exist(root, refused, name):
    for command in ("check", "refresh"):
        assert f"no topic '{name}': the course has 01_data_types" in refused(command, name)


def test_a_copy_that_does_not_exist(root, refused):
    assert "you have no copy of topic 01 yet" in refused("check", "01")
    assert f"{TOPIC}.ipynb does not exist" in refused("refresh", "01")


@pytest.mark.parametrize("content", NO_LABS.values(), ids=NO_LABS)
def test_check_of_what_is_no_lab(root, refused, content):
    path = root / "mine.ipynb"
    path.write_bytes(content)
    assert str(path) in refused("check", str(path))
    assert path.read_bytes() == content


def test_check_of_nothing(root, refused, tmp_path):
    assert "does not exist" in refused("check", "none.ipynb")
    (tmp_path / "empty").mkdir()
    assert "no lab lies under empty" in refused("check", "empty")


def test_a_lesson_that_lost_its_metadata(root, refused):
    course.lesson_path(TOPIC).write_text("{}")
    assert "01_data_types.ipynb no longer says which topic it is" in refused("refresh", "01")


def test_outside_any_course(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    assert "no course here" in refused("check", "01")


@pytest.mark.slow
def test_check_goes_on_after_a_notebook_that_cannot_be_read(root, capsys):
    small_lab(root / "submitted" / "b.ipynb", GIVES_A_POINT)
    (root / "submitted" / "a.ipynb").write_text("")
    assert cli.main(["check", "submitted"]) == 1
    said = capsys.readouterr()
    assert "submitted/b.ipynb: 1 of 1 points" in said.out
    assert said.err.startswith("qlab check: submitted/a.ipynb is not a notebook") and said.err.count("\n") == 1


@pytest.mark.slow
def test_check_by_number_reads_the_learners_own_copy(root):
    notebook = notebooks.read(course.lab_path(TOPIC))
    fill(notebook, answer_store_in_16_bits="def store_in_16_bits(x):\n    return x.half()")
    notebooks.write(notebook, course.copy_path(TOPIC))
    own = course.copy_path(TOPIC).read_bytes()
    done = run_qlab("check", "01", cwd=root)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert re.search(rf"{TOPIC}\.ipynb: [12] of {copies.points_of(course.lab_path(TOPIC))} points$", lines[0])
    assert "  check-decode                     0 / 4  empty" in lines
    assert re.search(r"\n  check-store-in-16-bits +[12] / 3  wrong  \[fp16-range\]\n      .+", done.stdout)
    assert re.search(r"\n      .*10\?\?\? to 10\?\?: FP16 ends at 65,504", done.stdout)  # ASCII has no ⁻³⁰
    assert course.copy_path(TOPIC).read_bytes() == own


@pytest.mark.slow
def test_check_is_0_when_all_is_won(root, capsys):
    assert cli.main(["check", f"solutions/{TOPIC}"]) == 0
    points = copies.points_of(course.lab_path(TOPIC))
    assert f"{points} of {points} points" in capsys.readouterr().out


def test_refresh_says_what_it_did(root, capsys):
    shutil.copytree(root / "labs", root / "work")
    own = notebooks.read(course.copy_path(TOPIC))
    own.cells.append(nbformat.v4.new_code_cell("old", metadata={"nbgrader": {"solution": True}}))
    own.cells[-1].metadata["nbgrader"]["grade_id"] = "answer-of-old"
    notebooks.write(own, course.copy_path(TOPIC))
    assert cli.main(["refresh", "1"]) == 0
    said = capsys.readouterr().out
    answers = len(notebooks.answer_cells(own)) - 1
    assert said.startswith(f"carried over {answers} answers; the old copy is kept as ")
    assert said.endswith("and lie in the old copy: answer-of-old\n")


@pytest.mark.slow
def test_doctor_never_fails(root):
    done = run_qlab("doctor", cwd=root)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr
    assert "Python" in done.stdout


class TestLab:
    @pytest.fixture
    def started(self, monkeypatch):
        """Keep the command that would start JupyterLab."""
        commands = []
        done = subprocess.CompletedProcess([], 0)
        monkeypatch.setattr(cli.subprocess, "run", lambda command, **_: commands.append(command) or done)
        return commands

    def test_it_opens_the_landing_page_beside_the_own_copies(self, root, started, capsys):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        assert cli.main(["lab", "--port", str(port), "--no-browser"]) == 0
        stems = [topic.stem for topic in course.topics()]
        told = [f"your copy: {os.path.join('work', stem, stem)}.ipynb" for stem in stems]
        assert capsys.readouterr().out.splitlines() == told
        assert course.copy_path(TOPIC).read_bytes() == course.lab_path(TOPIC).read_bytes()
        (command,) = started
        assert str(root / "lessons" / "00_start.ipynb") in command
        assert f"--port={port}" in command and "--no-browser" in command
        assert cli.main(["lab", "--port", str(port)]) == 0
        assert capsys.readouterr().out == "" and "--no-browser" not in started[-1]

    def test_a_port_that_is_taken(self, root, started, refused):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert f"port {port} is taken" in refused("lab", "--port", str(port))
        assert not started and not course.work_folder().exists()

    @pytest.mark.parametrize("port", ["0", "-1", "65536", "99999999999"])
    def test_a_port_that_is_none(self, root, started, refused, port):
        assert f"a port is a number from 1 to 65535, got {port}" in refused("lab", f"--port={port}")
        assert not started


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["check"], ["lab", "--port", "x"]])
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: qlab")


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(parsed):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_doctor", interrupt)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == ""
