"""One large value among ordinary ones: where its neighbors land with one scale for all, and with one for each block."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.plots.drawings import EXPONENT, MANTISSA, WIDTH, drawing, label
from qlab.plots.numbers import short, short_db
from qlab.quantize import PER_TENSOR, Quantized, Tile, per_block, quantize_symmetric, sqnr_db

BLOCK_SIZE = 64
LEFT, GAP = 8, 24
COLUMN = (WIDTH - 2 * LEFT - GAP) / 2
FIRST_ROW, ROW = 78, 58
MOST_TICKS = 120  # codes closer than that are a gray band


@dataclass(frozen=True)
class OutlierView:
    """Values of which one is made `strength` times the largest of all, and how they come back at some bits.

    Errors:  ValueError if there are fewer than two values, `strength` is below 1, or `bits` is not 2 to 8.
    """

    ordinary: Float[Tensor, " n"]
    strength: float
    bits: int = 8

    def __post_init__(self) -> None:
        if self.ordinary.numel() < 2:
            raise ValueError(f"an outlier needs values beside it: at least 2 are needed, got {self.ordinary.numel()}")
        if not self.strength >= 1:
            raise ValueError(f"strength must be at least 1, got {self.strength}")

    @property
    def place(self) -> int:
        """Which value is the outlier: one in the second block, if there is one."""
        return min(self.ordinary.numel() - 1, BLOCK_SIZE + BLOCK_SIZE // 2)

    @property
    def values(self) -> Float[Tensor, " n"]:
        values = self.ordinary.float().clone()
        values[self.place] = self.strength * values.abs().max()
        return values

    def coded(self, tile: Tile) -> Quantized:
        """Quantize the values with a scale for each tile."""
        return quantize_symmetric(self.values, bits=self.bits, tile=tile)

    def told(self, coded: Quantized) -> str:
        """Say how many codes the ordinary values use, and how well they come back."""
        others = torch.arange(len(self.values)) != self.place
        used = coded.codes[others].unique().numel()
        back = sqnr_db(self.values[others], coded.dequantize()[others])
        many = 2**self.bits - 1
        return f"{used} of {many} codes in use beside the outlier, SQNR there {short_db(back)} dB"


def outlier_svg(ordinary: Float[Tensor, " n"], *, strength: float, bits: int = 8) -> str:
    """Draw the ordinary values, block by block, as they come back: left with one scale for all, right with one each.

    Errors:  ValueError if there are fewer than two values, `strength` is below 1, or `bits` is not 2 to 8.
    """
    view = OutlierView(ordinary, strength, bits)
    ways = {"one scale for all": PER_TENSOR, f"a scale for each block of {BLOCK_SIZE}": per_block(BLOCK_SIZE)}
    coded = {name: view.coded(tile) for name, tile in ways.items()}
    title = f"{bits} bits, one value of {len(view.values)} is {short(strength)} times the largest of the others"
    rows = [label(LEFT, 18, title, 15)]
    for column, (name, quantized) in enumerate(coded.items()):
        left = LEFT + column * (COLUMN + GAP)
        rows += [label(left, 42, name, 14), label(left, 60, view.told(quantized), 11)]
        rows += _strips(view, quantized, left)
    told = "; ".join(f"{name}: {view.told(quantized)}" for name, quantized in coded.items())
    blocks = -(-len(view.values) // BLOCK_SIZE)
    height = FIRST_ROW + blocks * ROW + 10
    rows.append(label(LEFT, height - 4, "blue: values as they were, orange: as they come back, lines: the codes", 12))
    return drawing(rows, height=height + 4, told=f"{title}. {told}")


def _strips(view: OutlierView, coded: Quantized, left: float) -> list[str]:
    limit = 1.05 * view.ordinary.abs().max().item() or 1.0
    back, drawn = coded.dequantize(), []
    for block in range(-(-len(view.values) // BLOCK_SIZE)):
        inside = slice(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
        scale = coded.scale.flatten()[min(block, coded.scale.numel() - 1)].item()
        y = FIRST_ROW + block * ROW
        drawn.append(_ticks(scale, limit, left, y))
        before, after = view.values[inside], back[inside]
        ordinary = torch.arange(inside.start, inside.start + len(before)) != view.place
        drawn.append(_dots(before[ordinary], limit, left, y + 12, MANTISSA))
        drawn.append(_dots(after[ordinary], limit, left, y + 30, EXPONENT))
        if not ordinary.all():
            drawn.append(label(left + COLUMN, y + 26, "outlier →", 11, anchor="end"))
    return drawn


def _ticks(scale: float, limit: float, left: float, y: float) -> str:
    count = int(limit / scale)
    box = f'x="{left:.1f}" y="{y}" width="{COLUMN:.1f}" height="42"'
    if 2 * count + 1 > MOST_TICKS:
        return f'<rect {box} fill="currentColor" opacity="0.12"/>'
    lines = "".join(f"M{_x(k * scale, limit, left):.1f} {y}v42" for k in range(-count, count + 1))
    frame = f'<rect {box} fill="none" stroke="currentColor" opacity="0.25"/>'
    return frame + f'<path d="{lines}" stroke="currentColor" stroke-width="1" opacity="0.6"/>'


def _dots(values: Tensor, limit: float, left: float, y: float, color: str) -> str:
    return "".join(
        f'<circle cx="{_x(v, limit, left):.1f}" cy="{y}" r="3" fill="{color}" fill-opacity="0.6"/>'
        for v in values.tolist()
        if abs(v) <= limit
    )


def _x(value: float, limit: float, left: float) -> float:
    return left + COLUMN / 2 * (1 + value / limit)
