"""Grading a class with `qlab grade` against stock `nbgrader autograde`, whose kernel runs submissions as the grader.

First the same submissions by both: equal scores, then processor and wall time of each. Then a long run: the last
hundred against the first, memory, nothing lost. Then what the judge adds to each of the course's own labs.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from _class import ASSIGNMENT, REPOSITORY, choices, write_course, write_submissions
from _meter import Meter, Spent
from _peer import arguments

from qlab.grading.sandbox import NoIsolation, Sandbox, require_isolation
from qlab.labs import notebooks

MOST_CPU_SECONDS, TIMES_LESS, MOST_ADDED = 0.25, 12, 0.2
MIB = 2**20
OWN_BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SCORES = """
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db", "bench") as book:
    graded = {s.student.id: s.notebooks[0].grades for s in book.assignment_submissions(sys.argv[1])}
    assert not any(grade.needs_manual_grade for grades in graded.values() for grade in grades)
    print(json.dumps({student: {g.name: g.score for g in grades} for student, grades in graded.items()}))
"""
IN_ONE_PROCESS = """
import os, resource, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from qlab.grading.inside import main
from qlab.labs import notebooks

main.warm_up()  # the imports of a warm process, which it has made once for all
notebook = notebooks.read(Path(sys.argv[1]))
shell = InteractiveShell.instance()
for _ in range(int(sys.argv[2])):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if os.fork() == 0:
        with capture_output():
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    shell.run_cell(cell.source, store_history=False)
        os._exit(0)
    os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("spent", used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
"""


@dataclass(frozen=True)
class Mark:
    """The state of a long run after some submissions: seconds since it began, bytes of its processes."""

    done: int
    seconds: float
    memory_bytes: int


def against_stock(folder: Path, meter: Meter, *, count: int) -> None:
    """Grade the same submissions by both, demand equal scores, and print what each cost."""
    stock, ours = folder / "stock", folder / "ours"
    new_course(stock, count)
    shutil.copytree(stock, ours)
    with meter.measured() as theirs:
        run(stock, "nbgrader", "autograde", ASSIGNMENT)
    with meter.measured() as spent:
        run(ours, "qlab", "grade", ASSIGNMENT, "--course", str(ours))
    wanted, found = scores(stock), scores(ours)
    assert len(wanted) == count and found == wanted, f"the scores differ: {differing(wanted, found)}"
    print(f"{count} submissions of 12 cells, 5 graded: identical scores, {sum(map(total, found.values())):.0f} points")
    tell("CPU-seconds a submission", spent.cpu_seconds / count, theirs.cpu_seconds / count)
    tell("wall seconds a submission", spent.wall_seconds / count, theirs.wall_seconds / count)
    print(f"targets: at most {MOST_CPU_SECONDS} CPU-seconds, and {TIMES_LESS} times less than stock")


def long_run(folder: Path, meter: Meter, *, count: int) -> None:
    """Grade many submissions and compare the last tenth with the first: time, memory, and every score."""
    course = folder / "long"
    new_course(course, count)
    marks, spent = watched(course, meter, every=max(1, count // 10))
    kinds = dict(zip((f"student-{i:04}" for i in range(count)), map(tuple_of, choices()), strict=False))
    found = scores(course)
    assert len(found) == count, f"{count - len(found)} of {count} submissions were lost"
    by_kind: dict[tuple[str, ...], set[float]] = {}
    for student, kind in kinds.items():
        by_kind.setdefault(kind, set()).add(total(found[student]))
    assert all(len(totals) == 1 for totals in by_kind.values()), "the same answers got different points"
    steps = [after.seconds - before.seconds for before, after in pairwise(marks)]
    print(f"{count} submissions: none lost, {spent.cpu_seconds / count:.3f} CPU-seconds and ", end="")
    print(f"{spent.wall_seconds / count:.3f} wall seconds each")
    print(f"  seconds for each {marks[1].done - marks[0].done}: {', '.join(f'{step:.1f}' for step in steps)}", end="")
    print(f"; last against first {steps[-1] / steps[0]:.2f} (target: 1)")
    print(f"  MiB of all processes, after each: {', '.join(f'{mark.memory_bytes / MIB:.0f}' for mark in marks[1:])}")


def own_labs(folder: Path, meter: Meter, *, stems: list[str], repeats: int) -> None:
    """Print what the judge adds to each of the course's labs, answered with its solutions."""
    from qlab.grading.judge import judge_notebook  # noqa: PLC0415 - needs what a machine without isolation may lack

    with Sandbox() as sandbox:
        for stem in stems:
            path = REPOSITORY / "solutions" / stem / f"{stem}.ipynb"
            release = notebooks.read(REPOSITORY / "labs" / stem / f"{stem}.ipynb")
            judged = []
            for _ in range(repeats + 1):  # the first warms up
                with meter.measured() as spent:
                    found = judge_notebook(notebooks.read(path), release, sandbox)
                judged.append(spent.cpu_seconds)
            lost = [result.grade_id for result in found.results if result.points < result.max_points]
            assert not lost, f"the solutions of {stem} lost points at {', '.join(lost)}"
            ours, bare = statistics.median(judged[1:]), in_one_process(path, folder, repeats)
            print(f"{stem}: judged in {ours:.2f} CPU-seconds, in one process {bare:.2f}: ", end="")
            print(f"{ours - bare:+.2f} (target: at most {MOST_ADDED})", flush=True)


def in_one_process(path: Path, folder: Path, repeats: int) -> float:
    """Return the processor time of a notebook run whole, checks and all, in a process forked from a warm one."""
    command = [sys.executable, "-c", IN_ONE_PROCESS, str(path), str(repeats)]
    environment = os.environ | {"NBGRADER_EXECUTION": "autograde"}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("spent ")]
    return statistics.median(float(seconds) for _, seconds in told)


