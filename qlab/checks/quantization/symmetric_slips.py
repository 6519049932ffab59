"""What the slips of symmetric quantization give: wrong scales, and wrong codes on a right one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.checks.expect import Suspect
from qlab.checks.numbers import doubles
from qlab.checks.quantization.codes import Rule, clamped, with_an_epsilon


@dataclass(frozen=True)
class Case:
    """One call: `quantize_symmetric(x, bits)`."""

    x: Tensor
    bits: int

    @property
    def call(self) -> str:
        return f"quantize_symmetric(x, {self.bits})"

    @property
    def told(self) -> str:
        """What was given, in words."""
        return f"x from {self.x.min().item():.6g} to {self.x.max().item():.6g}, bits={self.bits}"

    @property
    def largest(self) -> int:
        """The largest code; the smallest is its negative."""
        return 2 ** (self.bits - 1) - 1

    @property
    def absmax(self) -> float:
        return self.x.abs().max().item()

    @property
    def width(self) -> float:
        return (self.x.max() - self.x.min()).item()

    @property
    def scale(self) -> float:
        return self.absmax / self.largest


def wrong_scales(cases: list[Case], got: Tensor) -> Iterator[Suspect]:
    """Yield the scales that slips give in all cases."""
    for misconception, thought, slips in SLIPS_OF_SCALES:
        for slip in slips:
            yield Suspect(misconception, thought, doubles([slip(case) for case in cases]))
    expected, per_code = doubles([case.scale for case in cases]), doubles([case.largest for case in cases])
    yield from with_an_epsilon(expected, got)
    for suspect in with_an_epsilon(expected * per_code, got * per_code):  # an epsilon on the magnitude
        yield Suspect(suspect.misconception, suspect.thought, suspect.values / per_code)


def wrong_codes(bits: int) -> Iterator[tuple[str, str, Rule]]:
    """Yield the slips in making codes of steps, each by its rule."""
    largest = 2 ** (bits - 1) - 1
    cut = "A cast to an integer cuts the fraction off: round to the nearest first."
    yield "truncates", cut, clamped(-largest, largest, torch.trunc)
    yield "truncates", cut, clamped(-largest, largest, torch.floor)
    yield "truncates", cut, lambda steps: wrapped(torch.trunc(steps))
    unused = f"The codes are symmetric: the smallest is −{largest}, and −{largest + 1} stays unused."
    yield "uses-the-lowest-code", unused, clamped(-largest - 1, largest)
    ends = f"The ends of the codes follow from `bits`: ±{largest} for {bits} of them."
    for low, high in ((-127, 127), (-128, 127)):
        yield "clamps-at-127", ends, clamped(low, high)
    past = f"What lies beyond the ends becomes the last code: clamp to ±{largest} before the cast, or the byte wraps."
    yield "no-clamp", past, lambda steps: wrapped(torch.round(steps))
    yield "no-clamp", past, torch.round
    one = "Both ends need a clamp: large negative values wrap as well."
    yield "clamps-one-end", one, lambda steps: wrapped(torch.round(steps).clamp(max=largest))
    yield "clamps-one-end", one, lambda steps: wrapped(torch.round(steps).clamp(min=-largest))
    yield "unsigned-codes", "Symmetric codes have a sign: they run from −largest to largest.", clamped(0, 2**bits - 1)


def wrapped(codes: Tensor) -> Tensor:
    """Return what int8 keeps of whole numbers."""
    return (codes + 128) % 256 - 128


SLIPS_OF_SCALES: tuple[tuple[str, str, tuple[Callable[[Case], float], ...]], ...] = (
    (
        "divides-by-128",
        "With 8 bits the codes end at 127: divide by 2^(bits−1) − 1, and −128 stays unused.",
        (lambda c: c.absmax / (c.largest + 1),),
    ),
    (
        "counts-255-levels",
        "From −127 to 127 there are 254 steps, not 255: divide |x|max by 127.",
        (
            lambda c: 2 * c.absmax / (2 * c.largest + 1),
            lambda c: c.absmax / (2 * c.largest + 1),
            lambda c: c.absmax / (2 * c.largest + 2),
        ),
    ),
    (
        "range-not-magnitude",
        "Codes lie around zero: S follows from the largest *magnitude*, not from max − min.",
        (
            lambda c: c.width / (2 * c.largest),
            lambda c: c.width / (2 * c.largest + 1),
            lambda c: c.width / (2 * c.largest + 2),
            lambda c: c.width / c.largest,
        ),
    ),
    (
        "forgets-the-sign",
        "−3 is larger in magnitude than 2: take the absolute values first.",
        (
            lambda c: c.x.max().item() / c.largest,
            lambda c: abs(c.x.max().item()) / c.largest,
            lambda c: -c.x.min().item() / c.largest,
            lambda c: c.x.max().item() / c.largest if c.x.max() > 0 else 1.0,  # with the guard of an all-zero tensor
        ),
    ),
    ("inverse-scale", "The scale is the size of a step, in units of x: return S, not 1 / S.", (lambda c: 1 / c.scale,)),
    ("ignores-bits", "127 is the largest code of 8 bits only: it follows from `bits`.", (lambda c: c.absmax / 127,)),
)
