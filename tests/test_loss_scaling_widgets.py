"""The explorer of loss scaling: what it draws, that its shares are exact, and what it says of what cannot be drawn."""

import math
import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pytest
import torch

from qlab.formats import BF16, E4M3, E5M2, FORMATS, FP16
from qlab.loss_scaling import census
from qlab.plots import gradient_histogram, gradient_octaves, gradient_svg
from qlab.plots.numbers import percent
from qlab.widgets import LossScaleExplorer

GENERATOR = torch.Generator().manual_seed(0)
SPREAD = torch.randn(20_000, generator=GENERATOR) * torch.exp2(6 * torch.randn(20_000, generator=GENERATOR) - 20)
SPREAD[::50] = 0
ODD = torch.tensor([1.0, math.inf, math.nan, -(2.0**-25), 0.0, -math.inf, 65520.0, 2.0**-149])
NAMES = {
    "rounds to zero": "underflow",
    "subnormal, loses bits": "subnormal",
    "normal": "normal",
    "overflows": "overflow",
}
LEFT, RIGHT, LOW, HIGH = 56, 744, -48, 32  # of the picture, in units of the drawing and in octaves


def told(svg):
    return ET.fromstring(svg).get("aria-label")


def shares_told(svg):
    return {field: re.search(rf"{name} ([^,.]*(?:\.\d+)?[^,.]*)[,.]", told(svg))[1] for name, field in NAMES.items()}


def bars(svg):
    """Return the left end, right end and height of every bar, with its color."""
    for path in ET.fromstring(svg).iter():
        if path.get("class") == "gradients":
            for left, top, right in re.findall(r"M([\d.]+) 266V([\d.]+)H([\d.]+)V266z", path.get("d")):
                yield float(left), float(right), 266 - float(top), path.get("fill")


def octave(x):
    return LOW + (x - LEFT) * (HIGH - LOW) / (RIGHT - LEFT)


@pytest.mark.parametrize("log2_scale", [-16, -3, 0, 7, 16, 24])
@pytest.mark.parametrize("fmt", [FP16, BF16, E5M2, E4M3], ids=lambda f: f.name)
@pytest.mark.parametrize("values", [SPREAD, ODD, SPREAD.half(), SPREAD.double() * 1e-30], ids=str)
def test_the_shares_are_those_of_the_census(values, fmt, log2_scale):
    shares = census(values, fmt, scale=2.0**log2_scale)
    assert gradient_octaves(values).census(fmt, scale=2.0**log2_scale) == shares
    svg = gradient_svg(values, log2_scale=log2_scale, fmt=fmt)
    assert shares_told(svg) == {
        field: percent(getattr(shares, field)) if getattr(shares, field) else "none" for field in NAMES.values()
    }
    for field, name in (("zero", "exact zeros"), ("nan", "NaN")):
        share = getattr(shares, field)
        assert (f"{name}: {percent(share)}" in told(svg)) == (share > 0)


@pytest.mark.parametrize("log2_scale", [0, 13])
def test_the_bars_stand_where_the_octaves_are_and_are_as_high_as_their_shares(log2_scale):
    drawn = list(bars(gradient_svg(SPREAD, log2_scale=log2_scale)))
    values = SPREAD[SPREAD != 0].abs().double() * 2.0**log2_scale
    highest = max(height for *_, height, _ in drawn)
    counts = torch.floor(torch.log2(values)).clamp(LOW, HIGH - 1).long().sub(LOW).bincount()
    whole = [bar for bar in drawn if bar[1] - bar[0] > 8]
    assert len(whole) > 20
    for left, _, height, _ in whole:
        count = counts[round(octave(left)) - LOW].item()
        assert height / highest == pytest.approx(count / counts.max().item(), abs=0.001)  # drawn to a tenth of a unit


def test_each_bar_has_the_color_of_its_region():
    colors = {color: [] for *_, color in bars(gradient_svg(SPREAD, log2_scale=20))}
    for left, right, _, color in bars(gradient_svg(SPREAD, log2_scale=20)):
        colors[color].append((octave(left), octave(right)))
    lost, thin, whole, too_large = (colors.get(color, []) for color in ("#d55e00", "#a974d8", "#2a8fce", "#b58900"))
    close = 0.02  # of an octave: what a tenth of a unit is
    assert all(right <= -25 + close for _, right in lost)
    assert thin and all(left >= -25 - close and right <= -14 + close for left, right in thin)
    assert whole and all(left >= -14 - close and right <= 16 + close for left, right in whole)
    assert too_large and all(left >= 16 - close for left, _ in too_large)


def test_a_scale_moves_the_bars_and_nothing_else():
    before = [bar[:3] for bar in bars(gradient_svg(torch.ones(3) * 2.0**-20, log2_scale=0))]
    after = [bar[:3] for bar in bars(gradient_svg(torch.ones(3) * 2.0**-20, log2_scale=8))]
    assert len(before) == len(after) == 1
    assert octave(after[0][0]) - octave(before[0][0]) == pytest.approx(8, abs=0.02)
    assert after[0][2] == before[0][2]


