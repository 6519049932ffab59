"""Check of `quantize_affine` and `dequantize_affine`: the range, the zero point, unsigned codes and their way back."""

from typing import Any

import torch

from qlab import quantize
from qlab.checks.expect import as_number, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.numbers import doubles, drawn
from qlab.checks.quantization.affine_slips import Case, wrong_codes, wrong_scales, wrong_values, wrong_zero_points
from qlab.checks.quantization.codes import (
    TOPIC,
    clamped,
    dtype_of,
    near,
    require_close,
    require_codes,
    uniform,
    unpacked,
)
from qlab.checks.report import Refused, check, part, require

RESULTS = ("codes", "scale", "zero_point")


@check(TOPIC, "quantize-affine", quantize.affine_grid_of, quantize.quantize_with, points=6)
def check_quantize_affine(
    quantize_affine: LearnerFunction, dequantize_affine: LearnerFunction, draw: torch.Generator
) -> None:
    """Check `quantize_affine(x, bits)` and `dequantize_affine(codes, scale, zero_point)`."""
    cases = _cases(draw)
    with part("S divides the range, widened to contain zero, into 2^bits − 1 steps"):
        _scales(quantize_affine, cases)
    with part("Z is a whole number among the codes: the code of zero"):
        _zero_points(quantize_affine, cases)
    with part("codes are uint8, each the nearest to its value"):
        _type_of_codes(quantize_affine, cases[0])
        for case in cases:
            _codes(quantize_affine, case)
    with part("clamped where the rounding of Z pushes an end past the codes"):
        for bits in (8, 4):
            _codes(quantize_affine, _pushed_past(bits, draw))
    with part("dequantized: S · (code − Z)"):
        _dequantized(dequantize_affine, draw)
    with part("a constant tensor comes back, zeros too"):
        _constants(quantize_affine, draw)


def _cases(draw: torch.Generator) -> list[Case]:
    """Draw ranges on both sides of zero, on one side only, and from zero up; wide and narrow ones."""
    few = (2, 3, 5, 6, 7)[drawn(0, 4, draw)]
    size = 10.0 ** drawn(1, 3, draw)
    ranges = [(-1.0, 2.0, 8), (-3e-3, 1e-3, 8), (-size, 0.7 * size, 4), (-5.0, 6.0, few)]
    ranges += [(2.0, 3.0, 8), (-3.0, -1.5, 8), (1.0, 4.0, 4)]
    cases = [Case(uniform(low, high, (60,), draw), bits) for low, high, bits in ranges]
    matrix = uniform(-0.2, 1.0, (5, 12), draw)
    return [*cases, Case(matrix.relu(), 8), Case(matrix.clamp(max=0.0), 4)]


def _pushed_past(bits: int, draw: torch.Generator) -> Case:
    """Draw a range whose Z is a tie: with Z rounded up, the upper end lands half a step past the largest code."""
    step, largest = 2.0 ** drawn(-6, 3, draw), 2**bits - 1
    below = 2 * drawn(0, 2 ** (bits - 1) - 3, draw) + 1.5  # 1.5, 3.5 …: to even is up, as half up is
    ends = torch.tensor([-below, largest - below, -below, largest - below])
    inside = uniform(1 - below, largest - 1 - below, (20,), draw).round() + 0.25
    return Case(torch.cat([ends, inside]) * step, bits)


def _scales(quantize_affine: LearnerFunction, cases: list[Case]) -> None:
    got = [as_number(_results(quantize_affine, case)[1], call=f"the scale of {case.call}") for case in cases]
    require_close(
        torch.tensor(got),
        doubles([case.scale for case in cases]),
        given=lambda i: f"`{cases[i].call}`, the scale",
        suspects=wrong_scales(cases),
    )


def _zero_points(quantize_affine: LearnerFunction, cases: list[Case]) -> None:
    calls = [f"the zero point of {case.call}" for case in cases]
    got = [as_number(_results(quantize_affine, case)[2], call=call) for case, call in zip(cases, calls, strict=True)]
    given, where = doubles(got), doubles([-case.low / case.scale for case in cases])
    largest = doubles([case.largest for case in cases])
    rule = clamped(torch.zeros(()), largest)
    require_values(
        given,
        near(rule, where, given),
        given=lambda i: f"`{calls[i]}`",
        suspects=lambda: wrong_zero_points(cases, given, where, largest),
    )


