"""Tagged bytes as values: nothing that is decoded runs code, and nothing takes much more memory than its bytes."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qlab.grading.peer import classes, tensors
from qlab.grading.peer.budget import DEEPEST, STACKED_WEIGHT, Budget
from qlab.grading.peer.writing import COMPLEX, COUNT, LONG, LONGEST_INTEGER, LONGEST_RANGE, REAL

PROGRESS = struct.Struct("=QiiQ")  # of torch's Mersenne Twister: seed, words left before a new round, seeded, place
TWISTER_WORDS = 624
DEVICES = ("cpu", "meta", "cuda", "cuda:0")


class Malformed(ValueError):
    """Bytes that no honest writer makes."""


class Reader:
    """Decode what a `Writer` encoded; `handle(reader, tag)` decodes what is no plain data.

    The judge's reader is `trusted`: its tensors want no gradient and no class is imported for it.
    Errors:  Malformed, or another ValueError, for what does not follow the format, from every method.
    """

    def __init__(self, data: bytes, handle: Callable[["Reader", bytes], Any], *, trusted: bool) -> None:
        self.data, self.handle, self.trusted = data, handle, trusted
        self.place = self.depth = 0
        self.budget = Budget(tensors.MOST_BYTES)
        self.generators: list[torch.Generator] = []
        self.shapes: list[tuple[int, ...]] = []

    def take(self) -> Any:
        """Return the next value."""
        tag = self.pieces(1)
        self.depth += 1
        self.budget.take(tag)
        if self.depth > 2 * DEEPEST:
            raise Malformed("a value is nested too deeply")
        read = READERS.get(tag)
        value = self.handle(self, tag) if read is None else read(self)
        self.depth -= 1
        return value

    def pieces(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > len(self.data) - self.place:
            raise Malformed("the message ends too early")
        self.place += size
        return self.data[self.place - size : self.place]

    def count(self) -> int:
        """Return a number of things."""
        return COUNT.unpack(self.pieces(4))[0]

    def raw(self) -> bytes:
        """Return bytes that stand behind their length."""
        return self.pieces(self.count())

    def text(self) -> str:
        """Return text."""
        data = self.raw()
        self.budget.tell(len(data))
        return data.decode("utf-8", "replace" if self.trusted else "surrogatepass")

    def integer(self) -> int:
        """Return a large integer."""
        data = self.raw()
        if len(data) > LONGEST_INTEGER:
            raise Malformed("an endless integer")
        return int.from_bytes(data, "big", signed=True)

    def many(self) -> list[Any]:
        """Return a row of values."""
        number = self.count()
        if number > len(self.data) - self.place:  # each takes a byte at least
            raise Malformed("more values are announced than the message has bytes")
        return [self.take() for _ in range(number)]

    def expected(self, *kinds: type) -> Any:
        """Return the next value, which must be of exactly one of these types."""
        value = self.take()
        if type(value) not in kinds:
            raise Malformed(f"a {type(value).__name__} came in place of a {kinds[0].__name__}")
        return value

    def mapping(self) -> dict[Any, Any]:
        """Return a dict."""
        number = self.count()
        self.budget.keys(number)
        try:
            return {self.take(): self.take() for _ in range(number)}
        except TypeError:  # an unhashable key
            raise Malformed("a list or dict came as a key") from None

    def hashed(self, kind: type) -> Any:
        """Return a set or a frozen set."""
        values = self.many()
        self.budget.keys(len(values))
        try:
            return kind(values)
        except TypeError:
            raise Malformed("a list or dict came in a set") from None

    def sizes(self, value: Any) -> tuple[int, ...]:
        """Return a value as a tuple of sizes."""
        if type(value) is not tuple or len(value) > tensors.MOST_DIMENSIONS:
            raise Malformed("no tuple of sizes")
        if any(type(n) is not int or not 0 <= n < 2**62 for n in value):
            raise Malformed("a negative or endless size")
        return value

    def record(self) -> Any:
        """Return one of qlab's records."""
        return classes.rebuilt(self.text(), self.expected(tuple), trusted=self.trusted)

    def array(self, *, scalar: bool) -> Any:
        """Return a NumPy array or scalar over memory of its own."""
        dtype = classes.dtype_named(self.text())
        shape, data = self.sizes(self.take()), self.expected(bytes)
        if dtype.kind == "b":
            data = (np.frombuffer(data, np.uint8) != 0).tobytes()  # a byte of 2 would be neither True nor False
        array = np.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
        self.shapes.append(shape)
        return array[()] if scalar else array

    def objects(self, *, text: bool) -> np.ndarray:
        """Return an array of objects or of text, made of values: the bytes of an array may be no text."""
        shape, values = self.sizes(self.take()), self.expected(list)
        array = np.empty(len(values), dtype=object)
        for place, value in enumerate(values):  # a slice would take lists of one length for rows
            array[place] = value
        if text:
            if not all(type(value) is str for value in values):
                raise Malformed("no array of text")
            self.budget.show(4 * len(values) * max(map(len, values), default=0))
            array = array.astype(str)
        return array.reshape(shape)

    def tensor(self) -> torch.Tensor:
        """Return a tensor over memory of its own."""
        dtype, layout = self.text(), self.expected(tuple)
        if len(layout) != 4 or type(layout[3]) is not bytes:
            raise Malformed("no layout of a tensor")
        shape, strides = self.sizes(layout[0]), self.sizes(layout[1])
        raw = tensors.Raw(dtype, shape, strides, layout[2] is True, layout[3])
        tensor = tensors.rebuilt(raw)
        self.budget.show(tensors.shown_bytes(tensor))
        self.shapes.append(shape)
        differentiable = tensor.is_floating_point() or tensor.is_complex()
        return tensor.requires_grad_() if raw.wants_gradient and differentiable and not self.trusted else tensor

    def generator(self) -> torch.Generator:
        """Return a generator in the state that came; none comes to the judge."""
        if self.trusted:
            raise Malformed("a generator came")
        generator, state = torch.Generator(), self.raw()
        if state:
            set_state(generator, state)
        self.generators.append(generator)
        return generator

    def three(self) -> list[Any]:
        """Return the three numbers of a slice or range."""
        values = self.many()
        if len(values) != 3 or any(type(value) not in (int, type(None)) for value in values):
            raise Malformed("no slice")
        return values

    def named(self, known: dict[str, Any]) -> Any:
        """Return what a name in a table stands for."""
        name = self.text()
        if name not in known:
            raise Malformed(f"nothing is called {name[:40]!r}")
        return known[name]


