"""Matplotlib figures: one color per format in every lesson, readable on white and on black."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from qlab.formats import FloatFormat, finite_values, round_to_format

INK = "#7f7f7f"  # contrast of at least 4 to 1 on white and on black
# One step lighter: Jupyter puts a white sheet under a transparent figure whose tick labels are all on one side of gray.
INK_OF_Y = "#808080"
# Okabe and Ito 2008: told apart with every common kind of color blindness
FORMAT_COLORS = {
    "FP32": "#7f7f7f",
    "TF32": "#b58900",
    "BF16": "#0072b2",
    "FP16": "#d55e00",
    "E5M2": "#56b4e9",
    "E4M3": "#e69f00",
    "E3M4": "#cc79a7",
    "E2M1": "#009e73",
    "E3M0": "#a05fd0",
}
MARKERS = "os^Dv<>Ph"


def axes(*, x: str, y: str, width: float = 8.0, height: float = 3.2) -> Axes:
    """Return empty axes with both axes labelled, on a transparent ground."""
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    ax.patch.set_alpha(0)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.tick_params(which="both", axis="x", colors=INK)
    ax.tick_params(which="both", axis="y", colors=INK_OF_Y)
    for side, spine in ax.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    ax.grid(alpha=0.25, color=INK)
    return ax


def legend(ax: Axes) -> Axes:
    """Add a legend beside the axes, where it covers nothing, that reads in both themes."""
    ax.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def density_per_octave(formats: Sequence[FloatFormat], *, ax: Axes | None = None) -> Axes:
    """Draw how many numbers each format has between 2^k and 2^(k+1): the area is what the bits buy.

    Units:   both axes are logarithms to base 2.
    """
    ax = ax or axes(x="octave: numbers from 2ᵏ to 2ᵏ⁺¹, by k", y="numbers in the octave")
    for marker, fmt in zip(MARKERS, formats, strict=False):
        values = finite_values(fmt)
        octave = torch.frexp(values[values > 0]).exponent - 1
        k, count = octave.unique(return_counts=True)
        ax.plot(k, count, marker + "-", ms=4, label=fmt.name, color=FORMAT_COLORS.get(fmt.name))
    ax.set_yscale("log", base=2)
    return legend(ax)


def error_by_magnitude(formats: Sequence[FloatFormat], *, ax: Axes | None = None) -> Axes:
    """Draw the worst relative error of rounding to each format, octave by octave; 1 means the value is lost."""
    ax = ax or axes(x="magnitude of the value", y="worst relative error")
    octaves = torch.arange(-30, 24)
    values = torch.exp2(octaves.double())[:, None] * torch.linspace(1, 2, 4097, dtype=torch.float64)[:-1]
    for marker, fmt in zip(MARKERS, formats, strict=False):
        error = ((round_to_format(values, fmt, saturate=True) - values).abs() / values).amax(dim=1)
        color = FORMAT_COLORS.get(fmt.name)
        ax.plot(torch.exp2(octaves.float()), error, marker + "-", ms=3, label=fmt.name, color=color)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    return legend(ax)


def lines(series: Mapping[str, Sequence[float]], *, ax: Axes) -> Axes:
    """Draw each series against its index, told apart by color and by marker."""
    for marker, (name, values) in zip(MARKERS, series.items(), strict=False):
        every = max(1, len(values) // 12)
        ax.plot(values, marker=marker, markevery=every, ms=4, label=name, color=FORMAT_COLORS.get(name))
    return legend(ax)
