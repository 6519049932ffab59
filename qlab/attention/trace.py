"""One row followed through the tiles: its running maximum and sum, and the bytes that had moved by then."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention.border import accumulator, checked_shape
from qlab.attention.forward import visits
from qlab.attention.tiling import Tiling, fold, tiling_of
from qlab.attention.traffic import TrafficCounter, standard_bytes


@dataclass(frozen=True)
class TracedTile:
    """What is known after one tile: of the row that is followed, and of the traffic."""

    rows: slice
    columns: slice
    maximum: float
    total: float
    moved_bytes: int


@dataclass(frozen=True)
class Trace:
    """A walk over the tiles of one head in which one row is followed.

    Units:   `scores` are those of the row, −inf where it must not look; `moved_bytes` includes the last store.
    """

    tiling: Tiling
    row: int
    scores: tuple[float, ...]
    tiles: tuple[TracedTile, ...]
    moved_bytes: int
    standard_bytes: int


def trace_row(
    q: Float[Tensor, "queries width"], k: Float[Tensor, "keys width"], *, row: int, blocks: tuple[int, int],
    is_causal: bool = False,
) -> Trace:  # fmt: skip
    """Walk over all tiles as `flash_forward` does, with k for values too, and note what becomes of one row.

    Errors:  ValueError if there is no such row or no key, or as `flash_forward`.
    """
    shape = checked_shape(q, k, k, is_causal=is_causal)
    if not 0 <= row < shape.queries:
        raise ValueError(f"row must be 0 to {shape.queries - 1}, got {row}")
    if not shape.keys:
        raise ValueError("there must be at least one key to walk over, got none")
    tiling = tiling_of(shape, *blocks)
    results = torch.empty_like(q), torch.empty(len(q), 1, dtype=accumulator(q.dtype))
    folded = [fold(t, shape) for t in (q, k, k, *results)]
    known, tiles = (-torch.inf, 0.0), []
    with torch.no_grad(), TrafficCounter() as moved:
        for visit in visits(*folded, tiling=tiling):
            if visit.rows.start <= row < visit.rows.stop:
                place = 0, row - visit.rows.start, 0
                known = visit.seen.maximum[place].item(), visit.seen.total[place].item()
            tiles.append(TracedTile(visit.rows, visit.columns, *known, moved.bytes))
        scores = (q[row] @ k.mT * shape.head_width**-0.5).double()
    if is_causal:
        scores[row + 1 :] = -torch.inf
    return Trace(tiling, row, tuple(scores.tolist()), tuple(tiles), moved.bytes, standard_bytes(shape))
