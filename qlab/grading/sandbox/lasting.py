"""A sandbox for a whole run: one that has ended is replaced, and whoever judges notices nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

from qlab.grading.limits import Limits
from qlab.grading.sandbox.isolation import NoIsolation
from qlab.grading.sandbox.kernel import Kernel
from qlab.grading.sandbox.pool import Sandbox

ATTEMPTS = 2


class LastingSandbox:
    """Owns a sandbox, and starts a new one when that has ended; `start_kernel` may be called from any thread.

    Errors:  NoIsolation, as the sandbox raises it.
    """

    def __init__(self, *, limits: Limits, unsafe: bool, pool: int = 1) -> None:
        self._options = {"limits": limits, "unsafe": unsafe, "pool": pool}
        # a sandbox dies with the thread that started it, so one thread starts them all and lives as long as they do
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandboxes")
        self._lock = threading.Lock()
        try:
            self._sandbox = self._starter.submit(self._opened).result()
        except BaseException:
            self._starter.shutdown()
            raise

    def start_kernel(self) -> Kernel:
        """Return a confined kernel, of a new sandbox if the one that there was has ended.

        Errors:  what the sandbox raises, if a new one does not start one either.
        """
        for _ in range(ATTEMPTS - 1):
            sandbox = self._sandbox
            try:
                return sandbox.start_kernel()
            except NoIsolation:
                raise
            except Exception:  # whatever ended it: the next one tells
                self._replace(sandbox)
        return self._sandbox.start_kernel()

    def close(self) -> None:
        with self._lock:
            self._starter.submit(self._sandbox.__exit__, None, None, None).result()
        self._starter.shutdown()

    def _replace(self, ended: Sandbox) -> None:
        with self._lock:
            if self._sandbox is ended:
                self._starter.submit(ended.__exit__, None, None, None).result()
                self._sandbox = self._starter.submit(self._opened).result()

    def _opened(self) -> Sandbox:
        return Sandbox(**self._options).__enter__()
