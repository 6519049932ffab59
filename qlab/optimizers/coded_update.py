"""One Adam update on moments kept in 8-bit codes: piece by piece, so that no FP32 moment is ever whole in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from qlab.codebooks.nearest import CELL_BITS, CELLS, NearestSearch, search_of
from qlab.optimizers.adam import CorrectedRates, apply_adam
from qlab.optimizers.moments import map_for

CPU_PIECE = 2**16  # values: the working buffers of a piece stay in a core's cache
GPU_PIECE = 2**22
SMALLEST_NORMAL = 2.0**-126
SUBNORMAL_LIFT = 2.0**24


@dataclass(frozen=True)
class CodedMoment:
    """A moment's codes and absmaxes, to be read and written in place, and its map made ready for their device.

    Shapes:  `codes` is (values,), `absmax` (ceil(values / block_size),).
    """

    codes: UInt8[Tensor, " values"]
    absmax: Float[Tensor, " blocks"]
    signed: bool

    def read(self, piece: "Piece", *, out: Float[Tensor, " padded"], room: Int32[Tensor, " padded"]) -> None:
        """Write the values of a piece into `out`; a last block that is shorter is filled up with zeros."""
        size = piece.end - piece.start
        indices = room[:size].copy_(self.codes[piece.start : piece.end])
        levels = levels_of(self.signed, out.device).view(torch.int32)  # faster to look up than FP32
        torch.index_select(levels, 0, indices, out=out[:size].view(torch.int32))
        out[size:] = 0
        out.view(-1, piece.block_size).mul_(self.absmax[piece.blocks, None])

    def write(
        self, values: Float[Tensor, " padded"], piece: "Piece", *, scratch: tuple[Int32[Tensor, " padded"], ...]
    ) -> None:
        """Code the values of a piece, which are lost, in two rooms as large."""
        cells, found = scratch
        magnitudes = torch.abs(values, out=found.view(torch.float32)) if self.signed else values
        blocks = piece.blocks
        largest = torch.amax(magnitudes.view(-1, piece.block_size), 1, out=self.absmax[blocks])
        normalize(values.view(-1, piece.block_size), largest)
        size, patterns = piece.end - piece.start, values.view(torch.int32)
        torch.bitwise_right_shift(patterns, CELL_BITS, out=cells)
        if self.signed:
            cells.bitwise_and_(CELLS - 1)
        table = search_for(self.signed, values.device).table
        torch.index_select(table, 0, cells, out=found)
        found.add_(patterns).bitwise_right_shift_(CELL_BITS)
        if self.signed:
            found.abs_()  # the table finds minus the code of a negative number
        self.codes[piece.start : piece.end] = found[:size]


@dataclass(frozen=True)
class Piece:
    """A stretch of whole blocks: where it starts and ends, and the values that its blocks have room for."""

    start: int
    end: int
    block_size: int

    @property
    def blocks(self) -> slice:
        """The places of the blocks."""
        return slice(self.start // self.block_size, -(-self.end // self.block_size))

    @property
    def padded(self) -> int:
        """How many values the blocks would hold if the last one were full."""
        return (self.blocks.stop - self.blocks.start) * self.block_size


def coded_adam_update(
    parameter: Float[Tensor, " values"],
    gradient: Float[Tensor, " values"],
    moments: tuple[CodedMoment, CodedMoment],
    rates: CorrectedRates,
    *,
    block_size: int,
) -> None:
    """Decode two moments, apply Adam in FP32, and code them anew, all in place.

    A narrow parameter or gradient is read into FP32, and the parameter rounded once at the end.
    Shapes:  all are flat and contiguous.
    """
    pieces = list(pieces_of(parameter.numel(), block_size, parameter.device))
    room = parameter.new_empty(6, max(piece.padded for piece in pieces), dtype=torch.float32)
    for piece in pieces:
        first, second, scratch, wide_parameter, wide_gradient, cells = room[:, : piece.padded]
        scratch_codes = (cells.view(torch.int32), scratch.view(torch.int32))
        inside = slice(0, piece.end - piece.start)
        for moment, values in zip(moments, (first, second), strict=True):
            moment.read(piece, out=values, room=scratch_codes[0])
        narrow, own_gradient = parameter[piece.start : piece.end], gradient[piece.start : piece.end]
        if parameter.dtype == torch.float32:
            apply_adam(narrow, own_gradient, (first[inside], second[inside]), rates, scratch[inside])
        else:
            wide = wide_parameter[inside].copy_(narrow)
            own_gradient = wide_gradient[inside].copy_(own_gradient)
            apply_adam(wide, own_gradient, (first[inside], second[inside]), rates, scratch[inside])
            narrow.copy_(wide)
        for moment, values in zip(moments, (first, second), strict=True):
            moment.write(values, piece, scratch=scratch_codes)


def pieces_of(values: int, block_size: int, device: torch.device) -> Iterator[Piece]:
    """Yield pieces of whole blocks that cover `values` values: on a CPU such as fit its cache."""
    width = min(block_size, values)
    most = CPU_PIECE if device.type == "cpu" else GPU_PIECE
    step = width * max(1, most // width)
    return (Piece(start, min(start + step, values), width) for start in range(0, values, step))


def normalize(blocks: Float[Tensor, "blocks size"], absmax: Float[Tensor, " blocks"]) -> None:
    """Multiply each block by 1 / absmax, in place; a block of zeros stays, and one of subnormals is lifted first."""
    tiny = absmax < SMALLEST_NORMAL
    if blocks.device.type == "cpu" and not tiny.any():
        blocks.mul_(absmax.reciprocal()[:, None])
        return
    lift = torch.where(tiny, SUBNORMAL_LIFT, 1.0)
    inverse = torch.where(absmax > 0, 1 / (absmax * lift), 0.0)
    blocks.mul_(lift[:, None]).mul_(inverse[:, None])


@lru_cache(maxsize=16)
def levels_of(signed: bool, device: torch.device) -> Tensor:
    """Return the map's levels on a device: copied there once."""
    return map_for(signed=signed).to(device)


@lru_cache(maxsize=16)
def search_for(signed: bool, device: torch.device) -> NearestSearch:
    """Return the map's search on a device: made once."""
    return search_of(map_for(signed=signed), device)
