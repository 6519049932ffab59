"""Moments cut into blocks, as they should be and as they should not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qlab.checks.quantization.codes import with_an_epsilon
from qlab.codebooks import dynamic_map, linear_map

# of a level: x / absmax, or x times 1 / absmax, and a middle of two levels, all in FP32, round five times to 6e-8
TIE = 4e-7
MAPS = {signed: dynamic_map(signed=signed).double() for signed in (True, False)}
LINEAR = {signed: linear_map(bits=8, signed=signed).double() for signed in (True, False)}


@dataclass(frozen=True)
class Moment:
    """A moment, and what its blocks make of it, in FP64 and flattened order."""

    x: Tensor
    block_size: int
    signed: bool

    @property
    def flat(self) -> Tensor:
        return self.x.double().flatten()

    @property
    def blocks(self) -> int:
        return -(-self.x.numel() // self.block_size)

    @cached_property
    def absmax(self) -> Tensor:
        return torch.stack([block.abs().max() for block in self.flat.split(self.block_size)])

    @cached_property
    def normalized(self) -> Tensor:
        return self.over(spread(self.absmax, self.block_size, self.x.numel()))

    @property
    def half_gap(self) -> Tensor:
        """Return for each value, over its absmax, how far the nearest level is."""
        return (self.normalized[:, None] - MAPS[self.signed]).abs().amin(1).view(self.x.shape)

    def over(self, divisor: Tensor) -> Tensor:
        return torch.where(divisor == 0, 0.0, self.flat / divisor)


def spread(absmax: Tensor, block_size: int, count: int) -> Tensor:
    """Return the absmax of each value's block."""
    return absmax.repeat_interleave(block_size)[:count]


def is_nearest(codes: Tensor, values: Tensor, levels: Tensor) -> Tensor:
    """Tell for each code whether no level is nearer to its value than the code's own, to rounding."""
    inside = codes.clamp(max=len(levels) - 1)
    nearest = (values[:, None] - levels).abs().min(1)
    got = levels[inside]
    room = TIE * (got.abs() + levels[nearest.indices].abs())
    return ((values - got).abs() <= nearest.values + room) & (codes == inside)


HABITUAL = 256
TENSOR = "One large value anywhere takes the small levels from all others: each block has an absmax of its own."
NEIGHBORS = "A block is `block_size` neighbors in flattened order, whatever the rows are."
SIGN = "The largest *magnitude*: a negative value may be the largest."
HABIT = "A block is `block_size` long, the argument, whatever is usual."
SHORT = "The last block may be shorter: it has an absmax too, of its own values."
AVERAGE = "With the largest magnitude every value lands between −1 and 1; with another number some land outside."
Values = tuple[str, str, Tensor]


def absmax_slips(moment: Moment, got: Tensor) -> Iterator[Values]:
    """Yield absmaxes that other rules give, in whatever number."""
    flat, size, n = moment.flat, moment.block_size, moment.blocks
    blocks = flat.split(size)
    if len(flat) > HABITUAL:
        yield "ignores-the-block-size", HABIT, _maxima(flat.split(HABITUAL))
    yield "absmax-per-tensor", TENSOR, flat.abs().max().expand(n)
    yield "absmax-per-tensor", TENSOR, flat.abs().max().reshape(1)
    if moment.x.ndim > 1:
        yield "absmax-per-row", NEIGHBORS, moment.x.double().abs().amax(-1).flatten()
        yield "absmax-per-row", NEIGHBORS, moment.x.double().abs().amax(0).flatten()
        yield "absmax-per-row", NEIGHBORS, _maxima(moment.x.double().T.flatten().split(size))
    yield "absmax-per-value", NEIGHBORS, flat.abs()
    yield "blocks-are-not-neighbors", NEIGHBORS, _maxima([flat[i::n] for i in range(n)])
    largest = torch.stack([block.max() for block in blocks])
    padded = torch.cat([largest[:-1], largest[-1:].clamp(min=0)])  # zeros fill up the last block
    for values in (largest, largest.abs(), padded, padded.abs()):
        yield "forgets-negative-values", SIGN, values
    yield "signed-absmax", SIGN, torch.stack([block[block.abs().argmax()] for block in blocks])
    whole = len(flat) // size
    if whole < n:
        yield "drops-the-short-block", SHORT, moment.absmax[:whole]
        yield "short-block-takes-its-neighbors", SHORT, torch.cat([moment.absmax[:-1], flat[-size:].abs().max()[None]])
        yield "short-block-takes-its-neighbors", SHORT, _joined(moment.absmax, whole)
    yield "mean-not-max", AVERAGE, torch.stack([block.abs().mean() for block in blocks])
    yield "mean-not-max", AVERAGE, torch.stack([block.square().mean().sqrt() for block in blocks])
    if got.numel() == n:
        for suspect in with_an_epsilon(moment.absmax, got.double().flatten()):
            yield suspect.misconception, suspect.thought, suspect.values


