"""Check of `quantize_symmetric`, `quantize_on` and `dequantize`: one scale, codes around zero, and the ends."""

import torch
from torch import Tensor

from qlab import quantize
from qlab.checks.expect import Suspect, as_number, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn
from qlab.checks.quantization.codes import (
    TOPIC,
    Coded,
    clamped,
    dtype_of,
    require_close,
    require_codes,
    uniform,
    unpacked,
)
from qlab.checks.quantization.symmetric_slips import Case, wrapped, wrong_codes, wrong_scales
from qlab.checks.report import check, part, require


@check(
    TOPIC,
    "quantize-symmetric",
    quantize.symmetric_grid_of,
    quantize.quantize_with,
    points=5,
    forbids=("qlab.quantize.quantize_symmetric", "qlab.quantize.symmetric_grid"),
)
def check_quantize_symmetric(
    quantize_symmetric: LearnerFunction,
    quantize_on: LearnerFunction,
    dequantize: LearnerFunction,
    draw: torch.Generator,
) -> None:
    """Check `quantize_symmetric(x, bits)`, `quantize_on(x, scale, bits)` and `dequantize(codes, scale)`."""
    cases = _cases(draw)
    with part("S puts the largest magnitude on the largest code"):
        _scales(quantize_symmetric, cases)
    with part("codes are int8, each the nearest to its value"):
        require_codes([_coded(quantize_symmetric, case) for case in cases])
    with part("on a scale that is given: nearest, and clamped at both ends"):
        require_codes([_on_a_given_scale(quantize_on, bits, draw) for bits in (8, 4, 2, 3, 5, 6, 7)])
    with part("dequantized: S · code"):
        _dequantized(dequantize, draw)
    with part("an all-zero tensor gets codes 0 and a positive, finite scale"):
        _zeros(quantize_symmetric, Case(torch.zeros(drawn(2, 9, draw)), 8))


def _cases(draw: torch.Generator) -> list[Case]:
    """Draw ranges that lean to either side, wide and narrow, of one axis and of two, for every number of bits."""
    size, tiny = 10.0 ** drawn(1, 3, draw), uniform(4e-10, 2e-9, (), draw).item()
    ranges = [(-2.0, 1.0, 8), (-1.0, 1.5, 8), (-0.6 * size, size, 4), (-tiny, 0.7 * tiny, 8), (-3.0, -1.0, 3)]
    cases = [Case(uniform(low, high, (60,), draw), bits) for low, high, bits in ranges]
    return [*cases, *(Case(uniform(-1.0, 2.0, (5, 12), draw), bits) for bits in (2, 5, 6, 7))]


def _scales(quantize_symmetric: LearnerFunction, cases: list[Case]) -> None:
    got = doubles([_results(quantize_symmetric, case)[1] for case in cases])
    require_close(
        got,
        doubles([case.scale for case in cases]),
        given=lambda i: f"{cases[i].told} (the scale)",
        suspects=wrong_scales(cases, got),
    )


def _results(quantize_symmetric: LearnerFunction, case: Case) -> tuple[Tensor, float]:
    codes, scale = unpacked(quantize_symmetric(case.x, case.bits), ("codes", "scale"), call=case.call)
    got = as_tensor(codes, tuple(case.x.shape), call=f"{case.call}[0]").double()
    return got, as_number(scale, call=f"{case.call}[1]")


def _coded(quantize_symmetric: LearnerFunction, case: Case) -> Coded:
    """Read the int8 codes of one call, to be judged on the scale that was returned with them."""
    codes, _ = unpacked(quantize_symmetric(case.x, case.bits), ("codes", "scale"), call=case.call)
    got, step = _results(quantize_symmetric, case)
    require(
        dtype_of(codes) == "int8",
        f"given {case.told}, got codes of {dtype_of(codes)}, expected int8",
        misconception="not-int8",
        thought="A code takes one byte: round, clamp, and end with `.to(torch.int8)`.",
    )
    return Coded(
        got,
        case.x.double() / step,
        clamped(-case.largest, case.largest),
        tuple(wrong_codes(case.bits)),
        lambda i: f"{case.x.flatten()[i].item():.6g} in {case.told}, with your scale {step:.6g} (the code)",
    )


def _on_a_given_scale(quantize_on: LearnerFunction, bits: int, draw: torch.Generator) -> Coded:
    largest, scale = 2 ** (bits - 1) - 1, uniform(0.01, 3.0, (), draw)
    x = torch.cat([uniform(-1.2, 1.2, (40,), draw), uniform(-3.0, 3.0, (20,), draw)]) * largest * scale
    x = torch.cat([x, torch.tensor([-2.5, 2.5]) * largest * scale])  # at least one beyond each end
    call = f"quantize_on(x, {scale.item():.6g}, {bits})"
    own = x.abs().max().double() / largest / scale.double()
    ends = (-largest, largest)
    of_its_own = clamped(*ends, lambda steps: torch.round(steps / own))
    multiplied = clamped(*ends, lambda steps: torch.round(steps * scale.double() ** 2))
    return Coded(
        as_tensor(quantize_on(x, scale, bits), tuple(x.shape), call=call),
        x.double() / scale.double(),
        clamped(*ends),
        (
            *wrong_codes(bits),
            ("inverse-scale", "Divide by the scale: it is the size of a step.", multiplied),
            ("ignores-the-scale", "The scale is given here: use it, and clamp what lies beyond the ends.", of_its_own),
        ),
        lambda i: f"{x[i].item():.6g} in {call}",
    )


def _dequantized(dequantize: LearnerFunction, draw: torch.Generator) -> None:
    codes = (torch.randperm(255, generator=draw) - 127).to(torch.int8).view(15, 17)
    flat, scale = codes.flatten().double(), uniform(2.1, 2.9, (), draw)  # no slip gives what another gives
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


def _zeros(quantize_symmetric: LearnerFunction, case: Case) -> None:
    codes, step = _results(quantize_symmetric, case)
    require(
        bool((codes == 0).all()) and 0 < step < torch.inf,
        f"given zeros, got scale {step:g} and codes from {codes.min():g} to {codes.max():g},"
        " expected a positive, finite scale and codes 0",
        misconception="divides-by-zero",
        thought="0 / 0 is NaN: where the largest magnitude is 0 take S = 1, and every code is 0.",
    )
