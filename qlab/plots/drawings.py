"""SVG drawings for the explorers: text an `ipywidgets.HTML` redraws in a few milliseconds, in the theme's ink."""

import math
from html import escape

import torch

from qlab.formats import FloatFormat, decode

WIDTH = 760
SIGN, EXPONENT, MANTISSA = "#a974d8", "#d55e00", "#2a8fce"
NEIGHBORS_SHOWN = 6


def bits_svg(code: int, fmt: FloatFormat, *, note: str = "") -> str:
    """Draw a code: its bits by field, how they make the value, and where the value stands among its neighbors."""
    value = _value(code, fmt)
    told = f"{fmt.name} code {code} is {_number(value)}"
    rows = [_bit_boxes(code, fmt), label(8, 92, _formula(code, fmt), 15), _neighborhood(code, fmt), _strip(value, fmt)]
    if math.isfinite(value):
        rows.append(label(752, 92, f"step here (ULP): {_number(_step(code, fmt))}", 13, anchor="end"))
    if note:
        rows.append(label(8, 232, note, 14))
    return drawing(rows, height=244, told=told)


def octaves_svg(fmt: FloatFormat, *, octaves: tuple[float, float]) -> str:
    """Draw every positive number of a small format on a logarithmic line, and what the split of its bits buys.

    Units:   `octaves` are the exponents of 2 at both ends of the line; give two drawings the same to compare them.
    """
    low, high = octaves
    values = decode(torch.arange(1, fmt.max_code + 1), fmt).tolist()
    ticks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="44" y2="{72 if v < fmt.min_normal else 64}" '
        f'stroke="{SIGN if v < fmt.min_normal else MANTISSA}" stroke-width="1"/>'
        for v, x in ((v, _log_x(v, low, high)) for v in values)
    )
    head = (
        f"{fmt.exponent_bits} exponent and {fmt.mantissa_bits} mantissa bits: smallest {_number(fmt.min_subnormal)}, "
        f"largest {_number(fmt.max)}, gap after 1 {_number(fmt.epsilon)}, "
        f"{math.log2(fmt.max / fmt.min_subnormal):.1f} octaves"
    )
    axis = '<line x1="8" x2="752" y1="64" y2="64" stroke="currentColor" opacity=".5"/>'
    marks = "".join(
        label(_log_x(2.0**k, low, high), 88, f"2^{k}".replace("-", "−"), 11, anchor="middle")
        for k in range(math.ceil(low / 8) * 8, math.floor(high) + 1, 8)
    )
    return drawing([label(8, 24, head, 14), axis, ticks, marks], height=98, told=head)


def drawing(rows: list[str], *, height: int, told: str) -> str:
    """Return an SVG picture of some rows, described by `told` to who cannot see it."""
    return (
        f'<svg role="img" aria-label="{escape(told)}" viewBox="0 0 {WIDTH} {height}" width="100%" '
        f'style="max-width:{WIDTH}px;color:var(--jp-ui-font-color1, currentColor)" '
        f'font-family="sans-serif">{"".join(rows)}</svg>'
    )


def label(x: float, y: float, text: str, size: int, *, anchor: str = "start", fill: str = "currentColor") -> str:  # noqa: PLR0913
    """Return a line of SVG text."""
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'


def _bit_boxes(code: int, fmt: FloatFormat) -> str:
    side = min(34.0, (WIDTH - 16) / fmt.bits)
    boxes = ""
    for place in range(fmt.bits):
        color = SIGN if place == 0 else EXPONENT if place <= fmt.exponent_bits else MANTISSA
        bit, x = code >> (fmt.bits - 1 - place) & 1, 8 + place * side
        boxes += (
            f'<rect x="{x:.1f}" y="22" width="{side - 2:.1f}" height="34" rx="3" fill="{color}" '
            f'fill-opacity="{0.85 if bit else 0.12}" stroke="{color}"/>'
        )
        boxes += label(x + side / 2 - 1, 45, str(bit), 16, anchor="middle", fill="#fff" if bit else "currentColor")
    names = label(8, 14, "sign", 12, fill=SIGN)
    names += label(max(8 + side, 40), 14, f"exponent ({fmt.exponent_bits})", 12, fill=EXPONENT)
    if fmt.mantissa_bits:
        x = max(8 + side * (1 + fmt.exponent_bits), 130)
        names += label(x, 14, f"mantissa ({fmt.mantissa_bits})", 12, fill=MANTISSA)
    return boxes + names


