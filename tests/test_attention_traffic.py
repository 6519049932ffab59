"""Bytes moved: what is counted as the tiles are walked is what the formula says, for every shape and block size."""

import itertools
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qlab import attention
from qlab.attention import AttentionShape, Tiling, TrafficCounter, blocks_for_sram, flash_attention, flash_forward

SHAPES = {
    "square": AttentionShape(queries=64, keys=64, head_width=8),
    "ragged": AttentionShape(batch=2, queries=37, keys=37, head_width=5, query_heads=3, key_heads=3),
    "grouped": AttentionShape(batch=2, queries=30, keys=30, head_width=4, query_heads=6, key_heads=2),
    "more-keys": AttentionShape(queries=11, keys=45, head_width=8, query_heads=2),
    "fewer-keys": AttentionShape(queries=45, keys=11, head_width=8, query_heads=2, key_heads=2),
    "one-query": AttentionShape(queries=1, keys=19, head_width=8),
    "no-key": AttentionShape(queries=7, keys=0, head_width=8),
    "no-query": AttentionShape(queries=0, keys=7, head_width=8),
}
BLOCKS = [(16, 16), (8, 16), (16, 8), (5, 7), (1, 1), (100, 100)]
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
every_case = pytest.mark.parametrize(
    ("name", "value_bytes", "is_causal"), list(itertools.product(SHAPES, DTYPES, (False, True)))
)


def a_case(name: str, value_bytes: int, is_causal: bool) -> tuple[AttentionShape, list[torch.Tensor]]:
    shape = AttentionShape(**vars(SHAPES[name]) | {"value_bytes": value_bytes, "is_causal": is_causal})
    sizes = (shape.query_heads, shape.queries), (shape.key_heads, shape.keys), (shape.key_heads, shape.keys)
    draw = [torch.randn(shape.batch, h, n, shape.head_width, dtype=DTYPES[value_bytes]) for h, n in sizes]
    return shape, draw


@every_case
def test_the_formula_is_what_the_tiled_passes_move(name, value_bytes, is_causal):
    shape, given = a_case(name, value_bytes, is_causal)
    for rows, columns in BLOCKS:
        blocks = {"block_rows": rows, "block_columns": columns}
        leaves = [t.requires_grad_() for t in given]
        with TrafficCounter() as forward:
            output = flash_attention(*leaves, is_causal=is_causal, **blocks)
        with TrafficCounter() as backward:
            output.sum().backward()
        assert forward.bytes == attention.flash_bytes(shape, **blocks), blocks
        assert backward.bytes == attention.flash_backward_bytes(shape, **blocks), blocks


@every_case
def test_the_formula_is_what_the_standard_pass_moves(name, value_bytes, is_causal):
    shape, given = a_case(name, value_bytes, is_causal)
    with TrafficCounter() as moved:
        attention.standard_attention(*given, is_causal=is_causal)
    assert moved.bytes == attention.standard_bytes(shape)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_flops_are_those_that_torch_counts(name, is_causal):
    shape, given = a_case(name, 4, is_causal)
    for run, count, options in (
        (attention.standard_attention, attention.standard_flops, {}),
        (flash_attention, attention.flash_flops, {"block_rows": 7, "block_columns": 5}),
    ):
        leaves = [t.detach().requires_grad_() for t in given]
        with FlopCounterMode(display=False) as forward:
            output = run(*leaves, is_causal=is_causal, **options)
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
        assert forward.get_total_flops() == count(shape, **options)
        assert backward.get_total_flops() == count(shape, backward=True, **options)


def test_stores_are_the_output_and_the_log_sum_exp_once():
    q, k, v = (torch.randn(1, 2, 64, 8) for _ in range(3))
    with TrafficCounter() as moved:
        flash_forward(q, k, v, block_rows=16, block_columns=8)
    assert moved.stored_bytes == 4 * 2 * 64 * (8 + 1)
    assert moved.loaded_bytes == 4 * 2 * 64 * 8 * (1 + 2 * 4)
    assert moved.bytes == moved.loaded_bytes + moved.stored_bytes


def test_counters_nest_and_close():
    q = torch.randn(1, 1, 8, 4)
    with TrafficCounter() as outer:
        flash_forward(q, q, q)
        with TrafficCounter() as inner:
            flash_forward(q, q, q)
    flash_forward(q, q, q)
    assert outer.bytes == 2 * inner.bytes > 0
    assert not TrafficCounter.active


