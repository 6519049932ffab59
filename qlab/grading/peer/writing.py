"""Values as tagged bytes: exact plain types, tensors, qlab's records; whatever else becomes a handle."""

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.grading.peer import classes, tensors
from qlab.grading.peer.budget import DEEPEST, STACKED_WEIGHT, Budget, TooLarge

LONGEST_INTEGER = 1_024  # bytes
LONGEST_RANGE = 100_000
LONG, REAL, COMPLEX, COUNT = struct.Struct("!q"), struct.Struct("!d"), struct.Struct("!dd"), struct.Struct("!I")


class Writer:
    """Encode values one after another; `handle(writer, value)` encodes what is no plain data.

    Records of all qlab go to the sandbox, to the judge only those of the checks, which their drivers return.
    """

    def __init__(self, handle: Callable[["Writer", Any], None], *, trusted: bool, most_bytes: int) -> None:
        self.bytes, self.handle, self.most_bytes = bytearray(), handle, most_bytes
        self.trusted, self.records = trusted, classes.is_record if trusted else classes.is_reply
        self.generators: list[torch.Generator] = []
        self.depth, self.budget = 0, Budget(tensors.MOST_BYTES)

    def put(self, value: Any) -> None:
        """Append one value.

        Errors:  TooLarge.
        """
        self.depth += 1
        self.budget.add(1)
        if self.depth > DEEPEST or len(self.bytes) > self.most_bytes:
            raise TooLarge("a value is nested too deeply or too large to be handed over")
        write = WRITERS.get(type(value))
        if write is None:
            self._put_other(value)
        else:
            write(self, value)
        self.depth -= 1

    def _put_other(self, value: Any) -> None:
        """Append a tensor, an array, a record, or a subclass of a plain type as that type."""
        if isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, np.generic | np.ndarray):
            self.array(value)
        elif self.records(type(value)):
            self.record(value)
        elif plain := next((cls for cls in PLAIN if isinstance(value, cls)), None):
            self.put(dict(value) if plain is Mapping else plain(value))
        else:
            self.handle(self, value)

    def count(self, number: int) -> None:
        """Append a number of things."""
        self.bytes += COUNT.pack(number)

    def raw(self, tag: bytes, data: bytes) -> None:
        """Append bytes behind a tag and their length."""
        if len(data) > self.most_bytes:
            raise TooLarge(f"{len(data):,} bytes are too many to be handed over")
        self.bytes += tag + COUNT.pack(len(data)) + data

    def text(self, tag: bytes, text: str) -> None:
        """Append text behind a tag."""
        data = text.encode("utf-8", "surrogatepass")
        self.budget.tell(len(data))
        self.raw(tag, data)

    def integer(self, value: int) -> None:
        """Append an integer of any size."""
        if -(2**63) <= value < 2**63:
            self.bytes += b"i" + LONG.pack(value)
        elif value.bit_length() > 8 * LONGEST_INTEGER - 8:
            raise TooLarge(f"an integer of {value.bit_length():,} bits is too large to be handed over")
        else:
            self.raw(b"I", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))

    def many(self, tag: bytes, values: Any) -> None:
        """Append a row of values; many tensors of one kind go as one."""
        if tag == b"l" and len(values) >= tensors.WORTH_STACKING and tensors.stackable(values):
            self.bytes += b"K"
            self.budget.add(STACKED_WEIGHT * len(values))
            self.tensor(torch.stack([value.detach() for value in values]))
            return
        self.bytes += tag + COUNT.pack(len(values))
        for value in values:
            self.put(value)

    def mapping(self, values: dict[Any, Any]) -> None:
        """Append a dict."""
        self.budget.keys(len(values))
        self.bytes += b"d" + COUNT.pack(len(values))
        for key, value in values.items():
            self.put(key)
            self.put(value)

    def range(self, value: range) -> None:
        """Append a range that is not too long to be read."""
        if not -LONGEST_RANGE <= value.stop - value.start <= LONGEST_RANGE:
            raise TooLarge(f"{value!r} is too long to be handed over"[:200])
        self.budget.take(b"r")
        self.many(b"r", (value.start, value.stop, value.step))

    def hashed(self, tag: bytes, values: Any) -> None:
        """Append a set."""
        self.budget.take(tag)
        self.budget.keys(len(values))
        self.many(tag, values)

    def record(self, value: Any) -> None:
        """Append one of qlab's records, by its class's name."""
        self.budget.take(b"C")
        self.text(b"C", classes.name_of(type(value)))
        self.put(classes.fields_of(value))

    def array(self, value: Any) -> None:
        """Append a NumPy array or scalar."""
        if isinstance(value, np.str_ | np.bytes_):
            self.put(value.item())
            return
        array = np.asarray(value)
        if array.dtype.kind in "UO":
            self.bytes += b"U" if array.dtype.kind == "U" else b"P"
            self.budget.show(array.nbytes)
            self.put(array.shape)
            self.put(array.ravel().tolist())
            return
        name = classes.dtype_name(array.dtype)
        if not name:
            self.handle(self, value)
            return
        tag = b"n" if isinstance(value, np.generic) else b"A"
        self.budget.take(tag)
        self.text(tag, name)
        self.put(array.shape)
        self.raw(b"b", array.tobytes())

    def tensor(self, value: Tensor) -> None:
        """Append a tensor."""
        self.budget.take(b"X")
        self.budget.show(tensors.shown_bytes(value))
        try:
            raw = tensors.raw(value)
        except (RuntimeError, TypeError, NotImplementedError):  # one without memory: meta, or a wrapper's own
            self.handle(self, value)
            return
        self.text(b"X", raw.dtype)
        self.put((raw.shape, raw.strides, raw.wants_gradient, raw.data))

    def generator(self, value: torch.Generator) -> None:
        """Append the state of a generator of the judge's, which wants it back."""
        if not self.trusted or value.device.type != "cpu":
            self.handle(self, value)
            return
        self.generators.append(value)
        self.raw(b"G", value.get_state().numpy().tobytes())


PLAIN = (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, Mapping)
WRITERS: dict[type, Callable[[Writer, Any], None]] = {
    type(None): lambda w, value: w.bytes.extend(b"N"),
    type(Ellipsis): lambda w, value: w.bytes.extend(b"E"),
    bool: lambda w, value: w.bytes.extend(b"T" if value else b"F"),
    int: Writer.integer,
    float: lambda w, value: w.bytes.extend(b"f" + REAL.pack(value)),
    complex: lambda w, value: w.bytes.extend(b"c" + COMPLEX.pack(value.real, value.imag)),
    str: lambda w, value: w.text(b"s", value),
    bytes: lambda w, value: w.raw(b"b", value),
    bytearray: lambda w, value: w.raw(b"y", bytes(value)),
    list: lambda w, value: w.many(b"l", value),
    tuple: lambda w, value: w.many(b"t", value),
    set: lambda w, value: w.hashed(b"S", value),
    frozenset: lambda w, value: w.hashed(b"Z", value),
    dict: Writer.mapping,
    torch.Size: lambda w, value: w.many(b"z", value),
    slice: lambda w, value: w.many(b":", (value.start, value.stop, value.step)),
    range: Writer.range,
    torch.dtype: lambda w, value: w.text(b"D", str(value)[6:]),
    torch.device: lambda w, value: w.text(b"V", str(value)),
    torch.Generator: Writer.generator,
    Tensor: Writer.tensor,
}
