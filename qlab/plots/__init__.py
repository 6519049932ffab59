"""Figures: numbers in, matplotlib axes (`figures`) or SVG text (`drawings`, `bills`) out."""

from qlab.plots.bills import bill_svg
from qlab.plots.drawings import bits_svg, octaves_svg
from qlab.plots.figures import FORMAT_COLORS, axes, density_per_octave, error_by_magnitude, legend, lines

__all__ = [
    "FORMAT_COLORS",
    "axes",
    "bill_svg",
    "bits_svg",
    "density_per_octave",
    "error_by_magnitude",
    "legend",
    "lines",
    "octaves_svg",
]
