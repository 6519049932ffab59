"""The explorer of 8-bit moments: its shares against a plain count, its pictures, and what it says of bad input."""

import math
import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pytest
import torch

from qlab.optimizers import QuantizedMoment
from qlab.plots import moment_figure, moment_svg
from qlab.plots.moments import BARS, BARS_A_DECADE, LOW, MOMENT_MAPS, moment_view
from qlab.widgets import MomentExplorer

GENERATOR = torch.Generator().manual_seed(0)
SPREAD = (torch.randn(1500, generator=GENERATOR) * torch.exp2(4 * torch.randn(1500, generator=GENERATOR) - 20)).square()
SPREAD[::50] = 0
SPREAD[256:512] = 0  # a block without a value


def told(svg):
    return ET.fromstring(svg).get("aria-label")


@pytest.mark.parametrize("block_size", [64, 256, None])
@pytest.mark.parametrize("name", MOMENT_MAPS)
def test_the_view_is_a_plain_count(name, block_size):
    levels = MOMENT_MAPS[name]
    view = moment_view(SPREAD, levels, block_size=block_size)
    zeros, factors, lost, bars = 0, [], [], [0] * BARS
    for block in SPREAD.split(block_size or len(SPREAD)):
        largest = block.max()
        for v in block[block > 0]:
            kept = levels[(levels - v / largest).abs().argmin()].clamp(min=0) * largest
            factor = ((v.sqrt() + 1e-8) / (kept.sqrt() + 1e-8)).item()
            (factors if kept > 0 else lost).append(factor)
            zeros += kept.item() == 0
            bars[min(max(math.floor((math.log10(v / largest) - LOW) * BARS_A_DECADE), 0), BARS - 1)] += 1
    assert view.zeros == pytest.approx(zeros / 1500, abs=2 / 1500)  # a tie's neighbor in FP32
    assert view.exact_zeros == pytest.approx((SPREAD == 0).float().mean().item())
    assert view.shares == pytest.approx([bar / 1500 for bar in bars], abs=2 / 1500)
    assert view.typical_error == pytest.approx(_median([abs(f - 1) for f in factors]), rel=0.02)
    assert view.zeros_factor == (pytest.approx(_median(lost), rel=0.05) if lost else None)


def _median(values):
    return torch.tensor(values).median().item()


def test_the_dynamic_map_is_that_of_the_optimizer():
    view = moment_view(SPREAD, MOMENT_MAPS["dynamic, unsigned"], block_size=256)
    coded = QuantizedMoment.quantize(SPREAD, signed=False)
    assert view.zeros == pytest.approx(((SPREAD > 0) & (coded.dequantize() == 0)).float().mean().item())


@pytest.mark.parametrize("name", MOMENT_MAPS)
def test_the_picture_says_what_it_shows(name):
    svg = moment_svg(SPREAD, map_name=name, block_size=256, name="a weight")
    view = moment_view(SPREAD, MOMENT_MAPS[name], block_size=256)
    assert told(svg).startswith(f"a weight: 1,500 second moments, {name}, blocks of 256: become zero: ")
    assert "exact zeros" in told(svg) and ("their update grows" in told(svg)) == (view.zeros > 0)
    path = next(p for p in ET.fromstring(svg).iter() if p.get("class") == "levels").get("d")
    positive = MOMENT_MAPS[name][MOMENT_MAPS[name] > 0]
    assert path.count("M") == len(positive)
    heights = [float(y) for p in ET.fromstring(svg).iter() if p.get("class") == "moments"
               for y in re.findall(r"V([\d.]+)H", p.get("d"))]  # fmt: skip
    assert 266 - min(heights) == pytest.approx(148)


def test_a_moment_of_zeros_can_be_drawn():
    svg = moment_svg(torch.zeros(300), map_name="linear, signed", block_size=None)
    assert "become zero: none, exact zeros 100 %; no value keeps a level above zero" in told(svg)


def test_the_figure_has_both_borders():
    ax = moment_figure(SPREAD)
    labels = [line.get_label() for line in ax.lines]
    assert [label.split(":")[0] for label in labels] == ["linear, unsigned", "dynamic, unsigned"]
    assert [10 ** line.get_xdata()[0] for line in ax.lines] == pytest.approx([1 / 510, 1.625e-7])
    assert ax.get_xlabel() and ax.get_ylabel()
    plt.close(ax.figure)


def test_the_explorer_follows_its_controls():
    explorer = MomentExplorer({"first": SPREAD, "second": SPREAD[:1000]})
    assert "first: 1,500 second moments, linear, unsigned, blocks of 256" in told(explorer.drawing.value)
    explorer.map.value = "dynamic, unsigned"
    explorer.block_size.label = "the whole tensor"
    explorer.tensor.value = "second"
    assert "second: 1,000 second moments, dynamic, unsigned, one absmax for all" in told(explorer.drawing.value)
    assert "\n" not in explorer.drawing.value


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one second moment, got none"):
        MomentExplorer({})
    with pytest.raises(ValueError, match=r"the map must be one of dynamic, unsigned, .* got cubic"):
        moment_svg(SPREAD, map_name="cubic", block_size=256)
    with pytest.raises(ValueError, match=r"values of at least 0, got shape \(2,\)"):
        moment_view(torch.tensor([1.0, -1.0]), MOMENT_MAPS["linear, signed"], block_size=256)
    refused = MomentExplorer({"<bad>": torch.tensor([1.0, float("inf")])}).drawing.value
    assert refused.startswith('<p role="alert">No moment to draw: x must be finite')
