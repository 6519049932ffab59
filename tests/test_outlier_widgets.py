"""The explorers of outliers: what they draw, what they say of it, and what they refuse."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch

from qlab.plots import outlier_svg, remedies_svg
from qlab.widgets import OutlierExplorer, RemedyExplorer

ORDINARY = torch.randn(256, generator=torch.Generator().manual_seed(0))
LOST = {"none": {16: 0.03, 64: 2.04}, "smoothed": {16: -0.001, 64: 0.0003}}


def told(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label")


def codes_in_use(svg: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+) of \d+ codes in use", told(svg))]


def test_a_larger_outlier_leaves_fewer_codes_and_a_block_confines_it():
    explorer = OutlierExplorer(ORDINARY)
    together, in_blocks = codes_in_use(explorer.drawing.value)
    explorer.strength.value = 64.0
    stretched, confined = codes_in_use(explorer.drawing.value)
    assert stretched < together / 10
    assert confined > 0.8 * in_blocks
    assert "64 times the largest" in told(explorer.drawing.value)


def test_bits_change_what_is_drawn():
    explorer = OutlierExplorer(ORDINARY)
    explorer.bits.value = 3
    assert told(explorer.drawing.value).startswith("3 bits") and "of 7 codes" in told(explorer.drawing.value)


def test_every_ordinary_value_is_drawn_as_it_was():
    drawn = ET.fromstring(outlier_svg(ORDINARY, strength=1.5))
    blue = [e for e in drawn.iter() if e.tag.endswith("circle") and e.get("fill") == "#2a8fce"]
    assert len(blue) == 2 * (len(ORDINARY) - 1)


@pytest.mark.parametrize(
    ("values", "strength", "bits", "message"),
    [
        (ORDINARY, 0.5, 8, "strength must be at least 1, got 0.5"),
        (ORDINARY[:1], 2.0, 8, "at least 2 are needed, got 1"),
        (ORDINARY, 2.0, 9, "bits must be 2 to 8, got 9"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, strength, bits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        outlier_svg(values, strength=strength, bits=bits)


def test_values_that_are_not_finite_become_a_sentence():
    explorer = OutlierExplorer(torch.tensor([1.0, float("nan"), 2.0]))
    assert 'role="alert"' in explorer.drawing.value and "NaN" in explorer.drawing.value


def test_the_bars_follow_the_strength():
    explorer = RemedyExplorer(LOST)
    assert "planted with s = 16: none +0.0300, smoothed -0.0010" in told(explorer.drawing.value)
    explorer.strength.value = 64
    assert "planted with s = 64: none +2.0400" in told(explorer.drawing.value)
    bars = [e for e in ET.fromstring(explorer.drawing.value).iter() if e.get("class") == "loss"]
    assert float(bars[0].get("width")) > 300 and float(bars[1].get("width")) == 0


def test_losses_at_different_strengths_are_refused():
    with pytest.raises(ValueError, match=re.escape("smoothed must have a loss at the strengths [16, 64], got [16]")):
        RemedyExplorer(LOST | {"smoothed": {16: 0.1}})
    with pytest.raises(ValueError, match="at least one remedy"):
        RemedyExplorer({})
    with pytest.raises(ValueError, match="must be finite, got nan"):
        remedies_svg({"none": float("nan")}, title="x")
