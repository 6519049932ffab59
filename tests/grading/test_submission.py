"""Submissions as they come: what is refused, what is mended, and that the learner's code is kept."""

import copy
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from qlab.grading.repairs import MOST_REPAIRS
from qlab.grading.submission import DEEPEST, LONGEST_SOURCE, MOST_CELLS, Refused, Submission, mended, normalised
from qlab.labs import notebooks
from tests.grading import NO_LABS, OLD_FORMAT, REPOSITORY, TOPIC, one_sentence

RELEASE = notebooks.read(REPOSITORY / "labs" / TOPIC / f"{TOPIC}.ipynb")
ANSWERED = "def decode(code, exponent_bits, mantissa_bits):\n    return 1.5"
posix = pytest.mark.skipif(os.name == "nt", reason="links, FIFOs and descriptors of folders are POSIX's")
EMPTY = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}


def a_copy() -> NotebookNode:
    """Return the release with one answer in it."""
    notebook = copy.deepcopy(RELEASE)
    cell_of(notebook, "answer-decode").source = ANSWERED
    return notebook


def cell_of(notebook: NotebookNode, id: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == id)


def place_of(notebook: NotebookNode, id: str) -> int:
    return [cell.id for cell in notebook.cells].index(id)


def mend(notebook: NotebookNode) -> Submission:
    return mended(json.dumps(notebook).encode(), RELEASE)


def is_whole(submission: Submission) -> None:
    """Demand the release's structure: marked cells once, in order, locked ones word for word."""
    nbformat.validate(submission.notebook)
    own = [cell for cell in submission.notebook.cells if notebooks.marks(cell)]
    released = [cell for cell in RELEASE.cells if notebooks.marks(cell)]
    assert [cell.id for cell in own] == [cell.id for cell in released]
    for ours, theirs in zip(own, released, strict=True):
        assert (ours.cell_type, ours.metadata) == (theirs.cell_type, theirs.metadata)
        assert notebooks.marks(theirs)["solution"] or ours.source == theirs.source
    assert submission.notebook.metadata == RELEASE.metadata
    assert not any(cell.get("outputs") or cell.get("attachments") for cell in submission.notebook.cells)


def test_an_honest_submission_is_the_release_with_its_answers():
    notebook = a_copy()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 7
            cell.outputs = [nbformat.v4.new_output("stream", text="said " * 1000)]
    submission = mend(notebook)
    assert submission.repairs == ()
    assert submission.notebook == a_copy()


def renamed(notebook):
    cell_of(notebook, "answer-decode").metadata.nbgrader.grade_id = "mine"
    cell_of(notebook, "answer-decode").id = "a1"


def renamed_to_nothing(notebook):
    del cell_of(notebook, "answer-decode").metadata["nbgrader"]


def marks_lost_everywhere(notebook):
    for cell in notebook.cells:
        cell.metadata = {}
        cell.id = f"x{random.random()}".replace(".", "")


def old_format_in_new_clothes(notebook):
    for cell in notebook.cells:
        del cell["id"]
        cell.metadata = {}
    notebook.nbformat_minor = 4


def retyped_to_markdown(notebook):
    cell = cell_of(notebook, "answer-decode")
    cell.cell_type = "markdown"
    del cell["outputs"], cell["execution_count"]


def retyped_to_raw(notebook):
    retyped_to_markdown(notebook)
    cell_of(notebook, "answer-decode").cell_type = "raw"


def check_deleted(notebook):
    notebook.cells.remove(cell_of(notebook, "check-decode"))


def task_deleted(notebook):
    notebook.cells.remove(cell_of(notebook, "task-decode"))


def all_but_answer_deleted(notebook):
    notebook.cells = [cell_of(notebook, "answer-decode")]


def check_changed(notebook):
    cell_of(notebook, "check-decode").source = "print(10)"


def check_made_raw(notebook):
    cell_of(notebook, "check-decode").cell_type = "raw"


def points_changed(notebook):
    cell_of(notebook, "check-decode").metadata.nbgrader.points = 400


def flags_changed(notebook):
    marks = cell_of(notebook, "check-decode").metadata.nbgrader
    marks.grade, marks.solution, marks.locked = False, True, False


def points_are_odd(notebook):
    cell_of(notebook, "check-decode").metadata.nbgrader.points = [float("nan")]


def marks_are_a_list(notebook):
    cell_of(notebook, "check-decode").metadata.nbgrader = [1, 2]


