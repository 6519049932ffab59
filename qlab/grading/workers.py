"""Judging on the cores of this machine: worker processes that judge, and never run a line of a learner's."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import nbformat

from qlab.grading import judge, own_memory  # noqa: F401 - judge is imported once, before the workers are forked
from qlab.grading.lending import BorrowedSandbox, lend
from qlab.grading.limits import Limits
from qlab.grading.nursery import Nursery
from qlab.grading.sandbox import LastingSandbox
from qlab.grading.work import USUAL, Judged, Task, judge_task

ATTEMPTS = 2
SECONDS_TO_LEAVE = 5.0
GRACE_SECONDS = 60.0  # beyond a submission's own limit, before a worker counts as stuck


def map_locally(
    tasks: Iterable[Task], *, releases: Mapping[str, str], workers: int, limits: Limits = USUAL, unsafe: bool = False
) -> Iterator[Judged]:
    """Judge tasks in worker processes and yield each one's end, in the order in which they come to it.

    Errors:  NoIsolation, before the first is judged; ValueError if there are to be no workers.
    """
    if workers < 1:
        raise ValueError(f"the number of workers must be at least 1, got {workers}")
    pending = iter(tasks)
    first = next(pending, None)
    if first is None:
        return
    nursery = Nursery(partial(_work, releases=releases, limits=limits))  # before there are threads
    try:
        with contextlib.closing(LastingSandbox(limits=limits, unsafe=unsafe, pool=workers)) as sandbox:
            crew = _Crew(nursery, sandbox, limits.submission_seconds + GRACE_SECONDS)
            try:
                yield from crew.judge(chain([first], pending), workers)
                crew.dismiss()
                nursery.close(seconds=SECONDS_TO_LEAVE)
            finally:
                nursery.close()
                crew.wait()
    finally:
        nursery.close()


@dataclass
class _Worker:
    """A worker process, and what it is at."""

    pid: int
    pipe: Connection
    thread: threading.Thread
    task: Task | None = None
    attempt: int = 0
    since: float = 0.0


class _Crew:
    """The workers of one run: each is given a task at a time, and one that dies is replaced."""

    def __init__(self, nursery: Nursery, sandbox: LastingSandbox, longest_seconds: float) -> None:
        self._nursery, self._sandbox, self._longest = nursery, sandbox, longest_seconds
        self._workers: list[_Worker] = []
        self._again: list[tuple[Task, int]] = []

    def judge(self, tasks: Iterator[Task], most: int) -> Iterator[Judged]:
        while True:
            busy = [worker for worker in self._workers if worker.task is not None]
            while len(busy) < most and (following := self._following(tasks)):
                busy.append(self._given(*following))
            if not busy:
                return
            yield from self._done(busy)

    def dismiss(self) -> None:
        """Tell the workers that nothing more comes: each ends by itself."""
        for worker in self._workers:
            worker.pipe.close()

    def wait(self) -> None:
        """Wait until the lender has ended what the workers held, which are gone."""
        self.dismiss()
        for worker in self._workers:
            worker.thread.join(timeout=10)

    def _following(self, tasks: Iterator[Task]) -> tuple[Task, int] | None:
        if self._again:
            return self._again.pop()
        task = next(tasks, None)
        return None if task is None else (task, 1)

    def _given(self, task: Task, attempt: int) -> _Worker:
        worker = next((worker for worker in self._workers if worker.task is None), None) or self._hired()
        worker.task, worker.attempt, worker.since = task, attempt, time.monotonic()
        # a worker that has died since: its end is seen, and its task given to another, where results are read
        with contextlib.suppress(OSError):
            worker.pipe.send_bytes(task.as_bytes())
        return worker

    def _hired(self) -> _Worker:
        ours, theirs = Pipe()
        asked, asker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, asker:
            pid = self._nursery.start(theirs.fileno(), asker.fileno())
        thread = threading.Thread(target=lend, args=(self._sandbox, asked), daemon=True)
        thread.start()
        self._workers.append(_Worker(pid, ours, thread))
        return self._workers[-1]

    def _done(self, busy: list[_Worker]) -> Iterator[Judged]:
        ready = wait([worker.pipe for worker in busy], timeout=1.0)
        for worker in busy:
            if worker.pipe in ready:
                try:
                    judged = Judged.from_bytes(worker.pipe.recv_bytes())
                except (EOFError, OSError):
                    yield from self._lost(worker, "the worker that judged it died twice")
                else:
                    worker.task = None
                    yield judged
            elif time.monotonic() - worker.since > self._longest:
                os.kill(worker.pid, signal.SIGKILL)
                yield from self._lost(worker, f"judging it took longer than {self._longest:.0f} seconds, twice")

    def _lost(self, worker: _Worker, reason: str) -> Iterator[Judged]:
        """Let a worker go, and try its task once more with another."""
        self._workers.remove(worker)
        worker.pipe.close()
        task = worker.task
        if task is not None and worker.attempt < ATTEMPTS:
            self._again.append((task, worker.attempt + 1))
        elif task is not None:
            yield Judged(task.student, task.notebook, task.key, reason=reason)


def _work(pipe: Connection, borrowed: socket.socket, *, releases: Mapping[str, str], limits: Limits) -> None:
    """Judge one task after another, until the grader is gone."""
    import torch  # noqa: PLC0415 - imported long before, by the process this one is forked from

    torch.set_num_threads(1)
    own_memory.bound()
    notebooks = {name: nbformat.reads(text, as_version=4) for name, text in releases.items()}
    sandbox = BorrowedSandbox(borrowed, limits=limits)
    while True:
        try:
            task = Task.from_bytes(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(judge_task(task, notebooks[task.notebook], sandbox, limits=limits).as_bytes())
