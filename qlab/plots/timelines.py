"""Timelines of checkpointing: which activation lives when, as a drawing that stops at a step, and as figures."""

from collections.abc import Iterator, Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from qlab.checkpointing import Moment, Timeline
from qlab.plots.drawings import EXPONENT, MANTISSA, SIGN, WIDTH, drawing, label
from qlab.plots.figures import INK, INK_OF_Y
from qlab.plots.numbers import short

LEFT, TOP, GRID, CURVE = 52, 64, 260, 90
SPAN = WIDTH - LEFT - 12
GAP = 30
AHEAD = 0.16  # how faint what is still to come is drawn
WORDS = {"run": "runs forward", "record": "runs forward and is saved", "backward": "is differentiated"}


def timeline_svg(timeline: Timeline, *, step: int, title: str = "") -> str:
    """Draw a timeline up to `step`: layers downward, time to the right, below it what is saved at each time.

    Errors:  ValueError if the timeline has no such step.
    """
    last = len(timeline.schedule) - 1
    if not 0 <= step <= last:
        raise ValueError(f"step must be 0 to {last}, got {step}")
    action = timeline.schedule[step]
    told = (
        f"step {step + 1} of {last + 1}: layer {action.layer} {WORDS[action.kind]}; saved now {_units(timeline, step)}"
    )
    bill = (
        f"peak {short(timeline.peak_units)} units, {timeline.forwards} forward runs of {timeline.layers} layers: "
        f"{short(timeline.forwards / timeline.layers)} each"
    )
    rows = [label(8, 18, f"{title}: {bill}" if title else bill, 15), label(8, 38, told, 13), _key()]
    rows += [*_grid(timeline, step), *_curve(timeline, step)]
    return drawing(rows, height=TOP + GRID + GAP + CURVE + 22, told=f"{title}: {bill}; {told}")


def timeline_figure(timelines: Mapping[str, Timeline]) -> list[Axes]:
    """Draw timelines side by side: blue is a boundary that is saved, orange what a layer saved inside."""
    figure, panels = plt.subplots(
        1, len(timelines), figsize=(8.6, 3.2), layout="constrained", sharey=True, squeeze=False
    )
    figure.patch.set_alpha(0)
    for ax, (name, timeline) in zip(panels[0], timelines.items(), strict=True):
        ax.patch.set_alpha(0)
        ax.imshow(_picture(timeline), aspect="auto", interpolation="nearest", extent=_extent(timeline))
        bill = f"{short(timeline.peak_units)} units, {timeline.forwards} runs"
        ax.set_title(f"{name}\n{bill}", color=INK, fontsize=9)
        ax.set_xlabel("step", color=INK)
        ax.tick_params(axis="x", colors=INK)
        ax.tick_params(axis="y", colors=INK_OF_Y)
        for spine in ax.spines.values():
            spine.set_color(INK)
    panels[0][0].set_ylabel("layer", color=INK)
    return list(panels[0])


def lifetimes(live: tuple[Moment, ...], kind: str) -> Iterator[tuple[int, int, int]]:
    """Yield layer, first step and the step after the last of each time that a boundary or an inside lives."""
    began: dict[int, int] = {}
    for step, moment in enumerate((*live, Moment(frozenset(), frozenset()))):
        alive = getattr(moment, kind)
        for layer in [layer for layer in began if layer not in alive]:
            yield layer, began.pop(layer), step
        for layer in alive - began.keys():
            began[layer] = step


def _units(timeline: Timeline, step: int) -> str:
    return f"{short(timeline.units[step])} of at most {short(timeline.peak_units)} units"


def _key() -> str:
    drawn = ""
    for x, color, text in (
        (8, MANTISSA, "boundary saved"),
        (140, EXPONENT, "inside saved"),
        (254, "currentColor", "forward"),
        (332, SIGN, "backward"),
    ):
        drawn += f'<rect x="{x}" y="48" width="10" height="10" fill="{color}"/>' + label(x + 15, 57, text, 12)
    return drawn