def new_course(folder: Path, count: int) -> None:
    folder.mkdir()
    write_course(folder)
    run(folder, "nbgrader", "generate_assignment", ASSIGNMENT)
    write_submissions(folder, count)


def run(folder: Path, *command: str) -> str:
    """Run one command in a course; its output is kept for the case that it fails."""
    done = subprocess.run(command, cwd=folder, env=surroundings(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
    return done.stdout


def watched(course: Path, meter: Meter, *, every: int) -> tuple[list[Mark], Spent]:
    """Grade, noting time and memory whenever `every` more submissions are done."""
    command = ["qlab", "grade", ASSIGNMENT, "--course", str(course)]
    marks: list[Mark] = []
    with (
        meter.measured() as spent,
        subprocess.Popen(
            command,
            cwd=course,
            env=surroundings(course),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as grader,
    ):
        start = time.perf_counter()
        for line in grader.stderr:
            done = int(line.split("/")[0]) if line.split("/")[0].isdecimal() else 0
            if done == 1 or (done and done % every == 0):
                marks.append(Mark(done, time.perf_counter() - start, sum(meter.resident_bytes().values())))
    assert grader.returncode == 0, f"qlab grade ended with status {grader.returncode}"
    return marks, spent


def surroundings(folder: Path) -> dict[str, str]:
    home = {"HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder), "QLAB_ROOT": str(folder), "PATH": OWN_BIN}
    return os.environ | home


def scores(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads(run(folder, sys.executable, "-c", SCORES, ASSIGNMENT))


def total(points: dict[str, float]) -> float:
    return sum(points.values())


def tuple_of(chosen: dict[str, str]) -> tuple[str, ...]:
    return tuple(chosen.values())


def differing(wanted: dict[str, dict[str, float]], found: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{s}: {found.get(s)} for {wanted[s]}" for s in wanted if found.get(s) != wanted[s])[:1000]


def tell(what: str, ours: float, peer: float) -> None:
    print(f"{what}: qlab grade {ours:.3f}, stock nbgrader autograde {peer:.3f}: {peer / ours:.1f} times less")


def main() -> None:
    tiny = arguments(__doc__).tiny
    try:
        print(require_isolation())
    except NoIsolation as error:
        print(f"not measured: {error}")
        return
    stems = sorted(path.name for path in (REPOSITORY / "labs").iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as folder, Meter() as meter:
        against_stock(Path(folder), meter, count=2 if tiny else 40)
        long_run(Path(folder), meter, count=2 if tiny else 1000)
        own_labs(Path(folder), meter, stems=stems[:1] if tiny else stems, repeats=1 if tiny else 3)


if __name__ == "__main__":
    main()
