"""Clipping error against rounding error: what each clip costs, over the histogram of what it cuts."""

import math

import torch

from qlab.plots.clip_curves import KEPT_WHOLE, ClipCurves
from qlab.plots.drawings import EXPONENT, MANTISSA, SIGN, drawing, label
from qlab.plots.numbers import percent, round_ticks, short, short_db

LEFT, RIGHT = 56.0, 740.0
BINS = 114
STAND, GROUND = 62, 132  # top and bottom of the histogram
TOP, BOTTOM = 166, 326  # of the curves
SUM, CLIPPING, ROUNDING = "currentColor", EXPONENT, MANTISSA


def clip_svg(curves: ClipCurves, *, clip: float | None = None, found: float | None = None, note: str = "") -> str:
    """Draw both errors and their sum over the clip, the least sum, and where `clip` stands; `found` is another's best.

    Units:   `clip` and `found` in units of the values; without a `clip` the best one is taken.
    Errors:  ValueError if `clip` is not above 0.
    """
    clip = curves.best if clip is None else clip
    title, cost, least = _title(curves, clip), _cost(curves, clip), _least(curves)
    floor, ceiling = _decades(curves)
    rows = [label(8, 18, title, 15), label(8, 40, cost, 13), _histogram(curves, clip), _axes(curves, floor, ceiling)]
    rows += [_curves(curves, floor, ceiling), _best_mark(curves, floor, ceiling)]
    rows += [_found_mark(curves, found, floor, ceiling), _here(curves, clip, floor, ceiling), _legend()]
    rows.append(label(8, 402, _counted(curves), 12))
    if note:
        rows.append(label(8, 424, note, 14))
    told = f"{title}: {cost}. {least}" + (f". {note}" if note else "")
    return drawing(rows, height=436 if note else 410, told=told)


def _title(curves: ClipCurves, clip: float) -> str:
    share = clip / curves.largest
    return (
        f"{curves.bits} bits, clip at {short(clip)}, {percent(share)} of the largest magnitude {short(curves.largest)}"
    )


def _cost(curves: ClipCurves, clip: float) -> str:
    errors = curves.at(clip)
    clipping, rounding = errors.clipping.item() / curves.power, errors.rounding.item() / curves.power
    beyond = f"{percent(curves.beyond(clip))} of the values clipped"
    decibels = f"SQNR {_decibels(clipping + rounding)} dB"
    return f"{beyond}; clipping error {percent(clipping)} + rounding error {percent(rounding)}; {decibels}"


def _least(curves: ClipCurves) -> str:
    total = curves.least / curves.power
    return f"least error at {short(curves.best)}: SQNR {_decibels(total)} dB"


def _decibels(share: float) -> str:
    return short_db(-10 * math.log10(share) if share else math.inf)


def _counted(curves: ClipCurves) -> str:
    if len(curves.magnitudes) == curves.count:
        return f"Errors as a share of the mean square of all {curves.count:,} values."
    sample = len(curves.magnitudes) - KEPT_WHOLE
    return (
        f"Errors as a share of the mean square of {curves.count:,} values; "
        f"drawn from the {KEPT_WHOLE:,} largest and {sample:,} of the rest, evenly by rank."
    )


def _decades(curves: ClipCurves) -> tuple[float, float]:
    """Return the logarithms of the lowest and the highest error in the picture."""
    total = (curves.errors.total / curves.power).clamp(min=1e-12)
    return math.floor(math.log10(total.min()) - 0.7), max(0.0, math.log10(total.max())) + 0.1


def _x(clip: float, curves: ClipCurves) -> float:
    return LEFT + (RIGHT - LEFT) * clip / curves.largest


def _y(share: float, floor: float, ceiling: float) -> float:
    height = (math.log10(max(share, 1e-30)) - floor) / (ceiling - floor)
    return BOTTOM - (BOTTOM - TOP) * height


def _histogram(curves: ClipCurves, clip: float) -> str:
    """Draw the magnitudes: those beyond the clip in the color of its error."""
    places = (curves.magnitudes / curves.largest * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(BINS).index_add_(0, places, curves.weights)
    wide, cut = (RIGHT - LEFT) / BINS, _x(clip, curves)
    outlines = {True: "", False: ""}
    for place, count in enumerate((counts / counts.max()).tolist()):
        if count:
            left, tall = LEFT + place * wide, max((GROUND - STAND) * count, 1.5)
            outlines[left + wide / 2 > cut] += f"M{left:.1f} {GROUND}v{-tall:.1f}h{wide - 0.6:.1f}v{tall:.1f}z"
    drawn = f'<path class="kept" d="{outlines[False]}" fill="currentColor" opacity="0.55"/>'
    drawn += f'<path class="cut" d="{outlines[True]}" fill="{CLIPPING}"/>'
    return drawn + label(LEFT - 6, STAND + 8, "values", 11, anchor="end")


def _axes(curves: ClipCurves, floor: float, ceiling: float) -> str:
    drawn = ""
    for y in (GROUND, BOTTOM):
        drawn += f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}" stroke="currentColor" opacity="0.6"/>'
    for power in _powers(floor, ceiling):
        y = _y(10.0**power, floor, ceiling)
        drawn += f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity="0.2"/>'
        drawn += label(LEFT - 6, round(y + 4), f"{100 * 10.0**power:g} %", 11, anchor="end")
    ticks = round_ticks(curves.largest, at_most=8)
    drawn += "".join(label(_x(tick, curves), BOTTOM + 16, short(tick), 11, anchor="middle") for tick in ticks)
    return drawn + label(
        (LEFT + RIGHT) / 2, BOTTOM + 34, "clip: the magnitude that the largest code stands for", 12, anchor="middle"
    )


