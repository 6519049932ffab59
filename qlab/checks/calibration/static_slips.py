"""What wrong static layers give: ranges from elsewhere, ranges that move, codes that wrap."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qlab.checks.calibration.input_grids import (
    Call,
    Grid,
    Layer,
    Slip,
    affine,
    of_codes_alone,
    of_steps,
    of_weight_codes,
    symmetric,
    unrounded,
    widened,
)


def slips_of(calls: Sequence[Call], batches: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[Slip]:
    """Yield the slips of all calls; `others` calibrated a second layer before the last of them."""
    yield from _from_elsewhere(calls)
    yield from _moving(calls, batches, others)
    yield from _of_some_batches(batches)
    yield from _of_the_codes(batches)
    yield from _of_the_products(batches)


def _from_elsewhere(calls: Sequence[Call]) -> Iterator[Slip]:
    now = "The range came from the input of a call: it must come from the calibration batches, before any call."
    for grid in (widened, _bare, _both_signs):
        yield Slip("calibrates-on-the-test-batch", now, lambda _, c, grid=grid: grid(c.x))
        yield Slip("calibrates-on-the-test-batch", now, lambda _, c, grid=grid: grid(calls[0].x))
    rows = "One scale for the tensor is promised, and fixed: a token's own range is what *dynamic* uses."
    yield Slip("one-scale-for-each-token", rows, lambda _, c: symmetric(c.x.abs().amax(1, keepdim=True)))
    yield Slip("one-scale-for-each-token", rows, lambda _, c: _of_rows(c.x))


def _moving(calls: Sequence[Call], batches: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[Slip]:
    grows = "A call widened the range: after calibration S and Z are constants, whatever comes in."
    yield Slip("keeps-calibrating", grows, lambda n, c: widened(*batches, *(call.x for call in calls[: n + 1])))
    yield Slip("keeps-calibrating", grows, lambda n, c: widened(*batches, *(call.x for call in calls[:n])))
    if others:
        last = len(calls) - 1
        shared = "Making a second layer changed the first: S and Z belong into what you return, not into a global."
        yield Slip("shared-between-layers", shared, lambda n, c: widened(*(others if n == last else batches)))
        yield Slip("shared-between-layers", shared, lambda n, c: widened(*batches, *(others if n == last else ())))


def _of_some_batches(batches: Sequence[Tensor]) -> Iterator[Slip]:
    every = "All batches count: the smallest of their smallest values, the largest of their largest."
    yield Slip("last-batch-wins", every, lambda _, c: widened(batches[-1]))
    yield Slip("first-batch-only", every, lambda _, c: widened(batches[0]))
    low, high = (torch.stack([end(x) for x in batches]).mean().item() for end in (torch.min, torch.max))
    yield Slip("averages-the-batches", every, lambda _, c: affine(min(low, 0.0), max(high, 0.0)))
    sides = "The scale and the zero point come from the two ends: ± the largest magnitude wastes codes."
    yield Slip("symmetric-range", sides, lambda _, c: _both_signs(*batches))


def _of_the_codes(batches: Sequence[Tensor]) -> Iterator[Slip]:
    zero = "Zero must have a code of its own: widen the range by min(low, 0) and max(high, 0)."
    bare = _bare(*batches)
    low = min(x.min().item() for x in batches)
    right = widened(*batches)
    outside = bare.scale != right.scale  # of the range: only then has it to be widened
    for shift in (bare.zero, bare.zero.clamp(0, 255), -low / bare.scale) if outside else ():
        yield Slip("excludes-zero", zero, lambda _, c, shift=shift: Grid(bare.scale, shift))
    changed: Callable[..., Grid] = lambda **others: Grid(right.scale, right.zero, **others)  # noqa: E731
    beyond = "Codes are 0 … 255: clamp them, or what lies beyond gets codes that no byte holds."
    yield Slip("no-clamp", beyond, lambda _, c: changed(lowest=-torch.inf, highest=torch.inf))
    yield Slip("no-clamp", beyond, lambda _, c: changed(wraps=True))
    yield Slip("clamps-to-127", "Unsigned codes end at 255.", lambda _, c: changed(highest=127.0))
    yield Slip("truncates", "A cast cuts toward zero: round first.", lambda _, c: changed(to_integer=torch.trunc))
    whole = "Z is a whole number, so that zero has a code of its own: round it, and 0 gives exactly 0."
    place = -min(low, 0.0) / right.scale
    yield Slip(
        "zero-point-not-whole",
        whole,
        lambda _, c: Grid(right.scale, place, to_integer=lambda steps: torch.round(steps + place) - place),
    )
    yield Slip("zero-point-not-whole", whole, lambda _, c: Grid(right.scale, place))
    nearest = "Z is the whole number *nearest* to −low / S: a cast or a floor cuts, so round it."
    for whole_part in (place.floor(), place.ceil()):
        yield Slip("zero-point-not-nearest", nearest, lambda _, c, zero=whole_part: Grid(right.scale, zero))
    exact = "These are the products of x as it came: turn x into whole codes first."
    yield Slip("not-quantized", exact, lambda _, c: changed(to_integer=unrounded))
    free = Grid(right.scale, right.zero, -torch.inf, torch.inf, unrounded)
    yield Slip("not-quantized", exact, lambda _, c: free)
    steps = "256 codes have 255 steps between them."
    wide = Grid(right.scale * 255 / 256, (right.zero * 256 / 255).round())
    yield Slip("divides-by-256", steps, lambda _, c: wide)


def _of_the_products(batches: Sequence[Tensor]) -> Iterator[Slip]:
    right = widened(*batches)
    forgotten = "A code stands for S · (code − Z): subtract Z, or Z · w_codes.sum(1) from each sum."
    yield Slip("drops-the-zero-point", forgotten, lambda _, c: right, _without_zero)
    scales = "Codes are whole numbers without a unit: multiply the sums by S and by the row's scale."
    yield Slip("forgets-the-scale-of-x", scales, lambda _, c: right, of_steps)
    yield Slip("forgets-the-scale-of-w", scales, lambda _, c: right, of_weight_codes)
    yield Slip("forgets-both-scales", scales, lambda _, c: right, of_codes_alone)


def _without_zero(steps: Tensor, grid: Grid, layer: Layer) -> Tensor:
    return ((steps + grid.zero) * grid.scale) @ layer.weight.T


def _bare(*tensors: Tensor) -> Grid:
    return affine(min(x.min().item() for x in tensors), max(x.max().item() for x in tensors))


def _both_signs(*tensors: Tensor) -> Grid:
    return symmetric(torch.stack([x.abs().max() for x in tensors]).max())


def _of_rows(x: Tensor) -> Grid:
    low, high = x.double().amin(1, keepdim=True).clamp(max=0), x.double().amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    return Grid(scale, (-low / scale).round())
