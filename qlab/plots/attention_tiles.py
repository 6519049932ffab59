"""Tiles walking over the matrix of scores: where they are, what one row knows by then, and how much has moved."""

import math

from matplotlib.axes import Axes

from qlab.attention import Trace, TracedTile
from qlab.plots.drawings import EXPONENT, MANTISSA, drawing, label
from qlab.plots.figures import axes, legend

LEFT, TOP, SIDE = 40, 62, 284
PANEL, PANEL_WIDTH = 380, 372
SCORES_TOP, SCORES_HEIGHT = 78, 96
SUM_TOP, SUM_HEIGHT = 204, 56
BARS_TOP = 292
HEIGHT = 372
MOST_GRID_LINES = 70
BLUE, ORANGE = "#0072b2", "#d55e00"


def tiles_svg(trace: Trace, *, step: int, note: str = "") -> str:
    """Draw the walk after `step` tiles: the matrix at the left, the row that is followed at the right, bytes below.

    Errors:  ValueError if there are not so many tiles.
    """
    here = tile_at(trace, step)
    told = _told(trace, step, here)
    rows = [label(8, 20, told, 15), label(8, 40, note, 13)]
    rows += _matrix(trace, step, here) + _scores(trace, here) + _sums(trace, step) + _bars(trace, here)
    return drawing(rows, height=HEIGHT, told=f"{told}. {_known(trace, here)}. {_moved(trace, here)}. {note}")


def tile_at(trace: Trace, step: int) -> TracedTile | None:
    """Return the tile that was visited last after `step` of them, or None before the first."""
    if not 0 <= step <= len(trace.tiles):
        raise ValueError(f"step must be 0 to {len(trace.tiles)}, got {step}")
    return trace.tiles[step - 1] if step else None


def running_figure(trace: Trace, *, ax: Axes | None = None) -> Axes:
    """Draw the scores of the row that is followed, and its running maximum from tile to tile."""
    ax = ax or axes(x="key", y=f"score of query {trace.row}", height=2.8)
    seen = [score for score in trace.scores if score > -math.inf]
    ax.plot(range(len(seen)), seen, ".", ms=4, color=BLUE, label="score")
    tiles = _of_the_row(trace)
    edges = [0, *(tile.columns.stop for tile in tiles)]
    ax.stairs([tile.maximum for tile in tiles], edges, baseline=None, color=ORANGE, lw=2, label="running maximum")
    return legend(ax)


def _told(trace: Trace, step: int, here: TracedTile | None) -> str:
    where = (
        "nothing visited yet"
        if here is None
        else f"queries {here.rows.start} to {here.rows.stop - 1}, keys {here.columns.start} to {here.columns.stop - 1}"
    )
    skipped = len(trace.tiling.row_blocks) * len(trace.tiling.column_blocks) - len(trace.tiles)
    told = f"; {skipped} skipped" if skipped else ""
    return f"tile {step} of {len(trace.tiles)}{told}: {where}"


def _known(trace: Trace, here: TracedTile | None) -> str:
    if here is None or here.maximum == -math.inf:
        return f"query {trace.row}: no key seen, maximum −∞, sum 0"
    return f"query {trace.row}: maximum {here.maximum:.2f}, sum {here.total:.2f}"


def _moved(trace: Trace, here: TracedTile | None) -> str:
    moved = trace.moved_bytes if here is trace.tiles[-1] else here.moved_bytes if here else 0
    return f"moved {moved / 1e3:,.0f} of {trace.moved_bytes / 1e3:,.0f} kB"


def _matrix(trace: Trace, step: int, here: TracedTile | None) -> list[str]:
    tiling = trace.tiling
    down, across = SIDE / tiling.queries, SIDE / tiling.keys
    drawn = [label(LEFT, TOP - 6, f"{tiling.keys} keys →", 12), _vertical(30, TOP, f"← {tiling.queries} queries")]
    for rows in {tile.rows.start: tile.rows for tile in trace.tiles}.values():
        of_rows = [tile for tile in trace.tiles if tile.rows == rows]
        done = [tile for tile in trace.tiles[:step] if tile.rows == rows]
        for tiles, opacity in ((of_rows, 0.12), (done, 0.45)):
            if tiles:
                y, height = TOP + rows.start * down, (rows.stop - rows.start) * down
                drawn.append(_rectangle(LEFT, y, tiles[-1].columns.stop * across, height, MANTISSA, opacity))
    drawn += _grid([block.start * down for block in tiling.row_blocks], horizontal=True)
    drawn += _grid([block.start * across for block in tiling.column_blocks], horizontal=False)
    if here is not None:
        corner = LEFT + here.columns.start * across, TOP + here.rows.start * down
        size = (here.columns.stop - here.columns.start) * across, (here.rows.stop - here.rows.start) * down
        drawn.append(_rectangle(*corner, *size, EXPONENT, 0.9, name="tile"))
    y = TOP + (trace.row + 0.5) * down
    drawn.append(f'<line x1="{LEFT - 6}" x2="{LEFT + SIDE + 6}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor"/>')
    drawn.append(label(LEFT + SIDE + 9, y + 4, str(trace.row), 11))
    drawn.append(label(LEFT, TOP + SIDE + 18, "orange: on the chip now, blue: done, pale: to come", 12))
    return drawn