def _grid(timeline: Timeline, step: int) -> Iterator[str]:
    tall, wide = GRID / timeline.layers, SPAN / len(timeline.schedule)
    yield label(8, TOP + 14, "layer 0", 11)
    yield label(8, TOP + GRID, f"layer {timeline.layers - 1}", 11)
    yield f'<rect x="{LEFT}" y="{TOP}" width="{SPAN}" height="{GRID}" fill="none" stroke="currentColor" opacity=".3"/>'
    for kind, color, offset in (("boundaries", MANTISSA, 0.0), ("insides", EXPONENT, 0.5)):
        for layer, start, stop in lifetimes(timeline.live, kind):
            top, height = TOP + (layer + offset) * tall, 0.5 * tall
            for first, after, opacity in _past_and_future(start, stop, step):
                yield (
                    f'<rect x="{LEFT + first * wide:.1f}" y="{top:.1f}" width="{(after - first) * wide:.1f}" '
                    f'height="{height:.1f}" fill="{color}" opacity="{opacity}"/>'
                )
    for kinds, color in ((("run", "record"), "currentColor"), (("backward",), SIGN)):
        marks = "".join(
            f"M{LEFT + t * wide:.1f} {TOP + (a.layer + 0.5) * tall:.1f}h{max(wide, 1.2):.1f}"
            for t, a in enumerate(timeline.schedule[: step + 1])
            if a.kind in kinds
        )
        yield f'<path d="{marks}" stroke="{color}" stroke-width="{min(max(0.3 * tall, 1.5), 5):.1f}"/>'
    yield _cursor(LEFT + (step + 1) * wide, TOP, GRID + GAP + CURVE)


def _past_and_future(start: int, stop: int, step: int) -> Iterator[tuple[int, int, float]]:
    now = step + 1
    if start < now:
        yield start, min(stop, now), 0.85
    if stop > now:
        yield max(start, now), stop, AHEAD


def _curve(timeline: Timeline, step: int) -> Iterator[str]:
    bottom, wide = TOP + GRID + GAP + CURVE, SPAN / len(timeline.schedule)
    tall = CURVE / (timeline.peak_units or 1)
    for units, opacity in ((timeline.units, AHEAD), (timeline.units[: step + 1], 0.85)):
        steps = (f"V{bottom - u * tall:.1f}H{LEFT + t * wide:.1f}" for t, u in enumerate(units, start=1))
        points = f"M{LEFT} {bottom}" + "".join(steps)
        yield f'<path d="{points}V{bottom}Z" fill="{MANTISSA}" opacity="{opacity}"/>'
    top = bottom - CURVE
    yield f'<path d="M{LEFT} {top}h{SPAN}" stroke="{EXPONENT}" stroke-dasharray="4 3"/>'
    yield label(LEFT - 4, top + 4, short(timeline.peak_units), 11, anchor="end")
    yield label(LEFT - 4, bottom, "0", 11, anchor="end")
    yield label(LEFT, top - 6, "units saved after each step; dashed: the peak", 11)
    yield label(WIDTH - 12, bottom + 16, "time, in steps →", 11, anchor="end")


def _cursor(x: float, top: float, height: float) -> str:
    return f'<path d="M{x:.1f} {top}v{height}" stroke="currentColor" stroke-width="1" opacity=".7"/>'


def _extent(timeline: Timeline) -> tuple[float, float, float, float]:
    return (0, len(timeline.schedule), timeline.layers - 0.5, -0.5)


def _picture(timeline: Timeline) -> np.ndarray:
    picture = np.zeros((2 * timeline.layers, len(timeline.schedule), 4))
    for kind, color, offset in (("boundaries", MANTISSA, 0), ("insides", EXPONENT, 1)):
        for layer, start, stop in lifetimes(timeline.live, kind):
            picture[2 * layer + offset, start:stop] = (*to_rgb(color), 0.9)
    return picture
