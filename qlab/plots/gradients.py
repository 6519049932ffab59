"""Gradients octave by octave over the grid of a narrow format: what a loss scale saves, and what it costs."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from torch import Tensor

from qlab.formats import FP16, FloatFormat
from qlab.loss_scaling import Census
from qlab.loss_scaling.census import census_of_ordered
from qlab.plots.drawings import EXPONENT, MANTISSA, SIGN, drawing, label
from qlab.plots.figures import axes, legend
from qlab.plots.numbers import percent, round_ticks, short

LEFT, RIGHT = 56.0, 744.0
LOW, HIGH = -48, 32  # the octaves in the picture, the same for every format
TOP, GROUND = 106, 266
LOST, THIN, WHOLE, TOO_LARGE = EXPONENT, SIGN, MANTISSA, "#b58900"
FATES = ("rounds to zero", "subnormal, loses bits", "normal", "overflows")
COLORS = (LOST, THIN, WHOLE, TOO_LARGE)
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class GradientOctaves:
    """Magnitudes put in order and counted by octave, once: every scale and format is then read off without a pass.

    Units:   `ordered` in FP64, ascending, without NaN; `counts[k]` values lie from 2^(first + k) to 2^(first + k + 1).
    """

    ordered: Float[Tensor, " n"]
    nan: int
    first: int
    counts: Int[Tensor, " octaves"]

    @property
    def count(self) -> int:
        return len(self.ordered) + self.nan

    @cached_property
    def largest(self) -> float:
        """The largest finite magnitude, 0 if there is none."""
        finite = self.ordered[: int(torch.searchsorted(self.ordered, math.inf))]
        return finite[-1].item() if len(finite) else 0.0

    @cached_property
    def tallest(self) -> float:
        """The share of the octave with the most values."""
        return self.counts.max().item() / self.count if len(self.counts) else 0.0

    def census(self, fmt: FloatFormat, *, scale: int | float) -> Census:
        """Return the shares that `qlab.loss_scaling.census` gives for the same values."""
        return census_of_ordered(self.ordered, fmt, scale=scale, nan=self.nan)

    def shares(self, log2_scale: int) -> dict[int, float]:
        """Return the share of the values in each octave of the picture, those beyond it in its first and last."""
        inside: dict[int, float] = {}
        for place, count in enumerate(self.counts.tolist()):
            octave = min(max(self.first + place + log2_scale, LOW), HIGH - 1)
            inside[octave] = inside.get(octave, 0.0) + count / self.count
        return {octave: share for octave, share in inside.items() if share}


def gradient_octaves(values: Float[Tensor, "*shape"]) -> GradientOctaves:
    """Put the magnitudes of `values` in order and count them by octave.

    Errors:  ValueError if there is no value.
    """
    if not values.numel():
        raise ValueError(f"there must be at least one gradient, got shape {tuple(values.shape)}")
    magnitudes = values.detach().cpu().abs().flatten()
    ordered = magnitudes[~magnitudes.isnan()].sort().values.double()
    nan = len(magnitudes) - len(ordered)
    ends = torch.tensor([0.0, math.nextafter(math.inf, 0)], dtype=torch.float64)
    start, end = torch.searchsorted(ordered, ends, right=True).tolist()
    if start == end:
        return GradientOctaves(ordered, nan, 0, torch.zeros(0, dtype=torch.int64))
    octave = torch.frexp(ordered[start:end]).exponent.long() - 1
    first = int(octave[0])
    return GradientOctaves(ordered, nan, first, (octave - first).bincount())


def gradient_svg(
    values: Float[Tensor, "*shape"] | GradientOctaves, *, log2_scale: int = 0, fmt: FloatFormat = FP16, name: str = ""
) -> str:
    """Draw how many gradients lie in each octave once the loss is scaled, and what `fmt` makes of them.

    Errors:  ValueError if there is no gradient.
    """
    view = values if isinstance(values, GradientOctaves) else gradient_octaves(values)
    census = view.census(fmt, scale=2.0**log2_scale)
    title = f"{name + ': ' if name else ''}{view.count:,} gradients × {power_of_two(log2_scale)} in {fmt.name}"
    fates, also = _fates(census), _also(view, census, fmt, log2_scale)
    shares = view.shares(log2_scale)
    top = max([view.tallest, *shares.values()]) or 1.0
    rows = [label(8, 18, title, 15), _key(fates), label(8, 80, also, 13), _grounds(fmt), _axis(top)]
    rows.append(_bars(shares, fmt, top))
    told = f"{title}: {', '.join(f'{fate} {share}' for fate, share in fates.items())}. {also}"
    return drawing(rows, height=322, told=told)


def gradient_histogram(
    values: Float[Tensor, "*shape"], fmt: FloatFormat = FP16, *, scale: int | float = 1.0, ax: Axes | None = None
) -> Axes:
    """Draw how many of the values times `scale` lie in each octave, and which fate each region of `fmt` has.

    Units:   the x axis is the logarithm of the scaled magnitude to base 2.
    Errors:  ValueError if there is no value, or `scale` is not above 0 and finite.
    """
    fates = _fates(gradient_octaves(values).census(fmt, scale=scale))
    view = gradient_octaves(values.detach().double() * scale)
    ax = ax or axes(x="log₂ of the gradient times the loss scale", y="share of the values in an octave")
    octaves = torch.arange(len(view.counts)) + view.first
    shares = view.counts / view.count
    low, high = (float(octaves[0]), float(octaves[-1] + 1)) if len(octaves) else (-1.0, 1.0)
    low, high = min(low, math.log2(fmt.min_subnormal) - 4), max(high, math.log2(fmt.max) + 4)
    for (start, end), color, (fate, share) in zip(
        pairwise(_borders(fmt, low, high)), COLORS, fates.items(), strict=True
    ):
        ax.axvspan(start, end, color=color, alpha=0.12, lw=0)
        left, right = octaves.clamp(min=start), (octaves + 1).clamp(max=end)
        ax.bar(start, 0.0, color=color, label=f"{fate}: {share}")  # in the legend, drawn or not
        width = (right - left).clamp(min=0)
        ax.bar(left.tolist(), shares.tolist(), width=width.tolist(), align="edge", color=color)
    ax.set_xlim(low, high)
    return legend(ax)


def _fates(census: Census) -> dict[str, str]:
    """Name the four fates with their shares; what is exactly zero has none."""
    shares = (census.underflow, census.subnormal, census.normal, census.overflow)
    return {fate: percent(share) if share else "none" for fate, share in zip(FATES, shares, strict=True)}


def _also(view: GradientOctaves, census: Census, fmt: FloatFormat, log2_scale: int) -> str:
    """Tell the largest value's distance from overflow, and what no scale changes."""
    told = []
    if view.largest:
        room = math.log2(fmt.max / view.largest) - log2_scale
        where = f"{short(abs(room))} octaves {'below' if room >= 0 else 'above'} the largest number of {fmt.name}"
        told.append(f"the largest gradient, {short(view.largest)}, is now {where}")
    if census.zero:
        told.append(f"exact zeros: {percent(census.zero)}")
    if census.nan:
        told.append(f"NaN: {percent(census.nan)}")
    return "; ".join(told)


