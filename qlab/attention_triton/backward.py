"""The backward kernels: the weights are computed again from the log-sum-exp, tile by tile, and no two programs add up
in one place, so that two runs give the same bits.

Source:  Dao 2023, "FlashAttention-2", arXiv:2307.08691, algorithm 2, with dq in a walk of its own.
"""
# ruff: noqa: PLR0913, PLR0917 - what a kernel works on comes in as arguments

import math
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention_triton.border import check_inputs
from qlab.attention_triton.forward import LOG2_E, keys_of_rows
from qlab.attention_triton.runtime import descriptor, launching, length_bucket, prepared, tl, triton, tuned

# rows, columns, warps, stages
CONFIGURATIONS_OF_KEYS = [
    (64, 128, 8, 2),
    (64, 128, 8, 3),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (32, 128, 8, 3),
    (128, 64, 8, 2),
]
CONFIGURATIONS_OF_QUERIES = [
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
    (128, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 128, 4, 2),
]
ROWS_AT_ONCE = 64


@triton.jit
@no_type_check
def row_sums_kernel(output, grad_output, row_sum, queries, heads, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Sum output times its gradient over each row: what the softmax's backward pass subtracts."""
    blocks = tl.cdiv(queries, ROWS)
    block, batch_head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, head, first_row = batch_head // heads, batch_head % heads, block * ROWS
    output_tile = output.load([batch, head, first_row, 0]).reshape(ROWS, WIDTH)
    grad_tile = grad_output.load([batch, head, first_row, 0]).reshape(ROWS, WIDTH)
    sums = tl.sum(output_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    rows = first_row + tl.arange(0, ROWS)
    tl.store(row_sum + batch_head.to(tl.int64) * queries + rows, sums, mask=rows < queries)


@triton.jit
@no_type_check
def walk_over_rows(
    dk, dv, k_tile, v_tile, q, grad_output, log2_sum_exp, row_sum, batch, head, columns, start, stop, queries,
    scale_log2, MASKED: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv of a block of keys what the rows of one head from `start` to `stop` contribute."""
    for first in range(start, stop, ROWS):
        rows = first + tl.arange(0, ROWS)
        q_tile = q.load([batch, head, first, 0]).reshape(ROWS, WIDTH)
        lse = tl.load(log2_sum_exp + rows, mask=rows < queries, other=float("inf"))  # no weight past the last row
        p = tl.exp2(tl.dot(k_tile, tl.trans(q_tile)) * scale_log2 - lse[None, :])
        if MASKED:
            p = tl.where(columns[:, None] <= rows[None, :], p, 0.0)
        grad_tile = grad_output.load([batch, head, first, 0]).reshape(ROWS, WIDTH)
        dv = tl.dot(p.to(grad_tile.dtype), grad_tile, dv)
        sums = tl.load(row_sum + rows, mask=rows < queries, other=0.0)
        dp = tl.dot(v_tile, tl.trans(grad_tile))
        dk = tl.dot((p * (dp - sums[None, :])).to(q_tile.dtype), q_tile, dk)
    return dk, dv


@tuned(CONFIGURATIONS_OF_KEYS, by_rows=("q", "grad_output"), by_columns=("k", "v", "dk", "dv"))
@triton.jit
@no_type_check
def keys_kernel(
    q, k, v, grad_output, log2_sum_exp, row_sum, dk, dv, scale, scale_log2, queries, keys, key_heads, length_bucket,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of one block of keys of one key head, from all rows of all heads that read it."""
    blocks = tl.cdiv(keys, BLOCK_COLUMNS)
    block, batch_head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, key_head = batch_head // key_heads, batch_head % key_heads
    first_column = block * BLOCK_COLUMNS
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    k_tile = k.load([batch, key_head, first_column, 0]).reshape(BLOCK_COLUMNS, WIDTH)
    v_tile = v.load([batch, key_head, first_column, 0]).reshape(BLOCK_COLUMNS, WIDTH)
    dk_tile = tl.zeros([BLOCK_COLUMNS, WIDTH], dtype=tl.float32)
    dv_tile = tl.zeros([BLOCK_COLUMNS, WIDTH], dtype=tl.float32)
    whole = 0  # from here on every row sees every key of the block
    if CAUSAL:
        whole = tl.cdiv(first_column + BLOCK_COLUMNS - 1, BLOCK_ROWS) * BLOCK_ROWS
    for member in range(GROUP):
        head = key_head * GROUP + member
        line = (batch_head.to(tl.int64) * GROUP + member) * queries
        if CAUSAL:
            dk_tile, dv_tile = walk_over_rows(
                dk_tile, dv_tile, k_tile, v_tile, q, grad_output, log2_sum_exp + line, row_sum + line, batch, head,
                columns, first_column // BLOCK_ROWS * BLOCK_ROWS, tl.minimum(whole, queries), queries, scale_log2,
                True, WIDTH, BLOCK_ROWS,
            )  # fmt: skip
        dk_tile, dv_tile = walk_over_rows(
            dk_tile, dv_tile, k_tile, v_tile, q, grad_output, log2_sum_exp + line, row_sum + line, batch, head,
            columns, whole, queries, queries, scale_log2, False, WIDTH, BLOCK_ROWS,
        )  # fmt: skip
    shape: tl.constexpr = [1, 1, BLOCK_COLUMNS, WIDTH]
    dk.store([batch, key_head, first_column, 0], (dk_tile * scale).to(dk.dtype).reshape(shape))
    dv.store([batch, key_head, first_column, 0], dv_tile.to(dv.dtype).reshape(shape))


@triton.jit
@no_type_check
def walk_back_over_keys(
    dq, q_tile, grad_tile, lse, sums, k, v, batch, head, rows, start, stop, keys, scale_log2,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add to dq of a block of rows what the keys from `start` to `stop` contribute."""
    for first in range(start, stop, COLUMNS):
        k_tile = k.load([batch, head, first, 0]).reshape(COLUMNS, WIDTH)
        p = tl.exp2(tl.dot(q_tile, tl.trans(k_tile)) * scale_log2 - lse[:, None])
        if MASKED:
            columns = first + tl.arange(0, COLUMNS)
            visible = columns[None, :] < keys
            if CAUSAL:
                visible &= columns[None, :] <= rows[:, None]
            p = tl.where(visible, p, 0.0)
        v_tile = v.load([batch, head, first, 0]).reshape(COLUMNS, WIDTH)
        dp = tl.dot(grad_tile, tl.trans(v_tile))
        dq = tl.dot((p * (dp - sums[:, None])).to(k_tile.dtype), k_tile, dq)
    return dq


@tuned(CONFIGURATIONS_OF_QUERIES, by_rows=("q", "grad_output", "dq"), by_columns=("k", "v"))
@triton.jit
@no_type_check
def queries_kernel(
    q, k, v, grad_output, log2_sum_exp, row_sum, dq, scale, scale_log2, queries, keys, heads, group, length_bucket,
    WIDTH: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute dq of one block of queries of one head."""
    blocks = tl.cdiv(queries, BLOCK_ROWS)
    block, batch_head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, head = batch_head // heads, batch_head % heads
    if CAUSAL:
        block = blocks - 1 - block  # the longest walks start first
    first_row = block * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    line = batch_head.to(tl.int64) * queries
    lse = tl.load(log2_sum_exp + line + rows, mask=rows < queries, other=float("inf"))
    sums = tl.load(row_sum + line + rows, mask=rows < queries, other=0.0)
    q_tile = q.load([batch, head, first_row, 0]).reshape(BLOCK_ROWS, WIDTH)
    grad_tile = grad_output.load([batch, head, first_row, 0]).reshape(BLOCK_ROWS, WIDTH)
    dq_tile = tl.zeros([BLOCK_ROWS, WIDTH], dtype=tl.float32)
    whole, stop = keys_of_rows(first_row, keys, CAUSAL, BLOCK_ROWS, BLOCK_COLUMNS)
    dq_tile = walk_back_over_keys(
        dq_tile, q_tile, grad_tile, lse, sums, k, v, batch, head // group, rows, 0, whole, keys, scale_log2,
        CAUSAL, False, WIDTH, BLOCK_COLUMNS,
    )  # fmt: skip
    dq_tile = walk_back_over_keys(
        dq_tile, q_tile, grad_tile, lse, sums, k, v, batch, head // group, rows, whole, stop, keys, scale_log2,
        CAUSAL, True, WIDTH, BLOCK_COLUMNS,
    )  # fmt: skip
    dq.store([batch, head, first_row, 0], (dq_tile * scale).to(dq.dtype).reshape(1, 1, BLOCK_ROWS, WIDTH))


def flash_backward(
    q: Float[Tensor, "*batch heads queries width"],
    k: Float[Tensor, "*batch key_heads keys width"],
    v: Float[Tensor, "*batch key_heads keys width"],
    output: Float[Tensor, "*batch heads queries width"],
    log_sum_exp: Float[Tensor, "*batch heads queries"],
    grad_output: Float[Tensor, "*batch heads queries width"],
    *,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from what the forward pass kept.

    Errors:  ValueError if a shape, type or device does not fit; ModuleNotFoundError without Triton.
    """
    check_inputs(q, k, v)
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    wide_q, wide_k, wide_v, wide_output, wide_grad = map(prepared, (q, k, v, output, grad_output))
    with launching(q):
        sums = log_sum_exp.contiguous() * LOG2_E, _row_sums(wide_output, wide_grad)
        given = wide_q, wide_k, wide_v, wide_grad, *sums
        dk, dv = _gradients_of_keys(*given, is_causal=is_causal)
        dq = _gradient_of_queries(*given, is_causal=is_causal)
    return tuple(found.to(x.dtype).reshape(x.shape) for found, x in ((dq, q), (dk, k), (dv, v)))


def _row_sums(output: Tensor, grad_output: Tensor) -> Tensor:
    batch, heads, queries, width = output.shape
    row_sum = torch.empty(output.shape[:-1], dtype=torch.float32, device=output.device)
    described = [descriptor(x, rows=ROWS_AT_ONCE) for x in (output, grad_output)]
    programs = triton.cdiv(queries, ROWS_AT_ONCE) * heads * batch
    row_sums_kernel[(programs,)](*described, row_sum, queries, heads, WIDTH=width, ROWS=ROWS_AT_ONCE)
    return row_sum


def _gradients_of_keys(
    q: Tensor, k: Tensor, v: Tensor, grad_output: Tensor, log2_sum_exp: Tensor, row_sum: Tensor, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    batch, key_heads, keys, width = k.shape
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    keys_kernel[lambda tiles: (triton.cdiv(keys, tiles["BLOCK_COLUMNS"]) * key_heads * batch,)](
        *map(descriptor, (q, k, v, grad_output)),
        log2_sum_exp,
        row_sum,
        *map(descriptor, (dk, dv)),
        1 / math.sqrt(width),
        LOG2_E / math.sqrt(width),
        q.shape[2],
        keys,
        key_heads,
        length_bucket(keys),
        GROUP=q.shape[1] // key_heads,
        WIDTH=width,
        CAUSAL=is_causal,
    )
    return dk, dv


def _gradient_of_queries(
    q: Tensor, k: Tensor, v: Tensor, grad_output: Tensor, log2_sum_exp: Tensor, row_sum: Tensor, *, is_causal: bool
) -> Tensor:
    batch, heads, queries, width = q.shape
    dq = torch.empty_like(q)
    queries_kernel[lambda tiles: (triton.cdiv(queries, tiles["BLOCK_ROWS"]) * heads * batch,)](
        *map(descriptor, (q, k, v, grad_output)),
        log2_sum_exp,
        row_sum,
        descriptor(dq),
        1 / math.sqrt(width),
        LOG2_E / math.sqrt(width),
        queries,
        k.shape[2],
        heads,
        heads // k.shape[1],
        length_bucket(queries),
        WIDTH=width,
        CAUSAL=is_causal,
    )
    return dq
