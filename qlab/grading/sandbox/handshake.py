"""The first words between a grader and a fresh kernel: who it is, that it is confined, that it may go."""

import os
import select
import socket
import sys
import time
from collections.abc import Sequence

from qlab.grading.inside.zygote import FAILED, READY

START_SECONDS = 30.0
CREDENTIALS_BYTES = 12


def ask_who_sends(sock: socket.socket) -> None:
    """Have the kernel of this machine tell which process sends; it cannot be forged."""
    if hasattr(socket, "SO_PASSCRED"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def await_ready(sock: socket.socket) -> tuple[int, str]:
    """Wait until a fresh kernel says it is confined; return its process id, and what went wrong, if anything did."""
    deadline = time.monotonic() + START_SECONDS
    if not select.select([sock], [], [], START_SECONDS)[0]:
        return 0, f"it said nothing for {START_SECONDS:.0f} seconds"
    said, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS_BYTES))
    if hasattr(socket, "SO_PASSCRED"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    if said == READY:
        return _sender(ancillary), ""
    return 0, _line(sock, deadline) if said == FAILED else "it ended at once"


def descriptor_of(pid: int) -> int:
    """Return a descriptor of a process, -1 if there is none such any more."""
    try:
        return os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        return -1


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """Return which process sent a message, 0 where the kernel does not tell."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
            return int.from_bytes(data[:4], sys.byteorder)
    return 0


def _line(sock: socket.socket, deadline: float) -> str:
    text = b""
    while not text.endswith(b"\n") and select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
        more = sock.recv(4096)
        if not more:
            break
        text += more
    return text.decode(errors="replace").strip()
