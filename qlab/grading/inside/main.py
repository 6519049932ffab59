"""What a sandboxed process does: it runs the learner's cells and serves what they define, over one socket."""

import importlib
import os
import pkgutil
import socket
from typing import Any

import qlab
from qlab.grading.inside import guard
from qlab.grading.inside.cells import CellRunner, warm
from qlab.grading.peer import Peer
from qlab.grading.wire import Connection

NOT_A_LEARNERS = tuple(
    f"qlab.{name}" for name in ("__main__", "cli", "deploy", "doctor", "finetune", "grading", "labs", "ledger")
)
_warmed: list[CellRunner] = []


def warm_up() -> None:
    """Import what labs import and build the shell; called in the process that is forked, before any fork."""
    for module in pkgutil.walk_packages(qlab.__path__, "qlab.", onerror=lambda name: None):
        if not module.name.startswith(NOT_A_LEARNERS):
            _import(module.name)
    runner = CellRunner()
    warm(runner)
    _warmed.append(runner)


def serve(sock: socket.socket) -> None:
    """Answer the judge until the connection ends."""
    if not _warmed:
        warm_up()
    runner = _warmed[-1]
    runner.enter()
    sock.set_inheritable(False)
    os.register_at_fork(after_in_child=sock.close)  # what the learner's code forks does not answer in its place
    names = runner.shell.user_ns

    def lookup(name: str) -> Any:
        if name not in names:
            raise NameError(f"name {name!r} is not defined")
        return names[name]

    def run_cell(source: str, seconds: float, name: str, output_bytes: int) -> dict[str, Any]:
        return runner.run(source, seconds, output_bytes=output_bytes)

    def watch(forbidden: list[str], given: list[str]) -> None:
        guard.watch(forbidden, [names[name] for name in given if name in names])

    services = {"ready": lambda: True, "run_cell": run_cell, "lookup": lookup, "watch": watch, "uses": guard.uses}
    Peer(Connection(sock), trusted=False, services=services).serve()


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:  # it needs an extra that is not installed
        return
