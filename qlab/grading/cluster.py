"""Judging on a Dask cluster: the same work as on this machine's cores, sent to the workers of a scheduler.

Every worker needs qlab, bubblewrap, and one thread (a check is judged by one thread at a time); the course folder and
the gradebook stay on the machine that grades. With `pip install 'qlab[cluster]'` on all of them:

    dask scheduler --port 8786                                     # on one machine
    dask worker tcp://HOST:8786 --nthreads 1 --nworkers 8          # on each of the others
    qlab grade --cluster tcp://HOST:8786

On Slurm, `dask_jobqueue.SLURMCluster(cores=1, processes=1, memory="6GB").scale(16)` starts the same scheduler and
workers as jobs, and its `scheduler_address` is the ADDRESS. On Kubernetes, `dask_kubernetes.operator.KubeCluster(
image=…, n_workers=16)` does, with an image that holds qlab and bubblewrap and a pod that may make user namespaces.
Whoever reaches a scheduler can run code on its workers: keep it in a private network, or use `tls://` addresses.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import nbformat

from qlab.grading.limits import Limits
from qlab.grading.work import USUAL, Judged, Task, judge_task

if TYPE_CHECKING:
    from distributed import Client, Future

AHEAD = 2  # tasks a worker, so that none waits for the network
RETRIES = 1
WAIT_SECONDS = 60.0  # for the first worker
GRACE_SECONDS = 60.0  # beyond a submission's own limit, before a cluster counts as stuck
HOW_TO_GET = "`--cluster` needs Dask: pip install 'qlab[cluster]'"


class NoCluster(RuntimeError):
    """There is no cluster to send work to, for the reason the text names."""


def map_submissions(
    tasks: Iterable[Task], *, releases: Mapping[str, str], address: str, limits: Limits = USUAL, unsafe: bool = False
) -> Iterator[Judged]:
    """Judge tasks on the workers of the Dask scheduler at `address`, and yield each one's end in order of completion.

    A worker that is lost gives its tasks to another. Tasks are drawn as workers get free.
    Errors:  NoCluster without Dask, a scheduler or a worker; NoIsolation if a worker has none.
    """
    order = json.dumps({"releases": dict(releases), "limits": asdict(limits), "unsafe": unsafe}).encode()
    client = _connected(address)
    name = f"qlab-judge-{uuid.uuid4().hex}"
    try:
        client.register_plugin(_plugin(order), name=name)
        yield from _Run(client, name, limits.submission_seconds + GRACE_SECONDS).judge(iter(tasks))
    finally:
        _left(client, name)


class _Run:
    """One run on a cluster: what is under way, and how often each of it was tried."""

    def __init__(self, client: "Client", name: str, longest_seconds: float) -> None:
        self._client, self._name, self._longest = client, name, longest_seconds
        self._pending: dict[Future, Task] = {}
        self._tried: dict[str, int] = {}

    def judge(self, tasks: Iterator[Task]) -> Iterator[Judged]:
        moved = time.monotonic()
        try:
            while True:
                self._fill(tasks)
                if not self._pending:
                    return
                for future in self._ended():
                    moved = time.monotonic()
                    yield from self._result(future)
                if time.monotonic() - moved > self._longest:
                    yield from self._given_up()
        finally:
            self._client.cancel(list(self._pending))

    def _fill(self, tasks: Iterator[Task]) -> None:
        room = AHEAD * max(1, len(self._client.nthreads())) - len(self._pending)
        for _ in range(room):
            task = next(tasks, None)
            if task is None:
                return
            self._send(task)

    def _send(self, task: Task) -> None:
        self._tried[task.key] = self._tried.get(task.key, 0) + 1
        key = f"{self._name}-{len(self._tried)}-{self._tried[task.key]}"
        future = self._client.submit(_judged_here, task.as_bytes(), self._name, key=key, pure=False, retries=RETRIES)
        self._pending[future] = task

    def _ended(self) -> list["Future"]:
        from distributed import wait  # noqa: PLC0415 - an extra

        try:
            wait(list(self._pending), timeout=1.0, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return []
        return [future for future in self._pending if future.done()]

    def _result(self, future: "Future") -> Iterator[Judged]:
        """Yield what became of a task, unless it has to be tried once more."""
        task = self._pending.pop(future)
        if future.status == "finished":
            try:
                yield Judged.from_bytes(future.result(timeout=WAIT_SECONDS))
                return
            except Exception as error:  # its worker was lost between the end of the work and this line
                reason = str(error)
        else:
            reason = str(future.exception()) if future.status == "error" else "the cluster dropped it"
        if self._tried[task.key] <= RETRIES:
            self._send(task)
        else:
            yield _not_judged(task, f"the cluster did not judge it: {' '.join(reason.split())[:300]}")

    def _given_up(self) -> Iterator[Judged]:
        self._client.cancel(list(self._pending))
        for task in self._pending.values():
            yield _not_judged(task, f"no worker of the cluster has ended anything for {self._longest:.0f} seconds")
        self._pending.clear()


class _WorkersJudge:
    """What a worker keeps from task to task: a warm sandbox, the releases, and the one thread that judges.

    A sandbox ends with the thread that started it, so the thread that judges is the one.
    """

    def __init__(self, order: bytes) -> None:
        asked = json.loads(order)
        self._limits = Limits(**asked["limits"])
        self._unsafe = bool(asked["unsafe"])
        self._releases = {name: nbformat.reads(text, as_version=4) for name, text in asked["releases"].items()}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qlab-judge")
        self._sandbox = self._thread.submit(self._opened).result()

    def judge(self, task: Task) -> Judged:
        return self._thread.submit(self._judge, task).result()

    def close(self) -> None:
        self._thread.submit(self._sandbox.close).result()
        self._thread.shutdown()

    def _judge(self, task: Task) -> Judged:
        judged = judge_task(task, self._releases[task.notebook], self._sandbox, limits=self._limits)
        if judged.reason.startswith("the sandbox failed"):
            self._sandbox.close()
            self._sandbox = self._opened()
            judged = judge_task(task, self._releases[task.notebook], self._sandbox, limits=self._limits)
        return judged

    def _opened(self) -> Any:
        import torch  # noqa: PLC0415 - on the worker only

        from qlab.grading.sandbox import Sandbox  # noqa: PLC0415 - on the worker only

        torch.set_num_threads(1)
        return Sandbox(limits=self._limits, unsafe=self._unsafe)


def _plugin(order: bytes) -> Any:
    from distributed import WorkerPlugin  # noqa: PLC0415 - an extra

    class Judging(WorkerPlugin):
        """Opens a sandbox on every worker, also on those that join later, and closes it when the run ends."""

        async def setup(self, worker: Any) -> None:
            from qlab.grading.cluster import _WorkersJudge  # noqa: PLC0415 - the worker's own

            self.judge = await asyncio.to_thread(_WorkersJudge, order)

        async def teardown(self, worker: Any) -> None:
            await asyncio.to_thread(self.judge.close)

    return Judging()


def _judged_here(task: bytes, name: str) -> bytes:
    """Judge a task on the worker that this runs on."""
    from distributed import get_worker  # noqa: PLC0415 - an extra

    return get_worker().plugins[name].judge.judge(Task.from_bytes(task)).as_bytes()


def _connected(address: str) -> "Client":
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError:
        raise NoCluster(HOW_TO_GET) from None
    try:
        client = Client(address, timeout=WAIT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise NoCluster(f"no Dask scheduler answers at {address}: {error}") from None
    try:
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except TimeoutError:
        client.close()
        raise NoCluster(f"the Dask scheduler at {address} has no workers after {WAIT_SECONDS:.0f} seconds") from None
    return client


def _left(client: "Client", name: str) -> None:
    try:
        client.unregister_worker_plugin(name)
    except Exception as error:  # no worker is left, or the scheduler is gone: nothing to close there
        print(f"the cluster was left as it is: {error}")
    client.close()


def _not_judged(task: Task, reason: str) -> Judged:
    return Judged(task.student, task.notebook, task.key, reason=reason)