def _powers(floor: float, ceiling: float) -> range:
    """Return the powers of ten that are named: all of them, or every second or third where they are many."""
    first, last = math.ceil(floor), math.floor(ceiling)
    return range(last, first - 1, -(1 + (last - first) // 6))


def _curves(curves: ClipCurves, floor: float, ceiling: float) -> str:
    errors, drawn = curves.errors, ""
    for part, ink in ((errors.clipping, _inks()[0]), (errors.rounding, _inks()[1]), (errors.total, _inks()[2])):
        points = [
            f"{_x(clip, curves):.1f},{_y(error / curves.power, floor, ceiling):.1f}"
            for clip, error in zip(errors.clips.tolist(), part.tolist(), strict=True)
        ]
        drawn += f'<polyline points="{" ".join(points)}" fill="none" {ink}/>'
    size = f"{LEFT} {TOP - 8} {RIGHT - LEFT} {BOTTOM - TOP + 8}"  # a picture of its own: it ends where the axes end
    x, y, width, height = size.split()
    return f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{size}">{drawn}</svg>'


def _inks() -> tuple[str, str, str]:
    """Return the strokes of clipping, rounding and both: told apart by color and by dash."""
    return (
        f'stroke="{CLIPPING}" stroke-width="2" stroke-dasharray="7 4"',
        f'stroke="{ROUNDING}" stroke-width="2" stroke-dasharray="2 3"',
        f'stroke="{SUM}" stroke-width="2.5"',
    )


def _best_mark(curves: ClipCurves, floor: float, ceiling: float) -> str:
    x, y = _x(curves.best, curves), _y(curves.least / curves.power, floor, ceiling)
    words = _least(curves)
    left = x > (LEFT + RIGHT) / 2
    drawn = f'<path class="best" d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z" fill="{SIGN}"/>'
    drawn += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{BOTTOM}" stroke="{SIGN}" stroke-dasharray="3 3"/>'
    return drawn + label(x - 6 if left else x + 6, TOP - 10, words, 12, anchor="end" if left else "start")


def _found_mark(curves: ClipCurves, found: float | None, floor: float, ceiling: float) -> str:
    """Mark another's clip with a square on the sum of the errors, where it lies in the picture."""
    if found is None or not 0 < found <= curves.largest * 1.0001:
        return ""
    x, y = _x(found, curves), _y(curves.at(found).total.item() / curves.power, floor, ceiling)
    drawn = f'<rect class="found" x="{x - 8:.1f}" y="{y - 8:.1f}" width="16" height="16" fill="none" '
    return drawn + 'stroke="currentColor" stroke-width="2"/>' + label(x, round(y - 13), "yours", 12, anchor="middle")


def _here(curves: ClipCurves, clip: float, floor: float, ceiling: float) -> str:
    """Draw the line of the clip through both pictures, with a dot on each error that is in the picture."""
    x, errors = _x(clip, curves), curves.at(clip)
    line = f"M{x:.1f} {STAND - 8}V{GROUND}M{x:.1f} {TOP - 4}V{BOTTOM}"  # with a gap for the words between
    drawn = f'<path class="clip" d="{line}" stroke="currentColor" stroke-width="1.5"/>'
    drawn += f'<path d="M{x - 6:.1f} {STAND - 10}h12l-6 9z" fill="currentColor"/>'
    parts = (errors.clipping, CLIPPING), (errors.rounding, ROUNDING), (errors.total, SUM)
    for share, color in ((part.item() / curves.power, color) for part, color in parts):
        if share > 10**floor:
            drawn += f'<circle cx="{x:.1f}" cy="{_y(share, floor, ceiling):.1f}" r="4.5" fill="{color}"/>'
    return drawn


def _legend() -> str:
    words = "clipping error", "rounding error", "both together"
    drawn = ""
    for place, (name, ink) in enumerate(zip(words, _inks(), strict=True)):
        x = LEFT + 150 * place
        drawn += f'<line x1="{x}" x2="{x + 30}" y1="378" y2="378" {ink}/>' + label(x + 36, 382, name, 13)
    x = LEFT + 460
    return drawn + f'<path d="M{x} 370l8 8l-8 8l-8 -8z" fill="{SIGN}"/>' + label(x + 14, 382, "least error", 13)
