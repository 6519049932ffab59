"""Check of `quantize_affine` and `dequantize_affine`: the range, the zero point, unsigned codes and their way back."""

from typing import Any

import torch
from torch import Tensor

from qlab import quantize
from qlab.checks.expect import as_number, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn
from qlab.checks.quantization.affine_slips import Case, wrong_codes, wrong_scales, wrong_values, wrong_zero_points
from qlab.checks.quantization.codes import (
    TOPIC,
    Coded,
    clamped,
    dtype_of,
    near,
    require_close,
    require_codes,
    uniform,
    unpacked,
)
from qlab.checks.report import check, part, require

RESULTS = ("codes", "scale", "zero_point")


@check(
    TOPIC,
    "quantize-affine",
    quantize.affine_grid_of,
    quantize.quantize_with,
    points=6,
    forbids=("qlab.quantize.quantize_affine", "qlab.quantize.affine_grid"),
)
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
        require_codes([_coded(quantize_affine, case) for case in cases])
    with part("clamped where the rounding of Z pushes an end past the codes"):
        require_codes([_coded(quantize_affine, _pushed_past(bits, draw)) for bits in (8, 4)])
    with part("dequantized: S · (code − Z)"):
        _dequantized(dequantize_affine, draw)
    with part("a constant tensor comes back, zeros too"):
        _constants(quantize_affine, draw)


def _cases(draw: torch.Generator) -> list[Case]:
    """Draw ranges on both sides of zero, on one side only, and from zero up; wide and narrow, of 2 to 8 bits."""
    size = 10.0 ** drawn(1, 3, draw)
    ranges = [(-1.0, 2.0, 8), (-3e-9, 1e-9, 8), (-size, 0.7 * size, 4), (-5.0, 6.0, 5)]
    ranges += [(2.0, 3.0, 8), (-3.0, -1.5, 8), (1.0, 4.0, 4), (-1.0, 3.0, 6), (-2.0, 1.0, 7), (-1.0, 1.5, 3)]
    cases = [Case(uniform(low, high, (60,), draw), bits) for low, high, bits in ranges]
    matrix = uniform(-0.2, 1.0, (5, 12), draw)
    cases += [Case(matrix.relu(), 8), Case(matrix.clamp(max=0.0), 4)]
    return [*cases, *(_between_two_codes(part, bits, draw) for part, bits in ((0.3, 8), (0.7, 8), (0.7, 4), (0.3, 2)))]


def _between_two_codes(part: float, bits: int, draw: torch.Generator) -> Case:
    """Draw a range whose Z lies that part of a step above a whole number before it is rounded."""
    step, below = uniform(0.01, 1.0, (), draw).item(), drawn(1, 2**bits - 3, draw) + part
    ends = torch.tensor([-below, 2**bits - 1 - below])
    return Case(torch.cat([ends, uniform(*ends.tolist(), (20,), draw)]) * step, bits)


def _pushed_past(bits: int, draw: torch.Generator) -> Case:
    """Draw a range whose Z is a tie: with Z rounded up, the upper end lands half a step past the largest code."""
    step, largest = 2.0 ** drawn(-6, 3, draw), 2**bits - 1
    below = 2 * drawn(0, 2 ** (bits - 1) - 3, draw) + 1.5  # 1.5, 3.5 …: to even is up, as half up is
    ends = torch.tensor([-below, largest - below, -below, largest - below])
    inside = uniform(1 - below, largest - 1 - below, (20,), draw).round() + 0.25
    return Case(torch.cat([ends, inside]) * step, bits)


def _scales(quantize_affine: LearnerFunction, cases: list[Case]) -> None:
    results = [_results(quantize_affine, case) for case in cases]
    got = [as_number(result[1], call=f"{case.call}[1]") for case, result in zip(cases, results, strict=True)]
    require_close(
        doubles(got),
        doubles([case.scale for case in cases]),
        given=lambda i: f"{cases[i].told} (the scale)",
        suspects=wrong_scales(cases, doubles(got)),
    )


