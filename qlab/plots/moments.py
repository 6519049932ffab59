"""A second moment over the levels of a map: which values become zero, and what that does to the update."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from qlab.codebooks import dynamic_map, linear_map, quantize_blockwise
from qlab.plots.drawings import EXPONENT, MANTISSA, drawing, label
from qlab.plots.figures import axes, legend
from qlab.plots.gradients import SUPERSCRIPTS
from qlab.plots.numbers import percent, round_ticks, short

MOMENT_MAPS = {
    "dynamic, unsigned": dynamic_map(signed=False),
    "dynamic, signed": dynamic_map(signed=True),
    "linear, unsigned": linear_map(signed=False),
    "linear, signed": linear_map(signed=True),
}
LEFT, RIGHT, TOP, GROUND = 56.0, 744.0, 112, 266
LOW, BARS_A_DECADE = -14, 2  # decades below a block's largest value
BARS = -LOW * BARS_A_DECADE


@dataclass(frozen=True)
class MomentView:
    """What a map makes of a second moment: shares of all values, and the factor by which a coded update is too large.

    `shares[k]` is that of the k-th half decade from 10^-14 of the block's largest value up to 1, the rest is in the
    first. `zeros` is the share that is above 0 and becomes 0; `exact_zeros` was 0. `typical_error` is the median of
    |factor - 1| where the code is not 0, `zeros_factor` the median factor where it is. None is of no value.
    """

    shares: tuple[float, ...]
    zeros: float
    exact_zeros: float
    typical_error: float | None
    zeros_factor: float | None
    zero_below: float
    values: int


def moment_view(
    second_moment: Float[Tensor, "*shape"],
    codebook: Float[Tensor, " levels"],
    *,
    block_size: int | None,
    eps: float = 1e-8,
) -> MomentView:
    """Code a second moment and compare 1 / (√v + eps) before and after; None is one block for the whole tensor.

    Errors:  ValueError if there is no value, or one is negative or not finite.
    """
    values = second_moment.detach().float().cpu().flatten()
    if not values.numel() or (values < 0).any():
        raise ValueError(f"a second moment must hold values of at least 0, got shape {tuple(second_moment.shape)}")
    coded = quantize_blockwise(values, codebook, block_size=block_size or values.numel())
    kept = coded.dequantize().clamp_min_(0)
    factor = (values.sqrt() + eps) / (kept.sqrt() + eps)
    lost, whole = (values > 0) & (kept == 0), kept > 0
    bars = _bars_below(values, coded.absmax.log10().repeat_interleave(coded.block_size)[: len(values)])
    positive = codebook[codebook > 0]
    return MomentView(
        shares=tuple((bars / len(values)).tolist()),
        zeros=lost.float().mean().item(),
        exact_zeros=(values == 0).float().mean().item(),
        typical_error=(factor[whole] - 1).abs_().median().item() if whole.any() else None,
        zeros_factor=factor[lost].median().item() if lost.any() else None,
        zero_below=positive.min().item() / 2,
        values=len(values),
    )


def moment_svg(second_moment: Float[Tensor, "*shape"], *, map_name: str, block_size: int | None, name: str = "") -> str:
    """Draw where a second moment lies below the largest of its block, the levels of a map, and what is lost.

    Errors:  ValueError if `map_name` is not one of `MOMENT_MAPS`, or the moment cannot be coded.
    """
    if map_name not in MOMENT_MAPS:
        raise ValueError(f"the map must be one of {', '.join(MOMENT_MAPS)}, got {map_name}")
    codebook = MOMENT_MAPS[map_name]
    view = moment_view(second_moment, codebook, block_size=block_size)
    title = f"{name + ': ' if name else ''}{view.values:,} second moments, {map_name}, {_blocks(block_size)}"
    lost, error = _told(view)
    rows = [label(8, 18, title, 15), label(8, 44, lost, 14, fill=EXPONENT), label(8, 66, error, 14)]
    rows += [_lost_ground(view), _axis(max(view.shares) or 1.0), _bars(view), _levels(codebook)]
    return drawing(rows, height=330, told=f"{title}: {lost}; {error}")


def moment_figure(
    second_moment: Float[Tensor, "*shape"], *, block_size: int | None = 256, ax: Axes | None = None
) -> Axes:
    """Draw the same histogram once, with the borders below which each unsigned map has only zero."""
    ax = ax or axes(x="log₁₀ of v over the largest v of its block", y="share of the values, %")
    edges = torch.linspace(LOW, 0, BARS + 1)[:-1]
    for name, color in (("linear, unsigned", EXPONENT), ("dynamic, unsigned", MANTISSA)):
        view = moment_view(second_moment, MOMENT_MAPS[name], block_size=block_size)
        told = f"{name}: zero below\n({percent(view.zeros)} of the values)"
        ax.axvline(math.log10(view.zero_below), color=color, lw=2, label=told)
    ax.bar(edges.tolist(), [100 * s for s in view.shares], width=1 / BARS_A_DECADE, align="edge", color="0.6")
    return legend(ax)


def _bars_below(values: Tensor, log_largest: Tensor) -> Tensor:
    """Count the values above 0 in each half decade below the largest of their block."""
    decades = values.log10().sub_(log_largest).sub_(LOW).mul_(BARS_A_DECADE)
    decades = decades.nan_to_num_(nan=0.0, neginf=0.0)  # where the value, or the whole block, is 0
    bars = decades.floor_().clamp_(0, BARS - 1).int().bincount(minlength=BARS)
    bars[0] -= (values == 0).sum()
    return bars


def _told(view: MomentView) -> tuple[str, str]:
    also = f", exact zeros {percent(view.exact_zeros)}" if view.exact_zeros else ""
    lost = f"become zero: {percent(view.zeros) if view.zeros else 'none'}{also}"
    if view.zeros_factor is not None:
        grows = view.zeros_factor
        lost += f"; their update grows {f'{grows:,.0f}' if grows >= 100 else short(grows)} times (median)"
    if view.typical_error is None:
        return lost, "no value keeps a level above zero"
    return lost, f"the others' update is off by {percent(view.typical_error)} (median)"


def _blocks(block_size: int | None) -> str:
    return "one absmax for all" if block_size is None else f"blocks of {block_size}"


def _lost_ground(view: MomentView) -> str:
    """Tint what lies below half the smallest level."""
    border = _x(max(math.log10(view.zero_below), LOW))
    drawn = f'<rect x="{LEFT}" y="{TOP}" width="{border - LEFT:.1f}" height="{GROUND - TOP}" '
    drawn += f'fill="{EXPONENT}" opacity="0.13"/>'
    drawn += f'<path d="M{border:.1f} {TOP}V{GROUND}" stroke="{EXPONENT}" stroke-width="1.5"/>'
    return drawn + label(max(border, 180) - 4, TOP - 4, "← becomes zero", 12, anchor="end", fill=EXPONENT)


def _bars(view: MomentView) -> str:
    """Draw the half decades as bars, those that become zero in the color of loss."""
    top, border = max(view.shares) or 1.0, math.log10(view.zero_below)
    paths = {EXPONENT: "", MANTISSA: ""}
    for place, share in enumerate(view.shares):
        left, right = LOW + place / BARS_A_DECADE, LOW + (place + 1) / BARS_A_DECADE
        for start, end, color in ((left, min(right, border), EXPONENT), (max(left, border), right, MANTISSA)):
            if share and end > start:
                y = GROUND - (GROUND - TOP - 6) * share / top
                paths[color] += f"M{_x(start):.1f} {GROUND}V{y:.1f}H{_x(end):.1f}V{GROUND}z"
    return "".join(f'<path class="moments" d="{path}" fill="{color}"/>' for color, path in paths.items() if path)


def _levels(codebook: Tensor) -> str:
    """Draw each positive level as a tick under the axis."""
    ticks = "".join(f"M{_x(math.log10(level)):.1f} {GROUND + 4}v10" for level in codebook.tolist() if level > 10.0**LOW)
    drawn = f'<path class="levels" d="{ticks}" stroke="{MANTISSA}" stroke-width="0.8"/>'
    return drawn + label(LEFT - 6, GROUND + 14, "levels", 11, anchor="end")


def _axis(top: float) -> str:
    drawn = f'<path d="M{LEFT} {GROUND}H{RIGHT}" stroke="currentColor" opacity="0.6"/>'
    for decade in range(LOW, 1, 2):
        power = "10" + str(decade).translate(SUPERSCRIPTS) if decade else "1"
        drawn += label(_x(decade), GROUND + 32, power, 12, anchor="middle")
    for share in round_ticks(100 * top, at_most=4)[1:]:
        y = GROUND - (GROUND - TOP - 6) * share / (100 * top)
        drawn += label(LEFT - 6, round(y) + 4, f"{short(share)} %", 11, anchor="end")
        drawn += f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="currentColor" opacity="0.15"/>'
    named = "v over the largest v of its block; what lies below is in the first bar"
    drawn += label((LEFT + RIGHT) / 2, GROUND + 54, named, 12, anchor="middle")
    return drawn + label(8, TOP - 4, "per half decade", 11)


def _x(decade: float) -> float:
    return LEFT + (RIGHT - LEFT) * (decade - LOW) / -LOW