@pytest.mark.parametrize(("values", "end"), [(torch.full((4,), 1e-30), LEFT), (torch.full((4,), 1e30), RIGHT)])
def test_what_lies_beyond_the_picture_is_drawn_at_its_ends(values, end):
    (bar,) = bars(gradient_svg(values, fmt=BF16))
    assert end in bar[:2]


def test_slides_cost_no_pass_over_the_values():
    view = gradient_octaves(SPREAD)
    for log2_scale in (-16, 0, 24):
        for fmt in (FP16, E5M2):
            expected = gradient_svg(SPREAD, log2_scale=log2_scale, fmt=fmt, name="w")
            assert gradient_svg(view, log2_scale=log2_scale, fmt=fmt, name="w") == expected


def test_the_largest_gradient_is_told_with_its_distance_from_overflow():
    assert "the largest gradient, 2, is now 12 octaves below the largest number of FP16" in told(
        gradient_svg(torch.tensor([1.0, -2.0]), log2_scale=3)
    )
    assert "7 octaves above" in told(gradient_svg(torch.tensor([1.0, -2.0]), log2_scale=22))


def test_nothing_to_draw_but_shares():
    svg = gradient_svg(torch.zeros(8), log2_scale=5)
    assert "exact zeros: 100 %" in told(svg) and not list(bars(svg))
    svg = gradient_svg(torch.tensor([math.nan, math.inf]))
    assert "overflows 50 %" in told(svg) and "NaN: 50 %" in told(svg) and not list(bars(svg))


def test_no_gradients_are_refused():
    with pytest.raises(ValueError, match=re.escape("at least one gradient, got shape (0,)")):
        gradient_svg(torch.zeros(0))
    with pytest.raises(ValueError, match="scale must be above 0 and finite, got 0"):
        gradient_histogram(torch.ones(3), scale=0)


@pytest.mark.parametrize("fmt", [FP16, BF16, E5M2], ids=lambda f: f.name)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_static_figure_says_the_same(fmt, scale):
    ax = gradient_histogram(SPREAD, fmt, scale=scale)
    shares = census(SPREAD, fmt, scale=scale)
    expected = [f"{name}: {percent(getattr(shares, f)) if getattr(shares, f) else 'none'}" for name, f in NAMES.items()]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == expected
    area = sum(bar.get_width() * bar.get_height() for bar in ax.patches if bar.get_height() < 0.5)
    assert area == pytest.approx(1 - shares.zero, abs=1e-5)
    assert "log₂" in ax.get_xlabel() and ax.get_ylabel()


@pytest.mark.parametrize("values", [torch.zeros(3), ODD, torch.full((3,), math.inf), torch.tensor(1e-45)], ids=str)
def test_the_static_figure_takes_whatever_gradients_there_are(values):
    gradient_histogram(values)
    plt.gcf().canvas.draw()


def test_controls_choose_the_tensor_the_scale_and_the_format():
    explorer = LossScaleExplorer({"first <1>": SPREAD, "second": ODD})
    assert told(explorer.drawing.value).startswith("first <1>: 20,000 gradients × 2⁰ in FP16")
    explorer.log2_scale.value = -16
    assert "× 2⁻¹⁶ in FP16" in told(explorer.drawing.value)
    explorer.tensor.value = "second"
    assert told(explorer.drawing.value).startswith("second: 8 gradients × 2⁻¹⁶")
    for name in ("BF16", "E5M2"):
        explorer.format.value = name
        svg = explorer.drawing.value
        assert f"in {name}" in told(svg)
        assert shares_told(svg)["normal"] == percent(census(ODD, FORMATS[name], scale=2.0**-16).normal)
    assert (explorer.log2_scale.min, explorer.log2_scale.max) == (-16, 24)


def test_a_tensor_is_counted_once_and_only_when_it_is_chosen(monkeypatch):
    calls = []
    counted = gradient_octaves
    monkeypatch.setattr("qlab.widgets.loss_scaling.gradient_octaves", lambda x: (calls.append(len(x)), counted(x))[1])
    explorer = LossScaleExplorer({"a": SPREAD, "b": ODD})
    for log2_scale in (1, 2, 3):
        explorer.log2_scale.value = log2_scale
    assert calls == [20_000]
    explorer.tensor.value = "b"
    explorer.tensor.value = "a"
    assert calls == [20_000, 8]


def test_an_empty_tensor_becomes_a_sentence_and_no_tensor_is_refused():
    explorer = LossScaleExplorer({"none of it": torch.zeros(0), "some": ODD})
    assert 'role="alert"' in explorer.drawing.value and "at least one gradient" in explorer.drawing.value
    explorer.tensor.value = "some"
    assert "svg" in explorer.drawing.value
    with pytest.raises(ValueError, match="at least one tensor of gradients, got none"):
        LossScaleExplorer({})


def test_no_text_is_drawn_in_one_theme_s_ink():
    for element in ET.fromstring(gradient_svg(SPREAD)).iter():
        if element.tag.endswith("text"):
            assert element.get("fill") == "currentColor"
