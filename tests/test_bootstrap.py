"""The first command on a fresh machine: one readable sentence where something is missing, no work the second time."""

import ast
import os
import socket
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from qlab import bootstrap

ROOT = Path(__file__).parent.parent
PYPROJECT = """
[build-system]
requires = ["setuptools"]
[project]
name = "qlab"
dependencies = ["torch"]
[project.optional-dependencies]
test = ["pytest"]
triton = ["triton"]
onnx = ["onnx"]
"""
DiskUsage = namedtuple("DiskUsage", "total used free")


class Pip:
    """Stands for `python -m venv` and pip: records commands, makes the environment's Python, fails on demand."""

    def __init__(self, status: int = 0, complaints: str = "", interrupted: bool = False):
        self.status, self.complaints, self.interrupted, self.commands = status, complaints, interrupted, []

    def __call__(self, command: list[str], root: Path) -> tuple[int, str]:
        self.commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = root / ".venv" / bootstrap.PYTHON_IN_VENV
            python.parent.mkdir()
            python.touch()
        if "install" not in command:
            return 0, ""
        if self.interrupted:
            raise KeyboardInterrupt
        return self.status, self.complaints

    @property
    def steps(self) -> list[str]:
        return [command[2] if command[1] == "-m" else "probe" for command in self.commands]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: DiskUsage(10**12, 0, 10**12))
    return tmp_path


def prepared(checkout: Path, extras: set[str], **behavior) -> Pip:
    pip = Pip(**behavior)
    bootstrap.prepare(checkout, extras, pip)
    return pip


def test_the_file_parses_on_every_python_that_can_still_be_met():
    for name in ("__init__.py", "bootstrap.py"):
        ast.parse((ROOT / "qlab" / name).read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_named(version: tuple):
    with pytest.raises(bootstrap.Stop, match=r"needs Python 3.11 or newer, this is " + ".".join(map(str, version))):
        bootstrap.check_python(version, "lab")
    bootstrap.check_python((3, 11, 0), "lab")
    bootstrap.check_python((3, 14, 0), "lab")


def test_a_python_without_venv_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(bootstrap.Stop, match="python3-venv"):
        bootstrap.check_python((3, 12, 0), "lab")


def test_a_full_disk_stops_before_anything_is_made(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: DiskUsage(10**12, 10**12, 123 * 10**6))
    with pytest.raises(bootstrap.Stop, match=r"needs 4 GB of disk and .* has 0\.1 GB free"):
        prepared(checkout, set())
    assert not (checkout / ".venv").exists()


def test_the_first_run_installs_the_pins_with_progress(checkout: Path, capsys: pytest.CaptureFixture):
    pip = prepared(checkout, {"test"})
    assert pip.steps == ["venv", "pip"]
    assert pip.commands[-1][1:] == ["-m", "pip", "install", "-c", "constraints.txt", "-e", ".[test]"]
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["[1/3]", "[2/3]", "[3/3]", "     "]


def test_the_second_run_does_nothing(checkout: Path, capsys: pytest.CaptureFixture):
    prepared(checkout, {"test"})
    capsys.readouterr()
    assert prepared(checkout, {"test"}).commands == []
    assert prepared(checkout, set()).commands == [], "lab is served by the environment of test"
    assert capsys.readouterr().out == ""


def test_extras_add_up(checkout: Path):
    assert prepared(checkout, set()).commands[-1][-1] == "."
    assert prepared(checkout, {"test"}).commands[-1][-1] == ".[test]"
    assert prepared(checkout, {"triton"}).commands[-1][-1] == ".[test,triton]"


def test_what_every_target_asks_for_is_an_extra_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) >= bootstrap.ALWAYS


def test_an_unknown_extra_is_named(checkout: Path):
    with pytest.raises(bootstrap.Stop, match="EXTRAS may name onnx, test, triton, got: tritn"):
        prepared(checkout, {"tritn"})


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_same_environment(checkout: Path, name: str):
    prepared(checkout, set())
    path = checkout / name
    path.write_text(path.read_text().replace('"torch"', '"torch", "numpy"').replace("2.13.0", "2.13.1"))
    assert prepared(checkout, set()).steps == ["probe", "pip"]
    assert prepared(checkout, set()).commands == []


