"""Calls between the judge and a submission in its sandbox: plain data by value, everything else by reference."""

from qlab.grading.peer.calls import Peer

__all__ = ["Peer"]
