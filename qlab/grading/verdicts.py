"""Verdicts of the judge: a check of the release run here, on stand-ins for what the learner defined in the sandbox."""

import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from qlab.checks.learner import Crashed
from qlab.checks.report import Outcome, PartResult, Verdict, judging
from qlab.grading.check_cells import CheckCell
from qlab.grading.learner_process import LearnerProcess

READING_SECONDS = 5.0  # beyond a check's own limit, for the judge to read what came back


@dataclass(frozen=True)
class Draw:
    """What a check draws its inputs from: the same in a second attempt, which is no second chance."""

    seed: int
    global_seed: int


def fresh_draw() -> Draw:
    """Return seeds that follow from nothing the learner can know, and not from each other."""
    return Draw(secrets.randbits(32), secrets.randbits(48))


def judged(cell: CheckCell, process: LearnerProcess, draw: Draw, *, seconds: float, lost: Mapping[str, str]) -> Verdict:
    """Run a check on what the process defines; whatever that does is in the verdict.

    `lost` tells why cells did not end well, by their names and by the names that they were to define.
    """
    with process.peer.within(seconds), judging(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.global_seed)
        try:
            with _alarm(seconds + READING_SECONDS, process):
                functions, missing = process.look_up(cell.names)
                if process.peer.ended:
                    return crashed(cell, process.peer.ended)
                if missing:
                    return crashed(cell, _missing(missing, lost.get(missing) or lost.get(cell.answer)))
                return cell.check(*functions, seed=draw.seed)
        except Exception as error:  # outside every part of the check; its text may hold what the check drew
            unread = f"What your code gave could not be read ({type(error).__name__})."
            return crashed(cell, process.peer.ended or unread)


def crashed(cell: CheckCell, sentence: str) -> Verdict:
    """Return a verdict of no points that says why the check was not run."""
    part = PartResult("the whole check", Outcome.CRASHED, sentence, "", sentence)
    return Verdict(cell.check.topic, cell.check.exercise, cell.check.points, (part,), 0, graded=True)


def _missing(name: str, why: str | None) -> str:
    said = f"NameError: name '{name}' is not defined"
    return f"{said}: the cell that was to define it did not end well ({why})" if why else said


def after_death(verdict: Verdict, ended: str, why: str) -> Verdict:
    """Let the part that found the process dead say why it is, and those after it that they were not checked."""
    parts, said = list[PartResult](), f"While this was checked, {why}."
    for part in verdict.parts:
        if part.message == ended:
            parts.append(_with_thought(part, said))
            said = f"This was not checked: the process had ended before ({why})."
        else:
            parts.append(part)
    return replace(verdict, parts=tuple(parts))


def _with_thought(part: PartResult, thought: str) -> PartResult:
    return replace(part, thought=part.thought or thought)


@contextmanager
def _alarm(seconds: float, process: LearnerProcess) -> Iterator[None]:
    """Stop the judge's own work on what came back, where it takes too long; only a main thread has an alarm."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        process.give_up(f"what it returned took longer than {seconds:g} seconds to read")
        raise Crashed(process.peer.ended)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)  # it may ring until this line is done
        finally:
            signal.signal(signal.SIGALRM, before)
