"""Figures and drawings: labelled, in the formats' colors, and right about the numbers they show."""

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
import torch

from qlab import plots
from qlab.formats import E2M1, E4M3, E5M2, FORMATS, FP16, FP32, FloatFormat, encode

mpl.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    mpl.pyplot.close("all")


def test_axes_are_labelled_and_transparent():
    ax = plots.axes(x="bits", y="error")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("bits", "error")
    assert ax.patch.get_alpha() == ax.figure.patch.get_alpha() == 0


def test_density_counts_the_numbers_of_each_octave():
    ax = plots.density_per_octave([E4M3])
    (line,) = ax.lines
    assert line.get_label() == "E4M3" and line.get_color() == plots.FORMAT_COLORS["E4M3"]
    assert sum(line.get_ydata()) == E4M3.max_code
    assert max(line.get_ydata()) == 8


def test_error_has_a_floor_at_half_a_step_and_walls_at_the_ends():
    (line,) = plots.error_by_magnitude([FP16]).lines
    error = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert error[1.0] == pytest.approx(2.0**-11, rel=0.01)
    assert error[2.0**-30] == 1.0
    assert error[2.0**20] > 0.9


def test_series_are_told_apart_by_marker_too():
    ax = plots.lines({"a": [1, 2, 3], "b": [3, 2, 1]}, ax=plots.axes(x="x", y="y"))
    assert len({line.get_marker() for line in ax.lines}) == 2


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_every_code_can_be_drawn(fmt):
    edges = [0, 1, fmt.max_code, fmt.max_code - 1, 2 ** (fmt.bits - 1), 2**fmt.bits - 1]
    for code in edges + torch.randint(0, 2**fmt.bits, (20,)).tolist():
        drawing = ET.fromstring(plots.bits_svg(code, fmt))
        digits = [t.text for t in drawing.iter("text") if t.get("font-size") == "16"]
        assert "".join(digits) == f"{code:0{fmt.bits}b}"
        assert f"code {code} is" in drawing.get("aria-label")


def test_a_drawing_shows_value_formula_step_and_neighbors():
    code = int(encode(torch.tensor([0.1]), FP16, saturate=False))
    text = " ".join(t.text for t in ET.fromstring(plots.bits_svg(code, FP16, note="<mine> & yours")).iter("text"))
    assert "+ (1 + 614/1024) · 2^(-4) = 0.0999756" in text
    assert "step here (ULP): 6.10352e−05" in text
    assert "0.100037" in text and "<mine> & yours" in text


@pytest.mark.parametrize("exponent_bits", [2, 3, 4, 5, 6])
def test_a_split_is_drawn_with_every_positive_number(exponent_bits):
    fmt = FloatFormat("split", exponent_bits, 7 - exponent_bits)
    drawing = plots.octaves_svg(fmt, octaves=(-32, 33))
    ET.fromstring(drawing)
    assert len(re.findall("<line", drawing)) == fmt.max_code + 1  # and the axis


def test_every_format_of_the_lessons_has_a_color():
    assert {f.name for f in (FP32, FP16, E5M2, E4M3, E2M1)} <= set(plots.FORMAT_COLORS)
