"""Landlock: the kernel's own list of what a process may do with files, beside the mounts that say the same."""

import ctypes
import os
import struct
from collections.abc import Sequence

from qlab.grading.inside import confine_calls as calls

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG = 1
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
READING = EXECUTE | READ_FILE | READ_DIR
RIGHTS_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
MAKE_CHARACTER_DEVICE, MAKE_BLOCK_DEVICE = 1 << 6, 1 << 11
TCP_BIND_AND_CONNECT = 3
ABSTRACT_SOCKETS_AND_SIGNALS = 3


def version() -> int:
    """Return the version of Landlock this kernel speaks, 0 for none."""
    return max(0, int(calls.libc().syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), VERSION_FLAG)))


def restrict(*, readable: Sequence[str], writable: Sequence[str]) -> None:
    """Let this process and all it starts read and write below these folders only; no-op without Landlock.

    Errors:  OSError if the kernel has Landlock and refuses.
    """
    speaks = version()
    if not speaks:
        return
    rights = RIGHTS_OF_VERSION[min(speaks, 5)]
    attributes = struct.pack("<Q", rights)
    if speaks >= 4:
        attributes += struct.pack("<Q", TCP_BIND_AND_CONNECT)
    if speaks >= 6:
        attributes += struct.pack("<Q", ABSTRACT_SOCKETS_AND_SIGNALS)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = calls.raw("landlock", CREATE_RULESET, buffer, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in readable:
            _allow(ruleset, path, READING)
        for path in writable:
            _allow(ruleset, path, rights & ~(MAKE_CHARACTER_DEVICE | MAKE_BLOCK_DEVICE))
        calls.prctl("no new privileges", calls.PR_SET_NO_NEW_PRIVS, 1)
        calls.raw("landlock", RESTRICT_SELF, ctypes.c_int(ruleset), 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, descriptor), 12)
        calls.raw("landlock", ADD_RULE, ctypes.c_int(ruleset), PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
