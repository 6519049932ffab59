"""The warm process that submissions are forked from: it imports torch once, and runs no learner's code.

It takes requests over a control socket, `{"start": 7, …}` with one end of a socket pair, forks a child that
confines itself and serves that socket, and reports `{"ended": 7, …}`. It ends when the control socket does.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from qlab.grading.inside import confine, zygote_memory, zygote_watch
from qlab.grading.inside import confine_calls as calls

SERVE = "qlab.grading.inside.main.serve"
READY, GO, FAILED = b"R", b"G", b"F"
LOOK_EVERY_MS = 50
MANY_THREADS = 8
LONGEST_REQUEST = 65536
NOT_STARTED = "the sandbox has started no process"
Serve = Callable[[socket.socket], None]


@dataclass
class Child:
    """A forked process, and why it was ended, if the zygote ended it."""

    number: int
    confinement: confine.Confinement
    reason: str = ""
    seen_cpu_seconds: float = 0.0


class Zygote:
    """The loop: requests in, children out, their ends reported."""

    def __init__(self, control: socket.socket, *, level: str, serve: Serve) -> None:
        self.control = control
        self.level = level
        self.serve = serve
        self.children: dict[int, Child] = {}
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if level == "nested" else -1
        self.woken, wakes = socket.socketpair()
        for end in (self.woken, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        """Serve requests until the control socket ends, then end every child."""
        self.tell({"warm": os.getpid(), "cpu_seconds": time.process_time()})
        looked = time.monotonic()
        while True:
            timeout = LOOK_EVERY_MS if self.children and sys.platform == "linux" else None
            ready = self._wait(timeout)
            if self.woken in ready:
                self.woken.recv(4096)
            self.reap()
            if time.monotonic() - looked >= LOOK_EVERY_MS / 1000:
                self.look()
                looked = time.monotonic()
            if self.control in ready and not self.take_request():
                break
        for pid in list(self.children):
            self.end(pid, "the grader has ended")

    def take_request(self) -> bool:
        """Do what one message asks; False once the other side has gone."""
        message, descriptors, _, _ = socket.recv_fds(self.control, LONGEST_REQUEST, 1)
        if not message:
            return False
        request = json.loads(message)
        if "start" in request:
            self.start(request["start"], descriptors[0], confine.Confinement(level=self.level, **request["limits"]))
        elif "end" in request:
            for pid, child in self.children.items():
                if child.number == request["end"]:
                    self.end(pid, "")
        return True

    def start(self, number: int, descriptor: int, confinement: confine.Confinement) -> None:
        """Fork one child, in a process namespace of its own where that is possible."""
        try:
            pid = self._fork()
            if pid == 0:
                _become_child(descriptor, confinement, self.serve)
            self.children[pid] = Child(number, confinement)
        except OSError as error:  # no process or no memory left: the next one may find some
            self.tell({"ended": number, "code": 1, "reason": f"{NOT_STARTED} ({error})", "cpu_seconds": 0.0})
        os.close(descriptor)

    def _fork(self) -> int:
        if self.own_pids < 0:
            return os.fork()
        calls.unshare(calls.CLONE_NEWPID)  # the next child is the first process there: all it starts ends with it
        try:
            pid = os.fork()
        except OSError:
            calls.setns(self.own_pids, calls.CLONE_NEWPID)
            raise
        if pid:
            calls.setns(self.own_pids, calls.CLONE_NEWPID)
        return pid

    def reap(self) -> None:
        """Report each child that has ended."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is not None:
                seconds = max(used.ru_utime + used.ru_stime, child.seen_cpu_seconds)
                code = os.waitstatus_to_exitcode(status)
                reason = child.reason
                spent = 0.8 * child.confinement.cpu_seconds  # the limit is counted in ticks, the seconds are not
                if code == -signal.SIGKILL and seconds >= spent:
                    reason = reason or "it used more processor time than a submission may"
                self.tell({"ended": child.number, "code": code, "reason": reason, "cpu_seconds": seconds})
                if self.level == "alone":
                    os._exit(0)  # what the child left behind ends with the first process of this sandbox: this one

    def look(self) -> None:
        """End each child that takes more than it may."""
        if sys.platform != "linux":
            return
        for pid, child in list(self.children.items()):
            most = child.confinement
            first = os.getpid() if self.level == "alone" else pid
            usage = zygote_watch.usage(first, most_processes=most.processes)
            child.seen_cpu_seconds = max(child.seen_cpu_seconds, usage.cpu_seconds)  # of those nobody will wait for
            reason = zygote_watch.excess(usage, memory_bytes=most.memory_bytes, processes=most.processes)
            if reason and not child.reason:
                self.end(pid, reason)
            elif usage.threads > MANY_THREADS:  # others must not wait for it
                zygote_watch.step_back(pid)

    def end(self, pid: int, reason: str) -> None:
        """Kill a child and all it started."""
        self.children[pid].reason = self.children[pid].reason or reason
        family = [pid] if self.own_pids >= 0 or sys.platform != "linux" else list(zygote_watch.family(pid))
        for process in family:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def tell(self, report: dict[str, Any]) -> None:
        """Send a report; where nobody listens any more, the loop will see that next."""
        try:
            self.control.send(json.dumps(report).encode())
        except OSError:
            return

    def _wait(self, timeout_ms: int | None) -> list[socket.socket]:
        seconds = None if timeout_ms is None else timeout_ms / 1000
        return select.select([self.control, self.woken], [], [], seconds)[0]


def _become_child(descriptor: int, confinement: confine.Confinement, serve: Serve) -> NoReturn:
    """Confine this process, say so, and serve: nothing of the zygote's may run after this."""
    code = 1
    try:
        confine.default_signals()
        sock = socket.socket(fileno=confine.only_descriptor(descriptor))
        sock.setblocking(True)
        try:
            confine.confine(confinement)
            confine.reseed()
        except BaseException as error:
            sock.sendall(FAILED + f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        sock.sendall(READY)
        if sock.recv(1) == GO:
            serve(sock)
            code = 0
    except BaseException:
        code = 1
    finally:
        os._exit(code)


def main(arguments: list[str]) -> NoReturn:
    """Warm up, then serve: `python -m qlab.grading.inside.zygote DESCRIPTOR LEVEL SERVE`."""
    descriptor, level, dotted = int(arguments[0]), arguments[1], arguments[2]
    control = socket.socket(fileno=descriptor)
    module_name, _, name = dotted.rpartition(".")
    module = importlib.import_module(module_name)
    serve = getattr(module, name)
    if not getattr(serve, "cold", False):
        warm()
        getattr(module, "warm_up", lambda: None)()
    if level != "unsafe":
        calls.prctl("dumpable", calls.PR_SET_DUMPABLE, 0)
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        zygote_memory.collapse()
    Zygote(control, level=level, serve=serve).run()
    os._exit(0)  # the children are dead and there is nothing to write: no need to unload torch


def warm() -> None:
    """Import what every lab imports, and start no thread."""
    import matplotlib  # noqa: PLC0415 - the zygote alone pays for it

    matplotlib.use("Agg")
    for name in ("torch", "torch._dynamo", "numpy", "IPython", "matplotlib.pyplot"):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


if __name__ == "__main__":
    main(sys.argv[1:])
