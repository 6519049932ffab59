"""Check of `quantize_groups` and `dequantize_groups`: which weights share a scale, ragged groups too."""

import torch
from torch import Tensor

from qlab import quantize
from qlab.checks.expect import Suspect, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import (
    TOPIC,
    Coded,
    clamped,
    close,
    dtype_of,
    require_close,
    require_codes,
    uniform,
    unpacked,
)
from qlab.checks.quantization.granularity_slips import Case, other_groupings, wrong_scales
from qlab.checks.quantization.symmetric_slips import wrong_codes
from qlab.checks.report import Refused, check, part, require


@check(
    TOPIC,
    "quantize-groups",
    quantize.symmetric_grid,
    quantize.Tile,
    points=6,
    forbids=("qlab.quantize.quantize_symmetric",),
)
def check_quantize_groups(
    quantize_groups: LearnerFunction, dequantize_groups: LearnerFunction, draw: torch.Generator
) -> None:
    """Check `quantize_groups(w, bits, group_size)` and `dequantize_groups(codes, scales, group_size)`."""
    size = drawn(4, 8, draw)
    rows = [_case(draw, 8, columns, columns) for columns in (7, 12)]
    whole = [_case(draw, bits, size * drawn(3, 5, draw), size) for bits in (8, 4)]
    whole.append(_case(draw, 8, 5, 1))
    # (2 size + 1) columns make three groups, and a third of the columns is less than a group
    lengths = (size * drawn(2, 4, draw) + drawn(1, size - 1, draw), 2 * size + 1)
    ragged = [_case(draw, bits, columns, size) for bits, columns in zip((8, 4), lengths, strict=True)]
    with part("one group as long as a row: a scale for each row"):
        for case in rows:
            _scales(quantize_groups, case)
    with part("several groups in a row, a scale for each"):
        for case in whole:
            _scales(quantize_groups, case)
    with part("a ragged last group has a scale of its own values"):
        for case in ragged:
            _scales(quantize_groups, case)
    with part("codes are int8 in the shape of w, each the nearest on the scale of its group"):
        require_codes([_coded(quantize_groups, case) for case in (*rows, *whole, *ragged)])
    with part("dequantized: each code by the scale of its group"):
        for case in (*rows, *whole, *ragged):
            _dequantized(dequantize_groups, case, draw)
    with part("an all-zero group gets codes 0 and a positive, finite scale"):
        for case in (whole[0], ragged[0]):
            _zero_group(quantize_groups, case)


def _case(draw: torch.Generator, bits: int, columns: int, group_size: int) -> Case:
    """Draw a matrix whose rows and columns have magnitudes of their own, so that no two ways to group agree."""
    w = torch.randn(5, columns, generator=draw)
    w *= uniform(0.3, 3.0, (5, 1), draw) * uniform(0.3, 3.0, (1, columns), draw)
    if ragged := columns % group_size:
        w[:, -ragged - 1] = 1.5 * w.abs().amax(1)  # just outside the last group, which must not see it
    w[-1] *= 1e-9
    return Case(w, bits, group_size)


def _scales(quantize_groups: LearnerFunction, case: Case) -> None:
    _, scales = unpacked(quantize_groups(case.w, case.bits, case.group_size), ("codes", "scales"), call=case.call)
    _name_by_shape(scales, case)
    expected = case.scales
    got = as_tensor(scales, tuple(expected.shape), call=f"{case.call}[1]")
    require_close(
        got,
        expected,
        given=lambda i: f"{case.told} (the scale of row {i // expected.shape[1]}, group {i % expected.shape[1]})",
        suspects=wrong_scales(case, got),
    )


def _name_by_shape(scales: object, case: Case) -> None:
    """Refuse scales of another shape by the name of the grouping that gives them, if one does."""
    if not isinstance(scales, Tensor) or scales.shape == case.scales.shape:
        return
    got, right = scales.detach().double().flatten(), case.scales.flatten()
    if got.shape == right.shape and torch.equal(close(right, got), got):
        return  # the right values in another shape
    for misconception, thought, values in other_groupings(case):
        flat = values.flatten() / case.largest
        if flat.shape == got.shape and bool((close(flat, got) == got).all()):
            raise Refused(
                f"given {case.told}, got {tuple(scales.shape)} scales, expected {tuple(case.scales.shape)}",
                misconception=misconception,
                thought=thought,
            )


