"""The explorer of tiled attention, its drawing and the roofline: what they show is what the walk was."""

import re
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qlab.attention import AttentionShape, TrafficCounter, flash_bytes, trace_row
from qlab.plots import roofline, running_figure, tiles_svg
from qlab.roofline import H200_BF16, Rates, Work
from qlab.widgets import TileExplorer
from qlab.widgets.attention import LENGTHS, SRAM_KIB


def a_trace(*, row: int = 20, is_causal: bool = False, blocks: tuple[int, int] = (8, 16)):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(32, 8, generator=g), torch.randn(48, 8, generator=g)
    return trace_row(q, k, row=row, blocks=blocks, is_causal=is_causal), q[row] @ k.T / 8**0.5


def told(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label")


def tile_drawn(svg: str) -> list[float]:
    (tile,) = [e for e in ET.fromstring(svg).iter() if e.get("class") == "tile"]
    return [float(tile.get(name)) for name in ("x", "y", "width", "height")]


def test_the_row_that_is_followed_ends_with_the_softmax_of_its_scores():
    trace, scores = a_trace()
    last = [tile for tile in trace.tiles if tile.rows == slice(16, 24)][-1]
    assert last.maximum == pytest.approx(scores.max().item())
    assert last.total == pytest.approx((scores - scores.max()).exp().sum().item())
    assert trace.scores == pytest.approx(scores.tolist(), abs=1e-6)
    maxima = [tile.maximum for tile in trace.tiles]
    assert maxima == sorted(maxima) and maxima[0] == -torch.inf


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_bytes_of_a_trace_are_those_of_the_formula(is_causal):
    trace, _ = a_trace(is_causal=is_causal)
    shape = AttentionShape(queries=32, keys=48, head_width=8, value_bytes=4, is_causal=is_causal)
    assert trace.moved_bytes == flash_bytes(shape, block_rows=8, block_columns=16)
    moved = [tile.moved_bytes for tile in trace.tiles]
    assert moved == sorted(set(moved)) and moved[-1] < trace.moved_bytes


def test_walks_and_counters_in_other_threads_are_not_heard():
    shape = AttentionShape(queries=32, keys=48, head_width=8, value_bytes=4)
    with TrafficCounter() as outer, ThreadPoolExecutor(8) as threads:
        walks = list(threads.map(lambda row: a_trace(row=row, blocks=(2, 4))[0].moved_bytes, range(16)))
    assert set(walks) == {flash_bytes(shape, block_rows=2, block_columns=4)} and outer.bytes == 0


def test_a_causal_row_has_no_scores_beyond_itself():
    trace, scores = a_trace(is_causal=True)
    assert trace.scores[21:] == (-torch.inf,) * 27
    last = [tile for tile in trace.tiles if tile.rows == slice(16, 24)][-1]
    assert last.maximum == pytest.approx(scores[:21].max().item())
    assert len(trace.tiles) == 1 + 1 + 2 + 2
    assert "tile 6 of 6; 6 skipped: queries 24 to 31, keys 16 to 31" in told(tiles_svg(trace, step=6))


def test_the_drawing_says_where_the_tile_is_and_what_is_known():
    trace, _ = a_trace()
    before = told(tiles_svg(trace, step=0))
    assert "nothing visited yet" in before and "no key seen, maximum −∞, sum 0" in before and "moved 0 of" in before
    svg = tiles_svg(trace, step=8, note="five tiles")
    tile = trace.tiles[7]
    assert told(svg).startswith("tile 8 of 12: queries 16 to 23, keys 16 to 31. ") and "five tiles" in told(svg)
    assert f"maximum {tile.maximum:.2f}, sum {tile.total:.2f}" in told(svg)
    assert f"moved {trace.moved_bytes / 1e3:,.0f} of" in told(tiles_svg(trace, step=12))
    assert tile_drawn(svg) == pytest.approx([40 + 284 / 3, 62 + 284 / 2, 284 / 3, 284 / 4], abs=0.1)
    dots = [e for e in ET.fromstring(svg).iter() if e.tag.endswith("circle")]
    assert sum(dot.get("opacity") == "0.9" for dot in dots) == 32 and len(dots) == 48


def test_no_score_of_the_row_counts_as_seen_before_its_block_and_all_do_after_it():
    trace, _ = a_trace()
    for step, seen in ((6, 0), (7, 16), (9, 48), (10, 48), (12, 48)):
        dots = [e for e in ET.fromstring(tiles_svg(trace, step=step)).iter() if e.tag.endswith("circle")]
        assert sum(dot.get("opacity") == "0.9" for dot in dots) == seen, step


def test_rows_and_steps_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="row must be 0 to 31, got 32"):
        a_trace(row=32)
    with pytest.raises(ValueError, match="at least one key to walk over, got none"):
        trace_row(torch.randn(4, 8), torch.randn(0, 8), row=0, blocks=(2, 2))
    with pytest.raises(ValueError, match="step must be 0 to 12, got 13"):
        tiles_svg(a_trace()[0], step=13)


