"""The drawings of grids and clips: right about their numbers, whatever they are given, and readable at the extremes."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
import torch

from qlab.calibrate import clip_errors, mse_clip
from qlab.plots import GridChoice, GridView, TileCodes, clip_curves, clip_svg, grid_svg
from qlab.plots.clip_curves import thinned
from qlab.plots.grids import LEFT, RIGHT
from qlab.plots.numbers import percent, round_ticks, short
from qlab.quantize import TILES, quantize_affine, quantize_symmetric, quantize_with, sqnr_db

SVG = "{http://www.w3.org/2000/svg}"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_an_outlier():
    x = random(48, 80)
    x[:, 5] *= 60
    return x


def texts(drawing: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(drawing).iter() if element.tag.endswith("text")]


def told(drawing: str) -> str:
    return ET.fromstring(drawing).get("aria-label")


def of_class(drawing: str, name: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(drawing).iter() if element.get("class") == name]


def extents(text: ET.Element) -> tuple[float, float]:
    """Return about where a line of text starts and ends: an average letter is 0.56 of the font's size wide."""
    wide = 0.56 * float(text.get("font-size")) * len(text.text)
    left = float(text.get("x")) - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor")] * wide
    return left, left + wide


def assert_nothing_overlaps(drawing: str) -> None:
    by_row: dict[str, list[ET.Element]] = {}
    for text in texts(drawing):
        by_row.setdefault(text.get("y"), []).append(text)
    for row in by_row.values():
        places = sorted(map(extents, row))
        assert places[0][0] > -2 and places[-1][1] < 762, [t.text for t in row]
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(places)), [t.text for t in row]


