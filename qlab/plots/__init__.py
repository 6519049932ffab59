"""Figures: numbers in, matplotlib axes (`figures`) or SVG text (`drawings`, `bills`, `grids`, `clips`) out."""

from qlab.plots.adapters import adapter_figure, adapter_svg
from qlab.plots.attention_tiles import running_figure, tiles_svg
from qlab.plots.bills import bill_svg
from qlab.plots.clip_curves import ClipCurves, clip_curves
from qlab.plots.clips import clip_svg
from qlab.plots.damage import damage_by_bits
from qlab.plots.drawings import bits_svg, octaves_svg
from qlab.plots.figures import FORMAT_COLORS, axes, density_per_octave, error_by_magnitude, legend, lines
from qlab.plots.gradients import GradientOctaves, gradient_histogram, gradient_octaves, gradient_svg
from qlab.plots.grid_views import GridChoice, GridView, TileCodes
from qlab.plots.grids import grid_svg
from qlab.plots.levels import codebook_errors, levels_figure, levels_svg
from qlab.plots.moments import moment_figure, moment_svg
from qlab.plots.outlier_strips import outlier_svg
from qlab.plots.outliers import outlier_map_figure
from qlab.plots.remedy_bars import remedies_svg
from qlab.plots.rooflines import roofline
from qlab.plots.sparsity import PrunableLayers, kept_by_layer, sparsity_svg
from qlab.plots.timelines import timeline_figure, timeline_svg

__all__ = [
    "FORMAT_COLORS",
    "ClipCurves",
    "GradientOctaves",
    "GridChoice",
    "GridView",
    "PrunableLayers",
    "TileCodes",
    "adapter_figure",
    "adapter_svg",
    "axes",
    "bill_svg",
    "bits_svg",
    "clip_curves",
    "clip_svg",
    "codebook_errors",
    "damage_by_bits",
    "density_per_octave",
    "error_by_magnitude",
    "gradient_histogram",
    "gradient_octaves",
    "gradient_svg",
    "grid_svg",
    "kept_by_layer",
    "legend",
    "levels_figure",
    "levels_svg",
    "lines",
    "moment_figure",
    "moment_svg",
    "octaves_svg",
    "outlier_map_figure",
    "outlier_svg",
    "remedies_svg",
    "roofline",
    "running_figure",
    "sparsity_svg",
    "tiles_svg",
    "timeline_figure",
    "timeline_svg",
]
