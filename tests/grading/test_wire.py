"""Frames over a socket: whole or refused, and never waited for beyond the deadline."""

import socket
import threading
import time

import pytest

from qlab.grading.wire import LENGTH, Connection, ConnectionEnded, TimedOut


@pytest.fixture
def ends():
    a, b = socket.socketpair()
    yield a, b
    a.close()
    b.close()


def test_frames_arrive_whole_and_in_order(ends):
    sender, receiver = map(Connection, ends)
    frames = [b"", b"x", bytes(range(256)) * 40]
    for frame in frames:
        sender.send(frame)
    assert [receiver.receive(deadline=time.monotonic() + 5) for _ in frames] == frames


def test_a_frame_larger_than_the_sockets_buffer(ends):
    sender, receiver = map(Connection, ends)
    frame = b"0123456789" * 500_000
    thread = threading.Thread(target=sender.send, args=(frame,))
    thread.start()
    assert receiver.receive(deadline=time.monotonic() + 20) == frame
    thread.join()


def test_nothing_comes_before_the_deadline(ends):
    started = time.monotonic()
    with pytest.raises(TimedOut):
        Connection(ends[0]).receive(deadline=started + 0.1)
    assert time.monotonic() - started < 2


def test_a_trickle_does_not_move_the_deadline(ends):
    connection, other = Connection(ends[0]), ends[1]
    other.sendall(LENGTH.pack(1_000))
    stop = threading.Event()

    def trickle():
        while not stop.wait(0.02):
            other.send(b".")

    thread = threading.Thread(target=trickle)
    thread.start()
    started = time.monotonic()
    with pytest.raises(TimedOut):
        connection.receive(deadline=started + 0.3)
    stop.set()
    thread.join()
    assert time.monotonic() - started < 2


def test_what_is_not_read_cannot_be_sent_beyond_the_deadline(ends):
    with pytest.raises(TimedOut):
        Connection(ends[0]).send(bytes(50_000_000), deadline=time.monotonic() + 0.2)


@pytest.mark.parametrize("sent", [b"", b"\0\0", LENGTH.pack(10) + b"five!"])
def test_a_connection_that_closes_in_the_middle(ends, sent):
    ends[1].sendall(sent)
    ends[1].close()
    with pytest.raises(ConnectionEnded, match="closed"):
        Connection(ends[0]).receive()


def test_too_much_is_refused_before_it_is_read(ends):
    ends[1].sendall(LENGTH.pack(2**63))
    with pytest.raises(ConnectionEnded, match="9,223,372,036,854,775,808 bytes"):
        Connection(ends[0]).receive()
    with pytest.raises(ConnectionEnded, match="larger than 10"):
        Connection(ends[0], most_bytes=10).send(bytes(11))


def test_sending_to_nobody(ends):
    ends[1].close()
    connection = Connection(ends[0])
    with pytest.raises(ConnectionEnded):
        for _ in range(3):
            connection.send(b"x")
