"""Where a model's outliers are: the largest magnitude by depth and dimension."""

import math

import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from qlab.outliers import OutlierMap
from qlab.plots.figures import INK, INK_OF_Y, axes

COLUMNS = 512  # a figure shows no more: neighboring dimensions share a column, and the largest of them is shown
DECADES = 3
OUTLIER_COLOR = "#d55e00"


def outlier_map_figure(found: OutlierMap, *, ax: Axes | None = None) -> Axes:
    """Draw the largest magnitude in each dimension of each input as a map, with a mark above each outlier.

    Color is the logarithm of the magnitude, yellow the largest; what is below a thousandth of that has one color.
    """
    ax = ax or axes(x="hidden dimension", y="input of linear layers, by depth", height=3.6)
    readers, width = found.largest.shape
    together = math.ceil(width / COLUMNS)
    top = found.largest.max().item() or 1.0
    shown = F.max_pool1d(found.largest[None], together, ceil_mode=True)[0].clamp(min=top / 10**DECADES).numpy()
    edges = (-0.5, shown.shape[1] * together - 0.5, readers - 0.5, -0.5)
    colors = {"norm": LogNorm(top / 10**DECADES, top), "cmap": "cividis"}
    image = ax.imshow(shown, **colors, extent=edges, aspect="auto", interpolation="nearest")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(readers - 0.5, -0.5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(found.model, color=INK, pad=12)
    ax.grid(False)
    above = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    ax.plot(found.outliers, [1.03] * len(found.outliers), "v", ms=5, color=OUTLIER_COLOR, **above)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("largest magnitude", color=INK_OF_Y)
    bar.ax.tick_params(which="both", colors=INK_OF_Y)
    bar.outline.set_edgecolor(INK)
    return ax
