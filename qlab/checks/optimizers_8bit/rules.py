"""Adam in FP64, right unless told otherwise, and the slips that each part of it invites."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Average = Callable[[float, Tensor, Tensor], Tensor]
Corrections = Callable[[float, float, int], tuple[float, float]]
Divisor = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Settings:
    """What a step takes beside its tensors."""

    lr: float
    betas: tuple[float, float]
    eps: float

    @property
    def told(self) -> str:
        return f"lr={self.lr:.4g}, betas=({self.betas[0]:.4g}, {self.betas[1]:.4g}), eps={self.eps:.3g}"


@dataclass(frozen=True)
class Moments:
    """A parameter with its two moments."""

    parameter: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def double(self) -> "Moments":
        return Moments(self.parameter.double(), self.exp_avg.double(), self.exp_avg_sq.double())


def _average(beta: float, old: Tensor, new: Tensor) -> Tensor:
    return beta * old + (1 - beta) * new


def _corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    return 1 - beta1**step, 1 - beta2**step


def _divisor(exp_avg_sq: Tensor, correction: Tensor, eps: float) -> Tensor:
    return (exp_avg_sq / correction).sqrt() + eps


def _settings_as_they_are(settings: Settings) -> Settings:
    return settings


@dataclass(frozen=True)
class Rule:
    """One way to take a step: Algorithm 1 of arXiv:1412.6980 unless told otherwise."""

    first: Average = _average
    second: Average = _average
    squared: Callable[[Tensor], Tensor] = torch.square
    corrections: Corrections = _corrections
    divisor: Divisor = _divisor
    averages_used: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda new, gradient, old: new
    squares_used: Callable[[Tensor, Tensor], Tensor] = lambda new, old: new
    sign: float = -1.0
    settings: Callable[[Settings], Settings] = _settings_as_they_are
    keeps_corrected: bool = False

    def __call__(self, moments: Moments, gradient: Tensor, step: int, settings: Settings) -> Moments:
        s = self.settings(settings)
        gradient, old = gradient.double(), moments.double()
        exp_avg = self.first(s.betas[0], old.exp_avg, gradient)
        exp_avg_sq = self.second(s.betas[1], old.exp_avg_sq, self.squared(gradient))
        first, second = (torch.tensor(c, dtype=torch.float64) for c in self.corrections(*s.betas, step))
        used = self.averages_used(exp_avg, gradient, old.exp_avg)
        change = s.lr * (used / first) / self.divisor(self.squares_used(exp_avg_sq, old.exp_avg_sq), second, s.eps)
        if self.keeps_corrected:
            exp_avg, exp_avg_sq = exp_avg / first, exp_avg_sq / second
        return Moments(old.parameter + self.sign * change, exp_avg, exp_avg_sq)


RIGHT = Rule()

SWAPPED = "β is the share of what was there, 1 − β that of the new: with β = 0.9, m keeps nine tenths."
NEW = "The new value enters with the factor 1 − β: without it the average of equal values grows tenfold."
SQUARES = "exp_avg_sq averages g², one square for each element."
STORED = "Divide by the corrections on the way to the update only: the averages that are kept stay as they are."
BETAS = "Use the betas that are given: the first for exp_avg, the second for exp_avg_sq."
AVERAGES: tuple[tuple[str, str, Rule], ...] = (
    (
        "swaps-beta",
        SWAPPED,
        Rule(first=lambda b, m, g: (1 - b) * m + b * g, second=lambda b, v, g: (1 - b) * v + b * g),
    ),
    ("swaps-beta", SWAPPED, Rule(first=lambda b, m, g: (1 - b) * m + b * g)),
    ("swaps-beta", SWAPPED, Rule(second=lambda b, v, g: (1 - b) * v + b * g)),
    ("sums-instead-of-averages", NEW, Rule(first=lambda b, m, g: b * m + g, second=lambda b, v, g: b * v + g)),
    ("sums-instead-of-averages", NEW, Rule(first=lambda b, m, g: b * m + g)),
    ("sums-instead-of-averages", NEW, Rule(second=lambda b, v, g: b * v + g)),
    ("sums-instead-of-averages", NEW, Rule(second=lambda b, v, g: v + g)),
    ("does-not-square", SQUARES, Rule(squared=lambda g: g)),
    ("does-not-square", SQUARES, Rule(squared=torch.abs)),
    ("one-square-for-all", SQUARES, Rule(squared=lambda g: (g * g).mean().expand_as(g))),
    ("one-square-for-all", SQUARES, Rule(squared=lambda g: (g * g).sum().expand_as(g))),
    ("keeps-the-corrected-moments", STORED, Rule(keeps_corrected=True)),
    ("forgets-the-old-moments", SWAPPED, Rule(first=lambda b, m, g: (1 - b) * g, second=lambda b, v, g: (1 - b) * g)),
    ("swaps-the-betas", BETAS, Rule(settings=lambda s: replace(s, betas=s.betas[::-1]))),
    ("one-beta-for-both", BETAS, Rule(settings=lambda s: replace(s, betas=(s.betas[0],) * 2))),
    ("ignores-the-betas", BETAS, Rule(settings=lambda s: replace(s, betas=(0.9, 0.999)))),
)

NONE = "From zero the averages start too small, by 1 − β₁ᵗ and 1 − β₂ᵗ: divide by these before the update."
BOTH = "Both averages start at zero, and each has a correction of its own."
COUNT = "`step` is 1 in the first step: 1 − βᵗ with t = step, and for step 1 that is 1 − β."
POWER = "The correction falls with the step: β to the power of the step, not times it."
CORRECTIONS: tuple[tuple[str, str, Corrections], ...] = (
    ("no-bias-correction", NONE, lambda b1, b2, t: (1.0, 1.0)),
    ("corrects-one-moment", BOTH, lambda b1, b2, t: (1 - b1**t, 1.0)),
    ("corrects-one-moment", BOTH, lambda b1, b2, t: (1.0, 1 - b2**t)),
    ("counts-from-the-wrong-step", COUNT, lambda b1, b2, t: (1 - b1 ** (t + 1), 1 - b2 ** (t + 1))),
    ("counts-from-the-wrong-step", COUNT, lambda b1, b2, t: (1 - b1 ** (t - 1), 1 - b2 ** (t - 1))),
    ("corrects-as-in-the-first-step", COUNT, lambda b1, b2, t: (1 - b1, 1 - b2)),
    ("swaps-the-corrections", BOTH, lambda b1, b2, t: (1 - b2**t, 1 - b1**t)),
    ("one-correction-for-both", BOTH, lambda b1, b2, t: (1 - b1**t,) * 2),
    ("one-correction-for-both", BOTH, lambda b1, b2, t: (1 - b2**t,) * 2),
    ("corrects-by-a-product", POWER, lambda b1, b2, t: (1 - b1 * t, 1 - b2 * t)),
    ("multiplies-by-the-correction", "Divide by the correction.", lambda b1, b2, t: (1 / (1 - b1**t), 1 / (1 - b2**t))),
)

INSIDE = "√(v̂ + ε) lets ε = 1e-8 act like 1e-4: add ε to the root, √v̂ + ε."
AFTER = "ε is added to the root of the *corrected* average; before, the correction makes it some thirty times larger."
GIVEN = "Add the ε that is given: without one, a gradient that was always 0 gives 0 / 0."
DIVISORS: tuple[tuple[str, str, Divisor], ...] = (
    ("epsilon-inside-root", INSIDE, lambda v, c, eps: (v / c + eps).sqrt()),
    ("epsilon-inside-root", INSIDE, lambda v, c, eps: ((v + eps) / c).sqrt()),
    ("epsilon-inside-root", INSIDE, lambda v, c, eps: (v / c + 1e-8).sqrt()),
    ("epsilon-before-correction", AFTER, lambda v, c, eps: (v.sqrt() + eps) / c.sqrt()),
    ("ignores-epsilon", GIVEN, lambda v, c, eps: (v / c).sqrt()),
    ("ignores-epsilon", GIVEN, lambda v, c, eps: (v / c).sqrt() + 1e-8),
    ("squares-epsilon", GIVEN, lambda v, c, eps: (v / c + eps**2).sqrt()),
    (
        "clamps-to-epsilon",
        "Add ε to the root: a maximum is something else.",
        lambda v, c, eps: (v / c).sqrt().clamp(eps),
    ),
    ("subtracts-epsilon", "ε is added.", lambda v, c, eps: (v / c).sqrt() - eps),
)

ROOT = "The update divides by the *root* of the averaged squares: m̂ / (√v̂ + ε)."
MOVES = "Subtract the update, made of the *new* averages (the old are zero at first), and return the new parameter."
FIRST = "First the new averages, then the parameter: the update is made of the new ones."
LEADS = "The numerator is the averaged gradient m̂, the new one."
UPDATES: tuple[tuple[str, str, Rule], ...] = (
    ("climbs", "The step goes against the gradient: subtract.", Rule(sign=1.0)),
    ("never-moves", MOVES, Rule(sign=0.0)),
    ("ignores-lr", "The update is lr times the ratio.", Rule(settings=lambda s: replace(s, lr=1.0))),
    ("ignores-lr", "Use the lr that is given.", Rule(settings=lambda s: replace(s, lr=1e-3))),
    ("forgets-the-root", ROOT, Rule(divisor=lambda v, c, eps: v / c + eps)),
    ("multiplies-by-the-root", ROOT, Rule(divisor=lambda v, c, eps: 1 / ((v / c).sqrt() + eps))),
    ("no-second-moment", ROOT, Rule(divisor=lambda v, c, eps: torch.ones_like(v))),
    ("uses-the-gradient", LEADS, Rule(averages_used=lambda m, g, old: g)),
    (
        "uses-the-gradient",
        LEADS,
        Rule(averages_used=lambda m, g, old: g, corrections=lambda b1, b2, t: (1.0, 1 - b2**t)),
    ),
    ("uses-the-old-moment", LEADS, Rule(averages_used=lambda m, g, old: old)),
    ("uses-the-old-moment", FIRST, Rule(averages_used=lambda m, g, old: old, squares_used=lambda v, old: old)),
)


Slip = tuple[str, str, Rule]


def slips() -> Iterator[Slip]:
    """Yield every slip alone, and pairs: where ε decides its place gives the name, where averages are wrong they do."""
    for misconception, thought, corrections in CORRECTIONS:
        yield misconception, thought, Rule(corrections=corrections)
    for misconception, thought, divisor in DIVISORS:
        yield misconception, thought, Rule(divisor=divisor)
    yield from UPDATES
    for misconception, thought, divisor in DIVISORS:
        for _, _, corrections in CORRECTIONS:
            yield misconception, thought, Rule(divisor=divisor, corrections=corrections)
    for misconception, thought, averages in AVERAGES:
        yield misconception, thought, averages
        for _, _, corrections in CORRECTIONS[:3]:
            yield misconception, thought, replace(averages, corrections=corrections)


def explains(values: Tensor, got: Tensor, room: Tensor) -> bool:
    """Tell whether `values` are what was got, to the room that each has; NaN explains NaN."""
    near = ((values - got).abs() <= room) | (values == got) | (values.isnan() & got.isnan())
    return bool(near.all())
