"""The nearest level of a codebook: exactly, and for large tensors with one look into a table for each value."""

from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CELL_BITS = 16  # values whose FP32 patterns share their upper 16 bits share a cell of the table
CELLS = 2**CELL_BITS
SIGN_CELL = CELLS // 2  # the first cell of the negative numbers
TABLE_PAYS_FROM = 2**10  # values: making a table takes as long as some 2^14 binary searches, but it is kept
CPU_PIECE = 2**16  # values: their buffers stay in a core's cache
GPU_PIECE = 2**24


def nearest_codes(x: Float[Tensor, "*shape"], codebook: Float[Tensor, " levels"]) -> UInt8[Tensor, "*shape"]:
    """Return the index of the level nearest to each `x`; a tie goes to the lower level.

    No rounding decides: `x` is compared with the largest number that is not above the midpoint of two levels. Of equal
    levels the first or the last is found. The codebook is read in FP32.
    Shapes:  codes have the shape of `x`.
    Errors:  ValueError if `x` holds NaN, or `codebook` is not 1 to 256 finite numbers in ascending order.
    """
    flat = x.detach().reshape(-1)
    if flat.dtype == torch.float64:
        levels = codebook.detach().to(flat.device, torch.float32)
        codes = torch.bucketize(flat, boundaries(levels, flat.dtype)).to(torch.uint8)
    else:
        search = search_of(codebook, flat.device)
        codes = torch.cat([search.find(piece.float()) for piece in flat.split(piece_values(flat.device))])
    if flat.sum().isnan() and (wrong := int(flat.isnan().sum())):  # infinities of both signs sum to NaN as well
        raise ValueError(f"x must not hold NaN, and holds {wrong}")
    return codes.view(x.shape)


class NearestSearch:
    """A codebook made ready to find the nearest levels of FP32 values.

    Errors:  ValueError if the codebook is not 1 to 256 finite numbers in ascending order.
    """

    def __init__(self, codebook: Float[Tensor, " levels"]):
        self.boundaries = boundaries(codebook, torch.float32)

    @cached_property
    def table(self) -> Tensor | None:
        return cell_table(self.boundaries)

    def find(self, values: Float[Tensor, " n"]) -> UInt8[Tensor, " n"]:
        """Return the index of the level nearest to each of `values`."""
        if values.numel() < TABLE_PAYS_FROM or self.table is None:
            return torch.bucketize(values, self.boundaries, out_int32=True).to(torch.uint8)
        patterns = values.view(torch.int32)
        cells = (patterns >> CELL_BITS).bitwise_and_(CELLS - 1)
        codes = torch.index_select(self.table, 0, cells).add_(patterns).bitwise_right_shift_(CELL_BITS)
        return codes.abs_().to(torch.uint8)


def search_of(codebook: Float[Tensor, " levels"], device: torch.device) -> NearestSearch:
    """Return the search of a codebook: made once for its levels and this device, and kept."""
    require_row(codebook)
    return _search_of(tuple(codebook.detach().float().tolist()), device)


@lru_cache(maxsize=32)
def _search_of(levels: tuple[float, ...], device: torch.device) -> NearestSearch:
    return NearestSearch(torch.tensor(levels, dtype=torch.float32, device=device))


def piece_values(device: torch.device) -> int:
    """Return how many values to work on at a time: on a CPU what fits its cache, on a GPU enough to fill it."""
    return CPU_PIECE if device.type == "cpu" else GPU_PIECE


def boundaries(codebook: Float[Tensor, " levels"], dtype: torch.dtype) -> Float[Tensor, " gaps"]:
    """Return the largest number of `dtype` not above the midpoint of each two neighbors: it still goes to the lower.

    Errors:  ValueError if `codebook` is not 1 to 256 finite numbers in ascending order.
    Source:  Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B (the rounding error of a sum).
    """
    require_codebook(codebook)
    levels = codebook.detach().double()
    low, high = levels[:-1], levels[1:]
    total = low + high
    part = total - low
    rounded_away = (low - (total - part)) + (high - part)
    exact_or_below = torch.where(rounded_away < 0, _next_below(total), total) / 2
    nearest = exact_or_below.to(dtype)
    return torch.where(nearest.double() > exact_or_below, _next_below(nearest), nearest) + 0.0  # turns -0 into 0


def require_row(codebook: Tensor) -> None:
    """Refuse what has not the shape of a codebook: raise the first ValueError that `nearest_codes` promises."""
    if not (codebook.ndim == 1 and 1 <= codebook.numel() <= 256):
        raise ValueError(f"a codebook must be one row of 1 to 256 levels, got shape {tuple(codebook.shape)}")


def require_codebook(codebook: Tensor) -> None:
    """Refuse what is no codebook: raise the ValueError that `nearest_codes` promises."""
    require_row(codebook)
    if wrong := int((~codebook.isfinite()).sum()):
        raise ValueError(f"a codebook must be finite in FP32, and holds {wrong} NaN or infinite levels")
    descents = (codebook[1:] < codebook[:-1]).nonzero()
    if descents.numel():
        place = int(descents[0])
        pair = f"{codebook[place]:g} before {codebook[place + 1]:g}"
        raise ValueError(f"a codebook must be in ascending order, got {pair}")


def cell_table(boundaries: Float[Tensor, " gaps"]) -> Tensor | None:
    """Return for each cell what to add to an FP32 pattern so that its upper half is the code, or minus the code.

    The upper half of a pattern is its cell, the lower half a place in it. The sum replaces the one by the code of the
    cell's first place and makes the other carry into it from the boundary on, if one lies in the cell. Along a cell
    of positive numbers codes rise by one there; negative patterns grow away from zero, and the code's negative rises.
    Returns None if two boundaries share a cell.
    """
    patterns = boundaries.view(torch.int32)
    boundary_cells = (patterns >> CELL_BITS) & (CELLS - 1)
    if boundary_cells.unique().numel() != boundary_cells.numel():
        return None
    cells = torch.arange(CELLS, device=boundaries.device)
    first_values = (cells << CELL_BITS).to(torch.int32).view(torch.float32)
    codes = torch.bucketize(first_values, boundaries)
    codes[SIGN_CELL:] *= -1
    places = (patterns & (CELLS - 1)).long()
    # the place from which on to carry: behind a positive boundary, at a negative one
    carry_from = torch.where(boundary_cells < SIGN_CELL, places + 1, places)
    table = (codes - cells) << CELL_BITS
    table[boundary_cells.long()] += torch.where(carry_from > 0, CELLS - carry_from, 0)
    return table.to(torch.int32)


def _next_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -torch.inf))
