"""How much one message may hold: the same for the side that writes, which says so, and the one that reads."""

import math
from collections.abc import Sequence
from itertools import zip_longest

MOST_VALUES = 1_000_000
# by tag, for what takes more memory, or more time, than a number: tensors, arrays, handles, sets, records, ranges
WEIGHTS = {b"X": 50, b"A": 10, b"n": 4, b"h": 20, b"S": 5, b"Z": 5, b"C": 5, b"r": 10_000}
MOST_KEYS, KEY_WEIGHT, STACKED_WEIGHT = 10_000, 10, 4
DEEPEST, MOST_TEXT = 50, 2**25
MOST_ELEMENTS, MOST_TOGETHER = 2**20, 2**22  # of tensors that a function of the judge's is given; of their joint shape


Shape = tuple[int, ...]


class TooLarge(ValueError):
    """A value takes more room than a message gives it, or is nested too deeply."""


class Budget:
    """What the values of a message have taken so far."""

    def __init__(self, most_shown: int) -> None:
        self.values = self.shown = self.told = 0
        self.most_shown = most_shown

    def take(self, tag: bytes) -> None:
        """Count a value.

        Errors:  TooLarge once there are too many, from every method.
        """
        self.add(WEIGHTS.get(tag, 1))

    def add(self, values: int) -> None:
        """Count values."""
        self.values += values
        if self.values > MOST_VALUES:
            raise TooLarge("it holds too many values")

    def keys(self, number: int) -> None:
        """Count the keys of a dict or set, few enough that their hashes may all collide."""
        if number > MOST_KEYS:
            raise TooLarge(f"a dict or set holds too many values: {number:,}, at most {MOST_KEYS:,} are read")
        self.add(KEY_WEIGHT * number)

    def show(self, size: int) -> None:
        """Count the bytes that a tensor shows."""
        self.shown += size
        if self.shown > self.most_shown:
            raise TooLarge(f"its tensors show more than {self.most_shown:,} bytes")

    def tell(self, size: int) -> None:
        """Count the bytes of a text: one that is damaged takes eight times as much while it is read."""
        self.told += size
        if self.told > MOST_TEXT:
            raise TooLarge(f"its texts are longer than {MOST_TEXT:,} bytes")


def require_moderate(shapes: Sequence[Shape]) -> None:
    """Refuse tensors and arrays that are large, or become large where they meet: small messages can hold such.

    Errors:  TooLarge.
    """
    elements = sum(map(math.prod, shapes))
    together = math.prod(max(sizes) for sizes in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1))
    if elements > MOST_ELEMENTS or together > MOST_TOGETHER:
        raise TooLarge(f"the arguments are too large: {elements:,} elements, and {together:,} once broadcast")