def _maxima(blocks: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.stack([block.abs().max() for block in blocks])


def _joined(absmax: Tensor, whole: int) -> Tensor:
    """Give the short block the absmax of the last whole one."""
    return torch.cat([absmax[:whole], absmax[whole - 1 : whole]]) if whole else absmax


SIGNED = "Squares have no sign: on the signed map half of the levels, and one bit of precision, are never used."
UNSIGNED = "A mean of gradients has both signs, and the unsigned map has no level below 0."
EVEN = "The dynamic map, not evenly spaced levels: on these all small values become 0."
DIVIDE = "The map goes to 1: divide each value by the absmax of its block first."
BELOW = "`nearest_codes` looks both ways; this is the level below."
Fits = Callable[[Tensor], bool]


def code_slips(moment: Moment) -> Iterator[tuple[str, str, Fits]]:
    """Yield what wrong codes would fit: another map, another absmax, another rounding."""
    signed = moment.signed
    other, thought = ("unsigned-map-for-first-moment", UNSIGNED) if signed else ("signed-map-for-second-moment", SIGNED)
    yield other, thought, _by(moment.normalized, MAPS[not signed])
    for normalized, name, why in _divided(moment):
        if name:
            yield name, why, _by(normalized, MAPS[signed])
    for normalized, name, why in _divided(moment):
        if name:
            yield name, why, _by(normalized, MAPS[not signed])
        yield "linear-map", EVEN, _by(normalized, LINEAR[signed])
        yield "linear-map", EVEN, _by(normalized, LINEAR[not signed])
        for steps, zero in ((127, 0), (127, 127), (127, 128), (127.5, 127.5), (255, 0)):
            yield "linear-map", EVEN, _whole(normalized * steps + zero)
        below = (torch.searchsorted(MAPS[signed], normalized, right=True) - 1).clamp(min=0)
        yield "takes-the-level-below", BELOW, lambda codes, below=below: bool((codes == below).double().mean() > 0.995)
    for levels in (MAPS[signed], MAPS[not signed]):
        yield "forgets-to-divide", DIVIDE, _by(moment.flat, levels)


def _divided(moment: Moment) -> Iterator[tuple[Tensor, str, str]]:
    """Yield the values over the right absmax, without a name, and over wrong ones."""
    flat, count, size = moment.flat, moment.x.numel(), moment.block_size
    yield moment.normalized, "", ""
    yield moment.over(flat.abs().max().expand(count)), "absmax-per-tensor", TENSOR
    if count > HABITUAL:
        habit = spread(_maxima(flat.split(HABITUAL)), HABITUAL, count)
        yield moment.over(habit), "ignores-the-block-size", HABIT
    strided = _maxima([flat[i :: moment.blocks] for i in range(moment.blocks)])
    yield moment.over(strided[torch.arange(count) % moment.blocks]), "blocks-are-not-neighbors", NEIGHBORS
    if moment.x.ndim > 1:
        rows = moment.x.double().abs()
        yield moment.over(rows.amax(-1, keepdim=True).expand_as(rows).flatten()), "absmax-per-row", NEIGHBORS
        yield moment.over(rows.amax(0).expand_as(rows).flatten()), "absmax-per-row", NEIGHBORS
    largest = torch.stack([block.max() for block in flat.split(size)])
    yield moment.over(spread(largest, size, count)), "forgets-negative-values", SIGN
    signed = torch.stack([block[block.abs().argmax()] for block in flat.split(size)])
    yield moment.over(spread(signed, size, count)), "signed-absmax", SIGN
    means = torch.stack([block.abs().mean() for block in flat.split(size)])
    yield moment.over(spread(means, size, count)), "mean-not-max", AVERAGE


def _by(values: Tensor, levels: Tensor) -> Fits:
    return lambda codes: bool(is_nearest(codes, values, levels).all())


def _whole(values: Tensor) -> Fits:
    return lambda codes: bool((((codes - values.round()) % 256).abs() <= ((values % 1 - 0.5).abs() < 1e-4)).all())


def value_slips(
    own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], size: int, *, signed: bool
) -> Iterator[Values]:
    """Yield the right values first, without a name, and then what slips give."""
    codes, absmax = own[0].long(), own[1].double()
    count, shape = codes.numel(), codes.shape
    levels, wrong = MAPS[signed][codes], MAPS[not signed][codes]
    by_block = spread(absmax, size, count).view(shape)
    yield "", "", levels * by_block
    name, thought = ("unsigned-map-for-first-moment", UNSIGNED) if signed else ("signed-map-for-second-moment", SIGNED)
    yield name, thought, wrong * by_block
    yield "forgets-the-absmax", "A level is a share of its block's absmax: multiply.", levels
    yield "inverse-absmax", "A level is a share of its block's absmax: multiply, not divide.", levels / by_block
    yield "codes-for-levels", "A code is a place in the map: look the level up, `map[codes.long()]`.", codes * by_block
    even = LINEAR[False][codes]
    yield "linear-map", EVEN, even * by_block
    yield "linear-map", EVEN, (codes.double() - 127) / 127 * by_block
    yield "linear-map", EVEN, (codes.double() - 128) / 127 * by_block
    if count > HABITUAL and len(absmax) > 1:
        yield "ignores-the-block-size", HABIT, levels * spread(absmax, HABITUAL, count).view(shape)
    yield "absmax-per-tensor", TENSOR, levels * absmax.max()
    yield "absmax-per-tensor", TENSOR, levels * absmax[0]
    strided = absmax[torch.arange(count) % len(absmax)].view(shape)
    yield "blocks-are-not-neighbors", "Repeat each absmax for its block in turn.", levels * strided
    swapped = spread(others[1].double(), size, count).view(shape)
    yield (
        "swaps-the-moments",
        "The first two arguments belong to exp_avg, the next two to exp_avg_sq.",
        levels * swapped,
    )
    of_other = MAPS[not signed][others[0].long()] * swapped
    yield "swaps-the-moments", "Return exp_avg first, then exp_avg_sq.", of_other