def _coded(quantize_groups: LearnerFunction, case: Case) -> Coded:
    """Read the int8 codes of one call, to be judged on the scales that were returned with them."""
    result = quantize_groups(case.w, case.bits, case.group_size)
    codes, scales = unpacked(result, ("codes", "scales"), call=case.call)
    got = as_tensor(codes, tuple(case.w.shape), call=f"{case.call}[0]")
    require(
        dtype_of(codes) == "int8",
        f"given {case.told}, got codes of {dtype_of(codes)}, expected int8",
        misconception="not-int8",
        thought="A code takes one byte: round, clamp, and end with `.to(torch.int8)`.",
    )
    _name_by_shape(scales, case)
    steps = as_tensor(scales, tuple(case.scales.shape), call=f"{case.call}[1]").double()
    flat, columns = case.w.flatten(), case.w.shape[1]
    return Coded(
        got,
        case.w.double() / _spread(steps, case),
        clamped(-case.largest, case.largest),
        tuple(wrong_codes(case.bits)),
        lambda i: f"{flat[i].item():.6g} in row {i // columns}, column {i % columns} of {case.told} (the code)",
    )


def _spread(scales: Tensor, case: Case) -> Tensor:
    """Return the scale of each weight."""
    return scales[:, torch.arange(case.w.shape[1]) // case.group_size]


def _dequantized(dequantize_groups: LearnerFunction, case: Case, draw: torch.Generator) -> None:
    shape, size = tuple(case.w.shape), case.group_size
    codes = torch.randint(-case.largest, case.largest + 1, shape, generator=draw).to(torch.int8)
    scales = uniform(0.1, 2.0, tuple(case.scales.shape), draw)
    call = f"dequantize_groups(codes, scales, {size})"
    got = as_tensor(dequantize_groups(codes, scales, size), shape, call=call)
    wide = scales.double()
    strided = wide[:, torch.arange(shape[1]) % wide.shape[1]]
    require_close(
        got,
        codes * _spread(wide, case),
        given=lambda i: f"row {i // shape[1]}, column {i % shape[1]} of codes of shape {shape} in {call}",
        suspects=[
            Suspect("groups-are-not-neighbors", "Repeat each scale for its group in turn.", codes * strided),
            Suspect("inverse-scale", "A code is a number of steps: multiply.", codes / _spread(wide, case)),
            Suspect("one-scale-for-all", "Each group has a scale of its own.", codes * wide[:, :1]),
            Suspect("one-scale-for-all", "Each row has scales of its own.", codes * _spread(wide, case)[:1]),
        ],
    )


def _zero_group(quantize_groups: LearnerFunction, case: Case) -> None:
    w = case.w.clone()
    w[1, -(w.shape[1] % case.group_size or case.group_size) :] = 0  # the last group of one row
    case = Case(w, case.bits, case.group_size)
    result = quantize_groups(w, case.bits, case.group_size)
    codes, scales = unpacked(result, ("codes", "scales"), call=case.call)
    got = as_tensor(codes, tuple(w.shape), call=f"{case.call}[0]")
    _name_by_shape(scales, case)
    steps = as_tensor(scales, tuple(case.scales.shape), call=f"{case.call}[1]")
    require(
        bool((got[w == 0] == 0).all()) and 0 < steps[1, -1] < torch.inf,
        f"given {case.told} with zeros for the last group of row 1, got its scale {steps[1, -1]:g}"
        f" and codes {got[1, -1]:g}, expected a positive scale and 0",
        misconception="divides-by-zero",
        thought="0 / 0 is NaN: where the largest magnitude of a group is 0 take S = 1, and its codes are 0.",
    )
