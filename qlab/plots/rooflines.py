"""The roofline: what a machine can reach at most, by operations for each byte, and where some kernels stand."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from qlab.plots.figures import INK, MARKERS, axes, legend
from qlab.roofline import Rates, Work

COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def roofline(
    rates: Rates,
    works: Mapping[str, Work],
    *,
    measured: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the roof of `rates`, and each kernel where it would touch it; filled markers are what was measured.

    Names that are equal up to their first comma share a color.
    Units:   `measured` is in operations a second.
    """
    ax = ax or axes(x="operations a byte", y="10¹² operations a second", height=3.4)
    intensities = [work.intensity for work in works.values()]
    low, high = min([*intensities, rates.ridge]) / 2, max([*intensities, rates.ridge]) * 4
    xs = [low, rates.ridge, high]
    ax.plot(xs, [_roof(rates, x) / 1e12 for x in xs], color=INK, lw=1.5, label=f"{rates.name}: the roof")
    top = rates.operations_per_s / 1e12
    ax.annotate(f"ridge: {rates.ridge:,.0f}", (rates.ridge, top), (4, -14), textcoords="offset points", color=INK)
    families = list(dict.fromkeys(name.split(",")[0] for name in works))
    for place, (name, work) in enumerate(works.items()):
        color = COLORS[families.index(name.split(",")[0]) % len(COLORS)]
        look = {"marker": MARKERS[place % len(MARKERS)], "color": color, "ms": 8, "ls": ""}
        reached = (measured or {}).get(name)
        ax.plot(work.intensity, _roof(rates, work.intensity) / 1e12, mfc="none", label=name, **look)
        if reached is not None:
            ax.plot(work.intensity, reached / 1e12, label=f"{name}, measured", **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    return legend(ax)


def _roof(rates: Rates, intensity: float) -> float:
    return min(rates.operations_per_s, rates.bytes_per_s * intensity)
