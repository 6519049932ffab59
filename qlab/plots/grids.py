"""A histogram with the code grid laid over it: what is quantized above the line, which codes it gets below."""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.plots.drawings import EXPONENT, MANTISSA, drawing, label
from qlab.plots.grid_views import GridChoice, GridView, TileCodes, as_matrix
from qlab.plots.numbers import percent, round_ticks, short, short_db
from qlab.quantize import PER_TENSOR, sqnr_db

LEFT, RIGHT = 8.0, 752.0
MARGIN = 1.03  # the axis ends a little past the largest value, so that its code is drawn whole
BINS = 124
STRIP = (58, 82)  # top and bottom of the strip that shows all values
TOP, GROUND, BOTTOM = 108, 206, 276  # values stand on the ground, codes hang from it
CODE_ROOM = 24


def grid_svg(
    x: Float[Tensor, "*rows columns"], choice: GridChoice | None = None, *, own: TileCodes | None = None, note: str = ""
) -> str:
    """Draw one tile's values over the grid of its codes, and tell the error over all tiles and what a value takes.

    `own` are codes of the same tile, made by another quantizer: its grid is drawn in place of qlab's.
    Errors:  ValueError if `x` is empty or holds NaN or infinity.
    """
    view = GridView(as_matrix(x), choice or GridChoice())
    name, drawn, limit = view.choice.name, own or view.expected, _axis(view.tile)
    taken = f"{view.quantized.bits_per_value:.2f} bits per weight with constants"
    told = [_whole(view), _which(view), _here(view)]
    counts = torch.histc(view.tile, BINS, -limit, limit)
    rows = [label(LEFT, 18, name, 15), label(RIGHT, 18, taken, 14, anchor="end"), label(LEFT, 40, told[0], 13)]
    rows += [_strip(view, limit), _cut(view, limit), _values(counts), _codes(view, drawn, limit), _value_axis(limit)]
    rows += [_legend(counts, drawn), label(LEFT, 358, told[1], 13), label(LEFT, 378, told[2], 13)]
    if note:
        rows.append(label(LEFT, 402, note, 14))
        told.append(note)
    return drawing(rows, height=414 if note else 388, told=f"{name}: {taken}. {'. '.join(told)}")


def bars(counts: Tensor, *, ground: float, height: float, color: str) -> str:
    """Draw counts as bars that fill the width: linear, the tallest `height` high, and none that is not empty unseen."""
    tallest, wide = max(counts.max().item(), 1), (RIGHT - LEFT) / len(counts)
    outline = ""
    for place, count in enumerate(counts.tolist()):
        if count:
            tall = max(height * count / tallest, 1.5)
            outline += f"M{LEFT + place * wide:.1f} {ground}v{-tall:.1f}h{wide - 0.6:.1f}v{tall:.1f}z"
    return f'<path class="values" d="{outline}" fill="{color}"/>'


def _axis(tile: Tensor) -> float:
    return MARGIN * (tile.abs().max().item() or 1.0)


def _x(value: float, limit: float) -> float:
    return LEFT + (RIGHT - LEFT) * (value / limit + 1) / 2


def _whole(view: GridView) -> str:
    """Tell the error over all tiles, and the share of values that is clipped."""
    if not view.x.any():
        return f"all {view.x.numel():,} values are 0"
    decibels = sqnr_db(view.x, view.quantized.dequantize())
    error = f"SQNR {short_db(decibels)} dB, RMS error {percent(10 ** (-decibels / 20))} of the RMS value"
    clipped = percent(_clipped(view)) if view.choice.clip < 1 else "none"
    return f"all {view.x.numel():,} values: {error}, {clipped} clipped"


def _clipped(view: GridView) -> float:
    """Return the share of values beyond the range that their tile's codes span."""
    tiles = view.choice.tile.split(view.x)
    low, high = (end[:, None, :, None] for end in view.choice.kept(*view.ranges))
    return ((tiles < low) | (tiles > high)).sum().item() / view.x.numel()


def _which(view: GridView) -> str:
    """Tell which tile is drawn, and how its step compares with one step for all tiles."""
    if len(view.ranks) == 1:
        return "drawn: all values, which share one step"
    low, high = view.ranges
    wider = view.choice.grid(low.min().view(1, 1), high.max().view(1, 1), PER_TENSOR).scale.item() / view.expected.scale
    kind = view.choice.granularity.removeprefix("per ").split("s ")[0]
    return (
        f"drawn: {kind} {view.place + 1:,} of {len(view.ranks):,} by range; "
        f"one step for all would be {short(wider)} times as wide"
    )


def _here(view: GridView) -> str:
    """Tell the step of the tile that is drawn, its error in steps, and how many of the codes it uses."""
    expected, (low, high) = view.expected, view.quantized.grid.codes
    error = ((expected.values - view.tile) / expected.scale).square().mean().sqrt().item()
    used = f"{len(expected.counts)} of {high - low + 1} codes used"
    return f"here: step {short(expected.scale)}, RMS error {error:.2f} steps, {used}"


