"""The system calls that confinement needs and Python 3.11 does not offer, by ctypes."""

import ctypes
import os
from collections.abc import Callable
from functools import cache

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080
NEW_NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522


@cache
def libc() -> ctypes.CDLL:
    """Return the C library, asked to keep errno."""
    return ctypes.CDLL(None, use_errno=True)


def checked(what: str, function: Callable[..., int], *arguments: object) -> int:
    """Call a C function, and raise what errno says if it fails.

    Errors:  OSError, naming the call.
    """
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)


def raw(what: str, number: int, *arguments: object) -> int:
    """Make a system call by its number."""
    return checked(what, libc().syscall, ctypes.c_long(number), *arguments)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for fresh ones."""
    checked("unshare", libc().unshare, ctypes.c_int(flags))


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespace that `descriptor` holds open."""
    checked("setns", libc().setns, ctypes.c_int(descriptor), ctypes.c_int(flags))


def mount(source: str, target: str, kind: str, *, flags: int, options: str = "") -> None:
    """Mount a filesystem, or change a mount."""
    names = [text.encode() if text else None for text in (source, target, kind)]
    checked(f"mount {target}", libc().mount, *names, ctypes.c_ulong(flags), options.encode() or None)


def prctl(what: str, option: int, *arguments: int) -> None:
    """Set one attribute of this process."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    checked(what, libc().prctl, ctypes.c_int(option), *(ctypes.c_ulong(value) for value in padded))


def sethostname(name: str) -> None:
    """Name this machine, as the processes of this namespace see it."""
    checked("sethostname", libc().sethostname, name.encode(), ctypes.c_size_t(len(name)))


def drop_capabilities() -> None:
    """Give up every capability for good: bounding, ambient, permitted, inheritable."""
    for capability in range(64):
        if libc().prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last one this kernel knows
    prctl("ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    prctl("securebits", PR_SET_SECUREBITS, 0b101111)  # a uid of 0 brings none back, and none is kept over a change
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    empty = (ctypes.c_uint32 * 6)()
    checked("capset", libc().capset, header, empty)
