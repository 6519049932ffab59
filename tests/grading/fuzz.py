"""Fuzzing the judge: thousands of changed submissions, none of which may earn more than its code is worth.

Run it from the repository: `python -m tests.grading.fuzz --count 10000`, or `make fuzz N=10000`.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nbformat import NotebookNode

from qlab.grading.limits import MIB, Limits
from qlab.grading.sandbox import Sandbox
from qlab.grading.session import Session
from qlab.grading.submission import mended
from qlab.grading.work import Judged, Task, judge_task
from qlab.labs import notebooks
from tests.grading.hostile import labs, mutations
from tests.grading.hostile.mutations import Mutant

ROOT = Path(__file__).parents[2]
LABS = (*("types",) * 6, *("adapters", "replays") * 2, "scalers")
LIMITS = Limits(
    cell_seconds=2.0,
    check_seconds=4.0,
    submission_seconds=30.0,
    memory_bytes=1024 * MIB,
    scratch_bytes=16 * MIB,
    output_bytes=100_000,
    message_bytes=64 * MIB,
    processes=32,
)
NEIGHBORS = 40  # an honest submission is judged after this many
SLOW_SECONDS = 60.0
NO_TIME = re.compile("seconds|stopped")
ASK = """
import json as _json
_points = []
for _seed in {seeds}:
    try:
        _points.append(checks.{function}({names}, seed=_seed).points)
    except KeyboardInterrupt:  # it ends a check in one process, and only a part of it across the border
        pass
print("POINTS", _json.dumps(_points))
"""


@dataclass(frozen=True)
class Finding:
    """A case in which the judge did what it must not, and how to see it again."""

    seed: int
    number: int
    kind: str
    lab: str
    what: str


class Fuzzer:
    """One sandbox, and the cases that are judged in it; a case is known by the run's seed and its number."""

    def __init__(self, sandbox: Sandbox, *, seed: int) -> None:
        self.sandbox, self.seed, self.canary = sandbox, seed, f"canary-{secrets.token_hex(12)}"
        os.environ["QLAB_FUZZ_CANARY"] = self.canary
        self.counts: Counter[str] = Counter()

    def case(self, number: int) -> Iterator[Finding]:
        """Judge one case and yield what is wrong with what came of it."""
        rng = random.Random(f"{self.seed}-{number}")
        lab, kind = rng.choice(LABS), rng.choice(mutations.KINDS)
        few = rng.sample(labs.EXERCISES[lab], 2)
        release = cut(labs.release(lab), few)
        honest = cut(labs.submission(lab, answers={}, answered=rng.random() < 0.9), few)
        made = mutations.mutant(kind, honest, rng)
        started = time.monotonic()
        judged = judge_task(Task("s", lab, "k", made.content), release, self.sandbox, limits=LIMITS)
        self.counts[f"{kind}: {'not graded' if judged.reason else 'graded'}"] += 1
        found = list(self._wrong(judged, made, release, rng))
        if time.monotonic() - started > SLOW_SECONDS:
            found.append(f"it took {time.monotonic() - started:.0f} seconds")
        yield from (Finding(self.seed, number, kind, lab, what) for what in found)

    def neighbor(self) -> Iterator[Finding]:
        """Judge an honest submission, as everybody's neighbor, and an empty one."""
        for answered in (True, False):
            content = json.dumps(labs.submission("types", answers={}, answered=answered)).encode()
            judged = judge_task(Task("n", "types", "k", content), labs.release("types"), self.sandbox, limits=LIMITS)
            right = [r.points for r in judged.results] == [r.max_points * answered for r in judged.results]
            if judged.reason or not right:
                yield Finding(self.seed, -1, "neighbor", "types", f"{judged.reason} {judged.results}")

    def _wrong(self, judged: Judged, made: Mutant, release: NotebookNode, rng: random.Random) -> Iterator[str]:
        if self.canary in judged.graded + judged.reason:
            yield "it leaked the environment"
        if judged.reason:
            if made.kind not in ("bytes", "structure") or re.search("judge itself|sandbox|worker", judged.reason):
                yield f"it was not graded: {judged.reason}"
            return
        wanted = list(notebooks.graded_cells(release))
        if [r.grade_id for r in judged.results] != wanted:
            yield f"exercises were lost: {[r.grade_id for r in judged.results]} of {wanted}"
            return
        yield from self._misjudged(judged, made, release, rng)

    def _misjudged(self, judged: Judged, made: Mutant, release: NotebookNode, rng: random.Random) -> Iterator[str]:
        for result in judged.results:
            exercise = result.grade_id.removeprefix("check-")
            if type(result.points) is not int or not 0 <= result.points <= result.max_points:
                yield f"{exercise}: {result.points!r} of {result.max_points} points"
            elif not result.points and rng.random() > 0.3:
                continue  # nothing was raised; whether something was lost is looked at in some cases
            elif exercise in made.touched or made.kind in ("bytes", "structure"):
                yield from self._unfair(result.points, result.remarks, exercise, made, release)

    def _unfair(
        self, points: int, remarks: tuple[str, ...], exercise: str, made: Mutant, release: NotebookNode
    ) -> Iterator[str]:
        """Compare with the points that the same code gets in one process, in the sandbox; a lie, with its twin's."""
        self.counts["compared"] += 1
        for seeds in ([1], list(range(2, 15))):  # the second time for answers whose points change with the inputs
            worth = self._worth(exercise, made, release, seeds)
            if worth is None or min(worth) <= points <= max(worth):
                return
            if points < min(worth) and NO_TIME.search(" ".join(remarks)):
                return
        self.counts["unequal"] += 1
        told = "raised" if points > max(worth) else "lost"
        yield f"{exercise}: {told}: {points} points, in one process {sorted(set(worth))} ({' / '.join(remarks)[:200]})"

    def _worth(self, exercise: str, made: Mutant, release: NotebookNode, seeds: list[int]) -> list[int] | None:
        """Return the points of the answer's code, checked in its own process; None where that ends the process."""
        notebook = mended(made.content, release).notebook
        with Session(self.sandbox, release, limits=LIMITS) as session:
            for cell in notebook.cells:
                if notebooks.marks(cell).get("grade_id") == f"check-{exercise}":
                    break
                if cell.cell_type == "code" and not notebooks.marks(cell).get("grade"):
                    session.run_cell(made.twins.get(cell.id.removeprefix("answer-"), cell.source))
            called = re.search(r"checks\.(\w+)\((.*)\)", cell.source)
            run = session.run_cell(ASK.format(function=called[1], names=called[2], seeds=seeds))
        printed = "".join(output.get("text", "") for output in run.outputs if output["output_type"] == "stream")
        if run.status == "error":
            return [0]  # a name that is not defined
        told = re.search(r"POINTS (\[.*\])", printed)
        points = json.loads(told[1]) if told else []
        return points if len(points) == len(seeds) else None