def _zero_points(quantize_affine: LearnerFunction, cases: list[Case]) -> None:
    results = [_results(quantize_affine, case) for case in cases]
    got = doubles([as_number(result[2], call=f"{case.call}[2]") for case, result in zip(cases, results, strict=True)])
    where = doubles([-case.low / case.scale for case in cases])
    largest = doubles([case.largest for case in cases])
    require_values(
        got,
        near(clamped(0 * largest, largest), where, got),
        given=lambda i: f"{cases[i].told} (the zero point)",
        suspects=lambda: wrong_zero_points(cases, got, where, largest),
    )


def _type_of_codes(quantize_affine: LearnerFunction, case: Case) -> None:
    dtype = dtype_of(_results(quantize_affine, case)[0])
    got, steps, _ = _steps(quantize_affine, case)
    wrapped = dtype == "int8" and bool((got < 0).any()) and bool((steps > -1).all())  # no value belongs below code 0
    require(
        dtype == "uint8",
        f"given {case.told}, got codes of {dtype}, from {got.min():g} to {got.max():g}, expected uint8",
        misconception="unsigned-codes-in-int8" if wrapped else "not-uint8",
        thought="int8 ends at 127, and every code above comes back negative: codes 0 … 255 take `torch.uint8`."
        if wrapped
        else "A code takes one byte without a sign: end with `.to(torch.uint8)`.",
    )


def _coded(quantize_affine: LearnerFunction, case: Case) -> Coded:
    """Read the codes of one call, to be judged on the grid that was returned with them."""
    got, steps, zero = _steps(quantize_affine, case)
    return Coded(
        got,
        steps,
        clamped(0, case.largest),
        tuple(wrong_codes(case, zero)),
        lambda i: f"{case.x.flatten()[i].item():.6g} in {case.told}, with your zero point {zero:g} (the code)",
    )


def _steps(quantize_affine: LearnerFunction, case: Case) -> tuple[Tensor, Tensor, float]:
    """Return the codes, where they should be before rounding on the grid that came with them, and its zero point."""
    codes, scale, zero_point = _results(quantize_affine, case)
    got = as_tensor(codes, tuple(case.x.shape), call=f"{case.call}[0]").double()
    step, zero = as_number(scale, call=f"{case.call}[1]"), as_number(zero_point, call=f"{case.call}[2]")
    require(
        0 < step < torch.inf and abs(zero) < torch.inf,
        f"given {case.told}, got scale {step:g} and zero point {zero:g}, expected a positive, finite scale",
        misconception="divides-by-zero",
        thought="A range of zero makes S = 0 and Z = 0 / 0: widen it to contain zero; if all is zero take S = 1.",
    )
    return got, case.x.double() / step + zero, zero


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
            given=lambda i, call=call, flat=flat: f"code {int(flat[i])} in {call}",
            suspects=wrong_values(flat, scale.double(), zero_point),
            span=255 * scale.double(),  # S · code and S · Z may be rounded before one is subtracted from the other
        )


def _constants(quantize_affine: LearnerFunction, draw: torch.Generator) -> None:
    for value in (0.0, uniform(0.5, 9.0, (), draw).item(), -uniform(0.5, 9.0, (), draw).item()):
        case = Case(torch.full((6,), value), 8)
        got, _, zero = _steps(quantize_affine, case)
        step = as_number(_results(quantize_affine, case)[1], call=f"{case.call}[1]")
        error = (step * (got - zero) - value).abs().max().item()
        require(
            error <= case.scale / 2 + 1e-6 * abs(value),
            f"given {case.told}, the codes stand for {step * (got[0] - zero):.6g}, expected {value:.6g}",
            misconception="loses-a-constant",
            thought="Widened to contain zero, its range is as long as the constant: S, Z and codes follow as ever.",
        )


def _results(quantize_affine: LearnerFunction, case: Case) -> tuple[Any, ...]:
    return unpacked(quantize_affine(case.x, case.bits), RESULTS, call=case.call)