def _scores(trace: Trace, here: TracedTile | None) -> list[str]:
    finite = [score for score in trace.scores if score > -math.inf]
    low, high = min(finite), max(finite)
    across = PANEL_WIDTH / len(trace.scores)
    seen = _keys_seen(trace, here)

    def height(score: float) -> float:
        return SCORES_TOP + SCORES_HEIGHT * (high - score) / ((high - low) or 1.0)

    drawn = [label(PANEL, 66, _known(trace, here), 13)]
    for key, score in enumerate(trace.scores):
        if score > -math.inf:
            opacity = 0.9 if key < seen else 0.2
            x = PANEL + (key + 0.5) * across
            drawn.append(f'<circle cx="{x:.1f}" cy="{height(score):.1f}" r="2" fill="{MANTISSA}" opacity="{opacity}"/>')
    if here is not None and here.maximum > -math.inf:
        y = height(here.maximum)
        line = f'x1="{PANEL}" x2="{PANEL + seen * across:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        drawn.append(f'<line {line} stroke="{EXPONENT}" stroke-width="2"/>')
    drawn.append(label(PANEL, SCORES_TOP + SCORES_HEIGHT + 16, "its scores, key by key, and their running maximum", 11))
    return drawn


def _sums(trace: Trace, step: int) -> list[str]:
    """Draw the running sum after each tile of the row; where the maximum rose, what was there has been scaled down."""
    of_row = _of_the_row(trace)
    largest = max((tile.total for tile in of_row), default=1.0)
    seen = {id(tile) for tile in trace.tiles[:step]}
    across = PANEL_WIDTH / len(trace.scores)
    drawn = []
    for tile in of_row:
        height = SUM_HEIGHT * tile.total / largest
        x, width = PANEL + tile.columns.start * across, (tile.columns.stop - tile.columns.start) * across
        opacity = 0.8 if id(tile) in seen else 0.12
        drawn.append(_rectangle(x, SUM_TOP + SUM_HEIGHT - height, max(width - 1, 0.5), height, EXPONENT, opacity))
    return [*drawn, label(PANEL, SUM_TOP + SUM_HEIGHT + 16, "its running sum, tile by tile", 11)]


def _bars(trace: Trace, here: TracedTile | None) -> list[str]:
    moved = trace.moved_bytes if here is trace.tiles[-1] else here.moved_bytes if here else 0
    largest = max(trace.moved_bytes, trace.standard_bytes)
    drawn = [label(PANEL, BARS_TOP + 12, f"tiles: {_moved(trace, here)}", 12)]
    for y, size, color, opacity in (
        (BARS_TOP + 18, trace.moved_bytes, EXPONENT, 0.2),
        (BARS_TOP + 18, moved, EXPONENT, 0.9),
        (BARS_TOP + 54, trace.standard_bytes, MANTISSA, 0.9),
    ):
        drawn.append(_rectangle(PANEL, y, PANEL_WIDTH * size / largest, 14, color, opacity))
    ratio = trace.standard_bytes / trace.moved_bytes
    text = f"standard attention: {trace.standard_bytes / 1e3:,.0f} kB, {ratio:.2f} times as much"
    return [*drawn, label(PANEL, BARS_TOP + 48, text, 12)]


def _of_the_row(trace: Trace) -> list[TracedTile]:
    return [tile for tile in trace.tiles if tile.rows.start <= trace.row < tile.rows.stop]


def _keys_seen(trace: Trace, here: TracedTile | None) -> int:
    if here is None or trace.row >= here.rows.stop:
        return 0
    return here.columns.stop if trace.row >= here.rows.start else len(trace.scores)


def _grid(offsets: list[float], *, horizontal: bool) -> list[str]:
    if len(offsets) > MOST_GRID_LINES:
        return []
    end = TOP + SIDE if not horizontal else LEFT + SIDE
    ends = [*offsets, SIDE]
    path = "".join(f"M{LEFT} {TOP + o:.1f}H{end}" if horizontal else f"M{LEFT + o:.1f} {TOP}V{end}" for o in ends)
    return [f'<path d="{path}" stroke="currentColor" stroke-width="0.5" opacity="0.5" fill="none"/>']


def _rectangle(  # noqa: PLR0913, PLR0917 - a place, a size and a look
    x: float, y: float, width: float, height: float, color: str, opacity: float, name: str = ""
) -> str:
    what = f' class="{name}"' if name else ""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect{what} {box} fill="{color}" fill-opacity="{opacity}"/>'


def _vertical(x: float, y: float, text: str) -> str:
    return f'<g transform="translate({x} {y + SIDE / 2}) rotate(-90)">{label(0, 0, text, 12, anchor="middle")}</g>'
