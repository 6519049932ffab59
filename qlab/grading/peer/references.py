"""What crosses the border by reference: functions and unknown objects, as numbers in their owner's table."""

from typing import Any

import torch

from qlab.grading.peer import classes, remote
from qlab.grading.peer.reading import Malformed, Reader
from qlab.grading.peer.table import Table
from qlab.grading.peer.writing import Writer


class References:
    """Encode and decode references for one side; the judge hands over nothing but functions."""

    def __init__(self, peer: Any, *, trusted: bool) -> None:
        self.peer, self.trusted, self.table = peer, trusted, Table()

    def write(self, writer: Writer, value: Any) -> None:
        """Encode an object that is no plain data.

        Errors:  TypeError for an object of the judge's that is no function.
        """
        theirs = self.table.imported_as(value)
        if theirs is not None:
            writer.bytes += b"O"
            writer.count(theirs)
            return
        called = callable(value)
        if self.trusted and (name := classes.public_name(value)):
            writer.text(b"q", name)
            return
        if self.trusted and (not called or isinstance(value, torch.nn.Module)):
            raise TypeError(f"a {type(value).__name__} of the check cannot be handed to another process")
        writer.budget.take(b"h")
        number = self.table.number_of(value)
        writer.bytes += b"h"
        writer.count(self.table.export(value) if number is None else number)
        writer.put((_title(value), called))

    def read(self, reader: Reader, tag: bytes) -> Any:
        """Decode a reference."""
        if tag == b"q":
            return self._named(reader.text())
        if tag not in (b"O", b"h"):
            raise Malformed("an unknown tag")
        number = reader.count()
        if tag == b"O":
            return self.mine(number)
        told = reader.expected(tuple)
        if len(told) != 2 or type(told[0]) is not str or type(told[1]) is not bool:
            raise Malformed("no description of a handle")
        known = self.table.get(number)
        if known is None:
            known = remote.stand_in(self.peer, number, told[0], called=told[1])
            self.table.note(number, known)
        return known

    def mine(self, number: Any) -> Any:
        """Return the export that the other side refers to."""
        if type(number) is not int or number not in self.table.exports:
            raise Malformed("a reference to nothing")
        return self.table.exports[number]

    def _named(self, name: str) -> Any:
        thing = None if self.trusted else classes.found(name, importing=True)
        if thing is None:
            raise Malformed(f"nothing is called {name[:80]}")
        return thing


def _title(value: Any) -> str:
    name = type(value).__name__ if isinstance(value, type) else getattr(value, "__name__", None)
    return name if type(name) is str and callable(value) else type(value).__name__
