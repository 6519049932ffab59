"""What rounding costs against what it saves: bits per byte over bits per weight."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from qlab.damage import Damage
from qlab.plots.figures import MARKERS, axes, legend

# Okabe and Ito 2008, without the two that vanish on white or black, then two more
FAMILY_COLORS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#a05fd0", "#7f7f7f")
# one color and marker for each in every figure; beyond the colors, dashed
FAMILIES = (
    "per tensor",
    "per row",
    "groups of 64",
    "affine groups of 64",
    "k-means per tensor",
    "NF4 blocks of 64",
    "affine per row",
    "quantiles per tensor",
    "per column",
    "groups of 128",
    "groups of 32",
    "FP4 blocks of 64",
    "dynamic blocks of 64",
)
STRAIGHT_BELOW = 0.01  # bits per byte: closer to zero the axis is linear, so that noise around zero stays visible


def damage_by_bits(found: Sequence[Damage], *, ax: Axes | None = None) -> Axes:
    """Draw each family's damage against what a weight takes, with two standard errors; down and left is better."""
    ax = ax or axes(x="bits per weight, constants included", y="bits per byte lost", height=3.6)
    families = list(dict.fromkeys(one.family for one in found))
    known = list(dict.fromkeys([*FAMILIES, *families]))
    for family in families:
        place = known.index(family)
        members = sorted((one for one in found if one.family == family), key=lambda one: one.bits_per_weight)
        style = {"color": FAMILY_COLORS[place % len(FAMILY_COLORS)], "marker": MARKERS[place % len(MARKERS)]}
        style["ls"] = "-" if place < len(FAMILY_COLORS) else "--"
        errors = [2 * one.standard_error for one in members]
        x, y = [one.bits_per_weight for one in members], [one.bits_per_byte for one in members]
        ax.errorbar(x, y, yerr=errors, ms=4, lw=1, capsize=2, label=family, **style)
    ax.set_yscale("symlog", linthresh=STRAIGHT_BELOW)
    ax.set_ylim(bottom=min([-STRAIGHT_BELOW, *(one.bits_per_byte - 2 * one.standard_error for one in found)]))
    return legend(ax)
