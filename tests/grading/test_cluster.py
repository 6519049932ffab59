"""Judging on a Dask cluster: a scheduler and two workers on loopback, of which one is killed midway."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import nbformat
import pytest
from distributed import Client

import qlab
from qlab import cli
from qlab.grading import cluster
from qlab.grading.cluster import NoCluster, map_submissions
from qlab.grading.cluster_worker import Judging
from qlab.grading.sandbox import NoIsolation, require_isolation
from qlab.grading.work import Task
from qlab.labs import notebooks
from tests.grading import REPOSITORY, TOPIC, copy_course, one_sentence

pytestmark = [
    pytest.mark.grading,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="grading runs where processes fork"),
]
RELEASES = {TOPIC: nbformat.writes(notebooks.read(REPOSITORY / "labs" / TOPIC / f"{TOPIC}.ipynb"))}
SOLUTION = (REPOSITORY / "solutions" / TOPIC / f"{TOPIC}.ipynb").read_bytes()
SECONDS = 120
NOBODY_LISTENS = "tcp://127.0.0.1:1"


@contextmanager
def running(kind: str, *words: str, folder: Path, path: str = os.environ["PATH"]) -> Iterator[subprocess.Popen]:
    """Run a part of Dask as its command line does, and stop it by the process that was started."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--no-dashboard"]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "DASK_TEMPORARY_DIRECTORY": str(folder)}
    with (folder / f"{kind}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("scheduler")
    with a_scheduler(folder) as (address, _):
        yield address


@contextmanager
def a_scheduler(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    written = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(written))
    with running("scheduler", *options, folder=folder) as process:
        deadline = time.monotonic() + SECONDS
        while not written.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield json.loads(written.read_text())["address"], process


def a_worker(address: str, folder: Path, **options):
    words = (address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--memory-limit", "0")
    return running("worker", *words, folder=folder, **options)


@pytest.fixture
def isolated() -> None:
    try:
        require_isolation()
    except NoIsolation as error:
        if os.environ.get("QLAB_REQUIRE_SANDBOX"):
            raise
        pytest.skip(str(error))


def handed_in(count: int) -> list[Task]:
    """Return as many submissions: every other one is solved, the rest are unanswered."""
    contents = (SOLUTION, RELEASES[TOPIC].encode())
    return [Task(f"s{number}", TOPIC, f"key {number}", contents[number % 2]) for number in range(count)]


def refusal(address: str) -> str:
    ends = map_submissions(handed_in(1), releases=RELEASES, address=address)
    with pytest.raises(NoCluster) as error, closing(ends):
        next(ends)
    return one_sentence(error)


def test_a_worker_that_is_killed_midway_costs_nothing(scheduler, isolated, tmp_path):
    tasks, ends = handed_in(12), []
    with a_worker(scheduler, tmp_path) as first, a_worker(scheduler, tmp_path):
        wait_for_workers(scheduler, 2)
        for judged in map_submissions(tasks, releases=RELEASES, address=scheduler):
            ends.append(judged)
            if len(ends) == 2:
                first.kill()
    assert first.wait() < 0 and not any(judged.reason for judged in ends)
    assert Counter(judged.key for judged in ends) == Counter(task.key for task in tasks)
    points = {judged.student: sum(result.points for result in judged.results) for judged in ends}
    most = sum(
        notebooks.points(cell)
        for cell in notebooks.graded_cells(nbformat.reads(RELEASES[TOPIC], as_version=4)).values()
    )
    assert points == {task.student: most if task.content == SOLUTION else 0 for task in tasks}


def test_the_command_grades_on_a_cluster(scheduler, isolated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2.0)
    course = copy_course(tmp_path / "course")
    path = course / "submitted" / "ann" / TOPIC / f"{TOPIC}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_bytes(SOLUTION)
    with a_worker(scheduler, tmp_path):
        assert cli.main(["grade", "--course", str(course), "--cluster", scheduler]) == 0
    assert "1 graded" in capsys.readouterr().out
    assert cli.main(["grade", "--course", str(course), "--cluster", NOBODY_LISTENS]) == 0  # nothing is left to send
    path.write_bytes(SOLUTION + b"\n")
    assert cli.main(["grade", "--course", str(course), "--cluster", NOBODY_LISTENS]) == 1
    assert capsys.readouterr().err.endswith(f"no Dask scheduler answers at {NOBODY_LISTENS} within 2 seconds\n")


def test_a_scheduler_that_is_lost_ends_the_run_and_says_how_to_go_on(isolated, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2.0)
    ends = []
    with a_scheduler(tmp_path) as (address, process), a_worker(address, tmp_path), pytest.raises(NoCluster) as error:
        for judged in map_submissions(handed_in(20), releases=RELEASES, address=address):
            ends.append(judged)
            process.kill()
    assert "the Dask scheduler was lost" in one_sentence(error) and "the same command goes on" in str(error.value)
    assert 0 < len(ends) < 20 and not any(judged.reason for judged in ends)


def test_workers_that_are_all_lost_end_the_run(scheduler, isolated, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "GRACE_SECONDS", 3 - cluster.USUAL.submission_seconds)
    ends = []
    with a_worker(scheduler, tmp_path) as only, pytest.raises(NoCluster) as error:
        for judged in map_submissions(handed_in(6), releases=RELEASES, address=scheduler):
            ends.append(judged)
            only.kill()
    assert "all workers of the Dask cluster were lost" in one_sentence(error)
    assert 0 < len(ends) < 6 and not any(judged.reason for judged in ends)


def test_what_a_killed_grader_left_on_the_workers_is_closed(scheduler, isolated, tmp_path):
    name = f"{cluster.PREFIX}Client-of-a-killed-grader"
    order = json.dumps({"qlab": qlab.__version__, "releases": {}, "limits": {}, "unsafe": True})
    with a_worker(scheduler, tmp_path), Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=SECONDS)
        client.register_plugin(Judging(order), name=name)
        (judged,) = map_submissions(handed_in(1), releases=RELEASES, address=scheduler)
        (kept,) = client.run(lambda dask_worker: list(dask_worker.plugins)).values()
    assert not judged.reason and not [each for each in kept if each.startswith(cluster.PREFIX)]


def test_workers_that_cannot_judge_are_refused_with_their_reason(scheduler, tmp_path, monkeypatch):
    with a_worker(scheduler, tmp_path, path="/nowhere"):
        assert "bubblewrap (bwrap) is not on PATH: install" in refusal(scheduler)
        monkeypatch.setattr(qlab, "__version__", "99.0")
        assert "and the grader has 99.0" in refusal(scheduler)


def test_a_cluster_without_workers_is_refused(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "WORKERS_SECONDS", 1.0)
    assert f"the Dask scheduler at {scheduler} has no worker after 1 seconds" in refusal(scheduler)


@pytest.mark.parametrize("address", ["", "nonsense", "http://127.0.0.1:80", "tcp://127.0.0.1:x", "tcp://127.0.0.1"])
def test_what_is_no_address_is_refused_at_once(address):
    assert f"needs an address such as tcp://127.0.0.1:8786, got {address!r}" in refusal(address)


def test_without_dask_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert refusal(NOBODY_LISTENS) == cluster.HOW_TO_GET


def wait_for_workers(address: str, count: int) -> None:
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=SECONDS)