def test_causal_square_tiles_move_their_triangle():
    tiles, block, width = 8, 16, 4
    shape = AttentionShape(queries=tiles * block, keys=tiles * block, head_width=width, value_bytes=4, is_causal=True)
    tiles_read = tiles * (tiles + 1) // 2
    fixed = 4 * tiles * block * (2 * width + 1)
    assert attention.flash_bytes(shape, block_rows=block, block_columns=block) == fixed + 8 * width * block * tiles_read


def test_traffic_falls_as_one_over_the_sram_and_grows_as_the_square_of_the_length():
    def keys_and_values(n: int, sram_bytes: int, width: int = 64) -> int:
        shape = AttentionShape(queries=n, keys=n, head_width=width)
        rows, columns = blocks_for_sram(sram_bytes, head_width=width)
        return attention.flash_bytes(shape, block_rows=rows, block_columns=columns) - 4 * n * width - 4 * n

    n, sram = 2**16, 5 * 4 * 64 * 128
    assert keys_and_values(n, sram) / keys_and_values(n, 4 * sram) == 4
    assert keys_and_values(2 * n, sram) / keys_and_values(n, sram) == 4
    assert keys_and_values(n, sram, 128) / keys_and_values(n, sram, 64) == 4


@pytest.mark.parametrize("head_width", [16, 64, 128])
@pytest.mark.parametrize("kib", [16, 100, 228])
def test_the_five_tiles_fit_with_a_fifth_for_each(kib, head_width):
    rows, columns = blocks_for_sram(kib * 1024, head_width=head_width)
    assert columns == min(rows, head_width)

    def tiles(rows: int) -> int:
        return 4 * (2 * rows * head_width + 2 * columns * head_width + rows * columns)

    assert tiles(rows) <= kib * 1024
    assert 5 * 4 * (rows + 1) * head_width > kib * 1024


def test_too_small_a_chip_is_refused():
    with pytest.raises(
        ValueError, match=re.escape("sram_bytes must be at least 1280 for one row of width 64, got 1279")
    ):
        blocks_for_sram(1279, head_width=64)
    with pytest.raises(ValueError, match="head_width must be at least 1, got 0"):
        blocks_for_sram(1024, head_width=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": -1}, "queries must be at least 0, got -1"),
        ({"head_width": 0}, "head_width must be at least 1, got 0"),
        ({"value_bytes": 0}, "value_bytes must be at least 1, got 0"),
        ({"query_heads": 3, "key_heads": 2}, "3 query heads do not divide into groups for 2 key heads"),
    ],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AttentionShape(**{"queries": 4, "keys": 4, "head_width": 4} | wrong)


@pytest.mark.parametrize("formula", [attention.flash_bytes, attention.flash_backward_bytes, attention.flash_flops])
def test_empty_blocks_have_no_formula(formula):
    for blocks in ({"block_rows": 0, "block_columns": 4}, {"block_rows": 4, "block_columns": -1}):
        with pytest.raises(ValueError, match=r"block_\w+ must be at least 1, got"):
            formula(SHAPES["square"], **blocks)


@pytest.mark.parametrize(("queries", "keys"), [(10, 10), (7, 12), (12, 7)])
@pytest.mark.parametrize("blocks", [(3, 4), (4, 3), (1, 1), (20, 20)], ids=str)
def test_the_tiles_visited_are_those_a_causal_mask_leaves_something_of(queries, keys, blocks):
    tiling = Tiling(queries=queries, keys=keys, block_rows=blocks[0], block_columns=blocks[1], is_causal=True)
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for rows, columns in itertools.product(tiling.row_blocks, tiling.column_blocks):
        allowed = torch.ones(queries, keys).tril()[rows, columns].bool()
        assert tiling.is_visited(rows, columns) == bool(allowed.any())
        if tiling.is_visited(rows, columns):
            hidden = tiling.hidden(rows, columns, group=2)
            assert bool(allowed.all()) if hidden is None else torch.equal(~hidden, allowed.repeat(2, 1))
            seen[rows, columns] |= allowed
    assert torch.equal(seen, torch.ones(queries, keys).tril().bool())
