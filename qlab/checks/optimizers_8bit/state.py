"""Check of `quantize_moments` and `dequantize_moments`: an absmax a block, codes on two maps, and the way back."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qlab import optimizers
from qlab.checks.expect import Suspect, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.optimizers_8bit.state_slips import (
    MAPS,
    TIE,
    Moment,
    absmax_slips,
    code_slips,
    is_nearest,
    value_slips,
)
from qlab.checks.optimizers_8bit.topic import TOPIC
from qlab.checks.quantization.codes import close, dtype_of, require_close, uniform, unpacked
from qlab.checks.report import Refused, check, part, require

NAMES = ("codes", "absmax", "codes_sq", "absmax_sq")
BACK = ("exp_avg", "exp_avg_sq")


@check(
    TOPIC,
    "blockwise-state",
    optimizers.QuantizedMoment,
    points=5,
    forbids=("qlab.codebooks.quantize_blockwise", "qlab.codebooks.BlockwiseCodes"),
)
def check_quantize_moments(
    quantize_moments: LearnerFunction, dequantize_moments: LearnerFunction, draw: torch.Generator
) -> None:
    """Check `quantize_moments(exp_avg, exp_avg_sq, block_size)` and `dequantize_moments(…, block_size)`."""
    cases = [_moments(draw, shape) for shape in (_ragged(draw), (5, drawn(31, 60, draw)), (drawn(1, 4, draw), 64))]
    with part("an absmax for each block of neighbors, a short last block too"):
        for case in cases:
            _require_absmax(quantize_moments, case)
    with part("exp_avg: uint8 codes, the nearest on the signed map"):
        for case in cases:
            _require_codes(quantize_moments, case, 0)
    with part("exp_avg_sq: uint8 codes, the nearest on the unsigned map"):
        for case in cases:
            _require_codes(quantize_moments, case, 1)
    with part("back again: the level of each code, times the absmax of its block"):
        for case in cases:
            _require_values(dequantize_moments, case, draw)
    with part("there and back: blocks of zeros, and squares of tiny gradients"):
        _require_round_trip(quantize_moments, dequantize_moments, draw)


Case = tuple[Moment, Moment]


def _ragged(draw: torch.Generator) -> tuple[int]:
    return (drawn(300, 400, draw),)  # more than a block of 256, which is what others take for `block_size`


def _moments(draw: torch.Generator, shape: tuple[int, ...]) -> Case:
    """Draw moments whose blocks differ a thousandfold, the last block short, its neighbors larger than anything in it.

    No largest value of a block of exp_avg is positive: who forgets the sign of what is negative finds another absmax.
    """
    count = int(torch.tensor(shape).prod())
    size = 64 if shape[-1] == 64 else next(s for s in range(drawn(17, 30, draw), 99) if count % s > 1)
    blocks = torch.arange(count) // size
    sizes = 10 ** uniform(-4, -1, (int(blocks[-1]) + 1,), draw)
    sizes[-1] = sizes[-2 % len(sizes)] / 50 if len(sizes) > 1 else sizes[-1]
    exp_avg = sizes[blocks] * uniform(-1, 0.9, (count,), draw) * 10 ** uniform(-2, 0, (count,), draw)
    exp_avg[torch.arange(0, count, size)] = -sizes
    squares = (sizes[blocks] * 10 ** uniform(-1.5, 0, (count,), draw)) ** 2
    return Moment(exp_avg.view(shape), size, signed=True), Moment(squares.view(shape), size, signed=False)


def _call(case: Case) -> str:
    shape = tuple(case[0].x.shape)
    return f"quantize_moments(<exp_avg of shape {shape}>, <exp_avg_sq>, {case[0].block_size})"


def _quantized(quantize_moments: LearnerFunction, case: Case) -> tuple[Any, ...]:
    returned = quantize_moments(case[0].x, case[1].x, case[0].block_size)
    return unpacked(returned, NAMES, call=_call(case))


def _require_absmax(quantize_moments: LearnerFunction, case: Case) -> None:
    returned = _quantized(quantize_moments, case)
    for moment, value, name in zip(case, returned[1::2], NAMES[1::2], strict=True):
        call = f"{_call(case)}, {name}"
        _name_by_count(value, moment, call)
        got = as_tensor(value, (moment.blocks,), call=call)
        require_close(
            got,
            moment.absmax,
            given=lambda i, call=call, m=moment: f"block {i} of {m.blocks} in {call}",
            suspects=[Suspect(n, t, v) for n, t, v in absmax_slips(moment, got) if v.numel() == got.numel()],
        )


def _name_by_count(value: Any, moment: Moment, call: str) -> None:
    """Refuse another number of absmaxes by the name of the slip that gives them, if one does."""
    if not isinstance(value, Tensor) or value.numel() == moment.blocks:
        return
    got = value.detach().double().flatten()
    for misconception, thought, values in absmax_slips(moment, got):
        if len(values) == len(got) and torch.equal(close(values, got), got):
            raise Refused(
                f"`{call}`: {len(got)} for {moment.x.numel()} values, expected {moment.blocks}, one for each block",
                misconception=misconception,
                thought=thought,
            )


def _require_codes(quantize_moments: LearnerFunction, case: Case, which: int) -> None:
    moment, name = case[which], NAMES[2 * which]
    call, value = f"{_call(case)}, {name}", _quantized(quantize_moments, case)[2 * which]
    codes = as_tensor(value, tuple(moment.x.shape), call=call)
    require(
        dtype_of(value) == "uint8",
        f"`{call}` are of {dtype_of(value)}, expected uint8",
        misconception="not-uint8",
        thought="256 codes fill a byte: `nearest_codes` returns uint8 codes, keep them.",
    )
    codes, levels = codes.long().flatten(), MAPS[moment.signed]
    wrong = ~is_nearest(codes, moment.normalized, levels)
    if not wrong.any():
        return
    first = int(wrong.nonzero()[0])
    misconception, thought = next(_named(codes, moment), ("not-the-nearest", NEAREST))
    raise Refused(
        f"{moment.x.flatten()[first]:.6g} in a block with absmax {moment.absmax[first // moment.block_size]:.6g} of"
        f" `{call}`: got code {codes[first]}, the level {levels[codes[first]]:.6g}; {moment.normalized[first]:.6g} is"
        f" nearest to level {(levels - moment.normalized[first]).abs().argmin()}"
        f" (wrong for {int(wrong.sum())} of {len(wrong)} values)",
        misconception=misconception,
        thought=thought,
    )


NEAREST = "Each value over the absmax of its own block, then `nearest_codes` with the map of this moment."


def _named(codes: Tensor, moment: Moment) -> Iterator[tuple[str, str]]:
    for misconception, thought, fits in code_slips(moment):
        if fits(codes):
            yield misconception, thought


def _require_values(dequantize_moments: LearnerFunction, case: Case, draw: torch.Generator) -> None:
    shape, size = tuple(case[0].x.shape), case[0].block_size
    codes = [torch.randint(0, 256, shape, generator=draw).to(torch.uint8) for _ in case]
    absmax = [uniform(0.1, 2, (moment.blocks,), draw) for moment in case]
    call = f"dequantize_moments(<codes of shape {shape}>, …, {size})"
    returned = unpacked(dequantize_moments(codes[0], absmax[0], codes[1], absmax[1], size), BACK, call=call)
    for which, value in enumerate(returned):
        got = as_tensor(value, shape, call=f"{call}, {BACK[which]}")
        given = [(codes[which], absmax[which]), (codes[1 - which], absmax[1 - which])]
        right, *slips = value_slips(*given, size, signed=not which)
        require_close(
            got,
            right[2],
            given=lambda i, which=which: (
                f"code {codes[which].flatten()[i]} in block {i // size} of `{call}`, {BACK[which]}"
            ),
            suspects=[Suspect(*slip) for slip in slips],
        )


def _require_round_trip(
    quantize_moments: LearnerFunction, dequantize_moments: LearnerFunction, draw: torch.Generator
) -> None:
    case = _moments(draw, _ragged(draw))
    size, block = case[0].block_size, torch.arange(case[0].x.numel()) // case[0].block_size
    shrink = torch.tensor([1.0, 0.0, 1e-7])[block.clamp(max=2)]  # then squares fall to 1e-16 and below
    case = Moment(case[0].x * shrink, size, signed=True), Moment(case[1].x * shrink**2, size, signed=False)
    tensors = _as_tensors(_quantized(quantize_moments, case), case)
    returned = unpacked(dequantize_moments(*tensors, size), BACK, call="dequantize_moments(…)")
    for moment, value, name in zip(case, returned, BACK, strict=True):
        got = as_tensor(value, tuple(moment.x.shape), call=f"dequantize_moments(…), {name}").double()
        lost = ~got.isfinite() | ((moment.x == 0) & (got != 0))
        zeros = "0 / 0 is NaN: where the absmax is 0 divide by 1 instead, and every code is the level 0."
        require(
            not lost.any(),
            f"{name}: {int(lost.sum())} values of a block of zeros came back as {_first(got, lost)}",
            misconception="divides-by-zero" if got.isnan().any() else "zero-is-not-zero",
            thought=zeros,
        )
        off = (got - moment.x).abs() > (moment.half_gap + TIE) * moment.absmax.repeat_interleave(size)[: len(block)]
        require(
            not off[block >= 2].any() or bool(off[block == 0].any()),
            f"{name}: {_first(moment.x, off)} came back as {_first(got, off)}",
            misconception="swallows-small-blocks",
            thought=SMALL,
        )
        require(
            not off.any(),
            f"{name}: {_first(moment.x, off)} came back as {_first(got, off)}",
            misconception="does-not-come-back",
            thought="What is quantized and dequantized is off by at most half the gap between two levels.",
        )


SMALL = "An epsilon added to the absmax, or a floor under it, is larger than such a whole block: replace a 0 only."


def _as_tensors(returned: tuple[Any, ...], case: Case) -> list[Tensor]:
    """Return codes and absmaxes as the task describes them, whatever holds them."""
    shapes = (tuple(case[0].x.shape), (case[0].blocks,)) * 2
    types = (torch.uint8, torch.float32) * 2
    read = [as_tensor(v, s, call=f"{_call(case)}, {n}") for v, s, n in zip(returned, shapes, NAMES, strict=True)]
    return [value.to(dtype) for value, dtype in zip(read, types, strict=True)]


def _first(values: Tensor, where: Tensor) -> str:
    return f"{values[where][0].item():.6g}" if where.any() else "nothing"
