"""One warm sandbox for many workers: the grader starts the processes and lends each worker its end of their sockets."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from qlab.grading.limits import Limits
from qlab.grading.sandbox import Kernel, NoIsolation, Sandbox
from qlab.grading.wire import Connection

LONGEST_MESSAGE = 8192
ATTEMPTS = 2


class Lost(RuntimeError):
    """The grader that lends the sandbox could not start a process in it, or is gone."""


class Lender:
    """The grader's side: it owns the sandbox, and starts a new one when that has ended.

    Errors:  NoIsolation, as the sandbox raises it.
    """

    def __init__(self, *, limits: Limits, unsafe: bool, pool: int) -> None:
        self._options = {"limits": limits, "unsafe": unsafe, "pool": pool}
        # a sandbox dies with the thread that started it, so one thread starts them all and lives as long as they do
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandboxes")
        self._lock = threading.Lock()
        try:
            self._sandbox = self._starter.submit(self._opened).result()
        except BaseException:
            self._starter.shutdown()
            raise

    def close(self) -> None:
        with self._lock:
            self._starter.submit(self._sandbox.__exit__, None, None, None).result()
        self._starter.shutdown()

    def serve(self, asker: socket.socket) -> None:
        """Answer one worker until it is gone; what it still held is ended then."""
        held: dict[int, Kernel] = {}
        try:
            while message := asker.recv(LONGEST_MESSAGE):
                self._answer(json.loads(message), asker, held)
        except OSError:
            return
        finally:
            for kernel in held.values():
                kernel.kill()
            asker.close()

    def _answer(self, message: dict[str, Any], asker: socket.socket, held: dict[int, Kernel]) -> None:
        number = message["kernel"]
        if message["ask"] == "start":
            try:
                kernel = self._start()
            except Exception as error:  # whatever stopped it is told to the worker, and costs no other
                asker.send(json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]}).encode())
                return
            held[number] = kernel
            socket.send_fds(asker, [b"{}"], [kernel.connection.socket.fileno()])
            return
        kernel = held[number]
        if message["ask"] == "kill":
            kernel.kill()
            del held[number]
        why, cpu_seconds = kernel.why_ended(), kernel.cpu_seconds
        asker.send(json.dumps({"why": why[:1000], "cpu_seconds": cpu_seconds}).encode())

    def _start(self) -> Kernel:
        for attempt in range(ATTEMPTS):
            sandbox = self._sandbox
            try:
                return sandbox.start_kernel()
            except NoIsolation:
                raise
            except Exception:
                if attempt == ATTEMPTS - 1:
                    raise
                self._replace(sandbox)
        raise AssertionError("unreachable")

    def _replace(self, ended: Sandbox) -> None:
        with self._lock:
            if self._sandbox is ended:
                self._starter.submit(ended.__exit__, None, None, None).result()
                self._sandbox = self._starter.submit(self._opened).result()

    def _opened(self) -> Sandbox:
        return Sandbox(**self._options).__enter__()


class BorrowedSandbox(Sandbox):
    """The worker's side: a sandbox whose processes the grader starts and ends."""

    def __init__(self, lender: socket.socket, *, limits: Limits) -> None:
        self.limits = limits
        self._lender = lender
        self._count = 0

    def start_kernel(self) -> "BorrowedKernel":
        self._count += 1
        self._lender.send(json.dumps({"ask": "start", "kernel": self._count}).encode())
        message, descriptors, _, _ = socket.recv_fds(self._lender, LONGEST_MESSAGE, 1)
        if not message or not descriptors:
            raise Lost(json.loads(message)["error"] if message else "the grader is gone")
        connection = Connection(socket.socket(fileno=descriptors[0]), most_bytes=self.limits.message_bytes)
        return BorrowedKernel(self, self._count, connection)

    def ask(self, question: str, kernel: int) -> dict[str, Any]:
        self._lender.send(json.dumps({"ask": question, "kernel": kernel}).encode())
        answer = self._lender.recv(LONGEST_MESSAGE)
        if not answer:
            raise Lost("the grader is gone")
        return json.loads(answer)

    def close(self) -> None:
        self._lender.close()


class BorrowedKernel(Kernel):
    """A process in the grader's sandbox, used by one worker."""

    def __init__(self, sandbox: BorrowedSandbox, number: int, connection: Connection) -> None:
        self.connection = connection
        self._sandbox, self._number = sandbox, number
        self._why: str | None = None
        self._spent = 0.0

    @property
    def cpu_seconds(self) -> float:
        return self._spent

    def kill(self) -> None:
        if self._why is None:
            told = self._sandbox.ask("kill", self._number)
            self._why, self._spent = told["why"], told["cpu_seconds"]
            self.connection.close()

    def why_ended(self) -> str:
        return self._sandbox.ask("why", self._number)["why"] if self._why is None else self._why


@contextmanager
def lender(*, limits: Limits, unsafe: bool, pool: int) -> Iterator[Lender]:
    """Own a sandbox for as long as the block runs."""
    owner = Lender(limits=limits, unsafe=unsafe, pool=pool)
    try:
        yield owner
    finally:
        owner.close()
