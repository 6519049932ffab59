"""Answers to `standard_bytes` and `flash_bytes`, exercise `hbm_bytes`."""

import math

import numpy as np
import torch

from qlab import attention
from tests.answers.bank import Bank

BANK = Bank("hbm-bytes")


def standard(length, width):
    return 2 * (4 * length * width + 4 * length * length)


def keys_read(length, block_rows, block_columns, is_causal):
    keys = 0
    for start in range(0, length, block_rows):
        stop = min(start + block_rows, length) if is_causal else length
        keys += min(math.ceil(stop / block_columns) * block_columns, length)
    return keys


def flash(length, width, block_rows, block_columns, is_causal):
    keys = keys_read(length, block_rows, block_columns, is_causal)
    return 2 * 2 * length * width + 4 * length + 2 * 2 * keys * width


def counted_tile_by_tile(length, width, block_rows, block_columns, is_causal):
    total = 0
    for row in range(0, length, block_rows):
        rows = min(block_rows, length - row)
        total += rows * width * 2
        for column in range(0, length, block_columns):
            if is_causal and column >= row + rows:
                break
            total += 2 * (2 * min(block_columns, length - column) * width)
        total += rows * (2 * width + 4)
    return total


def kernel_by_kernel(length, width):
    product = 2 * (2 * length * width + length**2)
    softmax = 2 * 2 * length**2
    return product + softmax + 2 * (length**2 + 2 * length * width)


def shape(length, width, is_causal=False):
    return attention.AttentionShape(queries=length, keys=length, head_width=width, is_causal=is_causal)


def by_qlab_standard(length, width):
    return attention.standard_bytes(shape(length, width))


def by_qlab_flash(length, width, block_rows, block_columns, is_causal):
    return attention.flash_bytes(shape(length, width, is_causal), block_rows=block_rows, block_columns=block_columns)


