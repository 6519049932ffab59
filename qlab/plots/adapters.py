"""Adapters of a rank on some matrices: what trains, its bytes beside training all, and the quality on record."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlab.config import COURSE_MODEL, ModelConfig, count_parameters
from qlab.memory import FP32_ADAM, LORA, MIXED_ADAM, QLORA, Recipe, StateBytes, layer_matrices, model_state_bytes
from qlab.plots.drawings import EXPONENT, MANTISSA, WIDTH, drawing, label
from qlab.plots.figures import INK, INK_OF_Y, MARKERS
from qlab.plots.numbers import percent, short

TARGETS = ("queries and values", "attention", "feed-forward", "all matrices")
BASES = {
    "FP32": replace(LORA, matrix_bytes=4, other_bytes=4),
    "16 bits": LORA,
    "NF4": replace(QLORA, matrix_bytes=4.5 / 8),
    "NF4, double quantized": QLORA,
}
LEFT, RIGHT = 168.0, 640.0
FIRST_BAR, BAR, GROUP = 66, 11, 32
CHART_TOP, CHART_BOTTOM = 286, 372
TARGET_COLORS = dict(zip(TARGETS, ("#e69f00", "#d55e00", "#009e73", "#0072b2"), strict=True))

Quality = Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class AdapterChoice:
    """LoRA adapters of a rank on the chosen matrices of every layer, beside a frozen base.

    Errors:  ValueError if `rank` is below 1, or there are no such targets or no such base.
    """

    config: ModelConfig = COURSE_MODEL
    rank: int = 16
    targets: str = TARGETS[-1]
    base: str = "NF4, double quantized"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        for name, known in (("targets", TARGETS), ("base", BASES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The adapted matrices of one layer as (inputs, outputs)."""
        each = layer_matrices(self.config)
        chosen = {TARGETS[0]: [each[0], each[2]], TARGETS[1]: each[:4], TARGETS[2]: each[4:]}
        return chosen.get(self.targets, each)

    @property
    def adapters(self) -> int:
        """How many parameters train."""
        return self.rank * self.config.layers * sum(inward + outward for inward, outward in self.matrices)

    @property
    def share(self) -> float:
        """The trained parameters as a share of the base's."""
        return self.adapters / count_parameters(self.config)

    @property
    def without_saving(self) -> int:
        """How many of a layer's adapted matrices have no more parameters than their adapters."""
        return sum(self.rank * (inward + outward) >= inward * outward for inward, outward in self.matrices)

    @property
    def full_recipe(self) -> Recipe:
        """How the same model trains with all its weights: in FP32 beside an FP32 base, else in mixed precision."""
        return FP32_ADAM if self.base == "FP32" else MIXED_ADAM

    @cached_property
    def bills(self) -> dict[str, tuple[int, int]]:
        """Bytes by part, with all weights trained and with adapters alone."""
        config, full = self.config, self.full_recipe
        parameters = count_parameters(config)
        matrices = config.layers * sum(inward * outward for inward, outward in layer_matrices(config))
        states: list[StateBytes] = [
            model_state_bytes(parameters, recipe, adapters=self.adapters, others=parameters - matrices)
            for recipe in (full, BASES[self.base])
        ]
        named = {
            "weights, master": [s.weights + s.master for s in states],
            "gradients": [s.gradients for s in states],
            "optimizer": [s.optimizer for s in states],
            "all of these": [s.total for s in states],
            "file to keep": [round(parameters * full.matrix_bytes), 4 * self.adapters],
        }
        return {name: (ours[0], ours[1]) for name, ours in named.items()}

    @property
    def name(self) -> str:
        """Model, rank and targets in one line."""
        return f"{self.config.name}, rank {self.rank} on {self.targets}, base in {self.base}"

    @property
    def told(self) -> str:
        """What trains, and whether that saves anything."""
        parameters = count_parameters(self.config)
        trained = f"{_count(self.adapters)} beside {_count(parameters)} parameters train: {percent(self.share)}"
        if self.without_saving:
            many = f"{self.without_saving} of the {len(self.matrices)} matrices of a layer"
            return f"{trained}; on {many} the adapter is no smaller"
        return trained


def adapter_svg(choice: AdapterChoice, *, quality: Quality | None = None, full: float | None = None) -> str:
    """Draw bytes by part, all weights trained above adapters, on a scale of tenfold steps, and the recorded quality.

    Units:   `quality[targets, rank]` and `full`, all weights trained, in bits per byte of the chosen model.
    """
    known = {rank: bits for (targets, rank), bits in (quality or {}).items() if targets == choice.targets}
    if choice.rank in known:
        said = f"recorded beside a base in FP32: {known[choice.rank]:.4f} bits per byte held out"
    else:
        said = "quality: not recorded for this choice"
    rows = [label(8, 18, choice.name, 15), label(8, 39, choice.told, 13), _key()]
    rows += [*_bars(choice.bills), label(8, CHART_TOP - 18, said, 13)]
    height = CHART_TOP - 8
    if known:
        rows += [*_chart(known, choice.rank, full)]
        height = CHART_BOTTOM + 38
    totals = choice.bills["all of these"]
    bytes_told = f"{in_bytes(totals[1])} instead of {in_bytes(totals[0])}, a file of "
    bytes_told += f"{in_bytes(choice.bills['file to keep'][1])}"
    return drawing(rows, height=height, told=f"{choice.name}: {choice.told}; {bytes_told}; {said}")


