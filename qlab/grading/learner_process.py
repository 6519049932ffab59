"""The sandboxed process of one submission, as its session holds it: alive, or dead for a reason."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from qlab.checks.learner import Crashed, NotAnswered
from qlab.grading.forbidden import Use
from qlab.grading.peer import Peer
from qlab.grading.replay import Entry

GRACE_SECONDS = 5.0  # for a cell to end by itself after its alarm rang
READY_SECONDS = 60.0
STARTS = 2
TOO_LATE = ("it ran for", "what it returned took")
NOT_THE_LEARNERS = ("the sandbox has ended", "the grader has ended")


class Ungradable(Exception):
    """Grading itself failed, for the reason the text names: there is no grade, neither a pass nor a zero."""


@runtime_checkable
class Kernels(Protocol):
    """Where processes come from: a sandbox, or what stands for one."""

    def start_kernel(self) -> Any: ...


@dataclass(frozen=True)
class Death:
    """Why a process ended, whether it was late, and whether the learner's code can have been the reason."""

    why: str
    late: bool = False
    by_infrastructure: bool = False


class Died(Exception):
    """The process ended while a cell ran."""

    def __init__(self, death: Death, seconds: float) -> None:
        super().__init__(death.why)
        self.death, self.seconds = death, seconds


class LearnerProcess:
    """One confined process, the connection to it, and the cells that ran in it.

    Errors:  Ungradable if it cannot be started.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.done: list[Entry] = []
        for _ in range(STARTS):
            try:
                self._kernel = kernels.start_kernel()
            except Exception as error:  # whatever a sandbox raises, it is not the learner's doing
                raise Ungradable(f"the sandbox failed: {error}") from error
            self.peer = Peer(self._kernel.connection, trusted=True)
            if self.answers():
                return
            why = self._kernel.why_ended() or self.peer.ended
            self._kernel.kill()
        raise Ungradable(f"the sandbox failed: a process of its own making did not start ({why})")

    def answers(self, *, seconds: float = READY_SECONDS) -> bool:
        """Tell whether the process is there."""
        with contextlib.suppress(Crashed, NotAnswered):
            self.peer.call("ready", seconds=seconds)
        return not self.peer.ended

    def give_up(self, why: str) -> None:
        """Count the process as ended: what it sent has kept the judge too long."""
        self.peer.ended = self.peer.ended or why

    def run_cell(self, source: str, name: str, *, seconds: float, output_bytes: int) -> tuple[Any, float]:
        """Run a cell; return what the sandbox sent of it, which may be anything, and the seconds it took.

        Errors:  Died if the process ended.
        """
        started = time.monotonic()
        sent = None
        try:
            asked = (source, float(seconds), name, output_bytes)
            sent = self.peer.call("run_cell", *asked, seconds=seconds + GRACE_SECONDS)
        except (Crashed, NotAnswered) as error:  # the cell may have broken what runs it
            sent = {"status": "error", "outputs": [_error(str(error))]}
        taken = time.monotonic() - started
        if death := self.death():
            raise Died(death, taken)
        return sent, taken

    def look_up(self, names: Sequence[str]) -> tuple[list[Any], str]:
        """Return the learner's globals of these names, and the first name that is not there."""
        found = []
        for name in names:
            try:
                found.append(self.peer.call("lookup", name))
            except (Crashed, NotAnswered):
                return found, name
        return found, ""

    def watch(self, forbidden: Sequence[str], given: Sequence[str], *, seconds: float = READY_SECONDS) -> None:
        """Have the sandbox note from now on which forbidden names the learner's functions of the given names use."""
        with contextlib.suppress(Crashed, NotAnswered):
            self.peer.call("watch", list(forbidden), list(given), seconds=seconds)

    def uses(self, forbidden: Sequence[str], *, seconds: float = READY_SECONDS) -> list[Use]:
        """Return which of these names were used since `watch`, as far as the sandbox tells."""
        told: Any = None
        with contextlib.suppress(Crashed, NotAnswered):
            told = self.peer.call("uses", seconds=seconds)
        pairs = [entry for entry in told if type(entry) is tuple and len(entry) == 2] if type(told) is list else []
        texts = [(name, how) for name, how in pairs if type(name) is type(how) is str]
        return [Use(name, how[:100]) for name, how in texts if name in forbidden]

    def death(self) -> Death | None:
        """Tell why the process has ended, if a call found it so."""
        if not self.peer.ended:
            return None
        if self.peer.ended.startswith(TOO_LATE):
            return Death(self.peer.ended, late=True)
        if self.peer.ended.startswith("its process was stopped"):
            return Death(self.peer.ended)
        why = self._kernel.why_ended() or self.peer.ended
        return Death(why, by_infrastructure=why.startswith(NOT_THE_LEARNERS))

    def kill(self) -> float:
        """End the process and all it started, and return its seconds of processor time."""
        self._kernel.kill()
        return self._kernel.cpu_seconds


def _error(text: str) -> dict[str, Any]:
    name, _, value = text.partition(": ")
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": [text]}
