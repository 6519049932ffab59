"""The anatomy of every page, and that every page runs: on a CPU, with warnings as errors, well within its time."""

import ast
import importlib
import re
import statistics
import time
from pathlib import Path

import nbformat
import pytest

from qlab.checks.report import VERDICT_MIME
from qlab.labs import notebooks
from qlab.labs.execute import execute

REPOSITORY = Path(__file__).parents[1]
LESSONS = sorted((REPOSITORY / "lessons").glob("*.ipynb"))
TOPIC_LESSONS = [path for path in LESSONS if not path.stem.startswith("00")]
NEEDS = {  # what each optional page imports where it is installed
    "04_litert": ("ai_edge_litert", "ai_edge_quantizer"),
    "10_finetune": ("transformers", "peft"),
}
OPTIONAL_PAGES = sorted((REPOSITORY / "lessons" / "extra").glob("*.ipynb"))
SOLUTIONS = sorted((REPOSITORY / "solutions").glob("*/*.ipynb"))
LABS = sorted((REPOSITORY / "labs").glob("*/*.ipynb"))
SECONDS = 90  # 45 on one core of its own; two pages run side by side in the tests
WARNINGS_ARE_ERRORS = """
import warnings
warnings.simplefilter("error")
# ipykernel warns of its own do_shutdown when the kernel is stopped, after the last cell
warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="ipykernel")
"""

by_stem = {"ids": lambda path: path.stem}
EVERY_PAGE = LESSONS + OPTIONAL_PAGES + SOLUTIONS + LABS
every_page = pytest.mark.parametrize("path", EVERY_PAGE, ids=lambda p: f"{p.parts[-2]}/{p.stem}")


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@every_page
def test_a_page_is_stored_clean(path):
    notebook = notebooks.read(path)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell_id) for cell_id in ids)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert not re.search(r"^\s*[!%]\s*(pip|conda|apt)|assert torch\.cuda", cell.source, re.M)
        for line in cell.source.splitlines():
            assert cell.cell_type == "markdown" or len(line) <= 120, line


@every_page
def test_every_heading_is_followed_by_words(path):
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            for heading, after in re.findall(r"^#+ (.+)\n*((?:.|\n)*?)(?=^#+ |\Z)", cell.source, re.M):
                assert after.strip(), f"{cell.id}: {heading}"


@pytest.mark.parametrize("path", TOPIC_LESSONS, **by_stem)
def test_a_lesson_keeps_to_its_size(path):
    notebook = notebooks.read(path)
    lines = [len(source.strip().splitlines()) for source in code_of(notebook)]
    assert 35 <= len(notebook.cells) <= 70
    assert statistics.median(lines) <= 8 and max(lines) <= 25
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.id != "sources":
            assert len(cell.source.split()) <= 120, f"{cell.id} has {len(cell.source.split())} words"
    assert set(notebook.metadata["qlab"]) == {"title", "promise", "minutes", "hardware"}


@pytest.mark.parametrize("path", OPTIONAL_PAGES, **by_stem)
def test_an_optional_page_is_short(path):
    notebook = notebooks.read(path)
    assert len(notebook.cells) <= 24
    assert max(len(source.strip().splitlines()) for source in code_of(notebook)) <= 25
    assert max(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown") <= 120


@pytest.mark.slow
@pytest.mark.parametrize("path", OPTIONAL_PAGES, **by_stem)
def test_an_optional_page_says_how_to_get_what_is_missing_and_runs_to_its_end(path):
    notebook = notebooks.read(path)
    missing = f"import sys\nsys.modules.update(dict.fromkeys({NEEDS[path.stem]}))"  # also where it is installed
    execute(notebook, path.parent, before=[WARNINGS_ARE_ERRORS, missing])
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.get("outputs")}
    assert not [output for found in outputs.values() for output in found if output.output_type == "error"]
    assert not [output for found in outputs.values() for output in found if output.get("name") == "stderr"]
    (how,) = {output.text for output in outputs["runtime"]}
    assert how.count("\n") == 1 and "make lab EXTRAS=" in how and "pip install -c constraints.txt -e" in how
    asking = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.endswith("print(HOW)")]
    assert len(asking) > 1 and asking[-1] is notebook.cells[-2]
    for cell in asking:
        assert [output.text for output in cell.outputs] == [how], f"{cell.id} shows more than how to get it"


