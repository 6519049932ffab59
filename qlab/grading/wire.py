"""Frames between the judge and its sandbox: a length, then that many bytes."""

import socket
import struct
import time

from qlab.grading.limits import Limits

LENGTH = struct.Struct("!Q")
AT_ONCE = 1 << 16


class ConnectionEnded(Exception):
    """The other side closed the connection or broke its protocol; the text says which."""


class TimedOut(Exception):
    """No whole frame arrived, or was taken, before the deadline."""


class Connection:
    """A connected unix stream socket that carries whole frames.

    Units:   `most_bytes` bounds one frame, in either direction.
    """

    def __init__(self, sock: socket.socket, *, most_bytes: int = Limits().message_bytes) -> None:
        self.socket = sock
        self.most_bytes = most_bytes
        self._ahead = bytearray()

    def send(self, payload: bytes | bytearray, *, deadline: float | None = None) -> None:
        """Send one frame; `deadline` is a value of `time.monotonic()`.

        Errors:  TimedOut at the deadline; ConnectionEnded if the other side is gone or the frame is too large.
        """
        if len(payload) > self.most_bytes:
            raise ConnectionEnded(f"a message of {len(payload):,} bytes is larger than {self.most_bytes:,}")
        try:
            self._wait_until(deadline)
            self.socket.sendall(LENGTH.pack(len(payload)) + payload)
        except TimeoutError:
            raise TimedOut("the other side did not read in time") from None
        except OSError as error:
            raise ConnectionEnded(f"the other side closed the connection ({error.strerror})") from None

    def receive(self, *, deadline: float | None = None) -> bytes:
        """Return the next frame; `deadline` is a value of `time.monotonic()`.

        Errors:  TimedOut at the deadline; ConnectionEnded if the other side is gone or announces too much.
        """
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size, deadline))
        if length > self.most_bytes:
            raise ConnectionEnded(f"a message of {length:,} bytes was announced, at most {self.most_bytes:,} are read")
        return self._exactly(length, deadline)

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        """Read `size` bytes; memory is taken as they arrive, not as they are announced."""
        while len(self._ahead) < size:
            try:
                self._wait_until(deadline)
                piece = self.socket.recv(max(AT_ONCE, min(size - len(self._ahead), 16 * AT_ONCE)))
            except TimeoutError:
                raise TimedOut("no answer came in time") from None
            except OSError as error:
                raise ConnectionEnded(f"the other side closed the connection ({error.strerror})") from None
            if not piece:
                raise ConnectionEnded("the other side closed the connection")
            self._ahead += piece
        with memoryview(self._ahead) as ahead:
            read = bytes(ahead[:size])
        del self._ahead[:size]
        return read

    def _wait_until(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self.socket.settimeout(left)
