"""Judging hostile submissions as graders do, and holding what came of it against what must."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from qlab.grading.judge import GradedNotebook, judge_notebook
from qlab.grading.limits import MIB, Limits
from qlab.grading.sandbox import NoIsolation, Sandbox, require_isolation
from qlab.labs.execute import ExerciseResult
from tests.grading.hostile import Hostile, labs, reaching
from tests.grading.hostile.traps import Traps

LIMITS = Limits(
    cell_seconds=2.0,
    check_seconds=2.5,
    submission_seconds=40.0,
    memory_bytes=1024 * MIB,
    scratch_bytes=32 * MIB,
    output_bytes=200_000,
    notebook_output_bytes=1 * MIB,
    message_bytes=64 * MIB,
    processes=32,
)
CALM = replace(
    LIMITS, cell_seconds=20.0, check_seconds=20.0, submission_seconds=120.0
)  # for honest work on a busy machine
PATIENT = replace(LIMITS, check_seconds=6.0)  # for labs whose own checks take a second
LINGER_SECONDS = 3.0
OWN_BYTES = 500_000  # of a small lab, with its verdicts


@cache
def why_not_isolated() -> str:
    """Return why nothing hostile can be judged on this machine, or nothing."""
    try:
        require_isolation()
    except NoIsolation as error:
        return str(error)
    return ""


def skipped() -> bool:
    """Tell whether tests that need isolation are skipped: where there is none, and it is not required."""
    return bool(why_not_isolated()) and os.environ.get("QLAB_REQUIRE_SANDBOX") != "1"


def notebook_of(hostile: Hostile, traps: Traps) -> NotebookNode:
    """Write the submission that a record describes."""
    answers = {exercise: traps.placed(source) for exercise, source in hostile.answers.items()}
    opening, closing = traps.placed(hostile.opening), traps.placed(hostile.closing)
    return labs.submission(hostile.lab, answers=answers, answered=hostile.answered, opening=opening, closing=closing)


def graded(notebook: NotebookNode, lab: str, sandbox: Sandbox, *, limits: Limits | None = None) -> GradedNotebook:
    """Judge a notebook of a small lab."""
    usual = LIMITS if lab == "types" else PATIENT
    return judge_notebook(notebook, labs.release(lab), sandbox, limits=limits or usual)


def by_exercise(result: GradedNotebook) -> dict[str, ExerciseResult]:
    """Return the results by the names of their exercises."""
    return {r.grade_id.removeprefix("check-"): r for r in result.results}


def require_expected(hostile: Hostile, result: GradedNotebook) -> None:
    """Fail where an exercise earned what it must not, lost what it must not, or says something else."""
    found, most = by_exercise(result), labs.most_points(hostile.lab)
    assert list(found) == list(most), "an exercise was lost"
    for exercise, points in most.items():
        least, highest = hostile.least_and_most(exercise, points)
        assert least <= found[exercise].points <= highest, f"{exercise}: {found[exercise]}"
    for exercise, pattern in hostile.says.items():
        told = found[exercise]
        words = " ".join((told.outcome, told.misconception, *told.remarks))
        assert re.search(pattern, words, re.DOTALL), f"{exercise} says {words[:500]!r}, expected {pattern!r}"
    _require_plain(result)


def require_honest(sandbox: Sandbox, lab: str = "types") -> None:
    """Fail unless an honest submission earns everything, and an untouched one nothing."""
    best = graded(labs.submission(lab, answers={}), lab, sandbox, limits=CALM)
    assert all(r.points == r.max_points for r in best.results), f"a neighbor lost points: {best.results}"


def require_unearned(sandbox: Sandbox, lab: str = "types") -> None:
    """Fail if an untouched submission earns anything."""
    empty = graded(labs.submission(lab, answers={}, answered=False), lab, sandbox, limits=CALM)
    assert not any(r.points for r in empty.results), f"points for nothing: {empty.results}"


def _require_plain(result: GradedNotebook) -> None:
    """Fail where outputs are larger than allowed, or show that something was reached."""
    size = len(nbformat.writes(result.notebook).encode("utf-8", "replace"))
    assert size <= LIMITS.notebook_output_bytes + OWN_BYTES, f"a notebook of {size:,} bytes"
    for cell in result.notebook.cells:
        text = str(cell.get("outputs", ""))
        assert len(text) <= 4 * LIMITS.output_bytes, f"{len(text)} characters of output"
        streams = "".join(o.get("text", "") for o in cell.get("outputs", ()) if o.output_type == "stream")
        shouted = [line for line in streams.splitlines() if line.startswith(reaching.SHOUTS)]
        assert not shouted, shouted


def processes() -> set[int]:
    """Return this process's living descendants."""
    parents = dict(_parents())
    found, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found


def require_none_outlives(before: int) -> None:
    """Fail if more processes stay than there were; what has been killed is given a moment."""
    deadline = time.monotonic() + LINGER_SECONDS
    while len(now := processes()) > before:
        assert time.monotonic() < deadline, f"{len(now)} processes are left, {before} were there before"
        time.sleep(0.05)


def _parents() -> Iterator[tuple[int, int]]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[0] != "Z":
            yield int(status.parent.name), int(fields[1])
