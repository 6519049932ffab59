"""What the drawing of a grid looks at: a matrix, how it is quantized, and one of its tiles."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.plots.numbers import percent
from qlab.quantize import (
    PER_TENSOR,
    TILES,
    Grid,
    Quantized,
    Tile,
    affine_grid_of,
    quantize_with,
    symmetric_grid_of,
    value_range,
)


@dataclass(frozen=True)
class GridChoice:
    """How a matrix is quantized, and which tile is looked at: `rank` 0 is the tile of the smallest range, 1 the widest.

    Errors:  ValueError if `clip`, the share of the range that is kept, is not above 0 and at most 1, `rank` is not
             0 to 1, or `granularity` has no such name.
    """

    bits: int = 4
    affine: bool = False
    granularity: str = "per tensor"
    clip: float = 1.0
    rank: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.clip <= 1:
            raise ValueError(f"clip must be above 0 and at most 1, got {self.clip}")
        if not 0 <= self.rank <= 1:
            raise ValueError(f"rank must be 0 to 1, got {self.rank}")
        if self.granularity not in TILES:
            raise ValueError(f"granularity must be one of {', '.join(TILES)}, got {self.granularity!r}")

    @property
    def tile(self) -> Tile:
        return TILES[self.granularity]

    @property
    def name(self) -> str:
        kind = "affine" if self.affine else "symmetric"
        kept = "whole range kept" if self.clip == 1 else f"{percent(self.clip)} of range kept"
        return f"{self.bits} bits, {kind}, {self.granularity}, {kept}"

    def kept(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the kept part of ranges; those of a symmetric grid are equally far from zero."""
        low, high = low * self.clip, high * self.clip
        return (low, high) if self.affine else (-torch.maximum(-low, high), torch.maximum(-low, high))

    def grid(self, low: Tensor, high: Tensor, tile: Tile) -> Grid:
        """Return the grid over the kept part of each tile's range."""
        low, high = self.kept(low, high)
        if self.affine:
            return affine_grid_of(low, high, bits=self.bits, tile=tile)
        return symmetric_grid_of(high, bits=self.bits, tile=tile)


@dataclass(frozen=True)
class TileCodes:
    """The codes of one tile's values, whole numbers: code c stands for `scale * (c - zero_point)`."""

    codes: Tensor
    scale: float
    zero_point: float = 0.0

    @property
    def values(self) -> Float[Tensor, "rows columns"]:
        """What the codes stand for."""
        return (self.codes.float() - self.zero_point) * self.scale

    @cached_property
    def counts(self) -> dict[int, int]:
        """How many values have each of the codes that are used."""
        codes = self.codes.flatten()
        low = int(codes.min())
        counts = torch.bincount(codes.int() - low).tolist()
        return {low + place: count for place, count in enumerate(counts) if count}


def as_matrix(x: Float[Tensor, "*shape"]) -> Float[Tensor, "rows columns"]:
    """Return a tensor of any rank and type as FP32 rows along its last axis."""
    x = x.detach().cpu().float()
    return x.flatten(0, -2) if x.dim() > 1 else x.reshape(1, -1)


@dataclass(frozen=True)
class GridView:
    """A matrix as it is quantized, and the one tile of it that is looked at."""

    x: Float[Tensor, "rows columns"]
    choice: GridChoice

    @cached_property
    def ranges(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value of each tile, widened to contain zero."""
        return value_range(self.x, self.choice.tile)

    @cached_property
    def quantized(self) -> Quantized:
        return quantize_with(self.x, self.choice.grid(*self.ranges, self.choice.tile))

    @cached_property
    def ranks(self) -> Tensor:
        """The tiles in the order of their ranges."""
        low, high = self.ranges
        return (high - low).flatten().argsort(stable=True)

    @cached_property
    def place(self) -> int:
        """Where the tile stands in `ranks`."""
        return round(self.choice.rank * (len(self.ranks) - 1))

    @cached_property
    def tile(self) -> Float[Tensor, "rows columns"]:
        """The values of the tile."""
        (rows, columns), tile = self.x.shape, self.choice.tile
        height, width = tile.rows or rows, tile.columns or columns
        down, across = divmod(int(self.ranks[self.place]), self.quantized.scale.shape[1])
        return self.x[down * height : (down + 1) * height, across * width : (across + 1) * width]

    @cached_property
    def kept(self) -> tuple[float, float]:
        """The ends of the range that the tile's codes span."""
        low, high = self.choice.kept(*self._range_of_tile())
        return low.item(), high.item()

    @cached_property
    def given(self) -> Float[Tensor, "rows columns"]:
        """The tile's values as a quantizer gets them: cut to the range that is kept."""
        return self.tile.clamp(*self.kept)

    @cached_property
    def expected(self) -> TileCodes:
        """What qlab makes of `given`."""
        quantized = quantize_with(self.given, self.choice.grid(*self._range_of_tile(), PER_TENSOR))
        zero_point = 0 if quantized.zero_point is None else quantized.zero_point.item()
        return TileCodes(quantized.codes, quantized.scale.item(), zero_point)

    def _range_of_tile(self) -> tuple[Tensor, Tensor]:
        low, high = (end.flatten()[self.ranks[self.place]].view(1, 1) for end in self.ranges)
        return low, high
