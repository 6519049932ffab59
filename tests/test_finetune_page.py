"""The page on fine-tuning, run with its libraries: no warning, nothing on stderr, and its figures are what it says."""

import re
import time
from pathlib import Path

import pytest

from qlab.labs import notebooks
from qlab.labs.execute import execute
from tests.test_notebooks import SECONDS, WARNINGS_ARE_ERRORS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finetune")]
PAGE = Path(__file__).parents[1] / "lessons" / "extra" / "10_finetune.ipynb"


@pytest.fixture(scope="module")
def outputs():
    notebook = notebooks.read(PAGE)
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("QLAB_MODEL", raising=False)
        patched.delenv("QLAB_BUDGET", raising=False)
        execute(notebook, PAGE.parent, before=[WARNINGS_ARE_ERRORS])
    assert time.monotonic() - started < SECONDS
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs) -> str:
    return "".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "") for o in outputs)


def test_it_runs_to_its_end_without_a_word_on_stderr(outputs):
    every = [output for found in outputs.values() for output in found]
    assert not [f"{o.ename}: {o.evalue}" for o in every if o.output_type == "error"]
    assert not [o.text for o in every if o.get("name") == "stderr"]
    assert "not installed" not in printed(every)


def test_the_plans_for_8_billion_parameters(outputs):
    lines = printed(outputs["plan-run"]).splitlines()
    ways = [
        (row[0], row[1], row[3]) for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:7])
    ]
    assert ways == [
        ("48 GB", "lora", "kept"),
        ("24 GB", "lora", "kept"),
        ("16 GB", "qlora", "kept"),
        ("12 GB", "qlora", "recomputed"),
        ("8 GB", "qlora", "recomputed"),
    ]
    assert "16.06 GB" in lines[2] and "5.70 GB" in lines[6]


def test_training_helps_and_the_killed_run_ends_at_the_same_bytes(outputs):
    said = printed(outputs["train-run"])
    before, after = (float(re.search(rf"held out {when}: +([\d.]+) nats", said)[1]) for when in ("before", "after"))
    assert after < before - 0.5
    assert "LoRA beside 16-bit weights" in said
    said = printed(outputs["kill-run"])
    assert "killed; there is: checkpoint-000005 checkpoint-000010 run.json" in said
    assert "going on after step 10 of 20" in said
    assert re.search(r"\n0 of [\d,]+ bytes differ", said)


def test_what_is_refused_is_a_sentence_each(outputs):
    assert "broken.jsonl, line 2 has no string 'completion'" in printed(outputs["data-run"])
    said = re.findall(r"^refused: .+$", printed(outputs["refused-run"]), re.M)
    expected = (
        "'.*q_proj' would match",
        "the frozen base alone needs",
        "holds another run",
        "is not there",
        "--download",
    )
    assert [word for word, line in zip(expected, said, strict=True) if word not in line] == []
