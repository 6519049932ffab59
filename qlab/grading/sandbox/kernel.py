"""One confined child, as the judge holds it: a connection, an end, and why it ended."""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from qlab.grading.sandbox.groups import Group
from qlab.grading.wire import Connection

REPORT_SECONDS = 5.0
SANDBOX_ENDED = "the sandbox has ended"
OUT_OF_MEMORY = "it used more memory than a submission may"


@dataclass(frozen=True)
class Ended:
    """What the zygote reported of a child that ended."""

    code: int
    reason: str
    cpu_seconds: float


class Kernel:
    """A confined process that runs one learner's code; its socket is the only way to it.

    Units:   `cpu_seconds` counts it and all it started, once it has ended.
    """

    def __init__(self, number: int, sock: socket.socket, *, most_bytes: int, end: Callable[[int], None]) -> None:
        self.number = number
        self.socket = sock
        self.connection = Connection(sock, most_bytes=most_bytes)
        self.pidfd = -1
        self.group: Group | None = None
        self.after: Callable[[], None] | None = None  # ends what was started for this kernel alone
        self._end = end
        self._ended: Ended | None = None
        self._reported = threading.Event()
        self._killed = False
        self._lock = threading.Lock()

    @property
    def cpu_seconds(self) -> float:
        return 0.0 if self._ended is None else self._ended.cpu_seconds

    def kill(self) -> None:
        """End it and all it started, and wait until they are gone."""
        with self._lock:
            if not self._reported.is_set():
                self._killed = True
                self._signal()
                self._end(self.number)
                self._reported.wait(REPORT_SECONDS)
            self._close()
            if self.after is not None:
                self.after()
                self.after = None

    def why_ended(self) -> str:
        """Return one sentence of why it ended, or nothing while it lives."""
        if not self._reported.is_set() and not self._looks_ended():
            return ""
        if not self._reported.wait(REPORT_SECONDS):
            return "it closed its connection to the judge"
        return self._sentence()

    @property
    def sandbox_failed(self) -> bool:
        """Say whether it ended with its sandbox, through no doing of the learner's."""
        return self._ended is not None and self._ended.reason == SANDBOX_ENDED

    def has_ended(self, report: Ended) -> None:
        """Take the zygote's report; called once, from the thread that listens to the zygote."""
        if self.group is not None:
            if not report.reason and not self._killed and self.group.ran_out_of_memory():
                report = replace(report, reason=OUT_OF_MEMORY)
            self.group.remove()
        self._ended = report
        self._reported.set()

    def _sentence(self) -> str:
        report = self._ended
        if report is None:
            return ""
        if report.reason:
            return report.reason
        if self._killed:
            return "it was stopped"
        if report.code >= 0:
            return f"its process ended (exit status {report.code})"
        return f"its process was killed by signal {signal.Signals(-report.code).name.removeprefix('SIG')}"

    def _looks_ended(self) -> bool:
        try:
            if self.pidfd >= 0 and select.select([self.pidfd], [], [], 0)[0]:
                return True
            readable = select.select([self.socket], [], [], 0)[0]
            return bool(readable) and self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except (BlockingIOError, TimeoutError):  # another thread has just read it
            return False
        except (OSError, ValueError):  # closed here, or reset there
            return True

    def _signal(self) -> None:
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _close(self) -> None:
        self.connection.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
