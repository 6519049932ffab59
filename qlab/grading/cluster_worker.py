"""What runs on the workers of a Dask cluster; needs the extra `cluster`."""

import asyncio
import json

import nbformat
import torch
from distributed import Worker, WorkerPlugin, get_worker

import qlab
from qlab.grading import own_memory
from qlab.grading.limits import Limits
from qlab.grading.sandbox import LastingSandbox
from qlab.grading.work import Judged, Task, judge_task


class Judging(WorkerPlugin):
    """Keeps on a worker what it judges with, from the first task of a run to its end."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.judge: Judge | None = None

    async def setup(self, worker: Worker) -> None:
        self.judge = await asyncio.to_thread(Judge, self.order)

    async def teardown(self, worker: Worker) -> None:
        if self.judge is not None:
            await asyncio.to_thread(self.judge.close)


class Judge:
    """A warm sandbox and the releases of one run.

    Errors:  NoIsolation if this worker has none; ValueError if its qlab is not the grader's.
    """

    def __init__(self, order: str) -> None:
        asked = json.loads(order)
        if asked["qlab"] != qlab.__version__:
            raise ValueError(f"it has qlab {qlab.__version__}, and the grader has {asked['qlab']}")
        torch.set_num_threads(1)
        self._limits = Limits(**asked["limits"])
        self._releases = {name: nbformat.reads(text, as_version=4) for name, text in asked["releases"].items()}
        self._sandbox = LastingSandbox(limits=self._limits, unsafe=asked["unsafe"])
        self._data_limit = own_memory.bound()

    def judge(self, task: Task) -> Judged:
        return judge_task(task, self._releases[task.notebook], self._sandbox, limits=self._limits)

    def close(self) -> None:
        self._sandbox.close()
        own_memory.restore(self._data_limit)


def judged_here(task: bytes, name: str) -> bytes:
    """Judge a task on the worker that this runs on, with what the plugin of this name keeps there."""
    return get_worker().plugins[name].judge.judge(Task.from_bytes(task)).as_bytes()
