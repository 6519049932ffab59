"""Hostile submissions against the real judge and sandbox: no grade raised, nothing leaked, nobody else harmed."""

import resource
import threading
from collections import Counter

import pytest

from qlab.grading.limits import MIB
from qlab.grading.sandbox import Sandbox
from tests.grading.hostile import Hostile, crowding, drivers, forging, framing, lying, reaching, reading, running, stuck
from tests.grading.hostile.traps import Traps

MODULES = (stuck, drivers, forging, lying, reading, reaching, framing, crowding)
SUBMISSIONS = tuple(hostile for module in MODULES for hostile in module.SUBMISSIONS)
POOL = 1
MOST_GROWTH = 1200 * MIB  # of the judge: some times a message of 64 MiB, as Python's own objects


pytestmark = [
    pytest.mark.grading,
    pytest.mark.skipif(running.skipped(), reason=running.why_not_isolated() or "isolated"),
]


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    with Traps(tmp_path_factory.mktemp("course")) as traps:
        yield traps


@pytest.fixture(scope="module")
def sandbox(traps):
    with Sandbox(limits=running.LIMITS, pool=POOL) as sandbox:
        running.require_honest(sandbox)
        yield sandbox


@pytest.fixture(scope="module")
def peak(sandbox) -> int:
    """Return the most memory that the judge's own process took until it met the first hostile submission."""
    return _peak_bytes()


@pytest.fixture(scope="module")
def resting(sandbox) -> int:
    """Return how many processes there are while nothing is graded."""
    return len(running.processes()) + POOL


def test_there_are_enough_of_them_and_each_says_what_it_tries():
    names = Counter(hostile.name for hostile in SUBMISSIONS)
    assert len(SUBMISSIONS) >= 100 and set(names.values()) == {1}, names.most_common(3)
    assert all(len(hostile.tries) > 10 for hostile in SUBMISSIONS)


@pytest.mark.parametrize("hostile", SUBMISSIONS, ids=lambda hostile: hostile.name.replace(" ", "-"))
def test_hostile(hostile: Hostile, sandbox: Sandbox, traps: Traps, resting: int, peak: int):
    neighbor = _neighbor(sandbox) if hostile.harms else None
    result = running.graded(running.notebook_of(hostile, traps), hostile.lab, sandbox)
    if neighbor is not None:
        neighbor()
    running.require_expected(hostile, result)
    traps.require_no_leak(result.notebook)
    traps.require_untouched()
    running.require_none_outlives(resting)
    assert _peak_bytes() <= peak + MOST_GROWTH, "the judge's own process took much memory"


@pytest.mark.parametrize("lab", ["types", "scalers", "adapters", "replays"])
def test_whoever_comes_after_them_is_graded_as_before(lab: str, sandbox: Sandbox):
    running.require_honest(sandbox, lab)
    running.require_unearned(sandbox, lab)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _neighbor(sandbox: Sandbox):
    """Grade an honest submission at the same time; what is returned waits for it and demands all its points."""
    failed: list[BaseException] = []

    def grade() -> None:
        try:
            running.require_honest(sandbox)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=grade)
    thread.start()

    def wait() -> None:
        thread.join(60)
        assert not thread.is_alive(), "the neighbor was never graded"
        if failed:
            raise failed[0]

    return wait
