"""What the slips of affine quantization give: wrong scales, zero points, codes, and values on the way back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.checks.expect import Suspect
from qlab.checks.numbers import doubles
from qlab.checks.quantization.codes import HAIR, Rule, clamped, near, with_an_epsilon


@dataclass(frozen=True)
class Case:
    """One call: `quantize_affine(x, bits)`."""

    x: Tensor
    bits: int

    @property
    def call(self) -> str:
        return f"quantize_affine(x, {self.bits})"

    @property
    def told(self) -> str:
        """What was given, in words."""
        return f"x from {self.x.min().item():.6g} to {self.x.max().item():.6g}, bits={self.bits}"

    @property
    def largest(self) -> int:
        """The largest code; the smallest is 0."""
        return 2**self.bits - 1

    @property
    def low(self) -> float:
        return min(self.x.min().item(), 0.0)

    @property
    def high(self) -> float:
        return max(self.x.max().item(), 0.0)

    @property
    def width(self) -> float:
        """The range as it is, zero in it or not."""
        return (self.x.max() - self.x.min()).item()

    @property
    def scale(self) -> float:
        return (self.high - self.low) / self.largest


def wrong_scales(cases: list[Case], got: Tensor) -> Iterator[Suspect]:
    """Yield the scales that slips give in all cases."""
    for misconception, thought, slips in SLIPS_OF_SCALES:
        for slip in slips:
            yield Suspect(misconception, thought, doubles([slip(case) for case in cases]))
    yield from with_an_epsilon(doubles([case.scale for case in cases]), got)


def wrong_zero_points(cases: list[Case], got: Tensor, where: Tensor, largest: Tensor) -> Iterator[Suspect]:
    """Yield the zero points that slips give in all cases; `where` they are before they are rounded."""
    yield from _zero_points_of_a_range_without_zero(cases, got, largest)
    yield Suspect("zero-point-not-whole", WHOLE, torch.where((got - where).abs() <= HAIR, got, where))
    cuts = "`.int()` cuts toward zero: round Z to the nearest."
    yield Suspect("truncates-the-zero-point", cuts, near(torch.trunc, where, got))
    signed = "Z is on the scale of *unsigned* codes here: 0 is the smallest, not −2^(bits−1)."
    half = (largest + 1) / 2
    yield Suspect("signed-zero-point", signed, near(lambda z: torch.round(z - half), where, got))
    yield Suspect("signed-zero-point", signed, near(lambda z: torch.round(z) - half, where, got))
    wrapped = "int8 ends at 127, and Z goes up to 255: keep it in a type that holds it."
    yield Suspect("zero-point-in-int8", wrapped, near(lambda z: (torch.round(z) + 128) % 256 - 128, where, got))
    turned = "x = S · (code − Z) with code 0 at the low end: Z = −low / S, with a minus."
    yield Suspect("sign-of-the-zero-point", turned, near(lambda z: torch.round(-z), where, got))
    yield Suspect("sign-of-the-zero-point", turned, near(lambda z: torch.round(-z).clamp(min=0), where, got))
    upper = "Code 0 stands for the low end: Z = −low / S."
    yield Suspect("zero-point-from-the-wrong-end", upper, near(lambda z: torch.round(largest - z), where, got))
    units = "The zero point is a code, not a value: divide by the scale."
    lows = doubles([case.low for case in cases])
    for values in (lows, -lows, doubles([case.x.min().item() for case in cases])):
        yield Suspect("zero-point-in-units-of-x", units, torch.where((got - values).abs() <= 1e-6, got, values))
    fixed = "The middle code is right for symmetric ranges only: Z follows from the low end."
    for middle in (half, torch.round(largest / 2), half - 1, torch.zeros_like(half), torch.full_like(half, 128.0)):
        yield Suspect("fixed-zero-point", fixed, middle)


def _zero_points_of_a_range_without_zero(cases: list[Case], got: Tensor, largest: Tensor) -> Iterator[Suspect]:
    excluded = doubles([-c.x.min().item() / max((c.x.max() - c.x.min()).item() / c.largest, 1e-30) for c in cases])
    yield Suspect("zero-point-not-whole", WHOLE, torch.where((got - excluded).abs() <= HAIR, got, excluded))
    outside = "A zero point outside 0 … 2^bits − 1 fits no code: widen the range to contain zero first."
    for rule in (torch.round, torch.trunc, torch.floor):
        yield Suspect("zero-point-outside-the-codes", outside, near(rule, excluded, got))
        yield Suspect("zero-point-outside-the-codes", outside, near(lambda z, rule=rule: rule(z) % 256, excluded, got))
    clipped = "Clamping Z is too late where zero is out of the range: widen the range first, then S and Z follow."
    yield Suspect("excludes-zero", clipped, near(clamped(0 * largest, largest), excluded, got))


def wrong_codes(case: Case, zero: float) -> Iterator[tuple[str, str, Rule]]:
    """Yield the slips in making codes of steps, each by its rule."""
    largest = case.largest
    cut = "A cast to an integer cuts the fraction off: round to the nearest first."
    yield "truncates", cut, clamped(0, largest, torch.trunc)
    yield "truncates", cut, clamped(0, largest, lambda steps: torch.trunc(steps - zero) + zero)
    yield "truncates", cut, clamped(0, largest, torch.floor)
    yield "truncates", cut, lambda steps: torch.trunc(steps) % 256
    yield "truncates", cut, lambda steps: (torch.trunc(steps - zero) + zero) % 256
    past = f"Rounding Z can push an end past the codes, and a byte then wraps: clamp to 0 … {largest} before the cast."
    yield "no-clamp", past, lambda steps: torch.round(steps) % 256
    yield "no-clamp", past, lambda steps: (torch.round(steps - zero) + zero) % 256
    yield "no-clamp", past, clamped(0, 255)
    yield "loses-a-code", f"The largest code is {largest}, and it is yours to use.", clamped(0, largest - 1)
    yield "clamps-to-127", "Unsigned codes go up to 255, and with 8 bits 127 is their middle.", clamped(0, 127)
    signed = "int8 ends at 127, and every code above comes back negative: codes 0 … 255 take `torch.uint8`."
    yield "unsigned-codes-in-int8", signed, lambda steps: (torch.round(steps).clamp(0, largest) + 128) % 256 - 128
    yield "unsigned-codes-in-int8", signed, lambda steps: (torch.round(steps) + 128) % 256 - 128
    other = "(x − low) / S counts from low, where your Z, a whole number, is not: round x / S and add Z."
    offset = -case.low / case.scale - zero
    yield "counts-from-the-low-end", other, clamped(0, largest, lambda steps: torch.round(steps + offset))
    forgotten = "Z moves every code: code = round(x / S) + Z."
    yield "forgets-the-zero-point", forgotten, clamped(0, largest, lambda steps: torch.round(steps - zero))
    yield "forgets-the-zero-point", forgotten, lambda steps: torch.round(steps - zero) % 256
    turned = "code = round(x / S) + Z: the zero point is added here, and subtracted on the way back."
    yield "sign-of-the-zero-point", turned, clamped(0, largest, lambda steps: torch.round(steps - 2 * zero))


def wrong_values(codes: Tensor, scale: Tensor, zero_point: int) -> Iterator[Suspect]:
    """Yield what slips on the way back make of codes."""
    difference = codes - zero_point
    wraps = "uint8 has no negative numbers, so 10 − 12 came out as 254: leave uint8 before you subtract."
    yield Suspect("wraps-in-uint8", wraps, scale * (difference % 256))
    wraps = "int8 ends at 127, so larger codes turned negative: convert to a type that holds 0 … 255."
    signed = (codes + 128) % 256 - 128
    yield Suspect("wraps-in-int8", wraps, scale * (signed - zero_point))
    yield Suspect("wraps-in-int8", wraps, scale * ((difference + 128) % 256 - 128))
    yield Suspect(
        "zero-point-not-scaled", "Z is a code: subtract it *before* you multiply.", scale * codes - zero_point
    )
    yield Suspect("adds-the-zero-point", "x = S · (code − Z), with a minus.", scale * (codes + zero_point))
    yield Suspect("forgets-the-zero-point", "Code Z stands for zero: x = S · (code − Z).", scale * codes)
    yield Suspect("inverse-scale", "A code is a number of steps: multiply by their size.", difference / scale)
    yield Suspect("sign-of-the-zero-point", "x = S · (code − Z), not S · (Z − code).", -scale * difference)


WHOLE = "Round Z: with a whole number zero falls exactly on a code, and the product of codes stays an integer one."
SLIPS_OF_SCALES: tuple[tuple[str, str, tuple[Callable[[Case], float], ...]], ...] = (
    (
        "excludes-zero",
        "Zero must have a code of its own: widen the range by `min(low, 0)` and `max(high, 0)`.",
        (
            lambda c: c.width / c.largest,
            lambda c: (c.high - c.x.min().item()) / c.largest,
            lambda c: (c.x.max().item() - c.low) / c.largest,
        ),
    ),
    (
        "divides-by-256",
        "256 codes have 255 steps between them: divide by 2^bits − 1.",
        (lambda c: (c.high - c.low) / (c.largest + 1), lambda c: c.width / (c.largest + 1)),
    ),
    (
        "ignores-bits",
        "The number of steps depends on `bits`: 255 is right for 8 of them only.",
        (lambda c: (c.high - c.low) / 255, lambda c: c.width / 255),
    ),
    (
        "symmetric-range",
        "The range runs from the smallest to the largest value, not from −|x| to |x|.",
        (
            lambda c: max(c.high, -c.low) / (2 ** (c.bits - 1) - 1),
            lambda c: max(c.high, -c.low) / c.largest,
            lambda c: 2 * max(c.high, -c.low) / c.largest,
        ),
    ),
    (
        "half-of-the-codes",
        "Unsigned codes reach 2^bits − 1: use all of them.",
        (lambda c: (c.high - c.low) / (2 ** (c.bits - 1) - 1), lambda c: (c.high - c.low) / 2 ** (c.bits - 1)),
    ),
    ("inverse-scale", "The scale is the size of a step, in units of x: return S, not 1 / S.", (lambda c: 1 / c.scale,)),
)
