"""The uniform grid: S, Z and the integer codes between them, symmetric and affine."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from qlab.quantize.tiles import PER_TENSOR, Tile


@dataclass(frozen=True)
class Grid:
    """Where the codes of a tensor lie on the real line: code c stands for `scale * (c - zero_point)`.

    Shapes:  `scale` and `zero_point` are (tiles down, tiles across).
    Units:   `scale` in units of the values per code step. Without a `zero_point` codes are signed and 0 stands for 0.
    """

    scale: Float[Tensor, "down across"]
    zero_point: UInt8[Tensor, "down across"] | None
    bits: int
    tile: Tile

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return code_range(self.bits, signed=self.zero_point is None)


@dataclass(frozen=True)
class Quantized:
    """Integer codes, in the shape of what was quantized, and the grid that says what they mean."""

    codes: Int8[Tensor, "*shape"] | UInt8[Tensor, "*shape"]
    grid: Grid

    @property
    def scale(self) -> Float[Tensor, "down across"]:
        return self.grid.scale

    @property
    def zero_point(self) -> UInt8[Tensor, "down across"] | None:
        return self.grid.zero_point

    @property
    def bits_per_value(self) -> float:
        """Bits of a code and its share of the constants: FP32 scales, zero points of a byte."""
        constants = self.scale.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)
        return self.grid.bits + 8 * constants / self.codes.numel()

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """Return the values that the codes stand for, in the type of `scale`.

        A tile that reaches the type's largest number may come back infinite there: the grid's end can lie beyond it.
        """
        steps = self.grid.tile.split(self.codes).to(self.scale.dtype)
        if self.zero_point is not None:
            steps -= self.zero_point[:, None, :, None]
        steps *= self.scale[:, None, :, None]
        return self.grid.tile.join(steps, self.codes.shape)


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Return the smallest and largest code: -127 to 127 for 8 signed bits, 0 to 255 for 8 unsigned.

    The signed range is symmetric: code -128 stays unused.
    Errors:  ValueError if `bits` is not 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize_symmetric(x: Float[Tensor, "*shape"], *, bits: int, tile: Tile = PER_TENSOR) -> Quantized:
    """Quantize `x` to signed codes so that each tile's largest magnitude gets the largest code.

    Units:   |error| <= scale / 2, but for rounding; a tile of zeros, or within 1e-36 of zero, gets scale 1.
    Errors:  ValueError if `bits` is not 2 to 8, or `x` is empty or holds NaN or infinity.
    Source:  Krishnamoorthi 2018, section 2.2, arXiv:1806.08342, with the codes -(2^(bits-1)-1) to 2^(bits-1)-1.
    """
    grid = symmetric_grid(x, bits=bits, tile=tile)
    return Quantized(grid.tile.join(_steps(x, grid).to(torch.int8), x.shape), grid)  # its own range: nothing to clamp


def quantize_affine(x: Float[Tensor, "*shape"], *, bits: int, tile: Tile = PER_TENSOR) -> Quantized:
    """Quantize `x` to unsigned codes that span each tile's range, widened to contain zero.

    Zero gets a code of its own, `zero_point`: padding, masks and ReLU count on an exact zero.
    Units:   |error| <= scale / 2, but for rounding: Z shifts the grid by half a step at most, so the ends keep to it.
    Errors:  ValueError if `bits` is not 2 to 8, or `x` is empty or holds NaN or infinity.
    Source:  Jacob et al. 2018, equation 1 and section 3, arXiv:1712.05877.
    """
    return quantize_with(x, affine_grid(x, bits=bits, tile=tile))


def quantize_with(x: Float[Tensor, "*shape"], grid: Grid) -> Quantized:
    """Quantize `x` on a grid as given: round to the nearest code, ties to even, then clamp.

    Errors:  ValueError if the grid is one of another number of tiles, or `x` is empty or holds NaN or infinity.
    """
    tiles = grid.tile.count(x.shape)
    if tuple(grid.scale.shape) != tiles:
        got = tuple(grid.scale.shape)
        raise ValueError(f"scale must be {tiles} for x of shape {tuple(x.shape)}, got {got}")
    steps = _steps(x, grid)
    if not math.isfinite(steps.sum()):  # no NaN or infinity hides in a sum
        refuse_non_finite(x)
    if grid.zero_point is not None:
        steps += grid.zero_point[:, None, :, None]
    codes = steps.clamp_(*grid.codes).to(torch.int8 if grid.zero_point is None else torch.int16)
    codes = codes if grid.zero_point is None else codes.to(torch.uint8)  # at once, FP32 to uint8 is not vectorized
    return Quantized(grid.tile.join(codes, x.shape), grid)


def symmetric_grid(x: Float[Tensor, "*shape"], *, bits: int, tile: Tile = PER_TENSOR) -> Grid:
    """Return the grid of `quantize_symmetric`: S is a tile's largest magnitude over the largest code."""
    low, high = _extremes(x, tile)
    return symmetric_grid_of(torch.maximum(-low, high), bits=bits, tile=tile)


