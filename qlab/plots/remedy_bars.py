"""What each remedy leaves of the damage, as bars on a scale of tenfold steps."""

import math
from collections.abc import Mapping
from html import escape

from qlab.plots.drawings import EXPONENT, MANTISSA, drawing, label

LEFT, RIGHT = 230.0, 690.0
FIRST_ROW, ROW = 44, 26
LEAST, MOST = 0.001, 10.0  # bits per byte at the ends of the bars: below is drawn as none
NOTICEABLE = 0.02


def remedies_svg(lost: Mapping[str, float], *, title: str) -> str:
    """Draw a bar for each remedy: how many bits per byte are lost with it.

    Errors:  ValueError if there is no remedy, or a loss is NaN or infinite.
    """
    if not lost:
        raise ValueError("there must be at least one remedy, got 0")
    for name, loss in lost.items():
        if not math.isfinite(loss):
            raise ValueError(f"the loss of {name} must be finite, got {loss}")
    rows = [label(8, 18, title, 15)]
    bottom = FIRST_ROW + ROW * len(lost)
    for power in range(-3, 2):
        x = _x(10.0**power)
        rows.append(f'<path d="M{x:.1f} {FIRST_ROW - 8}V{bottom}" stroke="currentColor" opacity="0.2"/>')
        rows.append(label(x, bottom + 16, f"{10.0**power:g}", 11, anchor="middle"))
    for place, (name, loss) in enumerate(lost.items()):
        y = FIRST_ROW + ROW * place
        color = EXPONENT if loss >= NOTICEABLE else MANTISSA
        rows.append(label(LEFT - 8, y + 12, name, 13, anchor="end"))
        width = _x(loss) - LEFT
        rows.append(
            f'<rect class="loss" x="{LEFT}" y="{y}" width="{width:.1f}" height="16" fill="{color}">'
            f"<title>{escape(name)}</title></rect>"
        )
        rows.append(label(LEFT + width + 6, y + 12, f"{loss:+.4f}".replace("-", "−"), 12))
    rows.append(label((LEFT + RIGHT) / 2, bottom + 34, "bits per byte lost, tenfold steps", 12, anchor="middle"))
    told = ", ".join(f"{name} {loss:+.4f}" for name, loss in lost.items())
    return drawing(rows, height=bottom + 42, told=f"{title}: {told} bits per byte lost")


def _x(loss: float) -> float:
    share = math.log10(max(min(loss, MOST), LEAST) / LEAST) / math.log10(MOST / LEAST)
    return LEFT + (RIGHT - LEFT) * share