def _formula(code: int, fmt: FloatFormat) -> str:
    value = _value(code, fmt)
    magnitude = code & (2 ** (fmt.bits - 1) - 1)
    if not math.isfinite(value):
        return f"= {_number(value)}  (a special code)"
    field, fraction = magnitude >> fmt.mantissa_bits, magnitude & (2**fmt.mantissa_bits - 1)
    sign = "−" if code >> (fmt.bits - 1) else "+"
    lead, exponent = (1, field - fmt.bias) if field else (0, fmt.min_exponent)
    kind = "" if field else "  (subnormal: no implicit 1)" if fraction else "  (zero)"
    of = f"{fraction}/{2**fmt.mantissa_bits}"
    return f"{sign} ({lead} + {of}) · 2^({exponent}) = {_number(value)}{kind}"


def _neighborhood(code: int, fmt: FloatFormat) -> str:
    """Draw the nearest numbers to scale, with the step between them."""
    sign, magnitude = code >> (fmt.bits - 1) << (fmt.bits - 1), code & (2 ** (fmt.bits - 1) - 1)
    if magnitude > fmt.max_code:
        return ""
    first = max(0, min(magnitude - NEIGHBORS_SHOWN // 2, fmt.max_code - NEIGHBORS_SHOWN))
    shown = [c | sign for c in range(first, min(first + NEIGHBORS_SHOWN, fmt.max_code) + 1)]
    values = [_value(c, fmt) for c in shown]
    low, high = min(values), max(values)
    drawn = '<line x1="40" x2="720" y1="128" y2="128" stroke="currentColor" opacity=".5"/>'
    for c, v in zip(shown, values, strict=True):
        x = 40 + 680 * (v - low) / (high - low)
        here = c == code
        drawn += f'<circle cx="{x:.1f}" cy="128" r="{7 if here else 4}" fill="{EXPONENT if here else MANTISSA}"/>'
        drawn += label(x, 115 if here else 148, _number(v), 14 if here else 11, anchor="middle")
    return drawn


def _strip(value: float, fmt: FloatFormat) -> str:
    """Draw the whole positive range in octaves with the value's place on it."""
    low, high = math.log2(fmt.min_subnormal), math.log2(fmt.max)
    x = _log_x(fmt.min_normal, low, high)
    drawn = f'<rect x="8" y="178" width="{x - 8:.1f}" height="12" fill="{SIGN}" opacity=".45"/>'
    drawn += f'<rect x="{x:.1f}" y="178" width="{752 - x:.1f}" height="12" fill="{MANTISSA}" opacity=".45"/>'
    drawn += label(8, 206, f"{_number(fmt.min_subnormal)} subnormal", 11)
    drawn += label(752, 206, f"normal, up to {_number(fmt.max)}", 11, anchor="end")
    if math.isfinite(value) and value:
        x = _log_x(abs(value), low, high)
        drawn += f'<path d="M {x - 6:.1f} 168 L {x + 6:.1f} 168 L {x:.1f} 178 Z" fill="{EXPONENT}"/>'
    return drawn


def _step(code: int, fmt: FloatFormat) -> float:
    """Return the gap from a number to the next one away from zero."""
    field = (code & (2 ** (fmt.bits - 1) - 1)) >> fmt.mantissa_bits
    return 2.0 ** (max(field, 1) - fmt.bias - fmt.mantissa_bits)


def _log_x(value: float, low: float, high: float) -> float:
    return 8 + 744 * (math.log2(value) - low) / (high - low)


def _value(code: int, fmt: FloatFormat) -> float:
    return decode(torch.tensor([code]), fmt).item()


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.6g}".replace("inf", "∞").replace("-", "−")
