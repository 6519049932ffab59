"""Check of `weight_gib`: what weights take in any number of bits, with the constants of their blocks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import FP32_ROUNDING, doubles, drawn, require_numbers
from qlab.checks.report import check, part
from qlab.memory import GB, GiB


def weight_gib(parameters: int, bits: int, block_size: int = 0, second_block_size: int = 0) -> float:
    """Return the GiB of weights of so many bits, with the constants that a block size of at least 1 brings."""
    constant_bits = 8 + 32 / second_block_size if second_block_size else 32
    bits_each = bits + (constant_bits / block_size if block_size else 0)
    return parameters * bits_each / 8 / GiB


@dataclass(frozen=True)
class Case:
    """One call, in the order of the arguments."""

    parameters: int
    bits: int
    block_size: int = 0
    second_block_size: int = 0

    def gib(self, *, constant_bits: float | None = None, bits: float | None = None) -> float:
        """Return the GiB, with a size got wrong if one is given."""
        if constant_bits is None:
            constant_bits = 8 + 32 / self.second_block_size if self.second_block_size else 32
        constants = constant_bits / self.block_size if self.block_size else 0
        return self.parameters * ((self.bits if bits is None else bits) + constants) / 8 / GiB


@check(TOPIC, "weight-gib", weight_gib, points=3)
def check_weight_gib(weight_gib: LearnerFunction, draw: torch.Generator) -> None:
    """Check `weight_gib(parameters, bits, block_size, second_block_size)`."""

    def size() -> int:
        return drawn(2_000, 400_000, draw) * 1_000_000

    def small() -> int:
        return drawn(8, 60, draw) * 2**17  # whole blocks: a ragged one that is rounded up would show

    with part("32, 16, 8 and 4 bits, without constants"):
        _compare(weight_gib, [Case(small(), 4), *(Case(size(), bits) for bits in (32, 16, 8, 4))])
    with part("an FP32 constant for each block"):
        _compare(
            weight_gib,
            [Case(each(), bits, 2 ** drawn(5, 8, draw)) for each, bits in ((size, 4), (size, 3), (small, 8))],
        )
    with part("double quantization: 8-bit constants, and FP32 ones for those"):
        blocks = [(32, 512)] + [(2 ** drawn(5, 7, draw), 2 ** drawn(8, 9, draw)) for _ in range(2)]
        sizes = (size(), size(), small())
        _compare(weight_gib, [Case(n, bits, *each) for n, bits, each in zip(sizes, (4, 3, 4), blocks, strict=True)])


def _compare(weight_gib: LearnerFunction, cases: list[Case]) -> None:
    arguments = [(c.parameters, c.bits, c.block_size, c.second_block_size) for c in cases]
    require_numbers(
        weight_gib.map(arguments),
        [case.gib() for case in cases],
        calls=[f"weight_gib({', '.join(f'{a:_}' for a in each)})" for each in arguments],
        within=FP32_ROUNDING,
        suspects=lambda: _suspects(cases),
    )


def _suspects(cases: list[Case]) -> Iterator[Suspect]:
    for misconception, thought, slip in SLIPS:
        yield Suspect(misconception, thought, doubles([slip(case) for case in cases]))


def _second_over_weights(case: Case) -> float:
    if not case.second_block_size:
        return case.gib()
    return case.parameters * (case.bits + 8 / case.block_size + 32 / case.second_block_size) / 8 / GiB


CONSTANTS = "Each block of `block_size` weights has a constant in FP32: 32 bits more for the block."
SECOND = "Each group of `second_block_size` constants shares one in FP32 of its own."
SLIPS: tuple[tuple[str, str, Callable[[Case], float]], ...] = (
    ("gb-for-gib", "A GiB is 2³⁰ bytes; 10⁹ is a GB.", lambda case: case.gib() * GiB / GB),
    ("bits-for-bytes", "A byte has eight bits.", lambda case: case.gib() * 8),
    ("returns-bytes", "Return GiB: divide by 2³⁰.", lambda case: case.gib() * GiB),
    ("forgets-block-constants", CONSTANTS, lambda case: case.gib(constant_bits=0)),
    (
        "a-byte-for-a-few-bits",
        "A code of fewer than 8 bits takes that many bits: 70 B weights at a byte each are 65 GiB, at 4 bits 32.6.",
        lambda case: case.gib(bits=max(case.bits, 8)),
    ),
    (
        "four-bytes-whatever-the-bits",
        "70 B weights take 260.77 GiB in FP32; in 16 bits they take half of that.",
        lambda case: case.gib(bits=32),
    ),
    (
        "the-next-wider-type",
        "65 GiB are 70 B weights in 8 bits, 260 GiB in 32: take the bits that were asked for.",
        lambda case: case.gib(bits=2 * case.bits),
    ),
    ("constants-in-16-bits", CONSTANTS, lambda case: case.gib(constant_bits=16)),
    (
        "bits-and-bytes-mixed",
        "The constant takes 4 bytes, which are 32 bits: add bits to bits.",
        lambda case: case.gib(constant_bits=4 + 4 / case.second_block_size if case.second_block_size else 4),
    ),
    (
        "ignores-double-quantization",
        "With `second_block_size` the constants take 8 bits each, not 32.",
        lambda case: case.gib(constant_bits=32),
    ),
    (
        "ignores-double-quantization",
        "Double quantization stores the constants of blocks in 8 bits; only those shared by a group are FP32.",
        lambda case: case.gib(constant_bits=32 + (32 / case.second_block_size if case.second_block_size else 0)),
    ),
    ("forgets-second-constants", SECOND, lambda case: case.gib(constant_bits=8 if case.second_block_size else 32)),
    (
        "second-constants-for-every-block",
        SECOND,
        lambda case: case.gib(constant_bits=8 + 32 if case.second_block_size else 32),
    ),
    (
        "second-constants-for-every-weight-group",
        "The second constants belong to groups of constants: block_size · second_block_size weights share one.",
        _second_over_weights,
    ),
    *(
        ("rounds-the-result", "Return the number as it comes: rounding is for the one who prints it.", rounded)
        for rounded in (
            lambda case: math.floor(case.gib()),
            *(lambda case, places=places: round(case.gib(), places) for places in (0, 1, 2, 3, 4)),
        )
    ),
)
