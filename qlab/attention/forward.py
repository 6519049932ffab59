"""FlashAttention's forward pass in plain PyTorch: exact attention tile by tile, with no matrix of scores.

A tile of scores lives between one `load` and the next, and is never stored. All heads walk together.
Source:  Dao et al. 2022, arXiv:2205.14135; in the loop order of Dao 2023, arXiv:2307.08691, section 3.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention.border import accumulator, checked_shape, refuse_overflow
from qlab.attention.softmax import Partial, merge, nothing_seen, partial
from qlab.attention.tiling import BLOCK, Tiling, fold, room_for, tiling_of
from qlab.attention.traffic import load, store


@dataclass(frozen=True)
class Visit:
    """One tile just visited, and what is known by then of its rows."""

    rows: slice
    columns: slice
    seen: Partial


def flash_forward(  # noqa: PLR0913 - a tile has two sides
    q: Float[Tensor, "*query_heads queries width"],
    k: Float[Tensor, "*key_heads keys width"],
    v: Float[Tensor, "*key_heads keys width"],
    *,
    is_causal: bool = False,
    block_rows: int = BLOCK,
    block_columns: int = BLOCK,
) -> tuple[Float[Tensor, "*query_heads queries width"], Float[Tensor, "*query_heads queries"]]:
    """Return exact attention and the log-sum-exp of every row's scores; no gradient is recorded.

    Causal means that query i sees the keys 0 to i, also where queries and keys differ in number. Without any key the
    output is 0 and the log-sum-exp −inf. Sums are held in FP32, or in FP64 for FP64.
    Shapes:  any leading shape; the axis before the last two holds heads, of which k and v may have fewer than q.
    Errors:  ValueError if the inputs do not fit together or are not finite, or their scores overflow.
    """
    shape = checked_shape(q, k, v, is_causal=is_causal)
    tiling = tiling_of(shape, block_rows, block_columns)
    output = room_for(q)
    log_sum_exp = torch.empty(q.shape[:-1], dtype=accumulator(q.dtype), device=q.device)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        folded = (fold(t, shape) for t in (q, k, v, output, log_sum_exp[..., None]))
        for _ in visits(*folded, tiling=tiling):
            pass
    if shape.keys:
        refuse_overflow(log_sum_exp, dtype=accumulator(q.dtype))
    return output, log_sum_exp


def visits(  # noqa: PLR0913 - what is read and what is written
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum_exp: Tensor, *, tiling: Tiling
) -> Iterator[Visit]:
    """Attend from each block of rows to its blocks of keys in turn, and store the rows when all is seen.

    Shapes:  all are folded to (batch, key heads, group, sequence, width); the log-sum-exp is of width 1.
    """
    for rows in tiling.row_blocks:
        q_tile = load(q, rows)
        seen = nothing_seen(q_tile)
        for columns in tiling.column_blocks:
            if not tiling.is_visited(rows, columns):
                break
            hidden = tiling.hidden(rows, columns, group=q.shape[2], device=q.device)
            tile = partial(q_tile, load(k, columns), load(v, columns), hidden=hidden)
            seen = merge(seen, tile)
            yield Visit(rows, columns, seen)
        rows_of_output, rows_of_log_sum_exp = seen.finish()
        store(rows_of_output, output, rows)
        store(rows_of_log_sum_exp, log_sum_exp, rows)