def id_is_a_dict(notebook):
    cell_of(notebook, "check-decode").metadata.nbgrader.grade_id = {"a": 1}
    cell_of(notebook, "check-decode").id = 4


def answer_doubled_above(notebook):
    twin = copy.deepcopy(cell_of(notebook, "answer-decode"))
    twin.source, twin.id = "def decode(*args):\n    return 0.0", "twin"
    notebook.cells.insert(0, twin)


def answer_doubled_below(notebook):
    twin = copy.deepcopy(cell_of(notebook, "answer-decode"))
    twin.source, twin.id = "print('an old try')", "twin"
    notebook.cells.append(twin)


def check_doubled(notebook):
    twin = copy.deepcopy(cell_of(notebook, "check-decode"))
    twin.source = "10"
    notebook.cells.insert(place_of(notebook, "check-decode"), twin)


def reversed_order(notebook):
    notebook.cells.reverse()


def shuffled(notebook):
    random.Random(3).shuffle(notebook.cells)


def graded_cell_added(notebook):
    twin = copy.deepcopy(cell_of(notebook, "check-decode"))
    twin.metadata.nbgrader.grade_id, twin.metadata.nbgrader.points, twin.id = "check-bonus", 100, "bonus"
    notebook.cells.append(twin)


def setup_deleted(notebook):
    notebook.cells.remove(cell_of(notebook, "setup"))


def wrong_things_between(notebook):
    notebook.cells[3:3] = [1, None, {}, {"cell_type": "code", "source": 4}, {"cell_type": "magic", "source": ""}]


def attached(notebook):
    cell_of(notebook, "task-decode").attachments = {"a.png": {"image/png": "AAAA"}}
    cell_of(notebook, "title").attachments = {"a.png": {"image/png": "AAAA"}}


def other_kernel(notebook):
    notebook.metadata = {"kernelspec": {"name": "evil", "display_name": "x", "language": "bash"}, "widgets": {}}


def copied_from_nowhere(notebook):
    """Answer in a cell of one's own, the released answer cell being gone."""
    own = nbformat.v4.new_code_cell(cell_of(notebook, "answer-decode").source)
    notebook.cells.insert(place_of(notebook, "check-decode"), own)
    notebook.cells.remove(cell_of(notebook, "answer-decode"))


SILENT = (attached, other_kernel, old_format_in_new_clothes, marks_lost_everywhere)
DAMAGES: dict[Callable[[NotebookNode], None], str] = {
    renamed: "'answer-decode' had lost its name",
    renamed_to_nothing: "'answer-decode' had lost its name",
    marks_lost_everywhere: "had lost its name",
    old_format_in_new_clothes: "had lost its name",
    retyped_to_markdown: "'answer-decode' had become a markdown cell and is a code cell again",
    retyped_to_raw: "'answer-decode' had become a raw cell",
    check_deleted: "'check-decode' was missing and was put back",
    task_deleted: "'task-decode' was missing and was put back",
    all_but_answer_deleted: "'check-pack-int4' was missing",
    check_changed: "'check-decode' is locked: its text was changed and was put back",
    check_made_raw: "'check-decode' had become a raw cell",
    points_changed: "'check-decode' had other points than the release and has 4 again",
    flags_changed: "'check-decode' had other marks",
    points_are_odd: "'check-decode' had other points",
    marks_are_a_list: "'check-decode' had lost its name",
    id_is_a_dict: "'check-decode' had lost its name",
    answer_doubled_above: "'answer-decode' was there 2 times",
    answer_doubled_below: "'answer-decode' was there 2 times",
    check_doubled: "'check-decode' was there 2 times",
    reversed_order: "the release's order was restored",
    shuffled: "the release's order was restored",
    graded_cell_added: "1 graded cells that are not the release's",
    setup_deleted: "the setup cell 'setup' was missing",
    wrong_things_between: "5 of its cells could not be read",
    copied_from_nowhere: "'answer-decode' had lost its name",
    attached: "",
    other_kernel: "",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damage_is_mended_and_told_and_the_answer_is_kept(damage):
    notebook = a_copy()
    damage(notebook)
    submission = mend(notebook)
    is_whole(submission)
    assert cell_of(submission.notebook, "answer-decode").source == ANSWERED
    assert cell_of(submission.notebook, "setup").source == cell_of(RELEASE, "setup").source
    told = DAMAGES[damage]
    assert any(told in sentence for sentence in submission.repairs) if told else submission.repairs == ()
    assert all("\n" not in sentence and len(sentence) < 200 for sentence in submission.repairs)
    assert len(submission.repairs) <= MOST_REPAIRS + 1


def test_a_deleted_answer_comes_back_unanswered():
    notebook = a_copy()
    notebook.cells.remove(cell_of(notebook, "answer-decode"))
    submission = mend(notebook)
    is_whole(submission)
    assert cell_of(submission.notebook, "answer-decode").source == cell_of(RELEASE, "answer-decode").source
    assert submission.repairs == ("'answer-decode' was missing and was put back as released",)


def test_the_learners_own_cells_stay_where_they_are():
    notebook = a_copy()
    for id in ("answer-decode", "check-pack-int4"):
        notebook.cells.insert(place_of(notebook, id), nbformat.v4.new_code_cell(f"before = {id!r}"))
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("first"))
    submission = mend(notebook)
    is_whole(submission)
    assert submission.repairs == ()
    assert [cell.source for cell in submission.notebook.cells] == [cell.source for cell in notebook.cells]
    assert len({cell.id for cell in submission.notebook.cells}) == len(submission.notebook.cells)