def cut(notebook: NotebookNode, exercises: list[str]) -> NotebookNode:
    """Leave only some exercises in a lab."""
    ends = tuple(f"-{exercise}" for exercise in exercises)
    kinds = ("task-", "answer-", "check-")
    notebook.cells = [c for c in notebook.cells if not c.id.startswith(kinds) or c.id[c.id.index("-") :].endswith(ends)]
    return notebook


def fuzz(numbers: range, *, seed: int, seconds: float = math.inf) -> tuple[list[Finding], Counter[str]]:
    """Judge the cases of these numbers, or as many as the seconds allow; return what was found, and counts.

    What is found is written to stderr at once: a run that is stopped has told it.
    """
    end = time.monotonic() + seconds
    findings: list[Finding] = []
    with Sandbox(limits=LIMITS, pool=1) as sandbox:
        fuzzer = Fuzzer(sandbox, seed=seed)
        for done, number in enumerate(numbers, start=1):
            found = list(fuzzer.case(number))
            for finding in found:
                print(finding, file=sys.stderr, flush=True)
            findings += found
            fuzzer.counts["cases"] += 1
            if time.monotonic() > end:
                break
            if done % NEIGHBORS == 0 or done == len(numbers):
                findings += fuzzer.neighbor()
    return findings, fuzzer.counts


def in_processes(
    count: int, *, seed: int, workers: int, more: Sequence[str] = ()
) -> tuple[list[Finding], Counter[str]]:
    """Share the cases among processes of their own."""
    module = [sys.executable, "-W", "ignore", "-m", "tests.grading.fuzz"]
    command = [*module, f"--seed={seed}", f"--count={count}", *more]
    shares = [
        subprocess.Popen([*command, f"--share={share}/{workers}"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for share in range(workers)
    ]
    findings: list[Finding] = []
    counts: Counter[str] = Counter()
    for share in shares:
        told = share.communicate()[0].splitlines()
        if share.returncode or not told:
            findings.append(Finding(seed, -1, "crash", "", f"a process of the fuzzer ended with {share.returncode}"))
            continue
        said = json.loads(told[-1])
        findings += [Finding(**finding) for finding in said["findings"]]
        counts += Counter(said["counts"])
    return findings, counts


def main() -> int:
    """Fuzz, print what was found, and return 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case: to see one again")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.share:
        share, of = map(int, parsed.share.split("/"))
        numbers = range(parsed.first + share, parsed.first + parsed.count, of)
        findings, counts = fuzz(numbers, seed=parsed.seed, seconds=parsed.seconds)
        print(json.dumps({"findings": [asdict(f) for f in findings], "counts": counts}))
        return 0
    started = time.monotonic()
    more = (f"--first={parsed.first}", f"--seconds={parsed.seconds}")
    findings, counts = in_processes(parsed.count, seed=parsed.seed, workers=parsed.workers, more=more)
    print(f"{counts['cases']} cases in {time.monotonic() - started:.0f} s: {dict(sorted(counts.items()))}")
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
