"""One warm sandbox for many workers: the grader starts the processes and lends each worker its end of their sockets."""

import json
import socket
from typing import Any

from qlab.grading.limits import Limits
from qlab.grading.sandbox import Kernel, LastingSandbox, Sandbox
from qlab.grading.wire import Connection

LONGEST_MESSAGE = 8192


class Lost(RuntimeError):
    """The grader that lends the sandbox could not start a process in it, or is gone."""


def lend(sandbox: LastingSandbox, asker: socket.socket) -> None:
    """Answer one worker until it is gone; what it still held is ended then."""
    held: dict[int, Kernel] = {}
    try:
        while message := asker.recv(LONGEST_MESSAGE):
            _answer(json.loads(message), asker, held, sandbox)
    except OSError:
        return
    finally:
        for kernel in held.values():
            kernel.kill()
        asker.close()


def _answer(message: dict[str, Any], asker: socket.socket, held: dict[int, Kernel], sandbox: LastingSandbox) -> None:
    number = message["kernel"]
    if message["ask"] == "start":
        try:
            kernel = sandbox.start_kernel()
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
