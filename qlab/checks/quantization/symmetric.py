"""Check of `quantize_symmetric`, `quantize_on` and `dequantize`: one scale, codes around zero, and the ends."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import quantize
from qlab.checks.expect import Suspect, as_number, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.numbers import doubles, drawn
from qlab.checks.quantization.codes import (
    TOPIC,
    Rule,
    clamped,
    dtype_of,
    require_close,
    require_codes,
    uniform,
    unpacked,
)
from qlab.checks.report import check, part, require


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
    def scale(self) -> float:
        return self.absmax / self.largest


@check(TOPIC, "quantize-symmetric", quantize.symmetric_grid_of, quantize.quantize_with, points=5)
def check_quantize_symmetric(
    quantize_symmetric: LearnerFunction,
    quantize_on: LearnerFunction,
    dequantize: LearnerFunction,
    draw: torch.Generator,
) -> None:
    """Check `quantize_symmetric(x, bits)`, `quantize_on(x, scale, bits)` and `dequantize(codes, scale)`."""
    cases = _cases(draw)
    with part("S puts the largest magnitude on the largest code"):
        results = [unpacked(quantize_symmetric(c.x, c.bits), ("codes", "scale"), call=c.call) for c in cases]
        got = [as_number(scale, call=f"{c.call}[1]") for c, (_, scale) in zip(cases, results, strict=True)]
        require_close(
            doubles(got),
            doubles([case.scale for case in cases]),
            given=lambda i: f"{cases[i].told} (the scale)",
            suspects=_wrong_scales(cases, doubles(got)),
        )
    with part("codes are int8, each the nearest to its value"):
        for case in cases:
            _codes(quantize_symmetric, case)
    with part("on a scale that is given: nearest, and clamped at both ends"):
        for bits in (8, 4, drawn(2, 7, draw)):
            _on_a_given_scale(quantize_on, bits, draw)
    with part("dequantized: S · code"):
        _dequantized(dequantize, draw)
    with part("an all-zero tensor gets codes 0 and a positive, finite scale"):
        case = Case(torch.zeros(drawn(2, 9, draw)), 8)
        codes, step = _results(quantize_symmetric, case)
        require(
            bool((codes == 0).all()),
            f"given zeros, got codes from {codes.min():g} to {codes.max():g}, expected 0",
            misconception="divides-by-zero",
            thought=DIVIDES_BY_ZERO,
        )
        require(
            0 < step < torch.inf,
            f"given zeros, got scale {step:g}, expected a positive, finite one",
            misconception="divides-by-zero",
            thought=DIVIDES_BY_ZERO,
        )


def _cases(draw: torch.Generator) -> list[Case]:
    """Draw ranges that lean to either side, wide and narrow, of one axis and of two."""
    few = (2, 3, 5, 6, 7)[drawn(0, 4, draw)]
    size, tiny = 10.0 ** drawn(1, 3, draw), uniform(4e-4, 2e-3, (), draw).item()
    ranges = [(-2.0, 1.0, 8), (-1.0, 1.5, 8), (-0.6 * size, size, 4), (-tiny, 0.7 * tiny, 8), (-3.0, -1.0, few)]
    cases = [Case(uniform(low, high, (60,), draw), bits) for low, high, bits in ranges]
    return [*cases, Case(uniform(-1.0, 2.0, (5, 12), draw), few)]


def _wrong_scales(cases: list[Case], got: Tensor) -> Iterator[Suspect]:
    expected = doubles([case.scale for case in cases])
    slips = {
        ("divides-by-128", "With 8 bits the codes end at 127: divide by 2^(bits−1) − 1, and −128 stays unused."): [
            [c.absmax / (c.largest + 1) for c in cases],
        ],
        ("counts-255-levels", "From −127 to 127 there are 254 steps, not 255: divide |x|max by 127."): [
            [2 * c.absmax / (2 * c.largest + 1) for c in cases],
            [c.absmax / (2 * c.largest + 1) for c in cases],
            [2 * c.absmax / (2 * c.largest + 2) for c in cases],
            [c.absmax / (2 * c.largest + 2) for c in cases],
        ],
        ("range-not-magnitude", "Codes lie around zero: S follows from the largest *magnitude*, not from max − min."): [
            [(c.x.max() - c.x.min()).item() / steps(c) for c in cases]
            for steps in (
                lambda c: 2 * c.largest,
                lambda c: 2 * c.largest + 1,
                lambda c: 2 * c.largest + 2,
                lambda c: c.largest,
            )
        ],
        ("forgets-the-sign", "−3 is larger in magnitude than 2: take the absolute values first."): [
            [c.x.max().item() / c.largest for c in cases],
            [abs(c.x.max().item()) / c.largest for c in cases],
            [-c.x.min().item() / c.largest for c in cases],
            [abs(c.x.min().item()) / c.largest for c in cases],
        ],
        ("inverse-scale", "The scale is the size of a step, in units of x: return S, not 1 / S."): [
            [1 / c.scale for c in cases],
        ],
        ("ignores-bits", "127 is the largest code of 8 bits only: it follows from `bits`."): [
            [c.absmax / 127 for c in cases],
        ],
    }
    for (misconception, thought), lists in slips.items():
        for values in lists:
            yield Suspect(misconception, thought, doubles(values))
    epsilon = "An added or clamped epsilon changes the steps of small tensors: replace the scale only if it is 0."
    smallest = int(expected.argmin())
    added = got[smallest] - expected[smallest]
    if added > 0:
        of_absmax = added * doubles([cases[smallest].largest / case.largest for case in cases])
        for values in (expected + added, expected + of_absmax, expected.clamp(min=got[smallest].item())):
            yield Suspect("changes-small-scales", epsilon, values)


def _results(quantize_symmetric: LearnerFunction, case: Case) -> tuple[Tensor, float]:
    codes, scale = unpacked(quantize_symmetric(case.x, case.bits), ("codes", "scale"), call=case.call)
    got = as_tensor(codes, tuple(case.x.shape), call=f"{case.call}[0]").double()
    return got, as_number(scale, call=f"{case.call}[1]")


def _codes(quantize_symmetric: LearnerFunction, case: Case) -> None:
    """Require the nearest int8 codes on the scale that was returned with them."""
    codes, _ = unpacked(quantize_symmetric(case.x, case.bits), ("codes", "scale"), call=case.call)
    got, step = _results(quantize_symmetric, case)
    dtype, flat = dtype_of(codes), case.x.flatten().tolist()
    require(
        dtype == "int8",
        f"given {case.told}, got codes of {dtype}, expected int8",
        misconception="not-int8",
        thought="A code takes one byte: round, clamp, and end with `.to(torch.int8)`.",
    )
    require_codes(
        got,
        case.x.double() / step,
        clamped(-case.largest, case.largest),
        given=lambda i: f"{flat[i]:.6g} in {case.told}, with your scale {step:.6g} (the code)",
        slips=wrong_codes(case.bits),
    )


def _on_a_given_scale(quantize_on: LearnerFunction, bits: int, draw: torch.Generator) -> None:
    largest, scale = 2 ** (bits - 1) - 1, uniform(0.01, 3.0, (), draw)
    x = torch.cat([uniform(-1.2, 1.2, (40,), draw), uniform(-3.0, 3.0, (20,), draw)]) * largest * scale
    x = torch.cat([x, torch.tensor([-2.5, 2.5]) * largest * scale])  # at least one beyond each end
    codes = quantize_on(x, scale, bits)
    call, steps = f"quantize_on(x, {scale.item():.6g}, {bits})", x.double() / scale.double()
    own = x.abs().max().double() / largest

    def rescaled(steps: Tensor) -> Tensor:
        return torch.round(steps * scale.double() / own)

    wrong = [("inverse-scale", "Divide by the scale: it is the size of a step.", _multiplied(scale, largest))]
    ignored = "The scale is given here: use it, and let what lies beyond the ends be clamped."
    require_codes(
        as_tensor(codes, tuple(x.shape), call=call),
        steps,
        clamped(-largest, largest),
        given=lambda i: f"{x[i].item():.6g} in {call}",
        slips=[*wrong_codes(bits), *wrong, ("ignores-the-scale", ignored, rescaled)],
    )


def _multiplied(scale: Tensor, largest: int) -> Rule:
    return clamped(-largest, largest, lambda steps: torch.round(steps * scale.double() ** 2))


def wrong_codes(bits: int) -> Iterator[tuple[str, str, Rule]]:
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
    return (codes + 128) % 256 - 128


def _dequantized(dequantize: LearnerFunction, draw: torch.Generator) -> None:
    codes = (torch.randperm(255, generator=draw) - 127).to(torch.int8).view(15, 17)
    flat, scale = codes.flatten().double(), uniform(1e-3, 3.0, (), draw)
    call = f"dequantize(codes, {scale.item():.6g})"
    step = scale.double()
    require_close(
        as_tensor(dequantize(codes, scale), (15, 17), call=call),
        step * flat,
        given=lambda i: f"code {int(flat[i])} in {call}",
        suspects=[
            Suspect("inverse-scale", "A code is a number of steps: multiply by their size.", flat / step),
            Suspect("stays-in-int8", "A product in int8 wraps: leave int8 first.", wrapped(torch.trunc(step * flat))),
            Suspect("stays-in-int8", "A product in int8 wraps: leave int8 first.", wrapped(flat * torch.trunc(step))),
            Suspect("forgets-the-scale", "A code is a number of steps: multiply by their size.", flat),
        ],
    )


DIVIDES_BY_ZERO = "0 / 0 is NaN: where the largest magnitude is 0 take S = 1, and every code is 0."