def adapter_figure(quality: Quality, *, config: ModelConfig = COURSE_MODEL, full: float | None = None) -> Figure:
    """Draw by rank, for each choice of matrices, the bytes of what trains, and the recorded quality."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    ranks = [2**k for k in range(9)]
    for marker, targets in zip(MARKERS, TARGETS, strict=False):
        color = TARGET_COLORS[targets]
        trained = [16 * AdapterChoice(config, rank, targets, "FP32").adapters / 1e6 for rank in ranks]
        left.plot(ranks, trained, marker + "-", ms=4, color=color, label=targets)
        points = sorted((rank, bits) for (name, rank), bits in quality.items() if name == targets)
        if points:
            right.plot(*zip(*points, strict=True), marker + "-", ms=4, color=color)
    left.axhline(16 * count_parameters(config) / 1e6, color=INK, ls="--", label="all weights trained")
    left.set_yscale("log")
    if quality and full is not None:
        right.axhline(full, color=INK, ls="--")
    _furnish(left, x="rank", y="what trains: weights,\ngradients, Adam, MB")
    _furnish(right, x="rank", y="held-out bits per byte" if quality else "not recorded yet")
    if not quality:
        right.set_xlim(left.get_xlim())
    figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=3)
    return figure


def in_bytes(count: float) -> str:
    """Write bytes with three digits in the unit that suits them."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{short(count / size) if count < 999.5 * size else f'{count / size:,.0f}'} {unit}"
    return f"{short(count)} bytes"


def _furnish(ax: Axes, *, x: str, y: str) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.patch.set_alpha(0)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.tick_params(which="both", axis="x", colors=INK)
    ax.tick_params(which="both", axis="y", colors=INK_OF_Y)
    ax.spines[:].set_color(INK)
    ax.grid(alpha=0.25, color=INK)


def _count(parameters: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{short(parameters / size)} {unit}"
    return str(parameters)


def _key() -> str:
    drawn = ""
    for x, color, text in ((8, EXPONENT, "all weights trained"), (168, MANTISSA, "base frozen, adapters trained")):
        drawn += f'<rect x="{x}" y="48" width="10" height="10" fill="{color}"/>' + label(x + 16, 57, text, 12)
    return drawn


def _bars(bills: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    counts = [count for pair in bills.values() for count in pair]
    low, high = math.floor(math.log10(min(counts))) - 0.5, math.log10(max(counts))
    bottom = FIRST_BAR + GROUP * len(bills)
    for power in range(math.ceil(low), math.floor(high) + 1):
        x = LEFT + (RIGHT - LEFT) * (power - low) / (high - low)
        yield f'<path d="M{x:.1f} {FIRST_BAR}V{bottom}" stroke="currentColor" opacity="0.15"/>'
        yield label(x, bottom + 14, in_bytes(10**power), 11, anchor="middle")
    for place, (name, pair) in enumerate(bills.items()):
        top = FIRST_BAR + GROUP * place + 4
        yield label(LEFT - 10, top + 15, name, 13, anchor="end")
        for count, color, y in zip(pair, (EXPONENT, MANTISSA), (top, top + BAR + 1), strict=True):
            wide = (RIGHT - LEFT) * (math.log10(count) - low) / (high - low)
            yield f'<rect class="bytes" x="{LEFT}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{color}"/>'
            yield label(LEFT + wide + 5, y + 10, in_bytes(count), 11)


def _chart(known: Mapping[int, float], rank: int, full: float | None) -> Iterator[str]:
    """Draw the recorded bits per byte by rank, with a ring around the chosen one."""
    ranks, values = sorted(known), [*known.values(), *([] if full is None else [full])]
    low, spread = min(values), (max(values) - min(values)) or 1.0
    tall = (CHART_BOTTOM - CHART_TOP) / spread
    first, octaves = math.log2(ranks[0]), math.log2(ranks[-1] / ranks[0]) or 1.0
    places = {
        r: (LEFT + 380 * (math.log2(r) - first) / octaves, CHART_BOTTOM - tall * (v - low)) for r, v in known.items()
    }
    if full is not None:
        y = CHART_BOTTOM - tall * (full - low)
        yield f'<path d="M{LEFT - 8} {y:.1f}h{410}" stroke="{EXPONENT}" stroke-dasharray="4 3"/>'
        yield label(LEFT + 408, y + 4, f"all weights trained: {full:.4f}", 11)
    line = " ".join(f"{places[r][0]:.1f},{places[r][1]:.1f}" for r in ranks)
    yield f'<polyline points="{line}" fill="none" stroke="{MANTISSA}" stroke-width="1.5"/>'
    for r in ranks:
        x, y = places[r]
        yield f'<circle class="quality" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{MANTISSA}"/>'
        yield label(x, CHART_BOTTOM + 18, str(r), 11, anchor="middle")
        if r == rank:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    yield label(LEFT - 16, CHART_TOP + 4, f"{max(values):.3f}", 11, anchor="end")
    yield label(LEFT - 16, CHART_BOTTOM + 4, f"{low:.3f}", 11, anchor="end")
    yield label(LEFT - 16, (CHART_TOP + CHART_BOTTOM) / 2 + 4, "bits per byte", 11, anchor="end")
    yield label(min(LEFT + 190, WIDTH), CHART_BOTTOM + 34, "rank", 11, anchor="middle")