@pytest.mark.parametrize("path", SOLUTIONS, **by_stem)
def test_a_lab_is_made_of_whole_units(path):
    notebook = notebooks.read(path)
    for cell in notebook.cells:
        if "### BEGIN SOLUTION" in cell.source:
            assert notebooks.marks(cell)["solution"], cell.id
            for solution in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source, re.S):
                assert len(solution.strip().splitlines()) <= 15, cell.id
    tasks = [cell for cell in notebook.cells if cell.id.startswith("task-")]
    checks = notebooks.graded_cells(notebook)
    assert [cell.id.removeprefix("task-") for cell in tasks] == [name.removeprefix("check-") for name in checks]
    for task in tasks:
        assert task.source.count("<details>") == 3, task.id
        points = notebooks.marks(checks[f"check-{task.id.removeprefix('task-')}"])["points"]
        assert f"*{points} points" in task.source, task.id


@pytest.mark.parametrize("path", SOLUTIONS, **by_stem)
def test_points_in_the_metadata_are_the_parts_of_the_check(path):
    module = importlib.import_module(f"qlab.checks.{path.stem[3:]}")
    by_exercise = {getattr(module, name).exercise: getattr(module, name) for name in module.__all__}
    graded = notebooks.graded_cells(notebooks.read(path))
    assert {name.removeprefix("check-") for name in graded} == set(by_exercise)
    for name, cell in graded.items():
        check = by_exercise[name.removeprefix("check-")]
        call = ast.parse(cell.source).body[-1].value
        verdict = check(*[_stub] * len(call.args))
        assert notebooks.marks(cell)["points"] == check.points == len(verdict.parts)
        assert (verdict.points, verdict.outcome) == (0, "empty")
        assert cell.id == name and notebooks.marks(cell)["locked"]


def test_the_title_says_the_points_of_the_lab():
    for path in SOLUTIONS:
        notebook = notebooks.read(path)
        total = sum(notebooks.marks(cell)["points"] for cell in notebooks.graded_cells(notebook).values())
        assert f"**{total} points" in notebook.cells[0].source


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, **by_stem)
def test_a_page_runs_with_warnings_as_errors(path, tmp_path):
    notebook = notebooks.read(path)
    started = time.monotonic()
    execute(notebook, path.parent, before=[WARNINGS_ARE_ERRORS])
    assert time.monotonic() - started < SECONDS
    _keep_for_a_look(notebook, path)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", f"{cell.id}: {output.get('evalue')}"
            assert output.get("name") != "stderr", f"{cell.id}: {output.get('text')}"
            verdict = output.get("data", {}).get(VERDICT_MIME)
            assert verdict is None or verdict["outcome"] == "right", cell.id


@pytest.mark.slow
@pytest.mark.parametrize("path", LABS, **by_stem)
def test_an_unanswered_lab_runs_to_its_end_and_scores_zero_everywhere(path):
    notebook = notebooks.read(path)
    execute(notebook, path.parent, before=[WARNINGS_ARE_ERRORS])
    for name, cell in notebooks.graded_cells(notebook).items():
        (output,) = cell.outputs
        assert output.data["text/plain"] == "0", name
        assert output.data[VERDICT_MIME]["outcome"] == "empty", name
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert [cell for cell in notebook.cells if cell.cell_type == "code"][-1].execution_count


def _stub(*_):
    raise NotImplementedError("replace this line with your answer")


def _keep_for_a_look(notebook, path: Path) -> None:
    folder = REPOSITORY / "artifacts" / "executed"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{path.parts[-2]}_{path.name}")
