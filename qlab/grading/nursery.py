"""Workers that are forked, not started: a small process made before the grader has threads forks each on demand."""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import NoReturn

PID = struct.Struct("!i")
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, Linux: prctl(2)
Work = Callable[[Pipe, socket.socket], None]


class Nursery:
    """A process that forks workers; it and all of them end when the grader does, however that ends."""

    def __init__(self, work: Work) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of threads; a notebook has some
            self._pid = os.fork()
        if self._pid == 0:
            _forked(lambda: _serve(theirs, work), keep=theirs.fileno())
        theirs.close()

    def start(self, pipe: int, lender: int) -> int:
        """Fork a worker that takes tasks from one descriptor and borrows from the other, and return its process id.

        Errors:  OSError if the nursery is gone.
        """
        socket.send_fds(self._control, [b"start"], [pipe, lender])
        answer = self._control.recv(PID.size)
        if not answer:
            raise OSError("the process that forks the workers has ended")
        return PID.unpack(answer)[0]

    def close(self, *, seconds: float = 0.0) -> None:
        """End the nursery and its workers, which are given some seconds to end by themselves; twice does nothing."""
        if not self._pid:
            return
        self._control.close()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                self._pid = 0
                return
            time.sleep(0.005)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0


def _serve(control: socket.socket, work: Work) -> None:
    """Fork workers until the grader closes its end, then wait for them: their processor time counts as the grader's."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 16, 2)
        if not message:
            break
        _reap(os.WNOHANG)
        pipe, lender = descriptors
        child = os.fork()
        if child == 0:
            control.close()
            with Pipe(pipe) as tasks, socket.socket(fileno=lender) as borrowed:
                _forked(lambda: work(tasks, borrowed))
        os.close(pipe)
        os.close(lender)
        control.send(PID.pack(child))
    _reap(0)


def _reap(how: int) -> None:
    """Take note of the workers that have ended, or wait for them all."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            continue


def _forked(run: Callable[[], None], *, keep: int | None = None) -> NoReturn:
    """Run what a forked process is there for, and end it there: nothing of its parent's is unwound or flushed."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's to answer
        if keep is not None:
            os.closerange(3, keep)
            os.closerange(keep + 1, 65536)
            silent = os.open(os.devnull, os.O_RDWR)
            os.dup2(silent, 0)
            os.dup2(silent, 1)
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