def test_a_changed_try_and_a_deleted_try_are_the_learners_to_change():
    notebook = a_copy()
    cell_of(notebook, "try-decode").source = "mine = 1"
    notebook.cells.remove(cell_of(notebook, "try-decode-e4m3"))
    submission = mend(notebook)
    assert submission.repairs == ()
    assert cell_of(submission.notebook, "try-decode").source == "mine = 1"
    assert "try-decode-e4m3" not in {cell.id for cell in submission.notebook.cells}


def test_random_damage_is_mended_whatever_it_is():
    chosen = random.Random(0)
    for _ in range(60):
        notebook = a_copy()
        for damage in chosen.sample([d for d in DAMAGES if d is not wrong_things_between], 4):
            try:
                damage(notebook)
            except (StopIteration, KeyError, AttributeError):
                continue  # an earlier damage took away what this one changes
        is_whole(mend(notebook))


def test_another_lab_is_refused_by_its_title():
    other = notebooks.read(REPOSITORY / "solutions" / "03_quantization" / "03_quantization.ipynb")
    with pytest.raises(Refused) as refusal:
        mend(other)
    assert "it looks like another notebook, 'Lab 03 · Quantization'" in one_sentence(refusal)
    other.cells.insert(9, cell_of(a_copy(), "answer-decode"))
    kept = [cell for cell in mend(other).notebook.cells if notebooks.marks(cell).get("grade_id") == "answer-decode"]
    assert [cell.source for cell in kept] == [ANSWERED]


def test_answers_that_were_all_renamed_are_found_by_what_they_define():
    notebook = notebooks.read(REPOSITORY / "solutions" / TOPIC / f"{TOPIC}.ipynb")
    for number, cell in enumerate(notebooks.answer_cells(notebook).values()):
        cell.metadata.nbgrader.grade_id = cell.id = f"mine-{number}"
    kept = notebooks.answer_cells(mend(notebook).notebook)
    assert [cell.source for cell in kept.values()] == [c.source for c in notebooks.answer_cells(notebook).values()]


def test_the_release_itself_is_never_changed():
    before = copy.deepcopy(RELEASE)
    mend(a_copy()).notebook.cells[0].source = "changed"
    mend(a_copy()).notebook.cells[2].metadata.nbgrader.points = 3
    assert before == RELEASE


def test_an_old_notebook_is_converted():
    submission = mended(json.dumps(OLD_FORMAT).encode(), RELEASE)
    is_whole(submission)
    assert submission.repairs[0] == "the notebook was converted from format 3"


