"""The kernels that multiply by a weight in 4-bit codes: for one token, and for a few on the tensor cores."""

# ruff: noqa: PLR0913, PLR0917 - what a kernel works on comes in as arguments

from typing import no_type_check

import torch
from torch import Tensor

from qlab.attention_triton.runtime import INTERPRETED, launching, tl, triton
from qlab.codebooks_triton.border import Weight
from qlab.codebooks_triton.dequantize import block_constants, tuned

ROWS_OF_A_PRODUCT = 64
PROGRAMS_WANTED = 528  # four for each of an H200's 132 multiprocessors
# rows, values of each at a time, warps
ONE_TOKEN = [(8, 1024, 4), (4, 2048, 4), (16, 1024, 8), (8, 2048, 8), (4, 1024, 2)]
# values of a row at a time, warps, stages
FEW_TOKENS = [(64, 4, 3), (128, 4, 3), (64, 4, 4), (128, 8, 3), (64, 4, 2)]


@triton.jit
@no_type_check
def one_token_kernel(
    x, packed, codebook, absmax, scales, second_codebook, mean, y, rows, width, row_bytes,
    SIZE: tl.constexpr, SECOND_SIZE: tl.constexpr, ROWS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Multiply some rows by one token: the levels of a block are summed with it first, and scaled once."""
    STEP: tl.constexpr = VALUES if VALUES > SIZE else SIZE
    BLOCKS: tl.constexpr = STEP // SIZE
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_byte = row.to(tl.int64)[:, None] * row_bytes
    row_blocks = row.to(tl.int64)[:, None] * (width // SIZE)
    total = tl.zeros([ROWS, BLOCKS], dtype=tl.float32)
    for first in range(0, width, STEP):
        byte = first // 2 + tl.arange(0, STEP // 2)
        inside = (row[:, None] < rows) & (byte[None, :] < row_bytes)
        pairs = tl.load(packed + first_byte + byte[None, :], mask=inside, other=0).to(tl.int32)
        high, low = tl.load(codebook + (pairs >> 4)), tl.load(codebook + (pairs & 15))
        value = first + tl.arange(0, STEP)
        token = tl.load(x + value, mask=value < width, other=0.0).to(tl.float32)
        even, odd = tl.split(token.reshape(STEP // 2, 2))
        products = high * even[None, :] + low * odd[None, :]
        block = first // SIZE + tl.arange(0, BLOCKS)
        inside = (row[:, None] < rows) & (block[None, :] * SIZE < width)
        place = row_blocks + block[None, :]
        scale = block_constants(absmax, scales, second_codebook, mean, place, inside, SECOND_SIZE)
        total += tl.sum(products.reshape(ROWS, BLOCKS, SIZE // 2), 2) * scale
    tl.store(y + row, tl.sum(total, 1).to(y.dtype.element_ty), mask=row < rows)


@triton.jit
@no_type_check
def few_tokens_kernel(
    x, packed, codebook, absmax, scales, second_codebook, mean, y, tokens, rows, width, row_bytes, share,
    SIZE: tl.constexpr, SECOND_SIZE: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Multiply some rows, and a share of their values, by all tokens; levels meet the tensor core, then are scaled."""
    STEP: tl.constexpr = VALUES if VALUES < SIZE else SIZE
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    first_byte = row.to(tl.int64)[:, None] * row_bytes
    row_blocks = row.to(tl.int64) * (width // SIZE)
    start = tl.program_id(1) * share
    stop = tl.minimum(start + share, width)
    total = tl.zeros([ROWS, TOKENS], dtype=tl.float32)
    for first in range(start, stop, STEP):
        byte = first // 2 + tl.arange(0, STEP // 2)
        pairs = tl.load(packed + first_byte + byte[None, :], mask=row[:, None] < rows, other=0).to(tl.int32)
        high, low = tl.load(codebook + (pairs >> 4)), tl.load(codebook + (pairs & 15))
        levels = tl.join(high, low).reshape(ROWS, STEP)
        value = first + tl.arange(0, STEP)
        given = tl.load(x + token[None, :] * width + value[:, None], mask=token[None, :] < tokens, other=0.0)
        place = row_blocks + first // SIZE
        scale = block_constants(absmax, scales, second_codebook, mean, place, row < rows, SECOND_SIZE)
        total += tl.dot(levels, given) * scale[:, None]
    place = (tl.program_id(1) * tokens + token[None, :]) * rows + row[:, None]
    inside = (token[None, :] < tokens) & (row[:, None] < rows)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


def one_token(x: Tensor, weight: Weight, *, rows: int) -> Tensor:
    """Return the product with one token (1, width), of whole blocks a row."""
    y = x.new_empty(1, rows)
    with launching(x):
        tuned_one_token[lambda tiles: (triton.cdiv(rows, tiles["ROWS"]),)](
            x,
            weight.packed,
            weight.codebook,
            *weight.constants,
            y,
            rows,
            x.shape[1],
            x.shape[1] // 2,
            SIZE=weight.block_size,
            SECOND_SIZE=weight.second_size,
        )
    return y


def few_tokens(x: Tensor, weight: Weight, *, rows: int) -> Tensor:
    """Return the product with some tokens (tokens, width), of whole blocks a row.

    Where the rows alone are too few programs the width is shared out, and the shares are summed in one order.
    """
    tokens, width = x.shape
    programs = triton.cdiv(rows, ROWS_OF_A_PRODUCT)
    blocks = width // weight.block_size
    shares = 1 if INTERPRETED else max(1, min(PROGRAMS_WANTED // programs, blocks // 8))
    share = triton.cdiv(blocks, shares) * weight.block_size
    shares = triton.cdiv(width, share)
    y = torch.empty(shares, tokens, rows, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    with launching(x):
        tuned_few_tokens[(programs, shares)](
            x,
            weight.packed,
            weight.codebook.to(x.dtype),  # 16 bits: a look-up that the software pipeline leaves alone
            *weight.constants,
            y,
            tokens,
            rows,
            width,
            width // 2,
            share,
            SIZE=weight.block_size,
            SECOND_SIZE=weight.second_size,
            TOKENS=max(16, triton.next_power_of_2(tokens)),
            ROWS=ROWS_OF_A_PRODUCT,
        )
    return y[0] if shares == 1 else y.sum(0).to(x.dtype)


tuned_one_token = tuned(one_token_kernel, ("ROWS", "VALUES"), ONE_TOKEN, ["rows", "width", "SIZE", "SECOND_SIZE"])
tuned_few_tokens = tuned(few_tokens_kernel, ("VALUES",), FEW_TOKENS, ["TOKENS", "rows", "width", "SIZE", "SECOND_SIZE"])
