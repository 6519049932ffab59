"""The forward kernel: one program holds a block of queries and walks over the keys, tile by tile.

Source:  Dao 2023, "FlashAttention-2", arXiv:2307.08691, algorithm 1.
"""

# ruff: noqa: PLR0913, PLR0917 - what a kernel works on comes in as arguments

import math
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention_triton.border import check_inputs
from qlab.attention_triton.runtime import (
    descriptor,
    launching,
    length_bucket,
    prepared,
    tl,
    triton,
    tuned,
)

LOG2_E = math.log2(math.e)
# rows, columns, warps, stages
CONFIGURATIONS = [
    (128, 64, 8, 3),
    (128, 64, 4, 3),
    (128, 64, 8, 4),
    (128, 128, 8, 2),
    (128, 128, 8, 3),
    (64, 64, 4, 3),
    (64, 128, 4, 3),
]


@triton.jit
@no_type_check
def keys_of_rows(first_row, keys, CAUSAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return where the keys that every row sees end, in whole tiles, and where the keys that any row sees end."""
    if CAUSAL:
        stop = tl.minimum(keys, first_row + ROWS)
        whole = tl.minimum(keys, first_row + 1) // COLUMNS * COLUMNS
    else:
        stop = keys
        whole = keys // COLUMNS * COLUMNS
    return whole, stop


@triton.jit
@no_type_check
def walk_over_keys(
    output, maximum, total, q, k, v, batch, head, rows, start, stop, keys, scale_log2,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Merge the tiles of keys from `start` to `stop` into the running output, maximum and sum of each row."""
    for first in range(start, stop, COLUMNS):
        k_tile = k.load([batch, head, first, 0]).reshape(COLUMNS, WIDTH)
        scores = tl.dot(q, tl.trans(k_tile))
        if MASKED:
            columns = first + tl.arange(0, COLUMNS)
            visible = columns[None, :] < keys
            if CAUSAL:
                visible &= columns[None, :] <= rows[:, None]
            scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale_log2)
        p = tl.exp2(scores * scale_log2 - new_maximum[:, None])
        rescale = tl.exp2(maximum - new_maximum)
        total = total * rescale + tl.sum(p, 1)
        v_tile = v.load([batch, head, first, 0]).reshape(COLUMNS, WIDTH)
        output = tl.dot(p.to(v_tile.dtype), v_tile, output * rescale[:, None])
        maximum = new_maximum
    return output, maximum, total


@tuned(CONFIGURATIONS, by_rows=("q", "output"), by_columns=("k", "v"))
@triton.jit
@no_type_check
def forward_kernel(
    q, k, v, output, log_sum_exp, scale_log2, queries, keys, heads, group, length_bucket,
    WIDTH: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attend with one block of queries of one head to all keys they see."""
    blocks = tl.cdiv(queries, BLOCK_ROWS)
    block, batch_head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, head = batch_head // heads, batch_head % heads
    if CAUSAL:
        block = blocks - 1 - block  # the longest walks start first
    first_row = block * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    q_tile = q.load([batch, head, first_row, 0]).reshape(BLOCK_ROWS, WIDTH)
    acc = tl.zeros([BLOCK_ROWS, WIDTH], dtype=tl.float32)
    maximum = tl.full([BLOCK_ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    whole, stop = keys_of_rows(first_row, keys, CAUSAL, BLOCK_ROWS, BLOCK_COLUMNS)
    acc, maximum, total = walk_over_keys(
        acc, maximum, total, q_tile, k, v, batch, head // group, rows, 0, whole, keys, scale_log2,
        CAUSAL, False, WIDTH, BLOCK_COLUMNS,
    )  # fmt: skip
    acc, maximum, total = walk_over_keys(
        acc, maximum, total, q_tile, k, v, batch, head // group, rows, whole, stop, keys, scale_log2,
        CAUSAL, True, WIDTH, BLOCK_COLUMNS,
    )  # fmt: skip
    acc /= total[:, None]
    output.store([batch, head, first_row, 0], acc.to(output.dtype).reshape(1, 1, BLOCK_ROWS, WIDTH))
    natural = (maximum + tl.log2(total)) * 0.6931471805599453  # ln 2
    tl.store(log_sum_exp + batch_head.to(tl.int64) * queries + rows, natural, mask=rows < queries)


def flash_forward(
    q: Float[Tensor, "*batch heads queries width"],
    k: Float[Tensor, "*batch key_heads keys width"],
    v: Float[Tensor, "*batch key_heads keys width"],
    *,
    is_causal: bool = False,
) -> tuple[Float[Tensor, "*batch heads queries width"], Float[Tensor, "*batch heads queries"]]:
    """Return softmax(q kᵀ / √width) v, and the natural log-sum-exp of each row of scores in FP32.

    A row that sees no key is zero, its log-sum-exp -inf. Causal: query i sees the keys 0 to i.
    Errors:  ValueError if a shape, type or device does not fit; ModuleNotFoundError without Triton.
    """
    check_inputs(q, k, v)
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:-1], -math.inf, dtype=torch.float32)
    q_in, k_in, v_in = map(prepared, (q, k, v))
    batch, heads, queries, width = q_in.shape
    output = torch.empty_like(q_in)
    log_sum_exp = torch.empty(q_in.shape[:-1], dtype=torch.float32, device=q.device)
    with launching(q):
        forward_kernel[lambda tiles: (triton.cdiv(queries, tiles["BLOCK_ROWS"]) * heads * batch,)](
            *map(descriptor, (q_in, k_in, v_in, output)),
            log_sum_exp,
            LOG2_E / math.sqrt(width),
            queries,
            k_in.shape[2],
            heads,
            heads // k_in.shape[1],
            length_bucket(queries),
            WIDTH=width,
            CAUSAL=is_causal,
        )
    return output.to(q.dtype).reshape(q.shape), log_sum_exp.reshape(q.shape[:-1])
