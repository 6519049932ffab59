"""A pruned weight drawn: which magnitudes are gone, where they lay, what each layer keeps, and what is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from torch import Tensor

from qlab.plots.drawings import EXPONENT, MANTISSA, WIDTH, drawing, label
from qlab.plots.figures import axes, legend
from qlab.sparsity import two_four_mask

GLOBAL, PER_LAYER, TWO_FOUR, ROWS = "global", "per layer", "2:4", "whole rows"
PATTERNS = (GLOBAL, PER_LAYER, TWO_FOUR, ROWS)
BINS, BYTES_A_VALUE = 61, 2
MAP_ROWS, MAP_COLUMNS, CELL = 28, 64, 5.5
LEFT, TOP, HIGH = 8, 44, 154


@dataclass(frozen=True)
class Pruned:
    """What one choice leaves: a mask of the layer shown, and for each layer the share kept and the error.

    Units:   `errors` are norms of what is gone over norms of the weight; bytes are those of all layers in BF16.
    """

    mask: Bool[Tensor, "rows columns"]
    kept: tuple[float, ...]
    errors: tuple[float, ...]
    dense_bytes: int
    stored_bytes: int
    stored_as: str


class PrunableLayers:
    """Weights in order of their magnitude, over all layers, so that each choice of sparsity is a look-up.

    Errors:  ValueError if there is no weight, one is no matrix, or its width is no multiple of 4.
    """

    def __init__(self, weights: Mapping[str, Float[Tensor, "..."]]) -> None:
        if not weights:
            raise ValueError("an explorer of pruning needs at least one weight, got 0")
        for name, weight in weights.items():
            if weight.ndim != 2 or weight.shape[1] % 4:
                raise ValueError(f"{name} must be a matrix of a width that 4 divides, got shape {tuple(weight.shape)}")
        self.weights = {name: weight.detach().float() for name, weight in weights.items()}
        sizes = [weight.numel() for weight in self.weights.values()]
        flat = torch.cat([weight.flatten() for weight in self.weights.values()])
        order = flat.abs().argsort(stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).int()
        self.count = len(flat)
        self.ranks = dict(zip(self.weights, rank.split(sizes), strict=True))
        self._sorted = {name: ranks.sort() for name, ranks in self.ranks.items()}
        self._squares = {
            name: weight.flatten()[self._sorted[name].indices].double().square().cumsum(0)
            for name, weight in self.weights.items()
        }
        self._rows = {name: weight.norm(dim=1).sort(stable=True) for name, weight in self.weights.items()}
        self._two_four: dict[str, float] = {}

    def prune(self, shown: str, pattern: str, sparsity: float) -> Pruned:
        """Prune all layers in `pattern` and return what is left, with the mask of the layer `shown`.

        Errors:  ValueError if there is no such layer or pattern, or `sparsity` is not 0 to 1.
        """
        if shown not in self.weights:
            raise ValueError(f"layers are {', '.join(self.weights)}, got {shown}")
        if pattern not in PATTERNS:
            raise ValueError(f"patterns are {', '.join(PATTERNS)}, got {pattern}")
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity must be 0 to 1, got {sparsity}")
        if pattern == TWO_FOUR:
            return self._pruned(
                two_four_mask(self.weights[shown]),
                [0.5] * len(self.weights),
                pattern,
                [self._error_of_two_four(name) for name in self.weights],
            )
        if pattern == ROWS:
            return self._without_rows(shown, sparsity)
        gone = {name: self._gone(name, pattern, sparsity) for name in self.weights}
        first = self._sorted[shown].values[gone[shown]] if gone[shown] < self.ranks[shown].numel() else self.count
        kept = [1 - gone[name] / weight.numel() for name, weight in self.weights.items()]
        errors = [self._error(name, gone[name]) for name in self.weights]
        return self._pruned((self.ranks[shown] >= first).view(self.weights[shown].shape), kept, pattern, errors)

    def _gone(self, name: str, pattern: str, sparsity: float) -> int:
        if pattern == PER_LAYER:
            return round(sparsity * self.ranks[name].numel())
        return int(torch.searchsorted(self._sorted[name].values, round(sparsity * self.count)))

    def _error(self, name: str, gone: int) -> float:
        squares = self._squares[name]
        return float((squares[gone - 1] / squares[-1]).sqrt()) if gone and squares[-1] else 0.0

    def _error_of_two_four(self, name: str) -> float:
        if name not in self._two_four:
            weight = self.weights[name]
            lost = (weight * ~two_four_mask(weight)).norm()
            self._two_four[name] = float(lost / weight.norm()) if lost else 0.0
        return self._two_four[name]

    def _without_rows(self, shown: str, sparsity: float) -> Pruned:
        kept, errors = [], []
        for name, weight in self.weights.items():
            norms = self._rows[name].values.double().square()
            gone = round(sparsity * len(weight))
            kept.append(1 - gone / len(weight))
            errors.append(float((norms[:gone].sum() / norms.sum()).sqrt()) if norms.sum() else 0.0)
        rows = torch.ones(len(self.weights[shown]), dtype=torch.bool)
        rows[self._rows[shown].indices[: round(sparsity * len(rows))]] = False
        return self._pruned(rows[:, None].expand_as(self.weights[shown]), kept, ROWS, errors)

    def _pruned(self, mask: Tensor, kept: Sequence[float], pattern: str, errors: Sequence[float]) -> Pruned:
        left = round(sum(share * weight.numel() for share, weight in zip(kept, self.weights.values(), strict=True)))
        dense = BYTES_A_VALUE * self.count
        stored, named = {
            TWO_FOUR: (BYTES_A_VALUE * left + self.count // 8, "values and 2-bit places"),
            ROWS: (BYTES_A_VALUE * left, "a smaller matrix"),
        }.get(pattern, (BYTES_A_VALUE * left + -(-self.count // 8), "values and a bitmap"))
        return Pruned(mask, tuple(kept), tuple(errors), dense, stored, named)


def sparsity_svg(layers: PrunableLayers, *, shown: str, pattern: str, sparsity: float) -> str:
    """Draw one layer's histogram and a corner of it, what every layer keeps, and the bytes of all.

    Errors:  ValueError if there is no such layer or pattern, or `sparsity` is not 0 to 1.
    """
    found = layers.prune(shown, pattern, sparsity)
    here = list(layers.weights).index(shown)
    title = f"{shown}, {pattern}: {found.kept[here]:.1%} kept, error {found.errors[here]:.1%} of its norm"
    share = found.stored_bytes / found.dense_bytes
    bill = f"all layers: dense {found.dense_bytes / 1e6:.2f} MB, stored as {found.stored_as} {share:.0%} of it"
    rows = [label(LEFT, 18, title, 15), label(LEFT, 37, "how many weights, by value (gone: orange)", 11)]
    rows += [_histogram(layers.weights[shown], found.mask), label(400, 37, "the upper left corner (kept: blue)", 11)]
    rows += [_corner(found.mask), *_bars(found, here), *_bill(found, bill)]
    return drawing(rows, height=346, told=f"{title}; {bill}")


def kept_by_layer(layers: PrunableLayers, sparsities: Sequence[float], *, ax: Axes | None = None) -> Axes:
    """Draw the share that each layer keeps under one threshold for all; layer by layer all would keep the same."""
    ax = ax or axes(x="layer, in the order of the model", y="share of weights kept, %")
    shown = next(iter(layers.weights))
    for marker, sparsity in zip("os^Dv<>", sparsities, strict=False):
        kept = [100 * share for share in layers.prune(shown, GLOBAL, sparsity).kept]
        (line,) = ax.plot(kept, marker + "-", ms=4, label=f"{sparsity:.0%} pruned")
        ax.axhline(100 * (1 - sparsity), color=line.get_color(), lw=0.8, ls=":")
    ax.set_ylim(0, 105)
    return legend(ax)


def _histogram(weight: Tensor, mask: Tensor) -> str:
    end = weight.abs().max().item() or 1.0
    every, kept = (torch.histc(values, BINS, -end, end) for values in (weight, weight[mask]))
    tallest, wide = every.max().item(), 372 / BINS
    drawn = ""
    for color, counts in ((EXPONENT, every), (MANTISSA, kept)):
        tops = [(k, HIGH * n / tallest) for k, n in enumerate(counts.tolist()) if n]
        path = "".join(f"M{LEFT + k * wide:.1f} {TOP + HIGH}v{-h:.1f}h{wide:.1f}v{h:.1f}z" for k, h in tops)
        drawn += f'<path d="{path}" fill="{color}"/>'
    return (
        drawn
        + label(LEFT, TOP + HIGH + 13, f"−{end:.2g}", 11)
        + label(380, TOP + HIGH + 13, f"{end:.2g}", 11, anchor="end")
    )


def _corner(mask: Tensor) -> str:
    corner = mask[:MAP_ROWS, :MAP_COLUMNS]
    height, width = corner.shape
    cells = "".join(
        f"M{400 + CELL * column:.1f} {TOP + CELL * row:.1f}h{CELL - 0.7:.1f}v{CELL - 0.7:.1f}h{0.7 - CELL:.1f}z"
        for row, column in corner.nonzero().tolist()
    )
    frame = f'<rect x="400" y="{TOP}" width="{CELL * width}" height="{CELL * height}" fill="none" stroke="currentColor"'
    return f'{frame} opacity="0.4"/><path class="kept" d="{cells}" fill="{MANTISSA}"/>'


def _bars(found: Pruned, here: int) -> list[str]:
    wide = (WIDTH - 2 * LEFT) / len(found.kept)
    rows = [label(LEFT, 232, f"what each of {len(found.kept)} layers keeps, the one shown outlined", 11)]
    for place, share in enumerate(found.kept):
        x, high = LEFT + place * wide, 46 * share
        stroke = ' stroke="currentColor" stroke-width="2"' if place == here else ""
        rows.append(
            f'<rect class="layer" x="{x:.1f}" y="{284 - high:.1f}" width="{max(wide - 3, 1):.1f}" height="{high:.1f}" '
            f'fill="{MANTISSA}"{stroke}/>'
        )
    return rows


def _bill(found: Pruned, told: str) -> list[str]:
    rows, whole = [label(LEFT, 304, told, 12)], WIDTH - 2 * LEFT
    for y, share, color in ((310, 1.0, "currentColor"), (324, found.stored_bytes / found.dense_bytes, MANTISSA)):
        width = whole * share / 1.125
        rows.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="10" fill="{color}" opacity="0.7"/>')
    return rows
