"""How Jupyter starts the judge's front: refused without isolation, on sockets in a folder of its own, ended whole."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from traitlets import Bool, Dict, Unicode

from qlab.grading.front import Order

NAME = "qlab-judge"
START = [
    sys.executable,
    "-P",
    "-X",
    "frozen_modules=off",
    "-m",
    "qlab.grading.front",
    "-f",
    "{connection_file}",
]  # -P: no module beside a notebook


class JudgeProvisioner(LocalProvisioner):
    """A provisioner whose kernel is the front, told in the kernelspec what it is to judge.

    Errors:  NoIsolation before anything starts, if this machine cannot confine a submission and `unsafe` is not set.
    """

    release = Unicode(help="the released notebook").tag(config=True)
    answers = Dict(help="the sources of the submission's answers, by grade_id").tag(config=True)
    unsafe = Bool(False, help="run submissions without a sandbox").tag(config=True)
    private: Path | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse without isolation; lay the order and the sockets into a new folder that only this user can enter."""
        if not self.unsafe:
            from qlab.grading.sandbox import require_isolation  # noqa: PLC0415 - importing this file starts nothing

            require_isolation()
        self.private = Path(tempfile.mkdtemp(prefix="qlab-judge-"))
        Order(release=self.release, answers=self.answers, unsafe=self.unsafe).write(self.private)
        manager = self.parent
        manager.connection_file = str(self.private / "kernel.json")
        manager.transport, manager.ip = "ipc", str(self.private / "kernel-ipc")
        environment = dict(kwargs.pop("env", None) or os.environ)
        environment |= {"NBGRADER_EXECUTION": "autograde", "IPYTHONDIR": str(self.private)}
        return await super().pre_launch(**kwargs | {"env": environment, "cwd": str(self.private)})

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the folder; the sandboxed processes end with the front that started them."""
        await super().cleanup(restart)
        if self.private is not None and not restart:
            shutil.rmtree(self.private, ignore_errors=True)


class JudgeKernelManager(AsyncKernelManager):
    """A manager of one front: its kernelspec lies in no folder, so that no menu of JupyterLab shows it."""

    release = Unicode()
    answers = Dict()
    unsafe = Bool(False)

    @property
    def kernel_spec(self) -> KernelSpec:
        told = {"release": self.release, "answers": dict(self.answers), "unsafe": self.unsafe}
        chosen = {"provisioner_name": NAME, "config": told}
        return KernelSpec(
            argv=START, display_name="qlab's judge", language="python", metadata={"kernel_provisioner": chosen}
        )