def affine_grid(x: Float[Tensor, "*shape"], *, bits: int, tile: Tile = PER_TENSOR) -> Grid:
    """Return the grid of `quantize_affine`: S and Z from a tile's range."""
    return affine_grid_of(*value_range(x, tile), bits=bits, tile=tile)


def symmetric_grid_of(absmax: Float[Tensor, "down across"], *, bits: int, tile: Tile = PER_TENSOR) -> Grid:
    """Return the symmetric grid whose largest code stands for `absmax`."""
    _, largest = code_range(bits, signed=True)
    return Grid(_positive(absmax / largest), None, bits, tile)


def affine_grid_of(
    low: Float[Tensor, "down across"], high: Float[Tensor, "down across"], *, bits: int, tile: Tile = PER_TENSOR
) -> Grid:
    """Return the affine grid from `low`, at most 0, to `high`, at least 0."""
    smallest, largest = code_range(bits, signed=False)
    scale = _positive(high / largest - low / largest)  # in this order: high - low can overflow
    zero_point = (smallest - low / scale).round().clamp(smallest, largest)
    return Grid(scale, zero_point.to(torch.uint8), bits, tile)


def value_range(
    x: Float[Tensor, "*shape"], tile: Tile = PER_TENSOR
) -> tuple[Float[Tensor, "down across"], Float[Tensor, "down across"]]:
    """Return the smallest and the largest value of each tile, widened to contain zero, in FP32 or wider.

    Errors:  ValueError if `x` is empty or holds NaN or infinity.
    """
    low, high = _extremes(x, tile)
    return low.clamp(max=0), high.clamp(min=0)


def _extremes(x: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    tiles = tile.split(x.detach())
    low, high = wide(tiles.amin(dim=(1, 3))), wide(tiles.amax(dim=(1, 3)))
    if not math.isfinite((high - low).sum()):
        refuse_non_finite(x)
    return low, high


def _steps(x: Tensor, grid: Grid) -> Tensor:
    """Divide each tile by its scale and round to whole steps, ties to even."""
    return (grid.tile.split(wide(x.detach())) / grid.scale.detach()[:, None, :, None]).round_()


def _positive(scale: Tensor) -> Tensor:
    """Put one for zero, and for a subnormal number, which is too coarse for a scale: all codes are zero then."""
    return torch.threshold(scale, torch.finfo(scale.dtype).tiny, 1.0)


def wide(x: Tensor) -> Tensor:
    """Return `x` in the type that codes are computed in: FP64 as it is, all else in FP32."""
    return x if x.dtype == torch.float64 else x.float()


def refuse_non_finite(x: Tensor) -> None:
    """Raise a ValueError if `x` holds NaN or infinity; that a sum over `x` is not finite does not say so yet."""
    if wrong := int((~x.isfinite()).sum()):
        raise ValueError(f"x must be finite, and holds {wrong} NaN or infinite values")
