"""Check of `bits_per_weight`: codes, and a share of the constants that each group brings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import torch

from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import FP32_ROUNDING, doubles, drawn, require_numbers
from qlab.checks.quantization.codes import TOPIC
from qlab.checks.report import check, part


def bits_per_weight(
    shape: tuple[int, int], bits: int, group_size: int, scale_bits: int = 32, zero_point_bits: int = 0
) -> float:
    """Return the bits that a weight of a matrix takes, with its share of the constants of its row's groups."""
    rows, columns = shape
    groups = rows * ceil(columns / group_size)
    return bits + groups * (scale_bits + zero_point_bits) / (rows * columns)


@dataclass(frozen=True)
class Case:
    """One call, in the order of the arguments."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    scale_bits: int
    zero_point_bits: int

    @property
    def arguments(self) -> tuple[tuple[int, int], int, int, int, int]:
        return self.shape, self.bits, self.group_size, self.scale_bits, self.zero_point_bits

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def groups(self) -> int:
        return self.shape[0] * ceil(self.shape[1] / self.group_size)

    @property
    def constant_bits(self) -> int:
        return self.scale_bits + self.zero_point_bits

    def with_groups(self, groups: float) -> float:
        """Return the bits if there were so many groups."""
        return self.bits + groups * self.constant_bits / self.weights


@check(TOPIC, "bits-per-weight", bits_per_weight, points=4)
def check_bits_per_weight(bits_per_weight: LearnerFunction, draw: torch.Generator) -> None:
    """Check `bits_per_weight(shape, bits, group_size, scale_bits, zero_point_bits)`."""

    def rows() -> int:
        return drawn(3, 90, draw)

    with part("one scale for each row"):
        columns = [drawn(30, 300, draw) for _ in range(3)]
        _compare(bits_per_weight, [Case((rows(), n), b, n, 32, 0) for n, b in zip(columns, (8, 4, 3), strict=True)])
    with part("several groups in a row, scales of 32 and 16 bits"):
        sizes = [2 ** drawn(4, 7, draw) for _ in range(3)]
        kinds = zip(sizes, (4, 8, 2), (16, 32, 16), strict=True)
        _compare(bits_per_weight, [Case((rows(), g * drawn(2, 9, draw)), b, g, s, 0) for g, b, s in kinds])
    with part("a ragged last group brings all of its constants"):
        cases = []
        for bits, scale_bits in ((4, 16), (3, 32), (8, 16)):
            size = drawn(16, 64, draw)
            columns = size * drawn(1, 4, draw) + drawn(1, size - 2, draw)
            cases.append(Case((rows(), columns), bits, size, scale_bits, 0))
        _compare(bits_per_weight, cases)
    with part("zero points count as well"):
        cases = []
        for bits, scale_bits, zero_point_bits in ((4, 16, 4), (8, 32, 8), (3, 16, 8)):
            size = drawn(16, 64, draw)
            cases.append(Case((rows(), size * drawn(2, 9, draw)), bits, size, scale_bits, zero_point_bits))
        _compare(bits_per_weight, cases)


def _compare(bits_per_weight: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        bits_per_weight.map([case.arguments for case in cases]),
        [case.with_groups(case.groups) for case in cases],
        calls=[f"bits_per_weight{case.arguments}" for case in cases],
        within=FP32_ROUNDING,
        suspects=lambda: _suspects(cases),
    )


def _suspects(cases: list[Case]) -> Iterator[Suspect]:
    for misconception, thought, slip in SLIPS:
        yield Suspect(misconception, thought, doubles([slip(case) for case in cases]))


def _right(case: Case) -> float:
    return case.with_groups(case.groups)


BYTES = "Return bits: a byte has eight."
MIXED = "Add bits to bits: the sizes of the constants are given in bits already."
RAGGED = "A row of 100 has four groups of 32: the short one has constants too, so round up."
EACH_ROW = "No group crosses the end of a row: count the groups of one row, rounded up, then the rows."
SLIPS: tuple[tuple[str, str, Callable[[Case], float]], ...] = (
    ("forgets-scales", "Each group of weights has a scale, and its bits count.", lambda c: c.bits),
    (
        "forgets-scales",
        "The scale of a group counts as well as its zero point.",
        lambda c: c.bits + c.groups * c.zero_point_bits / c.weights,
    ),
    (
        "forgets-zero-points",
        "Where there are zero points, each group has one.",
        lambda c: c.bits + c.groups * c.scale_bits / c.weights,
    ),
    ("ragged-rounded-away", RAGGED, lambda c: c.with_groups(c.weights / c.group_size)),
    ("ragged-rounded-away", RAGGED, lambda c: c.with_groups(c.shape[0] * (c.shape[1] // c.group_size))),
    ("ragged-rounded-away", RAGGED, lambda c: c.with_groups(c.shape[0] * round(c.shape[1] / c.group_size))),
    (
        "one-group-too-many",
        "A row that its groups fill has no group beyond them.",
        lambda c: c.with_groups(c.shape[0] * (c.shape[1] // c.group_size + 1)),
    ),
    ("groups-cross-rows", EACH_ROW, lambda c: c.with_groups(ceil(c.weights / c.group_size))),
    ("groups-cross-rows", EACH_ROW, lambda c: c.with_groups(c.weights // c.group_size)),
    (
        "wrong-axis",
        "Groups run along a row: a row has as many weights as the matrix has columns.",
        lambda c: c.with_groups(c.shape[1] * ceil(c.shape[0] / c.group_size)),
    ),
    ("one-scale-for-all", "Each group has constants of its own.", lambda c: c.with_groups(1)),
    ("one-scale-for-all", "Each group of a row has constants of its own.", lambda c: c.with_groups(c.shape[0])),
    ("counts-bytes", BYTES, lambda c: _right(c) / 8),
    ("counts-bytes", MIXED, lambda c: c.bits + c.groups * c.constant_bits / 8 / c.weights),
    ("counts-bytes", MIXED, lambda c: c.bits + c.groups * c.constant_bits * 8 / c.weights),
    ("counts-bytes", BYTES, lambda c: _right(c) * 8),
    ("returns-the-total", "Divide by the number of weights.", lambda c: _right(c) * c.weights),
    ("returns-the-total", "Divide by the number of weights; and return bits.", lambda c: _right(c) * c.weights / 8),
    (
        "a-byte-for-a-few-bits",
        "Codes are packed here: each takes `bits` bits, not a byte.",
        lambda c: _right(c) + 8 - c.bits,
    ),
    ("constants-for-every-weight", "A group shares its constants.", lambda c: c.bits + c.constant_bits),
    (
        "constants-of-codes-size",
        "A scale takes `scale_bits` bits.",
        lambda c: c.bits + c.groups * c.bits / c.weights,
    ),
    (
        "scales-always-fp32",
        "How many bits a scale takes is an argument.",
        lambda c: c.bits + c.groups * (32 + c.zero_point_bits) / c.weights,
    ),
    ("rounds-the-result", "Return the number as it comes.", lambda c: round(_right(c))),
    ("rounds-the-result", "Return the number as it comes.", lambda c: round(_right(c), 1)),
    ("rounds-the-result", "Return the number as it comes.", lambda c: round(_right(c), 2)),
)
