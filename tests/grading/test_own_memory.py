"""What a process that judges may take of memory."""

import os
import resource
import socket
from multiprocessing import Pipe

import pytest

from qlab.grading import own_memory, workers
from qlab.grading.limits import MIB, Limits

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="it is bounded on Linux")


def in_a_child(check) -> bool:
    """Tell whether a check holds in a forked process, whose limits are its own."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def has_room(size: int) -> bool:
    try:
        return len(bytearray(size)) == size
    except MemoryError:
        return False


def bounded() -> bool:
    own_memory.bound(128 * MIB)
    return has_room(64 * MIB) and not has_room(256 * MIB)


def put_back() -> bool:
    own_memory.restore(own_memory.bound(128 * MIB))
    return has_room(256 * MIB)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("check", [bounded, put_back])
def test_a_bound_holds_until_it_is_put_back(check):
    assert in_a_child(check)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_an_earlier_bound_stays():
    def stays() -> bool:
        first = own_memory.bound(64 * MIB)
        tight, hard = resource.getrlimit(resource.RLIMIT_DATA)
        own_memory.bound(512 * MIB)
        return resource.getrlimit(resource.RLIMIT_DATA) == (tight, hard) != (first, hard)

    assert in_a_child(stays)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_are_bounded():
    def lowered() -> bool:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        (ours, theirs), (asked, asker) = Pipe(), socket.socketpair()
        ours.close()
        with theirs, asked, asker:
            workers._work(theirs, asker, releases={}, limits=Limits())
        return resource.getrlimit(resource.RLIMIT_DATA) != before

    assert in_a_child(lowered)
