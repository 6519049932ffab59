"""Judging on a Dask cluster: the same work as on this machine's cores, sent to the workers of a scheduler.

Every worker needs qlab, bubblewrap, and one thread (a check is judged by one thread at a time); the course folder and
the gradebook stay on the machine that grades. With its extra `cluster` installed on all of them:

    dask scheduler --port 8786                                     # on one machine
    dask worker tcp://HOST:8786 --nthreads 1 --nworkers 8          # on each of the others
    qlab grade --cluster tcp://HOST:8786

On Slurm, `dask_jobqueue.SLURMCluster(cores=1, processes=1, memory="6GB").scale(16)` starts the same scheduler and
workers as jobs, and its `scheduler_address` is the ADDRESS. On Kubernetes, `dask_kubernetes.operator.KubeCluster(
image=…, n_workers=16)` does, with an image that holds qlab and bubblewrap and a pod that may make user namespaces.
Whoever reaches a scheduler can run code on its workers: keep it in a private network, or use `tls://` addresses.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import qlab
from qlab.grading.limits import Limits
from qlab.grading.work import USUAL, Judged, Task

if TYPE_CHECKING:
    from distributed import Client, Future

AHEAD = 2  # tasks a worker, so that none waits for the network
ATTEMPTS = 2
CONNECT_SECONDS = 10.0
WORKERS_SECONDS = 60.0  # for the first worker to join, and for their sandboxes to start
GRACE_SECONDS = 60.0  # beyond a submission's own limit, before a cluster counts as stuck
PREFIX = "qlab-judge-"  # of a run's name; the client's follows
SCHEMES = ("tcp", "tls")
HOW_TO_GET = '`--cluster` needs Dask: pip install -c constraints.txt -e ".[cluster]"'
GOES_ON = "what is graded is safe; the same command goes on with the rest"


class NoCluster(RuntimeError):
    """There is no cluster to send work to, for the reason the text names."""


def map_submissions(
    tasks: Iterable[Task], *, releases: Mapping[str, str], address: str, limits: Limits = USUAL, unsafe: bool = False
) -> Iterator[Judged]:
    """Judge tasks on the workers of the Dask scheduler at `address`, and yield each one's end in order of completion.

    A worker that is lost gives its tasks to another. Tasks are drawn as workers get free.
    Errors:  NoCluster without Dask, a scheduler or a worker that can judge, also if they are lost on the way.
    """
    pending = iter(tasks)
    first = next(pending, None)
    if first is None:
        return
    client = _connected(address)
    name = PREFIX + client.id
    try:
        for left in client.run_on_scheduler(_left_behind):
            client.unregister_worker_plugin(left)
        _prepare_workers(client, name, {"releases": dict(releases), "limits": asdict(limits), "unsafe": unsafe})
        yield from _Run(client, name, limits.submission_seconds + GRACE_SECONDS).judge(chain([first], pending))
    finally:
        with contextlib.suppress(Exception):  # the scheduler is gone: its workers close by themselves
            client.unregister_worker_plugin(name)
        client.close()


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
                    moved = time.monotonic()
        except OSError as error:  # Dask's own: the connection is gone
            raise NoCluster(f"the Dask scheduler was lost: {GOES_ON}") from error
        finally:
            with contextlib.suppress(Exception):  # nothing is left to cancel where the scheduler is gone
                self._client.cancel(list(self._pending))

    def _fill(self, tasks: Iterator[Task]) -> None:
        room = AHEAD * max(1, len(self._client.nthreads())) - len(self._pending)
        for _ in range(room):
            task = next(tasks, None)
            if task is None:
                return
            self._send(task)

    def _send(self, task: Task) -> None:
        from qlab.grading.cluster_worker import judged_here  # noqa: PLC0415 - needs the extra

        self._tried[task.key] = self._tried.get(task.key, 0) + 1
        key = f"{self._name}-{len(self._tried)}-{self._tried[task.key]}"
        future = self._client.submit(judged_here, task.as_bytes(), self._name, key=key, pure=False)
        self._pending[future] = task

    def _ended(self) -> list["Future"]:
        from distributed import wait  # noqa: PLC0415 - an extra
        from distributed.client import FuturesCancelledError  # noqa: PLC0415 - an extra

        with self._client.as_current(), contextlib.suppress(TimeoutError, FuturesCancelledError):
            wait(list(self._pending), timeout=1.0, return_when="FIRST_COMPLETED")
        if self._client.status != "running":
            raise NoCluster(f"the Dask scheduler was lost: {GOES_ON}")
        return [future for future in self._pending if future.done()]

    def _result(self, future: "Future") -> Iterator[Judged]:
        """Yield what became of a task, unless it has to be tried once more."""
        task = self._pending.pop(future)
        try:
            yield Judged.from_bytes(future.result(timeout=CONNECT_SECONDS))
        except Exception as error:  # of Dask's own: its worker was lost, or the network
            if self._tried[task.key] < ATTEMPTS:
                self._send(task)
            else:
                yield _not_judged(task, f"the cluster did not judge it: {_in_a_line(error)}")

    def _given_up(self) -> Iterator[Judged]:
        if not self._client.nthreads():
            raise NoCluster(f"all workers of the Dask cluster were lost: {GOES_ON}")
        self._client.cancel(list(self._pending))
        for task in self._pending.values():
            yield _not_judged(task, f"no worker of the cluster has ended anything for {self._longest:.0f} seconds")
        self._pending.clear()


def _prepare_workers(client: "Client", name: str, order: Mapping[str, Any]) -> None:
    """Open a sandbox on every worker, also on those that join later; each closes when the run ends.

    Errors:  NoCluster with the reason of a worker that cannot judge.
    """
    from qlab.grading.cluster_worker import Judging  # noqa: PLC0415 - needs the extra

    try:
        client.register_plugin(Judging(json.dumps({"qlab": qlab.__version__, **order})), name=name)
    except Exception as error:  # whatever a worker raised, or Dask itself
        raise NoCluster(f"a worker of the Dask cluster cannot judge: {_in_a_line(error)}") from None


def _left_behind(dask_scheduler: Any) -> list[str]:
    """Return the runs of graders that were killed; called in the scheduler, which gives itself by that name."""
    runs = [name for name in dask_scheduler.worker_plugins if name.startswith(PREFIX)]
    return [name for name in runs if name.removeprefix(PREFIX) not in dask_scheduler.clients]


def _connected(address: str) -> "Client":
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
        from distributed.comm.addressing import parse_address, parse_host_port  # noqa: PLC0415
    except ImportError:
        raise NoCluster(HOW_TO_GET) from None
    scheme, place = parse_address(address)
    try:
        parse_host_port(place)
        if scheme not in SCHEMES:
            raise ValueError(f"it begins with {scheme}://")
    except ValueError as error:
        raise NoCluster(f"--cluster needs an address such as tcp://127.0.0.1:8786, got {address!r}: {error}") from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it logs what is told here in a sentence
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except OSError:
        raise NoCluster(f"no Dask scheduler answers at {address} within {CONNECT_SECONDS:.0f} seconds") from None
    try:
        client.wait_for_workers(1, timeout=WORKERS_SECONDS)
    except TimeoutError:
        client.close()
        raise NoCluster(f"the Dask scheduler at {address} has no worker after {WORKERS_SECONDS:.0f} seconds") from None
    return client


def _not_judged(task: Task, reason: str) -> Judged:
    return Judged(task.student, task.notebook, task.key, reason=reason)


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
