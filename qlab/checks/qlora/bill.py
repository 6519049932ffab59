"""The bill of doubly quantized weights in bits: codes, both levels of constants, and one mean."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from math import ceil

import torch

from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import FP32_ROUNDING, doubles, drawn, require_numbers


@dataclass(frozen=True)
class Bill:
    """One call of `bits_per_weight`, in the order of the arguments."""

    weights: int
    size: int
    second: int

    @property
    def blocks(self) -> int:
        return ceil(self.weights / self.size)

    def bits(self, first: float, second: float, more: float = 32.0, *, codes: float = 4.0) -> float:
        """Return bits a weight of codes, of first and second constants in bits, and of the mean."""
        return codes + (first + second + more) / self.weights

    @property
    def right(self) -> float:
        return self.bits(8 * self.blocks, 32 * ceil(self.blocks / self.second))


def drawn_bill(draw: torch.Generator, *, ragged: bool) -> Bill:
    """Draw a call whose blocks divide evenly at both levels, or do not."""
    size, second = 2 ** drawn(4, 6, draw), 2 ** drawn(3, 5, draw)
    weights = size * second * drawn(2, 5, draw)
    return Bill(weights + 2 * drawn(1, size * second // 2 - 1, draw) if ragged else weights, size, second)


def compare_bits(bits: LearnerFunction, bills: list[Bill]) -> None:
    """Refuse the part unless every bill is right."""
    require_numbers(
        bits.map([astuple(bill) for bill in bills]),
        [bill.right for bill in bills],
        calls=[f"bits_per_weight{astuple(bill)}" for bill in bills],
        within=FP32_ROUNDING,
        suspects=lambda: [
            Suspect(*slips[0][:2], doubles([value for _, _, value in slips]))
            for slips in zip(*map(_slips, bills), strict=True)
        ],
    )


def _slips(bill: Bill) -> Iterator[tuple[str, str, float]]:
    first, second = 8 * bill.blocks, 32 * ceil(bill.blocks / bill.second)
    once = "Both levels are stored: a byte for each block, and an FP32 scale for each block of these."
    for more in (32.0, 0.0):
        yield "counts-constants-once", once, bill.bits(first, 0, more)
        yield "counts-constants-once", once, bill.bits(0, second, more)
        yield (
            "constants-still-in-fp32",
            "The first constants are codes now: 8 bits each.",
            bill.bits(32 * bill.blocks, second, more),
        )
        yield (
            "constants-still-in-fp32",
            "The first constants are codes now: 8 bits each.",
            bill.bits(32 * bill.blocks, 0, more),
        )
        yield "forgets-the-constants", once, bill.bits(0, 0, more)
    yield (
        "leaves-out-the-mean",
        "One FP32 mean is stored as well: 32 bits for all weights.",
        bill.bits(first, second, 0),
    )
    for even in (first, 8 * bill.weights / bill.size, 8 * (bill.weights // bill.size)):
        blocks = even / 8
        for some in (second, 32 * blocks / bill.second, 32 * (blocks // bill.second)):
            for more in (32.0, 0.0):
                yield (
                    "ragged-rounded-away",
                    "A shorter last block has constants as well: round up.",
                    bill.bits(even, some, more),
                )
    weights = "The second level's blocks are blocks of *constants*: count those, not weights."
    yield "second-blocks-of-weights", weights, bill.bits(first, 32 * ceil(bill.weights / bill.second))
    yield "mean-for-every-block", "The mean is one number for all.", bill.bits(first, second + 32 * bill.blocks, 0)
    yield "mean-for-every-block", "The mean is one number for all.", bill.bits(first, 2 * second, 0)
    yield "mean-for-every-weight", "The mean is one number for all.", bill.right + 32 - 32 / bill.weights
    yield "a-byte-for-four-bits", "Two codes share a byte.", bill.right + 4
    yield "counts-bytes", "Return bits: a byte has eight.", bill.right / 8
    yield "returns-the-total", "Divide by the number of weights.", bill.right * bill.weights
    yield "returns-the-total", "Divide by the number of weights.", bill.right * bill.weights / 8
    yield "rounds-the-result", "Return the number as it comes.", round(bill.right, 2)
    yield "rounds-the-result", "Return the number as it comes.", round(bill.right, 3)
    yield (
        "sizes-swapped",
        "Weights are in blocks of `block_size`, constants in blocks of `second_size`.",
        Bill(bill.weights, bill.second, bill.size).right,
    )
    yield "forgets-the-codes", "Each weight has a code of 4 bits.", bill.right - 4