def set_state(generator: torch.Generator, state: bytes) -> None:
    """Put a generator into a state.

    Errors:  Malformed if it is none. Torch itself reads past a state that says it is farther along than it is long.
    """
    if len(state) < PROGRESS.size:
        raise Malformed("no state of a generator")
    _, left, _, place = PROGRESS.unpack_from(state)
    if (left, place) != (1, 0) and not (1 <= left <= TWISTER_WORDS and left + place == TWISTER_WORDS + 1):
        raise Malformed("a generator that is past its end")
    try:
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    except RuntimeError:
        raise Malformed("no state of a generator") from None


def _size(reader: Reader) -> torch.Size:
    return torch.Size(reader.sizes(tuple(reader.many())))


def _device(reader: Reader) -> torch.device:
    name = reader.text()
    return torch.device(name if name in DEVICES else "cpu")


def _range(reader: Reader) -> range:
    start, stop, step = reader.three()
    if None in (start, stop, step) or not step or not -LONGEST_RANGE <= stop - start <= LONGEST_RANGE:
        raise Malformed("no range, or an endless one")
    return range(start, stop, step)


def _stack(reader: Reader) -> list[torch.Tensor]:
    """Return the rows of a tensor."""
    if reader.pieces(1) != b"X":
        raise Malformed("no stack of tensors")
    stack = reader.tensor()
    if not stack.ndim or stack.requires_grad:
        raise Malformed("no stack of tensors")
    reader.budget.add(STACKED_WEIGHT * len(stack))
    return list(stack.unbind())


READERS: dict[bytes, Callable[[Reader], Any]] = {
    b"N": lambda r: None,
    b"E": lambda r: Ellipsis,
    b"T": lambda r: True,
    b"F": lambda r: False,
    b"i": lambda r: LONG.unpack(r.pieces(8))[0],
    b"I": Reader.integer,
    b"f": lambda r: REAL.unpack(r.pieces(8))[0],
    b"c": lambda r: complex(*COMPLEX.unpack(r.pieces(16))),
    b"s": Reader.text,
    b"b": Reader.raw,
    b"y": lambda r: bytearray(r.raw()),
    b"l": Reader.many,
    b"K": _stack,
    b"t": lambda r: tuple(r.many()),
    b"S": lambda r: r.hashed(set),
    b"Z": lambda r: r.hashed(frozenset),
    b"d": Reader.mapping,
    b"z": _size,
    b":": lambda r: slice(*r.three()),
    b"r": _range,
    b"D": lambda r: r.named(tensors.DTYPES),
    b"V": _device,
    b"G": Reader.generator,
    b"C": Reader.record,
    b"A": lambda r: r.array(scalar=False),
    b"n": lambda r: r.array(scalar=True),
    b"U": lambda r: r.objects(text=True),
    b"P": lambda r: r.objects(text=False),
    b"X": Reader.tensor,
}
