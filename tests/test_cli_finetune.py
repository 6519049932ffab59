"""The command `qlab finetune`: killed and begun again in processes of its own, offline, one sentence for the rest."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlab import cli
from qlab.finetune import needs
from tests import tiny_llama

pytestmark = pytest.mark.xdist_group("finetune")  # one worker imports the libraries, which takes seconds
STEPS = 16
SECONDS = 240  # for one process; it takes ten on a machine of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    tiny_llama.save(folder / "model")
    (folder / "text.txt").write_text(tiny_llama.library_text("heapq.py"))
    return folder


@pytest.fixture
def arguments(folder, monkeypatch) -> list[str]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the command sets it, the fixture puts it back
    options = {"model": "model", "data": "text.txt", "budget": "8GB", "device": "cpu", "batch": 2, "sequence": 64}
    return ["finetune", *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture
def refused(capsys):
    """Run a command that must fail and return the one sentence it says."""

    def run(*arguments: str) -> str:
        assert cli.main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == "" and re.fullmatch(r"qlab finetune: .+\n", said.err)
        return said.err

    return run


def started(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::FutureWarning"}
    command = [sys.executable, "-m", "qlab", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_ends_at_the_same_bits(arguments, folder, capsys):
    arguments += [f"--steps={STEPS}", "--save-every=1", "--dropout=0.1", "--learning-rate=0.005"]
    assert cli.main([*arguments, "--out=whole"]) == 0
    said = capsys.readouterr()
    assert "LoRA beside 16-bit weights" in said.out and "held out after" in said.out
    assert f"fine-tuning: 100%|██████████| {STEPS}/{STEPS}" in said.err

    step, later = random.randrange(1, STEPS - 3), random.random() / 10
    killed, out, begin = started([*arguments, "--out=killed"]), folder / "killed", time.monotonic()
    while not (out / f"checkpoint-{step:06d}").exists() and time.monotonic() < begin + SECONDS and not killed.poll():
        time.sleep(0.005)
    time.sleep(later)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=SECONDS)
    assert killed.returncode == -signal.SIGKILL, f"step {step}, {later} s later"
    assert not (out / "adapter").exists()

    resumed = started([*arguments, "--out=killed"])
    output, errors = resumed.communicate(timeout=SECONDS)
    assert resumed.returncode == 0, errors
    assert int(re.search(r"going on after step (\d+) of 16", output)[1]) >= step
    assert "Traceback" not in errors and "Warning" not in errors
    for name in ("adapter_model.safetensors", "adapter_config.json", "result.json"):
        assert (out / "adapter" / name).read_bytes() == (folder / "whole" / "adapter" / name).read_bytes(), name


def test_the_plan_alone_writes_nothing(arguments, folder, capsys):
    before = sorted(folder.rglob("*"))
    assert cli.main([*arguments, "--plan", "--way=qlora"]) == 0
    said = capsys.readouterr()
    assert "4-bit weights (NF4, double quantization)" in said.out and said.err == ""
    assert sorted(folder.rglob("*")) == before
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_what_is_not_there_is_a_sentence(arguments, refused, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the Hub was asked"))
    assert "stays offline unless it is given --download" in refused(*arguments, "--model=owner/none")
    assert "none.txt is not a file" in refused(*arguments, "--data=none.txt")
    assert "no linear layer is called as 'q_proj' says" in refused(*arguments, "--targets=q_proj")
    assert "the frozen base alone needs" in refused(*arguments, "--budget=0.0001")
    assert "memory is a number above 0 in GB or GiB" in refused(*arguments, "--budget=much")
    assert "rank must be at least 1, got 0" in refused(*arguments, "--rank=0")
    assert "torch finds" in refused(*arguments, "--device=cuda:99")


def test_a_library_that_is_missing_is_named_before_anything_else(arguments, refused, monkeypatch):
    for name in ("peft", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert needs.HOW in refused(*arguments)
    assert "transformers, peft are not installed" in refused(*arguments)


@pytest.mark.parametrize("option", ["--way=full", "--rank=many", "--optimizer=sgd"])
def test_what_argparse_refuses(arguments, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, option])
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("usage: qlab finetune")