# ------------------------------------------------------------------ grids


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("granularity", TILES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_it_tells_what_qlab_gives(bits, granularity, affine):
    x, quantize = with_an_outlier(), quantize_affine if affine else quantize_symmetric
    expected = quantize(x, bits=bits, tile=TILES[granularity])
    drawing = grid_svg(x, GridChoice(bits, affine, granularity))
    assert f"{bits} bits, {'affine' if affine else 'symmetric'}, {granularity}, whole range kept" in told(drawing)
    decibels = sqnr_db(x, expected.dequantize())
    assert f"SQNR {decibels:.1f} dB, RMS error {percent(10 ** (-decibels / 20))} of the RMS value" in told(drawing)
    assert ", none clipped" in told(drawing)
    assert f": {expected.bits_per_value:.2f} bits per weight with constants. " in told(drawing)
    assert_nothing_overlaps(drawing)


def test_the_share_that_is_clipped_is_counted_tile_by_tile():
    x = random(8, 64)
    drawing = grid_svg(x, GridChoice(4, granularity="per row", clip=0.5))
    beyond = (x.abs() > 0.5 * x.abs().amax(1, keepdim=True)).float().mean().item()
    assert f"{percent(beyond)} clipped" in told(drawing) and "50 % of range kept" in told(drawing)
    affine = grid_svg(x.relu() + 0.01, GridChoice(4, affine=True, clip=0.5))
    beyond = (x.relu() + 0.01 > 0.5 * (x.relu() + 0.01).max()).float().mean().item()
    assert f"{percent(beyond)} clipped" in told(affine)


def test_there_is_a_line_for_every_code_where_its_value_lies():
    x = random(16, 16)
    scale, limit = quantize_symmetric(x, bits=3).scale.item(), 1.03 * x.abs().max().item()
    (grid,) = of_class(grid_svg(x, GridChoice(3)), "grid")
    places = [float(place) for place in re.findall(r"M([\d.]+)", grid.get("d"))]
    middle, half = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2
    assert places == pytest.approx([middle + half * scale * code / limit for code in range(-3, 4)], abs=0.06)


def test_codes_hang_as_long_as_they_are_many():
    x = torch.tensor([[-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    (codes,) = of_class(grid_svg(x, GridChoice(2)), "codes")
    lengths = [float(length) for length in re.findall(r"v([\d.]+)h-", codes.get("d"))]
    assert lengths == pytest.approx([70 / 4, 70, 70 * 3 / 4])


@pytest.mark.parametrize("granularity", TILES)
def test_rank_goes_from_the_narrowest_tile_to_the_widest(granularity):
    x = random(6, 200) * torch.linspace(0.1, 3, 200)
    ranges = [
        (view := GridView(x, GridChoice(4, granularity=granularity, rank=rank))).tile.max() - view.tile.min()
        for rank in (0.0, 0.5, 1.0)
    ]
    assert ranges[0] <= ranges[1] <= ranges[2]
    assert (ranges[0] < ranges[2]) == (granularity != "per tensor")


def test_a_ragged_tile_holds_no_padding():
    x = random(3, 70) + 5
    tiles = [GridView(x, GridChoice(4, granularity="groups of 32", rank=rank / 8)).tile for rank in range(9)]
    assert sorted(tile.numel() for tile in tiles) == [6] * 3 + [32] * 6
    assert sum(tile.sum() for tile in tiles).item() == pytest.approx(x.sum().item(), rel=1e-6)


@pytest.mark.parametrize("clip", [1.0, 0.6, 0.05])
@pytest.mark.parametrize("affine", [False, True])
def test_what_a_quantizer_gets_needs_no_other_clip(affine, clip):
    """On the values as they are given, the whole range gives the codes that the clipped grid gives."""
    x = random(20, 33) + 0.3
    view = GridView(x, GridChoice(5, affine=affine, clip=clip))
    again = (quantize_affine if affine else quantize_symmetric)(view.given, bits=5)
    assert torch.equal(again.codes, view.expected.codes)
    assert again.scale.item() == pytest.approx(view.expected.scale, rel=1e-6)
    assert torch.allclose(quantize_with(view.given, again.grid).dequantize(), view.expected.values)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 4),
        torch.full((4, 4), 3.0),
        torch.tensor([[1e-40, 0.0]]),
        torch.tensor([[1e38, -1e38]]),
        torch.tensor([[5.0]]),
        torch.arange(12.0),
        with_an_outlier().bfloat16(),
        random(2, 3, 40).half(),
    ],
    ids=["zeros", "constant", "subnormal", "huge", "one", "one axis", "bf16", "fp16, three axes"],
)
@pytest.mark.parametrize("affine", [False, True])
def test_odd_values_are_drawn(x, affine):
    for bits, granularity, clip in itertools.product((2, 8), TILES, (1.0, 0.05)):
        drawing = grid_svg(x, GridChoice(bits, affine, granularity, clip))
        assert not re.search("nan|inf", drawing)
        assert_nothing_overlaps(drawing)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("clip", [1.0, 0.5, 0.2, 0.05])
@pytest.mark.parametrize("affine", [False, True])
def test_labels_never_touch(bits, clip, affine):
    for x in (with_an_outlier(), random(30, 30).relu(), 1e-6 * random(8, 8) - 1e-5, 1e6 * random(8, 8)):
        assert_nothing_overlaps(grid_svg(x, GridChoice(bits, affine, "per row", clip, rank=1.0)))


def test_other_codes_are_drawn_in_place_of_qlabs():
    x = random(8, 8)
    zeros = TileCodes(torch.zeros(8, 8, dtype=torch.int8), 0.1)
    drawing = grid_svg(x, own=zeros, note="<mine> & yours")
    assert "at most 64 values on one" in " ".join(t.text for t in texts(drawing))
    assert told(drawing).endswith("<mine> & yours")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bits": 9}, "bits must be 2 to 8, got 9"),
        ({"clip": 0.0}, "clip must be above 0 and at most 1, got 0.0"),
        ({"clip": 1.5}, "clip must be above 0 and at most 1, got 1.5"),
        ({"rank": -0.1}, "rank must be 0 to 1, got -0.1"),
        ({"granularity": "per page"}, "granularity must be one of per tensor, .*, got 'per page'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_value(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid_svg(random(4, 4), GridChoice(**settings))


# ------------------------------------------------------------------ clips


@pytest.mark.parametrize("bits", range(2, 9))
def test_few_values_are_all_counted(bits):
    x = random(50, 60)
    curves = clip_curves(x, bits=bits)
    exact = clip_errors(x, curves.errors.clips, bits=bits)
    assert torch.allclose(curves.errors.total, exact.total, rtol=1e-5)
    assert curves.best == pytest.approx(mse_clip(x, bits=bits))
    assert "of all 3,000 values" in texts(clip_svg(curves))[-1].text


@pytest.mark.parametrize("tail", ["normal", "outliers", "student"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_of_many_values_so_many_are_counted_that_the_curves_stay(bits, tail):
    x = random(256, 256)
    if tail == "outliers":
        x[:, 5] *= 40
    if tail == "student":
        x = x / random(4, 256, 256, seed=1).square().mean(0).sqrt()
    curves = clip_curves(x, bits=bits)
    assert len(curves.magnitudes) <= 4096 < x.numel()
    clips = torch.tensor([0.2, 0.5, 1.0]) * curves.largest
    exact = clip_errors(x, clips, bits=bits).total
    assert [curves.at(clip).total.item() for clip in clips.tolist()] == pytest.approx(exact.tolist(), rel=0.02)
    least = clip_errors(x, torch.tensor([mse_clip(x, bits=bits), curves.best]), bits=bits).total
    assert least[1] <= 1.01 * least[0]
    beyond = (x.abs() > 0.5 * x.abs().max()).float().mean().item()
    assert curves.beyond(0.5 * curves.largest) == pytest.approx(beyond, rel=0.05)


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 4098, 10_000])
def test_thinning_keeps_the_count_and_the_largest(count):
    magnitudes = random(count).abs()
    kept, weights = thinned(magnitudes)
    assert weights.sum().item() == pytest.approx(count, rel=1e-5)
    assert kept.max() == magnitudes.max() and len(kept) <= 4096


def test_it_tells_both_errors_their_sum_and_the_least():
    x = random(40, 50)
    curves, power = clip_curves(x, bits=4), x.square().mean().item()
    drawing = clip_svg(curves, clip=1.5)
    errors = clip_errors(x, torch.tensor([1.5]), bits=4)
    clipping, rounding = (percent(part.item() / power) for part in (errors.clipping, errors.rounding))
    assert f"clipping error {clipping} + rounding error {rounding}" in told(drawing)
    assert f"{percent((x.abs() > 1.5).float().mean().item())} of the values clipped" in told(drawing)
    assert told(drawing).startswith("4 bits, clip at 1.5, ")
    assert f"least error at {short(mse_clip(x, bits=4))}: SQNR" in told(drawing)


def test_the_marks_stand_at_their_clips():
    curves = clip_curves(random(40, 50), bits=4)
    drawing = clip_svg(curves, clip=1.5, found=2.0)

    def place(clip):
        return pytest.approx(56 + 684 * clip / curves.largest, abs=0.1)

    (line,), (best,), (found,) = (of_class(drawing, name) for name in ("clip", "best", "found"))
    assert float(re.match(r"M([\d.]+)", line.get("d"))[1]) == place(1.5)
    assert float(re.match(r"M([\d.]+)", best.get("d"))[1]) == place(curves.best)
    assert float(found.get("x")) + 8 == place(2.0)
    assert not of_class(clip_svg(curves, found=10 * curves.largest), "found")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_labels_of_clips_never_touch(bits):
    for x in (with_an_outlier(), random(30, 30).relu(), 1e-6 * random(8, 8), 1e6 * random(8, 8), torch.tensor([[3.0]])):
        curves = clip_curves(x, bits=bits)
        for share in (0.01, 0.3, 0.99, 1.0):
            drawing = clip_svg(curves, clip=share * curves.largest, found=0.9 * curves.largest, note="yours")
            assert_nothing_overlaps(drawing)
            assert not re.search("nan|inf", drawing)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(3, 4), "x must hold a value that is not zero, got 12 zeros"),
        (torch.tensor([1.0, torch.nan]), "x must be finite, and holds 1 NaN or infinite values"),
        (torch.empty(0, 4), "x must hold at least one value"),
    ],
)
def test_nothing_to_clip_is_a_sentence(x, sentence):
    with pytest.raises(ValueError, match=sentence):
        clip_curves(x, bits=4)


def test_another_number_of_bits_measures_the_same_values():
    x = random(100, 100)
    again = clip_curves(x, bits=8).with_bits(3)
    assert torch.equal(again.errors.total, clip_curves(x, bits=3).errors.total) and again.bits == 3
    with pytest.raises(ValueError, match="clips must be above 0"):
        clip_svg(again, clip=0.0)
    with pytest.raises(ValueError, match="bits must be 2 to 8, got 1"):
        again.with_bits(1)


# ------------------------------------------------------------------ numbers


def test_numbers_are_short_and_small_shares_are_not_zero():
    assert [short(value) for value in (-0.0, -1234.5, 0.012345)] == ["0", "−1.23e+03", "0.0123"]
    shown = [percent(share) for share in (0.0, 1.0, 0.2504, 0.0123, 1e-6)]
    assert shown == ["0 %", "100 %", "25 %", "1.2 %", "0.0001 %"]
    assert round_ticks(4.66, at_most=8) == [0, 1, 2, 3, 4]
    for limit in (1e-40, 0.3, 1.0, 7.0, 3.3e38):
        assert 2 <= len(round_ticks(limit, at_most=8)) <= 9
