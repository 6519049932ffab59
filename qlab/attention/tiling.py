"""Which tiles of the score matrix are visited: blocks of query rows by blocks of keys, and none that a mask hides."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qlab.attention.border import AttentionShape

BLOCK = 128
FP32_BYTES = 4
TILES_ON_CHIP = 5  # queries, keys, values, output and scores


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Blocks of a queries × keys score matrix; causal means that query i sees the keys 0 to i and no later one.

    That is aligned to the first query and key (top left), also where there are more keys than queries or fewer: the
    meaning of `is_causal` in `torch.nn.functional.scaled_dot_product_attention`.
    Errors:  ValueError if a block size is below 1.
    """

    queries: int
    keys: int
    block_rows: int
    block_columns: int
    is_causal: bool = False

    def __post_init__(self):
        check_blocks(block_rows=self.block_rows, block_columns=self.block_columns)

    @property
    def row_blocks(self) -> list[slice]:
        """All blocks of query rows; the last may be shorter."""
        return _blocks(self.queries, self.block_rows)

    @property
    def column_blocks(self) -> list[slice]:
        """All blocks of keys; the last may be shorter."""
        return _blocks(self.keys, self.block_columns)

    def is_visited(self, rows: slice, columns: slice) -> bool:
        """Whether any of `rows` sees any of `columns`."""
        return not self.is_causal or columns.start < rows.stop

    def hidden(
        self, rows: slice, columns: slice, *, group: int = 1, device: torch.device | str = "cpu"
    ) -> Bool[Tensor, "group_rows columns"] | None:
        """Return True where a row must not see a key, for each of a group, or None if they see all of `columns`."""
        if not self.is_causal or columns.stop <= rows.start + 1:
            return None
        row = torch.arange(rows.start, rows.stop, device=device).repeat(group)
        return torch.arange(columns.start, columns.stop, device=device) > row[:, None]


def blocks_for_sram(sram_bytes: int, *, head_width: int) -> tuple[int, int]:
    """Return the block sizes (rows, columns) whose five tiles, in FP32, fit on the chip together.

    Rows count most: keys and values are read again for every block of rows. The tiles of queries and output have
    rows × head_width values; columns are at most `head_width`, so that the scores need no more.
    Units:   `sram_bytes` is what one core has to itself.
    Errors:  ValueError if not even one row fits.
    Source:  Dao et al. 2022, arXiv:2205.14135, algorithm 1, line 1, with rows and columns exchanged for the loop
             order of Dao 2023, arXiv:2307.08691, and room for the scores counted.
    """
    if head_width < 1:
        raise ValueError(f"head_width must be at least 1, got {head_width}")
    rows = sram_bytes // (TILES_ON_CHIP * FP32_BYTES * head_width)
    if rows < 1:
        least = TILES_ON_CHIP * FP32_BYTES * head_width
        raise ValueError(f"sram_bytes must be at least {least} for one row of width {head_width}, got {sram_bytes}")
    return rows, min(rows, head_width)


def tiling_of(shape: AttentionShape, block_rows: int, block_columns: int) -> Tiling:
    """Cut an attention into tiles.

    Errors:  ValueError if a block size is below 1.
    """
    return Tiling(
        queries=shape.queries,
        keys=shape.keys,
        block_rows=block_rows,
        block_columns=block_columns,
        is_causal=shape.is_causal,
    )


def fold(x: Tensor, shape: AttentionShape) -> Float[Tensor, "batch key_heads group sequence width"]:
    """View any leading axes as batch, key heads and, for queries, the heads of each group."""
    heads = x.shape[-3] if x.dim() > 2 else 1
    group = heads // shape.key_heads
    return x.reshape(-1 if x.numel() else shape.batch, heads, *x.shape[-2:]).unflatten(1, (shape.key_heads, group))


def room_for(x: Tensor) -> Tensor:
    """Return an empty tensor like `x` that can be folded in place: laid out in memory as `x` where it has four axes."""
    return torch.empty_like(x) if x.dim() == 4 else x.new_empty(x.shape)


def check_blocks(*, block_rows: int, block_columns: int) -> None:
    """Check that tiles have a size.

    Errors:  ValueError if one is below 1.
    """
    for name, size in (("block_rows", block_rows), ("block_columns", block_columns)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