def test_tool_settings_do_not_call_pip(checkout: Path):
    prepared(checkout, set())
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("[tool.ruff]\nline-length = 100\n")
    assert prepared(checkout, set()).commands == []


def test_an_interrupted_installation_is_repaired(checkout: Path):
    with pytest.raises(KeyboardInterrupt):
        prepared(checkout, {"test"}, interrupted=True)
    (checkout / ".venv" / "half").touch()
    assert prepared(checkout, {"test"}).steps == ["venv", "pip"]
    assert not (checkout / ".venv" / "half").exists()
    assert prepared(checkout, {"test"}).commands == []


@pytest.mark.parametrize(("key", "value"), [("python", "3.5"), ("root", "elsewhere")])
def test_a_moved_environment_or_one_of_another_python_is_made_anew(checkout: Path, key: str, value: str):
    prepared(checkout, {"test"})
    stamp = bootstrap.read_stamp(checkout / ".venv")
    bootstrap.write_stamp(checkout / ".venv", stamp | {key: value})
    pip = prepared(checkout, set())
    assert pip.steps == ["venv", "pip"]
    assert pip.commands[-1][-1] == ".[test]", "what was there before comes back"


def test_a_torn_stamp_counts_as_interrupted(checkout: Path):
    prepared(checkout, set())
    (checkout / ".venv" / bootstrap.STAMP).write_text('{"state": "rea')
    assert prepared(checkout, set()).steps == ["venv", "pip"]


def test_a_vanished_python_is_repaired(checkout: Path):
    prepared(checkout, set())
    (checkout / ".venv" / bootstrap.PYTHON_IN_VENV).unlink()
    assert prepared(checkout, set()).steps == ["venv", "pip"]


def test_an_environment_made_by_hand_is_used_and_never_deleted(checkout: Path):
    by_hand = checkout / ".venv" / bootstrap.PYTHON_IN_VENV
    by_hand.parent.mkdir(parents=True)
    with pytest.raises(bootstrap.Stop, match="move it away"):
        prepared(checkout, set())
    by_hand.touch()
    assert prepared(checkout, set()).steps == ["probe", "pip"]
    assert by_hand.exists()


def test_a_failed_update_keeps_what_worked(checkout: Path):
    prepared(checkout, set())
    with pytest.raises(bootstrap.Stop):
        prepared(checkout, {"test"}, status=1)
    assert prepared(checkout, set()).commands == []


