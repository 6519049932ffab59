"""Numbers as words for a drawing: three digits, percent, and round ticks."""

import math


def short(value: float) -> str:
    """Return three digits of a number."""
    return f"{value + 0.0:.3g}".replace("-", "−")  # adding zero takes its sign away


def percent(share: float) -> str:
    """Return a share in percent, to two digits, and never a small one as zero."""
    shown = f"{100 * share:.3g}" if share >= 0.1 else f"{100 * share:.2g}"
    return f"{shown} %".replace("-", "−")


def short_db(decibels: float) -> str:
    """Return decibels to one digit after the point."""
    return f"{decibels:.1f}".replace("inf", "∞").replace("-", "−")


def round_ticks(limit: float, *, at_most: int) -> list[float]:
    """Return the round numbers 0, s, 2s, … up to `limit` with the smallest s of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(limit / at_most))
    step = next(power * k for k in (1, 2, 5, 10, 20) if limit / (power * k) <= at_most)
    return [k * step for k in range(math.floor(limit / step * (1 + 1e-9)) + 1)]