REFUSED = {name: content for name, content in NO_LABS.items() if name not in ("without graded cells", "nbformat 3")} | {
    "white": b" \n\t ",
    "no cells": json.dumps({"nbformat": 4}).encode(),
    "cells are a dict": json.dumps(EMPTY | {"cells": {}}).encode(),
    "no format": json.dumps({"cells": []}).encode(),
    "format is true": json.dumps(EMPTY | {"nbformat": True}).encode(),
    "format is a number bomb": b'{"nbformat": ' + b"9" * 5000 + b"}",
    "old and empty": json.dumps({"nbformat": 3, "worksheets": 3}).encode(),
    "old and long": json.dumps({"nbformat": 3, "worksheets": [{"cells": ["x" * 3_000_000]}]}).encode(),
    "too many cells": json.dumps(EMPTY | {"cells": [{"cell_type": "raw", "source": ""}] * (MOST_CELLS + 1)}).encode(),
    "a huge cell": json.dumps(
        EMPTY | {"cells": [{"cell_type": "code", "source": "#" * (LONGEST_SOURCE + 1)}]}
    ).encode(),
    "brackets": b"[" + b"[]," * 1_000_000 + b"0]",
    "one level too deep": b'{"nbformat":4,"cells":[' + b"[" * DEEPEST + b"]" * DEEPEST + b"]}",
    "utf-16": json.dumps(EMPTY).encode("utf-16"),
    "latin-1": json.dumps(EMPTY | {"metadata": {"a": "é"}}, ensure_ascii=False).encode("latin-1"),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x04abcd\x94.",
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(content):
    with pytest.raises(Refused) as refusal:
        mended(content, RELEASE)
    one_sentence(refusal)


@pytest.mark.parametrize(
    "content", [b'"' + b'\\"' * 5_000_000, b'"\\' * 5_000_000, b"{" * 9_000_000, b'"[' * 5_000_000]
)
def test_a_refusal_takes_no_longer_than_reading(content):
    start = time.process_time()
    with pytest.raises(Refused):
        mended(content, RELEASE)
    assert time.process_time() - start < 3


def test_brackets_in_strings_are_no_depth_and_half_letters_are_replaced():
    notebook = a_copy()
    cell_of(notebook, "try-decode").source = "x = '" + "[{" * 500 + "\\\"\\\\'\n# \ud800"
    submission = mend(notebook)
    nbformat.writes(submission.notebook).encode()
    assert cell_of(submission.notebook, "try-decode").source.endswith("# \ufffd")


def test_a_byte_order_mark_is_no_fault():
    assert mended(b"\xef\xbb\xbf" + json.dumps(a_copy()).encode(), RELEASE).repairs == ()


@pytest.fixture
def handed_in(tmp_path) -> Path:
    path = tmp_path / "submitted" / "ann" / TOPIC / f"{TOPIC}.ipynb"
    notebooks.write(a_copy(), path)
    return path


@posix
def test_a_plain_file_is_read(handed_in, tmp_path):
    assert normalised(handed_in, RELEASE, under=tmp_path / "submitted").repairs == ()


def linked(path, tmp_path):
    path.rename(tmp_path / "elsewhere.ipynb")
    path.symlink_to(tmp_path / "elsewhere.ipynb")


def linked_to_itself(path, tmp_path):
    path.unlink()
    path.symlink_to(path)


def hard_linked(path, tmp_path):
    os.link(path, tmp_path / "twin.ipynb")


def in_a_linked_folder(path, tmp_path):
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere", target_is_directory=True)


def of_a_linked_student(path, tmp_path):
    path.parents[1].rename(tmp_path / "someone")
    path.parents[1].symlink_to(tmp_path / "someone", target_is_directory=True)


def a_fifo(path, tmp_path):
    path.unlink()
    os.mkfifo(path)


def a_device(path, tmp_path):
    path.unlink()
    path.symlink_to("/dev/zero")


def a_folder(path, tmp_path):
    path.unlink()
    path.mkdir()


def gone(path, tmp_path):
    path.unlink()


def huge(path, tmp_path):
    with path.open("ab") as file:
        file.truncate(10**12)


def a_file_for_a_folder(path, tmp_path):
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")


@posix
@pytest.mark.parametrize(
    "trick",
    [
        linked,
        linked_to_itself,
        hard_linked,
        in_a_linked_folder,
        of_a_linked_student,
        a_fifo,
        a_device,
        a_folder,
        gone,
        huge,
        a_file_for_a_folder,
    ],
    ids=lambda trick: trick.__name__,
)
def test_what_is_no_plain_file_of_its_own_is_refused(trick, handed_in, tmp_path):
    trick(handed_in, tmp_path)
    with pytest.raises(Refused) as refusal:
        normalised(handed_in, RELEASE, under=tmp_path / "submitted")
    one_sentence(refusal)


@posix
@pytest.mark.parametrize("path", ["../gradebook.db", "ann/../../gradebook.db", "/etc/passwd"])
def test_nothing_outside_is_read(path, tmp_path):
    (tmp_path / "submitted" / "ann").mkdir(parents=True)
    (tmp_path / "gradebook.db").write_text("{}")
    with pytest.raises(Refused) as refusal:
        normalised(tmp_path / "submitted" / path, RELEASE, under=tmp_path / "submitted")
    one_sentence(refusal)