def test_the_explorer_walks_anew_when_chip_length_or_mask_change():
    explorer = TileExplorer(length=64, sram_kib=10)
    assert told(explorer.drawing.value).startswith("tile 14 of 16: queries 48 to 63, keys 16 to 31")
    explorer.step.value = 16
    explorer.sram.value = 20
    assert explorer.step.max == explorer.play.max == 4 and explorer.step.value == 4
    assert "blocks of 32 queries × 32 keys" in told(explorer.drawing.value)
    explorer.is_causal.value = True
    assert told(explorer.drawing.value).startswith("tile 3 of 3; 1 skipped")
    explorer.length.value = 128
    assert told(explorer.drawing.value).startswith("tile 3 of 10; 6 skipped: queries 32 to 63, keys 32 to 63")


@pytest.mark.parametrize("is_causal", [False, True])
def test_every_setting_can_be_drawn(is_causal):
    for length in LENGTHS[:4]:
        for kib in SRAM_KIB:
            explorer = TileExplorer(length=length, sram_kib=kib, is_causal=is_causal)
            assert re.match(r"tile \d+ of \d+", told(explorer.drawing.value)), (length, kib)


def test_a_larger_chip_moves_fewer_bytes():
    moved = [
        int(re.search(r"moved [\d,]+ of ([\d,]+) kB", told(TileExplorer(sram_kib=kib).drawing.value))[1])
        for kib in SRAM_KIB
    ]
    assert moved == sorted(moved, reverse=True) and moved[0] > 3 * moved[-1]


def test_the_running_maximum_is_drawn_as_steps():
    trace, scores = a_trace()
    ax = running_figure(trace)
    (steps,) = ax.patches
    assert list(steps.get_data().values) == pytest.approx([scores[:end].max().item() for end in (16, 32, 48)])
    assert len(ax.lines[0].get_xdata()) == 48 and ax.get_ylabel() == "score of query 20"


def test_the_roofline_bends_at_the_ridge_and_carries_each_kernel():
    rates = Rates("a machine", 100e12, 1e12)
    ax = roofline(rates, {"left": Work(1e12, 1e11), "right": Work(1e15, 1e12)}, measured={"left": 5e12})
    roof, left, measured, right = ax.lines
    assert list(roof.get_xdata())[1] == rates.ridge and list(roof.get_ydata())[1:] == [100, 100]
    assert left.get_ydata() == [10] and measured.get_ydata() == [5] and right.get_ydata() == [100]
    assert left.get_markerfacecolor() == "none" != measured.get_markerfacecolor()
    assert left.get_color() == measured.get_color() != right.get_color()
    one = roofline(H200_BF16, {"one, short": Work(1.0, 1.0), "one, long": Work(2.0, 1.0)})
    assert one.lines[1].get_color() == one.lines[2].get_color() and one.get_xscale() == "log"
