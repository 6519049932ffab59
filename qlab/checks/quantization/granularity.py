"""Check of `quantize_groups` and `dequantize_groups`: which weights share a scale, ragged groups too."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlab import quantize
from qlab.checks.expect import Suspect, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.numbers import drawn
from qlab.checks.quantization.codes import (
    TOPIC,
    clamped,
    close,
    dtype_of,
    require_close,
    require_codes,
    uniform,
    unpacked,
)
from qlab.checks.quantization.symmetric import wrong_codes
from qlab.checks.report import Refused, check, part, require


@dataclass(frozen=True)
class Case:
    """One call: `quantize_groups(w, bits, group_size)`."""

    w: Tensor
    bits: int
    group_size: int

    @property
    def call(self) -> str:
        return f"quantize_groups(w, {self.bits}, {self.group_size})"

    @property
    def told(self) -> str:
        """What was given, in words."""
        return f"w of shape {tuple(self.w.shape)}, bits={self.bits}, group_size={self.group_size}"

    @property
    def largest(self) -> int:
        """The largest code; the smallest is its negative."""
        return 2 ** (self.bits - 1) - 1

    @property
    def scales(self) -> Tensor:
        """One scale for each group of each row."""
        groups = self.w.double().split(self.group_size, dim=1)
        return torch.stack([group.abs().amax(1) for group in groups], 1) / self.largest


@check(TOPIC, "quantize-groups", quantize.symmetric_grid, quantize.Tile, points=6)
def check_quantize_groups(
    quantize_groups: LearnerFunction, dequantize_groups: LearnerFunction, draw: torch.Generator
) -> None:
    """Check `quantize_groups(w, bits, group_size)` and `dequantize_groups(codes, scales, group_size)`."""
    size = drawn(4, 8, draw)
    rows = [_case(draw, 8, columns, columns) for columns in (7, 12)]
    whole = [_case(draw, bits, size * drawn(3, 5, draw), size) for bits in (8, 4)]
    ragged = [_case(draw, bits, size * drawn(2, 4, draw) + drawn(1, size - 1, draw), size) for bits in (8, 4)]
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
        for case in (*rows, *whole, *ragged):
            _codes(quantize_groups, case)
    with part("dequantized: each code by the scale of its group"):
        for case in (*rows, *whole, *ragged):
            _dequantized(dequantize_groups, case, draw)
    with part("an all-zero group gets codes 0 and a positive, finite scale"):
        for case in (whole[0], ragged[0]):
            _zero_group(quantize_groups, case)


def _case(draw: torch.Generator, bits: int, columns: int, group_size: int) -> Case:
    """Draw a matrix whose rows and columns have magnitudes of their own, so that no two ways to group agree."""
    w = torch.randn(5, columns, generator=draw)
    return Case(w * uniform(0.3, 3.0, (5, 1), draw) * uniform(0.3, 3.0, (1, columns), draw), bits, group_size)


def _scales(quantize_groups: LearnerFunction, case: Case) -> None:
    _, scales = unpacked(quantize_groups(case.w, case.bits, case.group_size), ("codes", "scales"), call=case.call)
    _name_by_shape(scales, case)
    expected = case.scales
    got = as_tensor(scales, tuple(expected.shape), call=f"{case.call}[1]")
    across = expected.shape[1]
    require_close(
        got,
        expected,
        given=lambda i: f"{case.told} (the scale of row {i // across}, group {i % across})",
        suspects=_wrong_scales(case),
    )


def _name_by_shape(scales: object, case: Case) -> None:
    """Refuse scales of another shape by the name of the grouping that gives them, if one does."""
    if not isinstance(scales, Tensor) or scales.shape == case.scales.shape:
        return
    got = scales.detach().double().flatten()
    for misconception, thought, values in _other_groupings(case):
        flat = values.flatten() / case.largest
        if flat.shape == got.shape and bool((close(flat, got) == got).all()):
            raise Refused(
                f"given {case.told}, got {tuple(scales.shape)} scales, expected {tuple(case.scales.shape)}",
                misconception=misconception,
                thought=thought,
            )


def _other_groupings(case: Case) -> Iterator[tuple[str, str, Tensor]]:
    w, size, (rows, columns) = case.w.double().abs(), case.group_size, case.w.shape
    yield "one-scale-for-all", "One large weight would set the step of all: a scale for each group.", w.max()[None]
    yield "one-scale-for-all", "Each group of a row needs a scale of its own, not one for the row.", w.amax(1)
    axis = "Groups run along a row, the inputs of one output: reduce over dim 1, not over dim 0."
    yield "wrong-axis", axis, w.amax(0)
    down = pad(w, (0, 0, 0, -rows % size)).view(-1, size, columns).amax(1)
    yield "wrong-axis", axis, down
    yield "wrong-axis", axis, down.T
    across = "A group ends with its row: a flattened matrix would let the end of one row share with the next."
    yield "groups-cross-rows", across, pad(w.flatten(), (0, -w.numel() % size)).view(-1, size).amax(1)
    tail = "The last group of a row may be shorter than the others, and it needs a scale too."
    yield "drops-the-ragged-group", tail, w[:, : columns // size * size].view(rows, -1, size).amax(2)
    merged = list(w.split(size, 1))
    merged = [*merged[:-2], torch.cat(merged[-2:], 1)] if columns % size else merged
    yield "merges-the-ragged-group", tail, torch.stack([group.amax(1) for group in merged], 1)


def _wrong_scales(case: Case) -> Iterator[Suspect]:
    w, size, shape = case.w.double(), case.group_size, case.scales.shape
    groups = w.split(size, dim=1)
    ones = torch.ones(shape, dtype=torch.float64)
    for name, thought, values in (
        ("one-scale-for-all", "Each group has a largest magnitude of its own.", w.abs().max() * ones),
        ("one-scale-for-all", "Each group of a row needs a scale of its own.", w.abs().amax(1, keepdim=True) * ones),
        (
            "one-scale-for-all",
            "Each row needs scales of its own.",
            torch.stack([group.abs().max() for group in groups]) * ones,
        ),
        ("forgets-the-sign", "Take absolute values first.", torch.stack([group.amax(1) for group in groups], 1)),
        (
            "overlaps-the-ragged-group",
            "The last group holds only what is left of the row: it does not reach back.",
            torch.cat([case.scales[:, :-1] * case.largest, w[:, -size:].abs().amax(1, keepdim=True)], 1),
        ),
        (
            "groups-cross-rows",
            "A group ends with its row: padding at the end of the flat matrix is not enough.",
            _flat_groups(w, size, shape),
        ),
    ):
        yield Suspect(name, thought, values / case.largest)
    strided = [w[:, i :: shape[1]].abs().amax(1) for i in range(shape[1])]
    yield Suspect(
        "groups-are-not-neighbors",
        "Neighbors share a scale: columns 0 to group_size − 1, then the next ones.",
        torch.stack(strided, 1) / case.largest,
    )
    most = case.scales * case.largest
    yield Suspect("divides-by-128", "With 8 bits the codes end at 127, with 4 at 7.", most / (case.largest + 1))
    yield Suspect("ignores-bits", "The largest code follows from `bits`.", most / 127)
    yield Suspect("counts-255-levels", "From −127 to 127 there are 254 steps.", most / (case.largest + 0.5))
    yield Suspect("inverse-scale", "The scale is the size of a step: return S, not 1 / S.", case.largest / most)


def _flat_groups(w: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Return the magnitudes of groups of the flattened matrix, as many as there are places."""
    padded = pad(w.abs().flatten(), (0, shape.numel() * size - w.numel()))
    return padded.view(-1, size).amax(1).view(shape)


def _codes(quantize_groups: LearnerFunction, case: Case) -> None:
    """Require the nearest int8 codes on the scales that were returned with them."""
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
    columns, flat = case.w.shape[1], case.w.flatten().tolist()
    require_codes(
        got,
        case.w.double() / _spread(steps, case),
        clamped(-case.largest, case.largest),
        given=lambda i: f"{flat[i]:.6g} in row {i // columns}, column {i % columns} of {case.told} (the code)",
        slips=wrong_codes(case.bits),
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
        bool((got[w == 0] == 0).all()) and bool(((steps > 0) & steps.isfinite()).all()),
        f"given {case.told} with zeros for the last group of row 1, got its scale {steps[1, -1]:g}"
        f" and codes {got[1, -1]:g}, expected a positive scale and 0",
        misconception="divides-by-zero",
        thought="0 / 0 is NaN: where the largest magnitude of a group is 0 take S = 1, and its codes are 0.",
    )