def _borders(fmt: FloatFormat, low: float, high: float) -> list[float]:
    """Return where the four regions begin and end, within a picture."""
    above_max = fmt.max + 2.0 ** (fmt.max_exponent - fmt.mantissa_bits) / 2
    inner = (fmt.min_subnormal / 2, fmt.min_normal, above_max)
    return [low, *(min(max(math.log2(border), low), high) for border in inner), high]


def _key(fates: dict[str, str]) -> str:
    drawn = ""
    for place, ((fate, share), color) in enumerate(zip(fates.items(), COLORS, strict=True)):
        x = 8 + 188 * place
        drawn += f'<rect x="{x}" y="34" width="12" height="24" rx="2" fill="{color}"/>'
        drawn += label(x + 18, 44, fate, 12) + label(x + 18, 60, share, 14)
    return drawn


def _grounds(fmt: FloatFormat) -> str:
    """Tint the regions of the format, and name the borders that are in the picture."""
    borders, drawn = _borders(fmt, LOW, HIGH), ""
    for (start, end), color in zip(pairwise(borders), COLORS, strict=True):
        drawn += f'<rect x="{_x(start):.1f}" y="{TOP}" width="{_x(end) - _x(start):.1f}" '
        drawn += f'height="{GROUND - TOP}" fill="{color}" opacity="0.13"/>'
    for border in borders[1:-1]:
        if LOW < border < HIGH:
            named = power_of_two(int(border)) if border == int(border) else f"{2**border:.0f}"
            drawn += f'<path d="M{_x(border):.1f} {TOP}V{GROUND}" stroke="currentColor" opacity="0.5"/>'
            drawn += label(_x(border), TOP - 4, named, 12, anchor="middle")
    return drawn


def _bars(shares: dict[int, float], fmt: FloatFormat, top: float) -> str:
    """Draw the octaves as bars, each in the color of its region, cut where a border falls inside."""
    drawn = ""
    for (start, end), color in zip(pairwise(_borders(fmt, LOW, HIGH)), COLORS, strict=True):
        path = ""
        for octave, share in shares.items():
            left, right = max(octave, start), min(octave + 1, end)
            if right > left:
                path += f"M{_x(left):.1f} {GROUND}V{_y(share, top):.1f}H{_x(right):.1f}V{GROUND}z"
        if path:
            drawn += f'<path class="gradients" d="{path}" fill="{color}"/>'
    return drawn


def _axis(top: float) -> str:
    drawn = f'<path d="M{LEFT} {GROUND}H{RIGHT}" stroke="currentColor" opacity="0.6"/>'
    for octave in range(LOW, HIGH + 1, 8):
        drawn += label(_x(octave), GROUND + 16, power_of_two(octave), 12, anchor="middle")
    for share in round_ticks(100 * top, at_most=4)[1:]:
        y = _y(share / 100, top)
        drawn += label(LEFT - 6, round(y) + 4, f"{short(share)} %", 11, anchor="end")
        drawn += f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="currentColor" opacity="0.15"/>'
    named = "magnitude of the gradient times the loss scale; what lies beyond is in the outermost octaves"
    drawn += label((LEFT + RIGHT) / 2, GROUND + 36, named, 12, anchor="middle")
    return drawn + label(8, TOP - 4, "per octave", 11)


def _y(share: float, top: float) -> float:
    return GROUND - (GROUND - TOP - 6) * share / top


def _x(octave: float) -> float:
    return LEFT + (RIGHT - LEFT) * (octave - LOW) / (HIGH - LOW)


def power_of_two(exponent: int) -> str:
    """Return a power of two as it is written."""
    return "2" + str(exponent).translate(SUPERSCRIPTS)
