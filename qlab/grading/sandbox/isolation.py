"""What this machine offers to lock a stranger's code in, found out once by trying."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

from qlab.grading.sandbox import groups, view

TRY_SECONDS = 20
INSTALL = "install bubblewrap (apt install bubblewrap, dnf install bubblewrap, conda install -c conda-forge bubblewrap)"
TRIAL = """
import os, sys
from qlab.grading.inside import confine, confine_landlock, confine_seccomp
from qlab.grading.inside import confine_calls as calls
nested = False
try:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    calls.unshare(calls.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        try:
            confine.confine(confine.Confinement("nested", 2**33, 2**20, 8, 64, 10))
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    calls.setns(own, calls.CLONE_NEWPID)
    nested = os.waitpid(child, 0)[1] == 0
except OSError as error:
    print(error, file=sys.stderr)
try:
    confine_seccomp.install()
    seccomp = True
except OSError:
    seccomp = False
print("nested" if nested else "alone", "seccomp" if seccomp else "-", confine_landlock.version())
"""


class NoIsolation(Exception):
    """This machine cannot lock a submission in; the text says what is missing and what to install."""


@dataclass(frozen=True)
class Isolation:
    """What a sandbox on this machine is made of."""

    bubblewrap: str
    nested: bool
    seccomp: bool
    landlock: int
    cgroup: str
    remark: str = ""

    def __str__(self) -> str:
        kind = "forked from one warm process" if self.nested else "one for each submission (nested namespaces refused)"
        filtered = "seccomp" if self.seccomp else "no seccomp"
        landlock = f"Landlock {self.landlock}" if self.landlock else "no Landlock"
        return f"bubblewrap, {kind}, {filtered}, {landlock}, memory and processes by {self.cgroup}"


@cache
def require_isolation() -> Isolation:
    """Return what this machine can isolate with.

    Errors:  NoIsolation, saying what is missing and what to install.
    """
    if not sys.platform.startswith("linux"):
        raise NoIsolation(f"{sys.platform} has no namespaces: grade on Linux, or in a Linux virtual machine")
    found = shutil.which("bwrap")
    if found is None:
        raise NoIsolation(f"bubblewrap (bwrap) is not on PATH: {INSTALL}")
    words, nested_error = _words(found, nested=True)
    if not words:
        words, error = _words(found, nested=False)
        if not words:
            raise NoIsolation(f"bubblewrap does not work here ({error}): {_advice()}")
    if words[1] != "seccomp":
        raise NoIsolation("this kernel refuses seccomp filters, or they are not known for this kind of machine")
    parent = groups.parent()
    counted = "rlimits and a watch" if parent is None else f"{parent.kind}, rlimits and a watch"
    return Isolation(found, words[0] == "nested", True, int(words[2]), counted, nested_error)


def _words(bubblewrap: str, *, nested: bool) -> tuple[list[str], str]:
    """Try the whole confinement once; return what the trial says and what it complains of."""
    command = [bubblewrap, *view.arguments(nested=nested, scratch_bytes=2**20), sys.executable, "-c", TRIAL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    complaint = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return done.stdout.split() if done.returncode == 0 else [], complaint[0] if done.stderr or done.returncode else ""


def _advice() -> str:
    settings = {
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "1"),
        "/proc/sys/user/max_user_namespaces": ("0", "10000"),
    }
    for path, (bad, good) in settings.items():
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                if file.read().strip() == bad:
                    return f"`sudo sysctl -w {path.removeprefix('/proc/sys/').replace('/', '.')}={good}` allows it"
    return "the kernel or the container it runs in must allow user namespaces"
