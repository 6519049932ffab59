"""A judge and a sandbox that only pretend, for tests of what stands around them."""

import os
import socket
import time
import zlib
from types import TracebackType

import nbformat
from nbformat import NotebookNode

from qlab.grading.judge import GradedNotebook, Ungradable
from qlab.grading.limits import Limits
from qlab.grading.sandbox import Kernel, Sandbox
from qlab.labs import notebooks
from qlab.labs.execute import ExerciseResult

SLOW = "QLAB_TEST_SECONDS"


class PretendedKernel(Kernel):
    """Half of a pair of sockets, and nothing behind the other half."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        super().__init__(1, ours, most_bytes=1000, end=lambda _: None)
        self._why = ""

    @property
    def cpu_seconds(self) -> float:
        return 0.5 if self._why else 0.0

    def kill(self) -> None:
        self._why = "it was stopped"
        self.connection.close()
        self.theirs.close()

    def why_ended(self) -> str:
        return self._why


class PretendedSandbox(Sandbox):
    """A sandbox that isolates nothing and runs nothing."""

    def __init__(self, *, limits: Limits, unsafe: bool = False, pool: int = 1) -> None:
        self.limits = limits

    def start_kernel(self) -> Kernel:
        return PretendedKernel()

    def close(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


def judge_notebook(
    notebook: NotebookNode, release: NotebookNode, sandbox: Sandbox, *, limits: Limits
) -> GradedNotebook:
    """Give points by a checksum of the code; a word in it makes this process die, hang, or fail."""
    kernel = sandbox.start_kernel()
    kernel.connection.send(b"hello")
    assert kernel.why_ended() == ""
    kernel.kill()
    assert (kernel.why_ended(), kernel.cpu_seconds) == ("it was stopped", 0.5)
    code = "".join(cell.source for cell in notebook.cells)
    time.sleep(3600 if "HANG" in code else float(os.environ.get(SLOW, "0")))
    if "DIE" in code:
        os._exit(3)
    if "UNGRADABLE" in code:
        raise Ungradable("the sandbox is gone")
    if "FAULT" in code:
        raise KeyError("two\nlines")
    results = tuple(_result(name, cell, code) for name, cell in notebooks.graded_cells(notebook).items())
    for result, cell in zip(results, notebooks.graded_cells(notebook).values(), strict=True):
        data = {"text/plain": str(result.points), "text/html": f"<b>{result.misconception}</b> \ud800"}
        cell.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=1)]
    return GradedNotebook(results, notebook, (), 0.25, 0.125)


def _result(name: str, cell: NotebookNode, code: str) -> ExerciseResult:
    most, number = notebooks.points(cell), zlib.crc32((code + name).encode())
    if (points := number % (most + 1)) == most:
        return ExerciseResult(name, points, most, "right")
    named = ("off-by-one", "truncates", "wrong-value")[number // 7 % 3]
    return ExerciseResult(name, points, most, "wrong", named, ("=a part: think",))
