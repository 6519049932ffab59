"""One warm process in its bubblewrap, as the grader holds it: starts kernels, hears of their ends."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from qlab.grading.inside.zygote import GO, LONGEST_REQUEST, SERVE
from qlab.grading.limits import Limits
from qlab.grading.sandbox import groups, handshake, view
from qlab.grading.sandbox.isolation import Isolation
from qlab.grading.sandbox.kernel import SANDBOX_ENDED, Ended, Kernel

WARM_SECONDS = 120.0
END_SECONDS = 5.0
Running = subprocess.Popen[bytes]


class SandboxFailed(RuntimeError):
    """The sandbox itself failed; nothing can be said of the submission."""


class WarmProcess:
    """A zygote: it forks a confined kernel whenever one is asked for.

    Errors:  SandboxFailed if it does not start.
    """

    def __init__(self, *, limits: Limits, isolation: Isolation | None, serve: str = SERVE) -> None:
        self.limits = limits
        self.isolation = isolation
        self.cpu_seconds = 0.0
        self.kernels: dict[int, Kernel] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._pids: dict[int, int] = {}
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process, self._inner = self._launch(theirs.fileno(), serve)
        self._await_warm()
        self.listener = threading.Thread(target=self._listen, name="qlab-sandbox", daemon=True)
        self.listener.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and self.control.fileno() >= 0

    def ends_within(self, seconds: float) -> bool:
        """Wait for a warm process that may be about to end, and all that came from it."""
        until = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            if self._inner >= 0:  # bubblewrap may end before what it held
                select.select([self._inner], [], [], max(0.0, until - time.monotonic()))
        return not self.alive

    def start_kernel(self) -> Kernel:
        """Fork one confined child and wait until it is ready to serve.

        Errors:  SandboxFailed if it cannot be confined or the zygote is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if self.isolation is not None:
            handshake.ask_who_sends(ours)
        with theirs, self._lock:
            self._count += 1
            kernel = Kernel(self._count, ours, most_bytes=self.limits.message_bytes, end=self._end)
            self.kernels[kernel.number] = kernel
            request = json.dumps({"start": kernel.number, "limits": self._confinement()}).encode()
            try:
                socket.send_fds(self.control, [request], [theirs.fileno()])
            except OSError:
                kernel.connection.close()
                raise SandboxFailed(f"the sandbox has ended: {self._complaint()}") from None
        self._await_ready(kernel)
        return kernel

    def close(self) -> None:
        """End the zygote and all that came from it."""
        with contextlib.suppress(OSError):  # it has ended before
            self.control.shutdown(socket.SHUT_RDWR)
        if not self.ends_within(END_SECONDS):
            self._kill()
            self.process.wait()
        self.listener.join(2 * END_SECONDS)
        self._close()

    def _close(self) -> None:
        groups.remove_left()
        self.control.close()
        self.complaints.close()
        if self._inner >= 0:
            os.close(self._inner)
            self._inner = -1

    def _launch(self, descriptor: int, serve: str) -> tuple[Running, int]:
        level = "unsafe" if self.isolation is None else "nested" if self.isolation.nested else "alone"
        command = [sys.executable, "-m", "qlab.grading.inside.zygote", str(descriptor), level, serve]
        if self.isolation is None:
            return self._popen(command, [descriptor], environment=view.unsafe_environment()), -1
        told, tells = os.pipe()
        wrapped = [
            *(self.isolation.bubblewrap, "--info-fd", str(tells)),
            *view.arguments(nested=self.isolation.nested, scratch_bytes=self.limits.scratch_bytes),
            *command,
        ]
        process = self._popen(wrapped, [descriptor, tells], environment=view.environment())
        os.close(tells)
        with open(told, "rb") as file:
            info = file.read()
        return process, handshake.descriptor_of(json.loads(info)["child-pid"]) if info else -1

    def _popen(self, command: Sequence[str], passed: list[int], *, environment: dict[str, str]) -> Running:
        nothing = subprocess.DEVNULL
        return subprocess.Popen(
            command,
            pass_fds=passed,
            stdin=nothing,
            stdout=nothing,
            stderr=self.complaints,
            env=environment,
            start_new_session=True,
        )

    def _confinement(self) -> dict[str, int]:
        limits = self.limits
        return {
            "memory_bytes": limits.memory_bytes,
            "scratch_bytes": limits.scratch_bytes,
            "processes": limits.processes,
            "open_files": limits.open_files,
            "cpu_seconds": int(limits.submission_seconds) + 1,
        }

    def _await_warm(self) -> None:
        ready = select.select([self.control], [], [], WARM_SECONDS)[0]
        report = self.control.recv(LONGEST_REQUEST) if ready else b""
        if not report:
            self._kill()
            self.process.wait()
            complaint = self._complaint()
            self._close()
            raise SandboxFailed(f"the sandbox did not start: {complaint}")
        self.cpu_seconds = json.loads(report)["cpu_seconds"]

    def _await_ready(self, kernel: Kernel) -> None:
        pid, trouble = handshake.await_ready(kernel.socket)
        if trouble:
            kernel.kill()
            raise SandboxFailed(f"a submission's process could not be confined: {trouble}; {self._complaint()}")
        if self.isolation is not None:
            kernel.pidfd = handshake.descriptor_of(pid)
            self._put_into_group(kernel, pid)
        kernel.socket.sendall(GO)

    def _put_into_group(self, kernel: Kernel, pid: int) -> None:
        """Let the kernel count its memory and processes, where that is allowed; the zygote watches them anyway."""
        parent = groups.parent()
        if parent is None or not pid:
            return
        limits = self.limits
        group = parent.new_group(
            memory_bytes=limits.memory_bytes + limits.scratch_bytes,  # what lies in scratch counts as memory too
            processes=limits.processes,
        )
        try:
            group.add(pid)
        except OSError as error:
            group.remove()
            kernel.kill()
            raise SandboxFailed(f"a submission's process could not be limited: {error}") from error
        kernel.group = group

    def _listen(self) -> None:
        while True:
            try:
                report = self.control.recv(LONGEST_REQUEST)
            except OSError:
                report = b""
            if not report:
                break
            self._take(json.loads(report))
        self.ends_within(END_SECONDS)
        for number in list(self.kernels):
            self.kernels.pop(number).has_ended(Ended(-signal.SIGKILL, SANDBOX_ENDED, 0.0))

    def _take(self, report: dict[str, Any]) -> None:
        if "ended" in report:
            kernel = self.kernels.pop(report["ended"], None)
            if kernel is not None:
                kernel.has_ended(Ended(report["code"], report["reason"], report["cpu_seconds"]))

    def _end(self, number: int) -> None:
        try:
            self.control.send(json.dumps({"end": number}).encode())
        except OSError:
            self._kill()

    def _kill(self) -> None:
        if self._inner >= 0:
            try:
                signal.pidfd_send_signal(self._inner, signal.SIGKILL)
            except ProcessLookupError:
                return
        self.process.kill()

    def _complaint(self) -> str:
        """Return the last line the zygote wrote, for whoever runs the grader."""
        size = os.fstat(self.complaints.fileno()).st_size
        last = os.pread(self.complaints.fileno(), 4096, max(0, size - 4096)).decode(errors="replace").strip()
        return last.splitlines()[-1] if last else "it said nothing"
