"""Bytes between memory and chip: counted as an algorithm runs, and by formula; and its FLOPs, by formula.

Memory is what a GPU calls HBM. Every `load` and `store` of this package reports to the counters that are open.
"""

import math
from threading import get_ident

from jaxtyping import Float
from torch import Tensor

from qlab.attention.border import AttentionShape, accumulator
from qlab.attention.tiling import check_blocks


class TrafficCounter:
    """Count, inside a `with`, the bytes that attention loads from memory and stores to it; it nests.

    It hears its own thread only: what a widget does meanwhile is not counted, nor is autograd's thread for CUDA.
    Units:   bytes of the values as they are stored; a tile on the chip is in FP32 and costs nothing to use again.
    """

    active: list["TrafficCounter"] = []  # noqa: RUF012 - shared on purpose: every open counter of a thread hears of its moves

    def __init__(self):
        self.loaded_bytes = self.stored_bytes = 0
        self.thread = get_ident()

    def __enter__(self) -> "TrafficCounter":
        self.active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self.active.remove(self)

    @property
    def bytes(self) -> int:
        """Bytes moved in either direction."""
        return self.loaded_bytes + self.stored_bytes


def report_load(*tensors: Tensor) -> None:
    """Tell the open counters that these were read from memory, each once."""
    for counter in _listening():
        counter.loaded_bytes += sum(t.numel() * t.element_size() for t in tensors)


def report_store(*tensors: Tensor) -> None:
    """Tell the open counters that these were written to memory, each once."""
    for counter in _listening():
        counter.stored_bytes += sum(t.numel() * t.element_size() for t in tensors)


def load(
    source: Float[Tensor, "batch heads group sequence width"], block: slice
) -> Float[Tensor, "matrices rows width"]:
    """Bring a block of the sequence onto the chip, in FP32 (FP64 for FP64), the rows of a group under each other."""
    block_of = source[..., block, :]
    report_load(block_of)
    batch, heads, group, length, width = block_of.shape
    return block_of.to(accumulator(source.dtype)).reshape(batch * heads, group * length, width)


def store(tile: Tensor, target: Float[Tensor, "batch heads group sequence width"], block: slice) -> None:
    """Write a tile back to its block of the sequence, rounded to the type of `target`."""
    block_of = target[..., block, :]
    block_of.copy_(tile.view(block_of.shape))
    report_store(block_of)


def standard_bytes(shape: AttentionShape) -> int:
    """Return what the standard forward pass moves: it stores and loads the scores, then the weights made of them.

    Scale and mask count as part of the first product. Keys that several heads share are read once.
    Source:  Dao et al. 2022, arXiv:2205.14135, algorithm 0 (its order is Θ(Nd + N²), by its theorem 2).
    """
    q_and_output = 2 * shape.query_heads * shape.queries * shape.head_width
    keys_and_values = 2 * shape.key_heads * shape.keys * shape.head_width
    scores = shape.query_heads * shape.queries * shape.keys
    return shape.batch * shape.value_bytes * (q_and_output + keys_and_values + 4 * scores)


def flash_bytes(shape: AttentionShape, *, block_rows: int, block_columns: int) -> int:
    """Return what the tiled forward pass moves: queries and output once, keys and values once for each block of rows.

    Errors:  ValueError if a block is empty.
    Source:  Dao et al. 2022, arXiv:2205.14135, theorem 2: Θ(N²d²/M), here with the sizes written out.
    """
    check_blocks(block_rows=block_rows, block_columns=block_columns)
    q_and_output = 2 * shape.query_heads * shape.queries * shape.head_width
    log_sum_exp = shape.query_heads * shape.queries
    keys_read = _keys_read(shape, block_rows, block_columns)
    keys_and_values = 2 * shape.key_heads * keys_read * shape.head_width
    moved = shape.value_bytes * (q_and_output + keys_and_values) + shape.accumulator_bytes * log_sum_exp
    return shape.batch * moved


def flash_backward_bytes(shape: AttentionShape, *, block_rows: int, block_columns: int) -> int:
    """Return what the tiled backward pass moves: keys, values and their gradients once, the rest for each key block.

    The gradient of q is a sum over key blocks, held in memory in FP32: set to zero, then read and written each time,
    and rounded at the end where q is narrower.
    Errors:  ValueError if a block is empty.
    """
    check_blocks(block_rows=block_rows, block_columns=block_columns)
    rows, width = shape.query_heads * shape.queries, shape.head_width
    rows_read = shape.query_heads * _rows_read(shape, block_rows, block_columns)
    sums = 2 * rows * width * shape.value_bytes + rows * shape.accumulator_bytes  # output and its gradient in, Δ out
    keys = 4 * shape.key_heads * shape.keys * width * shape.value_bytes  # k and v in, their gradients out
    visits = rows_read * (2 * width * shape.value_bytes + 2 * shape.accumulator_bytes)  # q, output's gradient, L, Δ
    q_gradient = shape.accumulator_bytes * width * (rows + 2 * rows_read)
    narrow = rows * width * (shape.accumulator_bytes + shape.value_bytes)
    return shape.batch * (sums + keys + visits + q_gradient + narrow * (shape.value_bytes < shape.accumulator_bytes))


def standard_flops(shape: AttentionShape, *, backward: bool = False) -> int:
    """Count the matrix products of the standard pass over all scores: two forward, four backward.

    Units:   a multiply-add is two; exponentials and sums, a small share, are left out.
    """
    return (8 if backward else 4) * _scores(shape) * shape.head_width


def flash_flops(shape: AttentionShape, *, block_rows: int, block_columns: int, backward: bool = False) -> int:
    """Count the matrix products of the tiled pass over visited tiles: two forward, five backward (scores again).

    Units:   a multiply-add is two; exponentials, sums and rescaling are left out.
    Errors:  ValueError if a block is empty.
    """
    check_blocks(block_rows=block_rows, block_columns=block_columns)
    pairs = 0
    for start in range(0, shape.queries, block_rows):
        stop = min(start + block_rows, shape.queries)
        pairs += (stop - start) * _keys_seen(shape, stop, block_columns)
    return (10 if backward else 4) * shape.batch * shape.query_heads * pairs * shape.head_width


def _listening() -> list[TrafficCounter]:
    """Return the open counters of this thread."""
    return [counter for counter in TrafficCounter.active if counter.thread == get_ident()]


def _scores(shape: AttentionShape) -> int:
    return shape.batch * shape.query_heads * shape.queries * shape.keys


def _keys_seen(shape: AttentionShape, stop: int, block_columns: int) -> int:
    """Count the keys in the blocks that rows up to `stop` visit."""
    if not shape.is_causal:
        return shape.keys
    return min(math.ceil(stop / block_columns) * block_columns, shape.keys)


def _keys_read(shape: AttentionShape, block_rows: int, block_columns: int) -> int:
    stops = (min(start + block_rows, shape.queries) for start in range(0, shape.queries, block_rows))
    return sum(_keys_seen(shape, stop, block_columns) for stop in stops)


def _rows_read(shape: AttentionShape, block_rows: int, block_columns: int) -> int:
    """Count the rows in the blocks that each block of keys is visited by, summed over the blocks of keys."""
    starts = range(0, shape.keys, block_columns)
    if not shape.is_causal:
        return len(starts) * shape.queries
    return sum(shape.queries - start // block_rows * block_rows for start in starts if start < shape.queries)