@pytest.mark.parametrize(
    ("complaints", "sentence"),
    [
        ("WARNING: Retrying (Retry(total=0))\nERROR: No matching distribution found for torch", "check the network"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk ran full"),
        ("ERROR: No matching distribution found for torch==2.13.0", r"has torch==2\.13\.0 for Python 3.* on "),
        ("ERROR: ResolutionImpossible", r"pip failed \(ResolutionImpossible\): all it said is in .venv/"),
        ("", "no reason given"),
    ],
)
def test_what_pip_complains_of_becomes_one_sentence(checkout: Path, complaints: str, sentence: str):
    with pytest.raises(bootstrap.Stop, match=sentence) as stop:
        prepared(checkout, set(), status=1, complaints=complaints)
    assert "\n" not in str(stop.value)
    assert (checkout / ".venv" / bootstrap.PIP_ERRORS).read_text() == complaints


def test_a_taken_port_is_named():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not bootstrap.port_is_free(port)
        with pytest.raises(bootstrap.Stop, match=f"port {port} is taken: stop what listens there, or run: "):
            bootstrap.port_from(["--port", str(port)])
    assert bootstrap.port_is_free(port)
    assert bootstrap.port_from([f"--port={port}"]) == port


@pytest.mark.parametrize("arguments", [["--port", "abc"], ["--port", "80"], ["--port", "65536"], ["--port"], ["8888"]])
def test_a_bad_port_is_named(arguments: list[str]):
    with pytest.raises(bootstrap.Stop, match=arguments[-1]):
        bootstrap.port_from(arguments)


@pytest.mark.parametrize(
    ("target", "arguments", "command"),
    [
        ("lab", ["--port", "18888"], ["-m", "qlab", "lab", "--port", "18888"]),
        ("test", ["-k", "formats"], ["-m", "pytest", "-n", "2", "--dist", "loadgroup", "-k", "formats"]),
        ("check", [], ["-m", "pytest", "-m", "not slow and not browser and not grading"]),
        ("test-gpu", [], ["-m", "pytest", "-m", "gpu"]),
        ("test-extra", [], ["-m", "pytest", "-m", "extra"]),
    ],
)
def test_a_target_hands_over_to_the_environment(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, target: str, arguments: list[str], command: list[str]
):
    asked = []
    monkeypatch.setenv("EXTRAS", "triton")
    monkeypatch.setattr(bootstrap, "port_is_free", lambda port: True)
    monkeypatch.setattr(bootstrap, "prepare", lambda root, extras: asked.append(extras))
    monkeypatch.setattr(bootstrap, "hand_over", lambda command, root: asked.append(command) or 0)
    assert bootstrap.start(target, arguments, checkout) == 0
    for_target = {"lab": set(), "test-extra": {"litert", "test"}}.get(target, {"test"})
    assert asked[0] == {"onnx", "triton"} | for_target
    assert asked[1] == [str(checkout / ".venv" / bootstrap.PYTHON_IN_VENV), *command]


def test_every_benchmark_runs_and_failures_are_named(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(bootstrap.Stop, match="nothing to run"):
        bootstrap.run_benchmarks(checkout, [])
    (checkout / "benchmarks").mkdir()
    for name in ("_shared.py", "a.py", "b.py", "c.py"):
        (checkout / "benchmarks" / name).touch()
    called = []

    def call(command: list[str], cwd: str) -> int:
        called.append([Path(command[1]).name, *command[2:]])
        return int("b.py" in command[1])

    monkeypatch.setenv("TINY", "1")
    with pytest.raises(bootstrap.Stop, match=r"1 of 3 benchmarks failed: b\.py"):
        bootstrap.run_benchmarks(checkout, [], call)
    assert called == [["a.py", "--tiny"], ["b.py", "--tiny"], ["c.py", "--tiny"]]


def test_what_a_program_says_on_stderr_is_kept(capfd: pytest.CaptureFixture):
    program = "import sys; print('shown'); sys.stderr.write('WARNING: Retrying (1)\\n' * 2); sys.exit(3)"
    assert bootstrap.run_shown([sys.executable, "-c", program], ROOT) == (3, "WARNING: Retrying (1)\n" * 2)
    out, err = capfd.readouterr()
    assert "shown" in out
    assert out.count("pip tries again") == 1
    assert err == ""


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", ".venv"), ValueError("bad TOML")])
def test_no_failure_shows_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception):
    def fail(*_) -> None:
        raise error

    monkeypatch.setattr(bootstrap, "prepare", fail)
    assert bootstrap.main(["test"]) == 1
    assert capsys.readouterr().err == f"qlab: {error}\n"


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "prepare", interrupt)
    assert bootstrap.main(["check"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("target", "sentence"), [("serve", "unknown target"), ("", "unknown target")])
def test_an_unknown_target_gets_one_sentence_from_a_real_run(target: str, sentence: str):
    command = [sys.executable, "-m", "qlab.bootstrap", *filter(None, [target])]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("qlab: ") and sentence in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="make is met on Unix")
def test_make_without_python_gets_one_sentence():
    command = ["make", "lab", "PYTHON=no-such-python"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert ran.stderr.startswith("qlab: no-such-python is missing: install Python 3.11 or newer")
