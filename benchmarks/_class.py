"""A class for the benchmark of grading: one small torch lab, 12 cells of which 5 are graded, and its submissions."""

import random
from collections.abc import Iterator
from pathlib import Path

import nbformat

from qlab.labs import notebooks

ASSIGNMENT = "99_bench"
SOURCE = "01_data_types"  # whose solutions answer the lab rightly
REPOSITORY = Path(__file__).parents[1]
SETTINGS = '''"""Settings of nbgrader for a course that is only measured."""
c = get_config()
c.CourseDirectory.course_id = "bench"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "labs"
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("replace this line with your answer")'}
c.ExecutePreprocessor.timeout = 120
'''
SETUP = """import math

import torch

from qlab.checks import data_types as checks

torch.manual_seed(0)
torch.set_num_threads(1)
layer = torch.nn.Linear(16, 1)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
for _ in range(10):
    optimizer.zero_grad()
    loss = layer(torch.randn(8, 16)).square().mean()
    loss.backward()
    optimizer.step()
loss.item()"""
STUB = 'raise NotImplementedError("replace this line with your answer")'
POINTS = {
    "fp32-bits-to-bf16-bits": 4,
    "kahan-sum": 4,
    "pack-int4": 5,
    "stochastic-round": 3,
    "store-in-16-bits": 3,
}
WRONG = {  # one body with a misconception and one that crashes, for each exercise; the first two lines are as released
    "fp32-bits-to-bf16-bits": ("return bits >> 16", "return bits.quantize()"),
    "kahan-sum": ("return x.sum()", "return x[len(x)]"),
    "pack-int4": ("return codes.to(torch.uint8)", "return codes[None, 3, 4]"),
    "stochastic-round": ("return x.bfloat16()", "return 1 / 0"),
    "store-in-16-bits": ("return x.half()", "return y"),
}
UNPACK = "\n\n\ndef unpack_int4(packed, count):\n    return packed.to(torch.int8)[:count]"


def write_course(folder: Path) -> None:
    """Write the settings, the source of the lab, and the folders that a course has."""
    cells = [nbformat.v4.new_markdown_cell("# A small lab", id="title"), nbformat.v4.new_code_cell(SETUP, id="setup")]
    solved = _solved()
    for exercise, points in POINTS.items():
        names = exercise.replace("-", "_")
        answer = nbformat.v4.new_code_cell(solved[exercise], id=f"answer-{exercise}")
        given = f"{names}, unpack_int4" if exercise == "pack-int4" else names
        check = nbformat.v4.new_code_cell(f"checks.check_{names}({given})", id=f"check-{exercise}")
        answer.metadata["nbgrader"] = _marks(answer.id, solution=True, locked=False)
        check.metadata["nbgrader"] = _marks(check.id, grade=True, points=points, locked=True)
        cells += [answer, check]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    lab = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    notebooks.write(lab, folder / "solutions" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")
    (folder / "lessons").mkdir()
    (folder / "nbgrader_config.py").write_text(SETTINGS, encoding="utf-8")


def write_submissions(folder: Path, count: int) -> None:
    """Hand in `count` notebooks, each exercise answered rightly, wrongly, with a crash, or not at all."""
    name = Path(ASSIGNMENT) / f"{ASSIGNMENT}.ipynb"
    release = (folder / "labs" / name).read_text(encoding="utf-8")
    for student, chosen in zip(range(count), choices(), strict=False):
        notebook = nbformat.reads(release, as_version=4)
        for cell in notebook.cells:
            if (exercise := cell.id.removeprefix("answer-")) in chosen:
                cell.source = _answer(exercise, chosen[exercise])
        notebooks.write(notebook, folder / "submitted" / f"student-{student:04}" / name)


def choices() -> Iterator[dict[str, str]]:
    """Yield what each student's answers are: the first four all of one kind, then mixed."""
    kinds, draw = ("right", "wrong", "crash", "stub"), random.Random(0)
    yield from (dict.fromkeys(POINTS, kind) for kind in kinds)
    while True:
        yield {exercise: draw.choices(kinds, weights=(5, 2, 1, 1))[0] for exercise in POINTS}


def _answer(exercise: str, kind: str) -> str:
    solved = _solved()[exercise]
    if kind == "right":
        return solved
    body = {"wrong": WRONG[exercise][0], "crash": WRONG[exercise][1], "stub": STUB}[kind]
    second = UNPACK if exercise == "pack-int4" else ""
    return f"{solved.splitlines()[0]}\n    {body}{second}"


def _solved() -> dict[str, str]:
    solutions = notebooks.read(REPOSITORY / "solutions" / SOURCE / f"{SOURCE}.ipynb")
    return {name.removeprefix("answer-"): cell.source for name, cell in notebooks.answer_cells(solutions).items()}


def _marks(grade_id: str, **given: object) -> dict[str, object]:
    usual = {"grade": False, "solution": False, "task": False, "schema_version": 3, "grade_id": grade_id}
    return usual | given
