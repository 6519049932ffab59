"""Lock this process in before it runs a line of the learner's: namespaces, mounts, limits, no way back."""

import contextlib
import os
import random
import resource
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qlab.grading.inside import confine_calls as calls
from qlab.grading.inside import confine_landlock, confine_seccomp

SCRATCH = "/tmp"
HOME = f"{SCRATCH}/home"
WORK = f"{SCRATCH}/work"
SHARED_MEMORY = "/dev/shm"
INODES = 20_000
OWN_NAMESPACES = calls.CLONE_NEWUSER | calls.CLONE_NEWNS | calls.CLONE_NEWNET | calls.CLONE_NEWIPC | calls.CLONE_NEWUTS


@dataclass(frozen=True)
class Confinement:
    """What one child may take, and how far it is locked in.

    `level` is "nested" (namespaces of its own), "alone" (those of its sandbox, which it shares with nobody) or
    "unsafe" (limits only).
    Units:   bytes, seconds of processor time.
    """

    level: str
    memory_bytes: int
    scratch_bytes: int
    processes: int
    open_files: int
    cpu_seconds: int


def confine(confinement: Confinement) -> None:
    """Confine this process, and all it will start, for good.

    Errors:  OSError if any step is refused; the process must then run nothing.
    """
    os.setsid()
    mapped_bytes = _mapped_bytes()
    if confinement.level == "nested":
        _enter_namespaces()
        _cover_mounts(confinement.scratch_bytes)
    _make_home(confinement)
    _limit(confinement, mapped_bytes=mapped_bytes)
    if confinement.level == "unsafe":
        return
    confine_landlock.restrict(readable=["/"], writable=[SCRATCH, "/dev"])
    if confinement.level == "nested":  # elsewhere bubblewrap has left none
        calls.drop_capabilities()
    calls.prctl("no new privileges", calls.PR_SET_NO_NEW_PRIVS, 1)
    calls.prctl("dumpable", calls.PR_SET_DUMPABLE, 0)
    confine_seccomp.install()


def reseed() -> None:
    """Give the random number generators of this process seeds that no sibling has."""
    random.seed()
    for name in ("numpy.random", "torch"):
        module = sys.modules.get(name)
        if module is not None:
            module.seed()


def only_descriptor(kept: int) -> int:
    """Close every descriptor but one, which becomes 3; the standard ones lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    if kept != 3:
        os.dup2(kept, 3)
    os.closerange(4, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 2**20))
    return 3


def default_signals() -> None:
    """Take back what the zygote did to signals."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _enter_namespaces() -> None:
    user, group = os.getuid(), os.getgid()
    calls.prctl("dumpable", calls.PR_SET_DUMPABLE, 1)  # the maps below belong to root otherwise
    calls.unshare(OWN_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with contextlib.suppress(OSError):  # a courtesy to the host's other programs: the first to go when memory ends
        Path("/proc/self/oom_score_adj").write_text("1000")
    calls.sethostname("sandbox")


def _cover_mounts(scratch_bytes: int) -> None:
    calls.mount("", "/", "", flags=calls.MS_REC | calls.MS_PRIVATE)
    flags = calls.MS_NOSUID | calls.MS_NODEV
    with _shown_again(_mounts_below(SCRATCH)):
        options = f"size={scratch_bytes},nr_inodes={INODES},mode=755"
        calls.mount("scratch", SCRATCH, "tmpfs", flags=flags, options=options)
    Path(SCRATCH, "shm").mkdir()
    calls.mount(f"{SCRATCH}/shm", SHARED_MEMORY, "", flags=calls.MS_BIND)  # one size limit for both
    covered = flags | calls.MS_RDONLY | calls.MS_NOEXEC
    calls.mount("nothing", "/proc", "tmpfs", flags=covered, options="size=4096,nr_inodes=1")


def _mounts_below(folder: str) -> list[str]:
    """Return where something is mounted below `folder`, outer before inner: an environment may lie there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    escaped = (line.split(" ")[4] for line in lines)
    paths = (path.encode().decode("unicode_escape").encode("latin-1").decode() for path in escaped)
    return sorted({path for path in paths if path.startswith(f"{folder}/")})


@contextlib.contextmanager
def _shown_again(paths: Iterable[str]) -> Iterator[None]:
    """Mount again, as they are, what the block covers."""
    descriptors = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths}
    yield
    for path, descriptor in descriptors.items():
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(path, exist_ok=True)
        elif not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
        calls.mount(f"/proc/self/fd/{descriptor}", path, "", flags=calls.MS_BIND | calls.MS_REC)
        os.close(descriptor)


def _mapped_bytes() -> int:
    if sys.platform != "linux":
        return 2**40
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _make_home(confinement: Confinement) -> None:
    if confinement.level == "unsafe":
        return
    for folder in (HOME, WORK):
        Path(folder).mkdir(exist_ok=True)
    os.chdir(WORK)


def _limit(confinement: Confinement, *, mapped_bytes: int) -> None:
    at_most = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: confinement.scratch_bytes,
        resource.RLIMIT_NOFILE: confinement.open_files,
        resource.RLIMIT_CPU: confinement.cpu_seconds,
        resource.RLIMIT_DATA: confinement.memory_bytes,
        resource.RLIMIT_AS: mapped_bytes + confinement.memory_bytes,  # shared memory counts here and not above
    }
    if confinement.level == "nested":  # elsewhere it would count every process of this user
        at_most[resource.RLIMIT_NPROC] = confinement.processes
    if sys.platform == "linux":
        at_most[resource.RLIMIT_MSGQUEUE] = 0
    for name, value in at_most.items():
        _, hard = resource.getrlimit(name)
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (lowered, lowered))
