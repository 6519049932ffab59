"""One submission on its way through the judge: its cells run in the sandbox, its checks run here."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

from nbformat import NotebookNode

from qlab.checks.report import Verdict
from qlab.grading import cell_runs, forbidden, verdicts
from qlab.grading.cell_runs import CellRun
from qlab.grading.check_cells import CheckCell, NotACheck, bound_names, check_cells, used_names
from qlab.grading.learner_process import (
    GRACE_SECONDS,
    READY_SECONDS,
    Death,
    Died,
    Kernels,
    LearnerProcess,
    Ungradable,
)
from qlab.grading.limits import Limits
from qlab.grading.replay import Entry, History

__all__ = ["CellRun", "Session", "Ungradable"]
USUAL = Limits()
LONGEST_CELL, LONGEST_NOTEBOOK = 100_000, 1_000_000  # characters of code: the judge reads what it has run
RESTARTS_EACH = 4  # of the process, for each check: a bound on mischief, where time is the first
MOST_FAILURES = 2  # of the sandbox, in one submission
NO_ANSWERS: Mapping[str, str] = MappingProxyType({})


class NoMore(Exception):
    """The submission has used up its time or its processes; the text says which."""


class Session:
    """The cells and checks of one submission, in the order in which they are asked for.

    A process that dies costs the cell or the check that it died in, once a second process, in which nothing ran that
    it does not need, has died of it as well. Those after it get a process in which what they need is run again.
    Units:   `cpu_seconds` counts the sandboxed processes that have ended.
    Errors:  Ungradable if a graded cell of the release is no check and, from every method, if the sandbox fails.
    """

    def __init__(self, sandbox: Kernels, release: NotebookNode, *, limits: Limits = USUAL) -> None:
        try:
            self.checks = check_cells(release)
        except NotACheck as error:
            raise Ungradable(str(error)) from None
        self.count, self.cpu_seconds = 0, 0.0
        self._kernels, self._limits, self._history = sandbox, limits, History(release)
        self._process: LearnerProcess | None = None
        self._restarts_left, self._failures = RESTARTS_EACH * len(self.checks) + 2, 0
        self._deadline = math.inf
        self._lost: dict[str, str] = {}
        self._failed: set[str] = set()
        self._characters_left, self._output_bytes_left = LONGEST_NOTEBOOK, limits.notebook_output_bytes

    def run_cell(self, source: str, *, name: str = "") -> CellRun:
        """Run a cell in the sandbox and return what it gave."""
        self.count += 1
        if len(source) > min(LONGEST_CELL, self._characters_left):
            return cell_runs.failed(
                "NotRun", f"this cell was not run: {len(source):,} characters are too many", "error"
            )
        self._characters_left -= len(source)
        names, again = used_names(source), False
        while True:
            try:
                process = self._ready(names)
                sent, taken = process.run_cell(source, name, **self._bounds())
            except NoMore as reason:
                return cell_runs.failed("NotRun", f"this cell was not run: {reason}", "timeout")
            except Died as died:
                if again := self._may_try_again(died.death, names, again):
                    continue
                self._note(name, source, died.death.why)
                return _of_the_dead(died)
            run = cell_runs.read(sent, count=self.count, seconds=taken, most_bytes=2 * self._limits.output_bytes)
            if run.status != "ok":
                self._failed.add(source)
                self._note(name, source, cell_runs.error_of(run))
            if run.status != "timeout":
                process.done.append(self._history.add(source, name))
            run, taken_bytes = cell_runs.kept(run, self._output_bytes_left)
            self._output_bytes_left -= taken_bytes
            return run

    def run_check(self, source: str, *, answers: Mapping[str, str] = NO_ANSWERS) -> Verdict:
        """Judge the release's check cell that holds this source; `answers` are the submission's, by `grade_id`.

        Errors:  ValueError if the release has no such cell.
        """
        for cell in self.checks.values():
            if cell.source == source.strip():
                return self.judge(cell, answers=answers)
        raise ValueError(f"the release has no check cell `{source.strip()[:80]}`")

    def judge(self, cell: CheckCell, *, answers: Mapping[str, str] = NO_ANSWERS) -> Verdict:
        """Judge a check cell of the release."""
        self.count += 1
        named, draw, again = forbidden.forbidden_for(cell.check), verdicts.fresh_draw(), False
        while True:
            try:
                process = self._ready(cell.names)
                process.watch(named, cell.names, seconds=self._patience())
                seconds = min(self._limits.check_seconds, self._time_left())
            except NoMore as reason:
                return verdicts.crashed(cell, f"This was not checked: {reason}.")
            verdict = verdicts.judged(cell, process, draw, seconds=seconds, lost=self._lost)
            uses = [*self._uses(cell, named, answers), *process.uses(named, seconds=self._patience())]
            if death := process.death():
                verdict = verdicts.after_death(verdict, process.peer.ended, death.why)
                if again := self._may_try_again(death, cell.names, again):
                    continue
            return forbidden.refused(verdict, uses)

    def close(self) -> None:
        """End the sandboxed process; a second time does nothing."""
        if self._process is not None:
            self.cpu_seconds += self._process.kill()
            self._process = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, names: Collection[str]) -> LearnerProcess:
        """Return a process in which the cells have run that these names need.

        Errors:  NoMore once the time or the processes are used up, Ungradable if the sandbox fails.
        """
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self._limits.submission_seconds
        while True:
            self._time_left()
            if self._restarts_left < 0:
                raise NoMore("the notebook has ended its own process too often")
            if self._process is None:
                self._process = LearnerProcess(self._kernels)
            elif not self._process.answers(seconds=self._patience()):
                self._bury(self._process.death())
                continue
            missing = self._history.missing(names, self._process.done)
            if missing is None:
                self.close()
            elif self._catch_up(self._process, missing):
                return self._process

    def _catch_up(self, process: LearnerProcess, missing: Sequence[Entry]) -> bool:
        for entry in missing:
            try:
                process.run_cell(entry.source, entry.name, **self._bounds())
            except Died as died:
                if not self._bury(died.death):
                    self._history.drop(entry)
                    self._note(entry.name, entry.source, died.death.why)
                return False
            process.done.append(entry)
        return True

    def _may_try_again(self, death: Death, names: Collection[str], again: bool) -> bool:
        """Put a dead process away; tell whether something else than what ran last may have ended it."""
        process = self._process
        if self._bury(death):
            return True
        return not (again or death.late or process is None or self._history.is_least(names, process.done))

    def _note(self, name: str, source: str, why: str) -> None:
        self._lost |= dict.fromkeys({name, *bound_names(source)} - {""}, why)

    def _uses(self, cell: CheckCell, named: Sequence[str], answers: Mapping[str, str]) -> Sequence[forbidden.Use]:
        """Read what the check is given, and what it uses of the cells that ran."""
        answer, ran = answers.get(cell.answer, ""), self._history.sources
        return forbidden.named_in_run(ran, answer, named, functions=cell.names, failed=self._failed)

    def _bury(self, death: Death) -> bool:
        """Put a dead process away and tell whether the sandbox is to blame, so that what ran may run once more.

        Errors:  Ungradable if the sandbox fails again and again.
        """
        self.close()
        if not death.by_infrastructure:
            self._restarts_left -= 1
            return False
        self._failures += 1
        if self._failures > MOST_FAILURES:
            raise Ungradable(f"the sandbox failed: {death.why}")
        return True

    def _bounds(self) -> dict[str, Any]:
        seconds = min(self._limits.cell_seconds, max(self._left(), 0.1))
        return {"seconds": seconds, "output_bytes": self._limits.output_bytes}

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _time_left(self) -> float:
        """Return the seconds that the submission has left.

        Errors:  NoMore if there are none.
        """
        if (left := self._left()) <= 0:
            raise NoMore(f"the notebook ran for {self._limits.submission_seconds:g} seconds and was stopped")
        return left

    def _patience(self) -> float:
        """Return how long the process may take for what the judge itself asks of it."""
        return min(READY_SECONDS, max(self._left(), GRACE_SECONDS))


def _of_the_dead(died: Died) -> CellRun:
    name, status = ("TimeoutError", "timeout") if died.death.late else ("ProcessEnded", "died")
    return cell_runs.failed(name, f"this cell did not end by itself: {died.death.why}", status, seconds=died.seconds)
