"""The sandbox as graders use it: kernels ready ahead of need, and one restart when the warm process dies."""

import threading
from collections import deque
from types import TracebackType

from qlab.grading.inside.zygote import SERVE
from qlab.grading.limits import Limits
from qlab.grading.sandbox.isolation import require_isolation
from qlab.grading.sandbox.kernel import Kernel
from qlab.grading.sandbox.warm import SandboxFailed, WarmProcess

A_MOMENT = 1.0


class Sandbox:
    """One bubblewrap with its warm process; `start_kernel` may be called from any thread.

    Errors:  NoIsolation if this machine has none and `unsafe` is not asked for; SandboxFailed if it does not start.
    """

    def __init__(self, *, limits: Limits = Limits(), unsafe: bool = False, pool: int = 1, serve: str = SERVE) -> None:  # noqa: B008
        self.limits = limits
        self.isolation = None if unsafe else require_isolation()
        self.pool = pool
        self.serve = serve
        self._shared = self.isolation is None or self.isolation.nested
        self._changed = threading.Condition()
        self._ready: deque[Kernel] = deque()
        self._alone: set[Kernel] = set()
        self._closing = False
        self._restarted = False
        self._warm = self._new_warm() if self._shared else None
        self._filler = threading.Thread(target=self._fill, name="qlab-pool", daemon=True)
        self._filler.start()

    def start_kernel(self) -> Kernel:
        """Return a confined kernel that serves its connection, from those that are ready ahead of need.

        Errors:  SandboxFailed if the sandbox is broken and one restart did not help.
        """
        with self._changed:
            while self._ready:
                kernel = self._ready.popleft()
                self._changed.notify_all()
                if not kernel.why_ended():
                    return kernel
                kernel.kill()
        return self._start()

    def close(self) -> None:
        """End every kernel and the warm process."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._filler.join()
        for kernel in [*self._ready, *self._alone]:
            kernel.kill()
        if self._warm is not None:
            self._warm.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_warm(self) -> WarmProcess:
        return WarmProcess(limits=self.limits, isolation=self.isolation, serve=self.serve)

    def _start(self) -> Kernel:
        if not self._shared:
            return self._start_alone()
        warm = self._living()
        try:
            return warm.start_kernel()
        except SandboxFailed:
            if not warm.ends_within(A_MOMENT):
                raise
            return self._living().start_kernel()

    def _living(self) -> WarmProcess:
        """Return the warm process, a new one if it has died: once."""
        with self._changed:
            warm = self._warm
            if warm is None or not warm.alive:
                if self._restarted:
                    raise SandboxFailed("the sandbox has ended twice; nothing more can be graded with it")
                self._restarted = True
                if warm is not None:
                    warm.close()
                self._warm = warm = self._new_warm()
            return warm

    def _start_alone(self) -> Kernel:
        """Start a bubblewrap for one kernel, where the kernel refuses namespaces inside namespaces."""
        warm = self._new_warm()
        try:
            kernel = warm.start_kernel()
        except SandboxFailed:
            warm.close()
            raise
        with self._changed:
            self._alone.add(kernel)
        kernel.after = lambda: self._end_alone(kernel, warm)
        return kernel

    def _end_alone(self, kernel: Kernel, warm: WarmProcess) -> None:
        warm.close()
        with self._changed:
            self._alone.discard(kernel)

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._ready) < self.pool)
                if self._closing:
                    return
            try:
                kernel = self._start()
            except SandboxFailed:
                return  # whoever asks next hears why
            with self._changed:
                self._ready.append(kernel)