def in_numpy(length, width, block_rows, block_columns, is_causal):
    starts = np.arange(0, length, block_rows)
    stops = np.minimum(starts + block_rows, length) if is_causal else np.full(len(starts), length)
    keys = np.minimum(-(-stops // block_columns) * block_columns, length)
    return np.float64(4 * length * width + 4 * length + 4 * keys.sum() * width)


def by_a_mask(length, width, block_rows, block_columns, is_causal):
    row = torch.arange(0, length, block_rows)[:, None]
    column = torch.arange(0, length, block_columns)
    visited = (column < row + block_rows) if is_causal else (column >= 0).expand(len(row), -1)
    keys = (visited * torch.clamp(length - column, max=block_columns)).sum()
    return (4 * length * width + 4 * length + 4 * width * keys).reshape(1)


def standard_of_tensors(length, width):
    return torch.tensor(sum([2 * length * width] * 4 + [2 * length * length] * 4))


def wrong(misconception, name, of_standard=standard, of_flash=flash):
    BANK.add(name, of_standard, of_flash, misconception=misconception)


def with_keys(keys):
    """Return a count with another number of keys read."""
    return lambda length, width, rows, columns, is_causal: (
        4 * length * width + 4 * length + 4 * width * keys(length, rows, columns, is_causal)
    )


def of_right(change):
    """Return the right count, changed."""
    return lambda length, width, *rest: change(flash(length, width, *rest), length, width)


BANK.add("formula", standard, flash)
BANK.add("tile_by_tile", kernel_by_kernel, counted_tile_by_tile)
BANK.add("by_qlab", by_qlab_standard, by_qlab_flash)
BANK.add("in_numpy", lambda n, d: np.int64(8 * n * (n + d)), in_numpy)
BANK.add("by_a_mask_as_tensors", standard_of_tensors, by_a_mask)
BANK.add("as_floats", lambda n, d: 8.0 * n * d + 8.0 * n * n, lambda *args: float(flash(*args)))

wrong("forgets-a-pass-over-the-scores", "one_pass_over_the_scores", lambda n, d: 8 * n * d + 2 * n * n)
wrong("forgets-a-pass-over-the-scores", "softmax_in_place", lambda n, d: 8 * n * d + 4 * n * n)
wrong("miscounts-the-inputs", "forgets_the_output", lambda n, d: 6 * n * d + 8 * n * n)
wrong("miscounts-the-inputs", "scores_only", lambda n, d: 8 * n * n)
wrong("wrong-bytes-per-value", "standard_in_fp32", lambda n, d: 2 * standard(n, d))
wrong("counts-operations", "standard_flops", lambda n, d: 4 * n * n * d)
wrong("reads-keys-once", "keys_and_values_once", of_flash=with_keys(lambda n, r, c, causal: n))
wrong("forgets-the-log-sum-exp", "no_log_sum_exp", of_flash=of_right(lambda total, n, d: total - 4 * n))
wrong("wrong-bytes-per-value", "log_sum_exp_in_fp16", of_flash=of_right(lambda total, n, d: total - 2 * n))
wrong("wrong-bytes-per-value", "all_in_fp32", of_flash=of_right(lambda total, n, d: 2 * total))
wrong("counts-values", "values_not_bytes", of_flash=of_right(lambda total, n, d: (total - 4 * n) // 2 + n))
wrong("forgets-queries-or-output", "no_output", of_flash=of_right(lambda total, n, d: total - 2 * n * d))
wrong("forgets-queries-or-output", "keys_only", of_flash=of_right(lambda total, n, d: total - 4 * n * d - 4 * n))
wrong("stores-the-scores", "scores_too", of_flash=of_right(lambda total, n, d: total + 4 * n * n))
wrong("rounds-blocks-down", "whole_blocks_only", of_flash=with_keys(lambda n, r, c, causal: n // r * n))
wrong("rounds-blocks-down", "a_share_of_a_block", of_flash=with_keys(lambda n, r, c, causal: n / r * n))
wrong(
    "counts-whole-blocks",
    "last_tile_as_a_whole",
    of_flash=with_keys(lambda n, r, c, causal: -(-n // r) * -(-n // c) * c),
)
wrong("reads-hidden-tiles", "not_causal", of_flash=with_keys(lambda n, r, c, causal: -(-n // r) * n))
wrong(
    "stops-at-the-first-query",
    "rows_of_the_first_query",
    of_flash=with_keys(
        lambda n, r, c, causal: sum(min(-(-(s + 1) // c) * c, n) if causal else n for s in range(0, n, r))
    ),
)
wrong(
    "skips-the-diagonal-tiles",
    "whole_tiles_below_the_diagonal",
    of_flash=with_keys(lambda n, r, c, causal: sum(s // c * c if causal else n for s in range(0, n, r))),
)
wrong(
    "reads-parts-of-tiles",
    "up_to_the_last_query",
    of_flash=with_keys(lambda n, r, c, causal: sum(min(s + r, n) if causal else n for s in range(0, n, r))),
)
wrong(
    "reads-one-tile-too-many",
    "a_tile_too_many",
    of_flash=with_keys(
        lambda n, r, c, causal: sum(min((min(s + r, n) // c + 1) * c, n) if causal else n for s in range(0, n, r))
    ),
)
wrong(
    "halves-the-traffic",
    "half_of_the_square",
    of_flash=with_keys(lambda n, r, c, causal: -(-n // r) * n / 2 if causal else -(-n // r) * n),
)
wrong(
    "counts-keys-or-values-only",
    "keys_without_values",
    of_flash=lambda n, d, r, c, causal: 4 * n * d + 4 * n + 2 * d * keys_read(n, r, c, causal),
)
wrong(
    "loops-turned-round", "keys_outside", of_flash=lambda n, d, r, c, causal: 4 * n * d + 4 * n * d * -(-n // c) + 4 * n
)
wrong("wrong-value", "gigabytes", of_flash=of_right(lambda total, n, d: total / 1e9))
wrong("returns-nothing", "forgets_to_return", of_flash=lambda *args: None)
BANK.answers.append(
    type(BANK.answers[0])(BANK.exercise, "divides_by_nothing", (standard, lambda *a: 1 // 0), "", "crashed")
)
