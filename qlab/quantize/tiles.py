"""Granularity: which values of a tensor share one scale."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """The rows and columns of a matrix that share a scale; None takes all of them, and a tile at the end may be ragged.

    A tensor of another rank is read as a matrix whose rows run along its last axis; `flat` reads it as one long row.
    Errors:  ValueError if a side is below 1.
    """

    rows: int | None
    columns: int | None
    flat: bool = False

    def __post_init__(self) -> None:
        for side in (self.rows, self.columns):
            if side is not None and side < 1:
                raise ValueError(f"a tile must be at least 1 value wide and high, got {side}")

    def count(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
        """Return how many tiles lie over each other and side by side in a tensor of `shape`."""
        rows, columns = self._matrix(shape)
        return -(-rows // (self.rows or rows)), -(-columns // (self.columns or columns))

    def split(self, x: Tensor) -> Tensor:
        """Return `x` as (tiles down, tile rows, tiles across, tile columns), ragged tiles filled up with zeros."""
        rows, columns = self._matrix(x.shape)
        height, width = self.rows or rows, self.columns or columns
        if not (rows % height or columns % width):
            return x.reshape(rows // height, height, columns // width, width)
        matrix = torch.nn.functional.pad(x.reshape(rows, columns), (0, -columns % width, 0, -rows % height))
        return matrix.reshape(matrix.shape[0] // height, height, matrix.shape[1] // width, width)

    def join(self, tiles: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Return what `split` made of a tensor of `shape`, as that tensor."""
        rows, columns = self._matrix(shape)
        if tiles.numel() == rows * columns:
            return tiles.reshape(shape)
        return tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)[:rows, :columns].reshape(shape)

    def _matrix(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
        values = torch.Size(shape).numel()
        if not values:
            raise ValueError(f"x must hold at least one value, got shape {tuple(shape)}")
        columns = values if self.flat or not shape else shape[-1]
        return values // columns, columns


PER_TENSOR = Tile(None, None)
PER_ROW = Tile(1, None)  # a linear layer's output channel; a token of its input
PER_COLUMN = Tile(None, 1)


def per_group(size: int) -> Tile:
    """Let `size` consecutive values of a row share a scale; the last group of each row may be shorter."""
    return Tile(1, size)


def per_block(size: int) -> Tile:
    """Let `size` consecutive values of the flattened tensor share a scale, across the ends of rows."""
    return Tile(1, size, flat=True)


TILES = {
    "per tensor": PER_TENSOR,
    "per column": PER_COLUMN,
    "per row": PER_ROW,
    "groups of 128": per_group(128),
    "groups of 64": per_group(64),
    "groups of 32": per_group(32),
}