def _codes(quantize_affine: LearnerFunction, case: Case) -> None:
    """Require the nearest codes on the grid that was returned with them."""
    codes, scale, zero_point = _results(quantize_affine, case)
    got = as_tensor(codes, tuple(case.x.shape), call=f"the codes of {case.call}")
    step = as_number(scale, call=f"the scale of {case.call}")
    zero = as_number(zero_point, call=f"the zero point of {case.call}")
    steps = case.x.double() / step + zero
    flat = case.x.flatten()
    require_codes(
        got,
        steps,
        clamped(0, case.largest),
        given=lambda i: f"`{case.call}`, scale {step:.6g}, zero point {zero:g}, the value {flat[i].item():.6g}",
        slips=wrong_codes(case.largest, zero),
    )


def _type_of_codes(quantize_affine: LearnerFunction, case: Case) -> None:
    codes, scale, zero_point = _results(quantize_affine, case)
    dtype, got = dtype_of(codes), as_tensor(codes, tuple(case.x.shape), call=f"the codes of {case.call}")
    lowest = as_number(zero_point, call="Z") + (case.x.min() / as_number(scale, call="S")).item()
    wrapped = dtype == "int8" and bool((got < 0).any()) and lowest > -1  # no value belongs below code 0
    require(
        dtype == "uint8",
        f"`{case.call}`: the codes are {dtype}, from {got.min():g} to {got.max():g}, expected uint8",
        misconception="unsigned-codes-in-int8" if wrapped else "not-uint8",
        thought="int8 ends at 127, and every code above comes back negative: codes 0 … 255 take `torch.uint8`."
        if wrapped
        else "A code takes one byte without a sign: end with `.to(torch.uint8)`.",
    )


def _dequantized(dequantize_affine: LearnerFunction, draw: torch.Generator) -> None:
    for zero_point in (drawn(20, 235, draw), 0, 255):
        codes = torch.randperm(256, generator=draw).to(torch.uint8).view(16, 16)
        scale = uniform(1e-3, 2.0, (), draw)
        call = f"dequantize_affine(codes, {scale.item():.6g}, {zero_point})"
        got = as_tensor(dequantize_affine(codes, scale, torch.tensor(zero_point)), (16, 16), call=call)
        flat = codes.flatten().double()
        require_close(
            got,
            scale.double() * (flat - zero_point),
            given=lambda i, call=call, flat=flat: f"`{call}`, code {int(flat[i])}",
            suspects=wrong_values(flat, scale.double(), zero_point),
        )


def _constants(quantize_affine: LearnerFunction, draw: torch.Generator) -> None:
    for value in (0.0, uniform(0.5, 9.0, (), draw).item(), -uniform(0.5, 9.0, (), draw).item()):
        case = Case(torch.full((6,), value), 8)
        codes, scale, zero_point = _results(quantize_affine, case)
        call = f"quantize_affine(x, 8), x all {value:.6g}"
        step, zero = as_number(scale, call=f"the scale of {call}"), as_number(zero_point, call=f"Z of {call}")
        finite = 0 < step < torch.inf and abs(zero) < torch.inf
        require(
            finite,
            f"`{call}`: got scale {step:g} and zero point {zero:g}, expected a positive, finite scale",
            misconception="divides-by-zero",
            thought="A range of zero makes S = 0 and Z = 0 / 0: widen it to contain zero; if all is zero take S = 1.",
        )
        back = step * (as_tensor(codes, (6,), call=f"the codes of {call}").double() - zero)
        half_a_step = case.scale / 2 + 1e-6 * abs(value)
        worst = (back - value).abs().max().item()
        if not worst <= half_a_step:
            raise Refused(
                f"`{call}`: codes, scale and zero point stand for {back[0]:.6g},"
                f" an error of {worst:.3g}, expected at most {half_a_step:.3g}",
                misconception="loses-a-constant",
                thought="Widened to contain zero, the range of a constant is as long as the constant: no special case.",
            )


def _results(quantize_affine: LearnerFunction, case: Case) -> tuple[Any, ...]:
    return unpacked(quantize_affine(case.x, case.bits), RESULTS, call=case.call)