def _strip(view: GridView, limit: float) -> str:
    """Draw all values on their own axis, and the part of it that the tile below takes."""
    top, bottom = STRIP
    whole = _axis(view.x)
    drawn = bars(torch.histc(view.x, BINS, -whole, whole), ground=bottom, height=bottom - top, color="currentColor")
    ends = [_x(-limit, whole), _x(limit, whole)]
    window = f'<rect x="{ends[0]:.1f}" y="{top - 3}" width="{ends[1] - ends[0]:.1f}" height="{bottom - top + 6}" '
    lines = f"M{ends[0]:.1f} {bottom + 3}L{LEFT} {TOP - 6}M{ends[1]:.1f} {bottom + 3}L{RIGHT} {TOP - 6}"
    drawn = f'<g opacity="0.45">{drawn}</g>{window}fill="none" stroke="{MANTISSA}" stroke-width="1.5"/>'
    return f'{drawn}<path d="{lines}" fill="none" stroke="{MANTISSA}" opacity="0.6"/>'


def _cut(view: GridView, limit: float) -> str:
    """Shade where values lie beyond the range that is kept."""
    low, high = (_x(end, limit) for end in view.kept)
    drawn = ""
    for start, end, any_there in (
        (LEFT, low, view.tile.min().item() < view.kept[0]),
        (high, RIGHT, view.tile.max().item() > view.kept[1]),
    ):
        if not any_there:
            continue
        drawn += (
            f'<rect class="cut" x="{start:.1f}" y="{TOP - 6}" width="{end - start:.1f}" height="{BOTTOM - TOP + 6}" '
        )
        drawn += 'fill="currentColor" opacity="0.1"/>'
        if end - start > 60:
            drawn += label((start + end) / 2, TOP + 10, "clipped", 12, anchor="middle")
    return drawn


def _values(counts: Tensor) -> str:
    return bars(counts, ground=GROUND, height=GROUND - TOP, color=MANTISSA)


def _legend(counts: Tensor, drawn: TileCodes) -> str:
    """Name the two colors, and how much their longest bars stand for."""
    tallest, longest = int(counts.max()), max(drawn.counts.values())
    swatch = '<rect x="{}" y="322" width="12" height="12" fill="{}"/>'
    words = f"values: at most {tallest:,} in a bar", f"the codes they get: at most {longest:,} values on one"
    row = swatch.format(LEFT, MANTISSA) + label(LEFT + 18, 333, words[0], 13)
    return row + swatch.format(LEFT + 250, EXPONENT) + label(LEFT + 268, 333, words[1], 13)


def _codes(view: GridView, drawn: TileCodes, limit: float) -> str:
    """Draw a line for each code, and from the ground down how many values got it."""
    first, last = view.quantized.grid.codes
    number = drawn.counts
    places = {c: _x(drawn.scale * (c - drawn.zero_point), limit) for c in {*range(first, last + 1), *number}}
    shown = {c: places[c] for c in sorted(places) if LEFT - 0.5 <= places[c] <= RIGHT + 0.5}
    apart = (RIGHT - LEFT) / 2 * abs(drawn.scale) / limit
    grid = "".join(f"M{x:.1f} {TOP}V{BOTTOM}" for x in shown.values())
    most, wide = max(number.values()), min(max(0.6 * apart, 1.2), 14)
    hanging = "".join(
        f"M{x - wide / 2:.1f} {GROUND}h{wide:.1f}v{max((BOTTOM - GROUND) * number[c] / most, 2):.1f}h{-wide:.1f}z"
        for c, x in shown.items()
        if c in number
    )
    ink = f'fill="none" stroke="{EXPONENT}" stroke-width="{min(1, max(0.4, apart / 12)):.2f}" opacity="0.6"'
    picture = f'<path class="grid" d="{grid}" {ink}/><path class="codes" d="{hanging}" fill="{EXPONENT}"/>'
    picture += f'<line x1="{LEFT}" x2="{RIGHT}" y1="{GROUND}" y2="{GROUND}" stroke="currentColor"/>'
    return picture + _code_labels(shown, drawn.zero_point, apart)


def _code_labels(shown: dict[float, float], zero_point: float, apart: float) -> str:
    """Number the codes; where they stand close, every second, fourth, … of them, counted from the code of zero."""
    stride = 1
    while stride * apart < CODE_ROOM and stride < 256:
        stride *= 2
    named = [(c, x) for c, x in shown.items() if (c - zero_point) % stride == 0]
    return "".join(label(x, BOTTOM + 14, short(c), 11, anchor="middle", fill=EXPONENT) for c, x in named)


def _value_axis(limit: float) -> str:
    ticks = round_ticks(limit, at_most=4)
    return "".join(
        label(_x(value, limit), BOTTOM + 32, short(value), 11, anchor="middle")
        for value in sorted({sign * tick for tick in ticks for sign in (-1, 1)})
        if LEFT + 12 < _x(value, limit) < RIGHT - 12
    )
