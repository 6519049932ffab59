"""Sixteen levels laid over a weight's histogram: what each codebook loses of it, and what its constants cost."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from qlab.codebooks import FP4, NF4, double_quantize, format_map, linear_map, quantize_blockwise
from qlab.formats import E2M1, E3M0
from qlab.plots.drawings import EXPONENT, MANTISSA, drawing, label
from qlab.plots.figures import INK, axes, legend
from qlab.plots.grids import bars
from qlab.plots.numbers import percent

CODEBOOKS = {
    "NF4": NF4,
    "FP4, E2M1": format_map(E2M1),
    "FP4, bitsandbytes": FP4,
    "even steps": linear_map(bits=4, signed=True),
    "E3M0": format_map(E3M0),
}
COLORS = dict(zip(CODEBOOKS, ("#0072b2", "#009e73", "#e69f00", "#808080", "#a05fd0"), strict=True))
BINS, EDGE = 124, 1.03
LEFT, RIGHT = 8.0, 752.0
TOP, GROUND, BOTTOM = 66, 176, 246
FIRST_ROW, ROW, BAR_LEFT, BAR_RIGHT = 296, 22, 150.0, 640.0


class Coded(NamedTuple):
    """What one codebook makes of a weight."""

    error: float
    bits: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LevelsChoice:
    """A codebook, how many weights share a constant, and whether the constants are quantized again.

    Errors:  ValueError if there is no such codebook.
    """

    codebook: str = "NF4"
    block_size: int = 64
    double: bool = False

    def __post_init__(self) -> None:
        if self.codebook not in CODEBOOKS:
            raise ValueError(f"codebook must be one of {', '.join(CODEBOOKS)}, got {self.codebook!r}")


def code_weight(weight: Float[Tensor, "*shape"], choice: LevelsChoice) -> Coded:
    """Quantize a weight and measure what comes back.

    Units:   `error` is a share of the weight's norm; `bits` are those of a code and its share of the constants.
    Errors:  ValueError if the weight is empty or not finite, or the block size below 1.
    """
    codes = quantize_blockwise(weight, CODEBOOKS[choice.codebook], block_size=choice.block_size)
    stored = double_quantize(codes) if choice.double else codes
    error = (stored.dequantize() - weight).norm() / weight.norm().clamp_min(torch.finfo(torch.float32).tiny)
    counts = torch.bincount(codes.codes.view(-1), minlength=len(CODEBOOKS[choice.codebook]))
    return Coded(error.item(), stored.bits_per_value, tuple(counts.tolist()))


class WeightLevels:
    """A weight that is looked at with many choices: nothing is quantized twice.

    Errors:  ValueError if the weight is empty or holds NaN or infinity.
    """

    def __init__(self, weight: Float[Tensor, "*shape"]) -> None:
        self.weight = weight.detach().cpu().float()
        self.coded = functools.cache(lambda choice: code_weight(self.weight, choice))
        self.counts = functools.cache(self._counts)
        self.coded(LevelsChoice())

    def everyone(self, choice: LevelsChoice) -> dict[str, Coded]:
        """Return what every codebook makes of the weight, in the order of `CODEBOOKS`."""
        return {name: self.coded(LevelsChoice(name, choice.block_size, choice.double)) for name in CODEBOOKS}

    def prepare(self, block_size: int) -> None:
        """Quantize ahead all that can be asked for at this block size."""
        self.counts(block_size)
        for double in (False, True):
            self.everyone(LevelsChoice(block_size=block_size, double=double))

    def _counts(self, block_size: int) -> Tensor:
        """Count the weights over their block's absmax in `BINS` bins."""
        flat = self.weight.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        values = (blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)).flatten()[: flat.numel()]
        return torch.histc(values, BINS, -EDGE, EDGE)


def levels_svg(levels: WeightLevels, choice: LevelsChoice | None = None) -> str:
    """Draw the levels over the histogram of the weight, each with the share it gets, and below what all codebooks lose.

    Errors:  ValueError if the block size is below 1.
    """
    choice = choice or LevelsChoice()
    found = levels.everyone(choice)
    coded = found[choice.codebook]
    constants = "absmax in 8 bits" if choice.double else "absmax in FP32"
    title = f"{choice.codebook}, blocks of {choice.block_size:,}, {constants}"
    cost = f"{coded.bits:.3f} bits a parameter"
    used = sum(count > 0 for count in coded.counts)
    told = f"error {percent(coded.error)} of the weight's norm; {used} of {len(coded.counts)} levels used, "
    told += f"the fullest by {percent(max(coded.counts) / sum(coded.counts))} of the weights"
    rows = [label(LEFT, 18, title, 15), label(RIGHT, 18, cost, 14, anchor="end"), label(LEFT, 40, told, 13)]
    rows.append(bars(levels.counts(choice.block_size), ground=GROUND, height=GROUND - TOP, color=MANTISSA))
    rows += [*_strokes(CODEBOOKS[choice.codebook], coded.counts), *_errors(found, choice)]
    everyone = ", ".join(f"{name} {percent(one.error)}" for name, one in found.items())
    height = FIRST_ROW + ROW * len(found) + 4
    return drawing(rows, height=height, told=f"{title}: {cost}; {told}. Errors of all: {everyone}")


