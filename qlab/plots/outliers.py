"""Where a model's outliers are: the largest magnitude by depth and dimension."""

import math

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from qlab.outliers import OutlierMap
from qlab.plots.figures import INK, INK_OF_Y, axes

COLUMNS = 512  # a figure shows no more: neighboring dimensions share a column, and the largest of them is shown
OUTLIER_COLOR = "#d55e00"


def outlier_map_figure(found: OutlierMap, *, ax: Axes | None = None) -> Axes:
    """Draw the largest magnitude in each dimension of each input as a map, with a mark above each outlier.

    The color is a logarithm of the magnitude: yellow is large.
    """
    ax = ax or axes(x="hidden dimension", y="input of linear layers, by depth", height=3.6)
    readers, width = found.largest.shape
    together = math.ceil(width / COLUMNS)
    shown = F.max_pool1d(found.largest[None], together, ceil_mode=True)[0].clamp(min=torch.finfo(torch.float32).tiny)
    edges = (-0.5, shown.shape[1] * together - 0.5, readers - 0.5, -0.5)
    image = ax.imshow(
        shown, norm=LogNorm(), cmap="cividis", extent=edges, aspect="auto", interpolation="nearest", zorder=2
    )
    marks = ax.plot(found.outliers, torch.full(found.outliers.shape, -1.0), "v", ms=5, color=OUTLIER_COLOR)
    marks[0].set_label(f"outliers: at least {found.rule.magnitude:g}")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(readers - 0.5, -1.5 - readers / 20), title=found.model)
    ax.title.set_color(INK)
    ax.grid(False)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("largest magnitude", color=INK_OF_Y)
    bar.ax.tick_params(which="both", colors=INK_OF_Y)
    bar.outline.set_edgecolor(INK)
    return ax
