"""The kernel that stock nbgrader talks to: it judges the check cells itself and sends every other cell to the sandbox.

It is trusted and runs no line of the learner's: it has no namespace to run one in. The sandboxed process has no socket
of Jupyter's and no key to sign with, so a message that it forges reaches nobody.
"""

import faulthandler
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel
from nbformat import NotebookNode
from traitlets import Any as AnyTrait

import qlab
from qlab.checks.learner import printable
from qlab.grading import own_memory
from qlab.grading.limits import Limits
from qlab.labs import notebooks

ORDER_FILE = "order.json"
NO_ISOLATION, NOT_GRADED = 3, 4  # exit statuses
GRACE_SECONDS = 60.0  # beyond a submission's own limit, before the front counts as stuck and ends itself


@dataclass(frozen=True)
class Order:
    """What the front is to judge: the release it takes the checks from, and the submission's answers by `grade_id`."""

    release: str
    answers: Mapping[str, str]
    unsafe: bool = False

    def write(self, folder: Path) -> None:
        notebooks.write_whole(json.dumps(asdict(self)).encode(), folder / ORDER_FILE)

    @classmethod
    def read(cls, folder: Path) -> "Order":
        return cls(**json.loads((folder / ORDER_FILE).read_text(encoding="utf-8")))


def check_sources(release: NotebookNode) -> frozenset[str]:
    """Return the text of every check cell of a release: what the front judges, and what a graded cell must hold."""
    graded = notebooks.graded_cells(release).values()
    return frozenset(cell.source.strip() for cell in graded if not notebooks.marks(cell).get("solution"))


class FrontKernel(Kernel):
    """A Jupyter kernel of two kinds of cells: those it judges, and those it has run in the sandbox."""

    implementation = "qlab-judge"
    implementation_version = qlab.__version__
    banner = "The judge of qlab: your code runs in a sandbox."
    language_info = {  # noqa: RUF012 - the base class declares it so
        "name": "python",
        "version": platform.python_version(),
        "mimetype": "text/x-python",
        "file_extension": ".py",
        "pygments_lexer": "ipython3",
        "nbconvert_exporter": "python",
        "codemirror_mode": {"name": "ipython", "version": 3},
    }
    judged = AnyTrait(help="the Session of this submission")
    checks = AnyTrait(frozenset(), help="the sources of the release's check cells")
    answers = AnyTrait({}, help="the sources of the submission's answers, by grade_id")

    async def do_execute(
        self, code: str, silent: bool, store_history: bool = True, user_expressions: Any = None, *_: Any, **__: Any
    ) -> dict[str, Any]:
        """Judge a check cell, or have any other cell run in the sandbox, and publish what it gave."""
        del silent, store_history, user_expressions
        if not code.strip():
            return self._done()
        try:
            if code.strip() in self.checks:
                verdict = self.judged.run_check(code, answers=self.answers)
                self._publish({"output_type": "execute_result", "data": verdict._repr_mimebundle_(), "metadata": {}})
                return self._done()
            ran = self.judged.run_cell(code, name=self._name_of(code))
        except KeyboardInterrupt:
            return self._failed("KeyboardInterrupt", "the judge was interrupted")
        except Exception as error:  # the judge's own failure is neither a pass nor a zero: the submission is not graded
            _stop(NOT_GRADED, f"the submission was not graded: {error or type(error).__name__}")
        for output in ran.outputs:
            self._publish(output)
        return self._done() if ran.status == "ok" else self._ended(ran.outputs, ran.status)

    def do_shutdown(self, restart: bool) -> dict[str, Any]:
        """End the sandboxed process with the kernel."""
        if self.judged is not None:
            self.judged.close()
        return {"status": "ok", "restart": restart}

    def _name_of(self, code: str) -> str:
        """Return the `grade_id` of an answer cell by its source: a message of Jupyter's does not tell it."""
        return next((grade_id for grade_id, source in self.answers.items() if source.strip() == code.strip()), "")

    def _publish(self, output: Mapping[str, Any]) -> None:
        """Send one output in nbformat's words as the message Jupyter knows it by."""
        content = {name: value for name, value in output.items() if name != "output_type"}
        if output["output_type"] == "execute_result":
            content["execution_count"] = self.execution_count
        self.send_response(self.iopub_socket, output["output_type"], content)

    def _ended(self, outputs: Sequence[Mapping[str, Any]], status: str) -> dict[str, Any]:
        """Tell the error that ended a cell, publishing one if the sandbox could no longer tell."""
        errors = [output for output in outputs if output["output_type"] == "error"]
        if errors:
            return self._failed(errors[-1]["ename"], errors[-1]["evalue"], published=True)
        said = {"timeout": "the cell ran too long and was stopped", "died": "the cell ended its own process"}
        return self._failed("CellEnded", said.get(status, status))

    def _failed(self, name: str, text: str, *, published: bool = False) -> dict[str, Any]:
        told = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
        if not published:
            self._publish({"output_type": "error"} | told)
        return {"status": "error", "execution_count": self.execution_count} | told

    def _done(self) -> dict[str, Any]:
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}


def main(arguments: Sequence[str]) -> None:
    """Start the front on a connection file beside which lies its order; without isolation it does not start."""
    import torch  # noqa: PLC0415 - nbgrader's own process imports this file, and judges nothing

    from qlab.grading.sandbox import NoIsolation, Sandbox  # noqa: PLC0415 - a test of the kernel needs no sandbox
    from qlab.grading.session import Session  # noqa: PLC0415 - as above

    torch.set_num_threads(1)  # a check is small: threads that wait for each other cost more than they save
    own_memory.bound()
    faulthandler.dump_traceback_later(Limits().submission_seconds + GRACE_SECONDS, exit=True)
    order = Order.read(Path(arguments[arguments.index("-f") + 1]).parent)
    release = notebooks.read(Path(order.release))
    try:
        sandbox = Sandbox(unsafe=order.unsafe).__enter__()
    except NoIsolation as error:
        _stop(NO_ISOLATION, str(error))
    app = IPKernelApp.instance(kernel_class=FrontKernel, outstream_class=None)  # what the judge prints is no output
    app.initialize(list(arguments))
    app.kernel.checks, app.kernel.answers = check_sources(release), order.answers
    app.kernel.judged = Session(sandbox, release)
    try:
        app.start()
    finally:
        sandbox.close()


def _stop(status: int, sentence: str) -> None:
    """End the process at once, so that nbgrader reports a failure instead of a grade."""
    print(f"qlab: {printable(sentence)}", file=sys.stderr, flush=True)
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