def levels_figure(weight: Float[Tensor, "*shape"], *, block_size: int = 64, ax: Axes | None = None) -> Axes:
    """Draw the histogram of a weight over its blocks' absmax, and under it the levels of every codebook."""
    ax = ax or axes(x="weight over the largest magnitude of its block", y="share of the weights in a bin", height=3.8)
    levels = WeightLevels(weight)
    counts = levels.counts(block_size)
    share, edges = counts / counts.sum(), torch.linspace(-EDGE, EDGE, BINS + 1)
    ax.stairs(share.numpy(), edges.numpy(), fill=True, color=INK, alpha=0.5)
    step = share.max().item() / 8
    for row, (name, coded) in enumerate(levels.everyone(LevelsChoice(block_size=block_size)).items(), start=1):
        places = CODEBOOKS[name].tolist()
        ax.vlines(places, -(row + 0.35) * step, -(row - 0.35) * step, color=COLORS[name], lw=2)
        ax.text(EDGE + 0.03, -row * step, f"{name}: error {percent(coded.error)}", color=COLORS[name], va="center")
    ax.set_yticks([tick for tick in ax.get_yticks() if tick >= 0 and tick <= share.max()])
    ax.set_xlim(-EDGE, EDGE)
    ax.set_ylim(-(len(CODEBOOKS) + 0.6) * step, None)
    return ax


def codebook_errors(weight: Float[Tensor, "*shape"], *, sizes: Sequence[int], ax: Axes | None = None) -> Axes:
    """Draw what each codebook loses against its bits, a dot for each block size, hollow with double quantization."""
    ax = ax or axes(x="bits a parameter for the constants, beside the 4 of the code", y="error, % of the weight's norm")
    levels = WeightLevels(weight)
    for name, color in COLORS.items():
        for double in (False, True):
            found = [levels.coded(LevelsChoice(name, size, double)) for size in sizes]
            points = [(one.bits - 4, 100 * one.error) for one in found]
            style = {"mfc": "none", "ls": ":"} if double else {"ls": "-", "label": name}
            ax.plot(*zip(*points, strict=True), marker="o", ms=5, color=color, **style)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    return legend(ax)


def _x(value: float) -> float:
    return LEFT + (RIGHT - LEFT) * (value / EDGE + 1) / 2


def _strokes(codebook: Tensor, counts: Sequence[int]) -> Iterator[str]:
    """Draw a line for each level, and from the ground down the share of the weights that got it."""
    places, most = [_x(value) for value in codebook.tolist()], max(counts)
    lines = "".join(f"M{x:.1f} {TOP}V{BOTTOM}" for x in places)
    yield f'<path class="levels" d="{lines}" stroke="{EXPONENT}" stroke-width="1" opacity="0.6"/>'
    hanging = "".join(
        f"M{x - 4:.1f} {GROUND}h8v{max((BOTTOM - GROUND) * count / most, 1.5):.1f}h-8z"
        for x, count in zip(places, counts, strict=True)
        if count
    )
    yield f'<path class="codes" d="{hanging}" fill="{EXPONENT}"/>'
    yield f'<line x1="{LEFT}" x2="{RIGHT}" y1="{GROUND}" y2="{GROUND}" stroke="currentColor"/>'
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
        yield label(_x(value), BOTTOM + 14, f"{value:g}".replace("-", "−"), 11, anchor="middle")
    words = "weight over its block's absmax; blue: the weights, orange: the levels and how many weights each gets"
    yield label(LEFT, BOTTOM + 32, words, 12)


def _errors(found: Mapping[str, Coded], choice: LevelsChoice) -> Iterator[str]:
    """Draw a bar for what each codebook loses at this block size; the chosen one strongly."""
    largest = max(one.error for one in found.values()) or 1.0
    for place, (name, one) in enumerate(found.items()):
        y, here = FIRST_ROW + ROW * place, name == choice.codebook
        wide = (BAR_RIGHT - BAR_LEFT) * one.error / largest
        color = f'fill="{EXPONENT if here else MANTISSA}" opacity="{1 if here else 0.6}"'
        yield label(BAR_LEFT - 8, y + 12, name, 13, anchor="end")
        yield f'<rect class="error" x="{BAR_LEFT}" y="{y}" width="{wide:.1f}" height="15" {color}/>'
        yield label(BAR_LEFT + wide + 6, y + 12, f"error {percent(one.error)}", 12)
