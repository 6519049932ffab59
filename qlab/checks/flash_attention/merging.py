"""Check of `merge_partials`: two results over different keys, brought to one maximum and added."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import attention
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.flash_attention.comparing import require_near
from qlab.checks.flash_attention.exact import TOPIC, UNIT, Attention
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform, unpacked
from qlab.checks.report import check, part, require

CALL = "merge_partials(a, b)"
NAMES = ("maximum", "total", "output")
Partial = tuple[Tensor, Tensor, Tensor]
Slip = tuple[str, str, Partial]


@dataclass(frozen=True)
class Pair:
    """Two partial results for the same rows, and what they merge into, in FP64."""

    a: Partial
    b: Partial

    @property
    def maximum(self) -> Tensor:
        return torch.maximum(self.a[0], self.b[0]).double()

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """exp(old maximum - new maximum) of each side; 0 where a side saw no key."""
        seen = self.maximum.nan_to_num(neginf=0.0)
        return (self.a[0].double() - seen).exp(), (self.b[0].double() - seen).exp()

    def joined(self, of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return total and output with these factors on the sides."""
        (_, total_a, output_a), (_, total_b, output_b) = self.a, self.b
        total = of_a * total_a.double() + of_b * total_b.double()
        return total, of_a[:, None] * output_a.double() + of_b[:, None] * output_b.double()

    @property
    def merged(self) -> Partial:
        return self.maximum, *self.joined(*self.factors)

    @property
    def allowed(self) -> tuple[Tensor, Tensor]:
        """What FP32 may change: a difference, an exponential, a product and a sum round, the first by u · its size.

        Who works with maximum + log(total) rounds by u times the maxima.
        """
        size = torch.stack([self.a[0], self.b[0]]).double().nan_to_num(neginf=0.0).abs().amax(0)
        share = UNIT * (16 * size + 24)
        of_a, of_b = self.factors
        total = of_a * self.a[1] + of_b * self.b[1]
        output = of_a[:, None] * self.a[2].abs() + of_b[:, None] * self.b[2].abs()
        return share * total + 1e-37, share[:, None] * output + 1e-37


@check(TOPIC, "merge-partials", attention.Partial, attention.merge, points=5)
def check_merge_partials(merge_partials: LearnerFunction, draw: torch.Generator) -> None:
    """Check `merge_partials(a, b) -> (maximum, total, output)`; the output is not yet divided by the total."""
    with part("the maximum and the total, whichever side is larger"):
        pair = _pair(draw)
        got = _merged(merge_partials, pair)
        _require_maximum(pair, got[0])
        _require(pair, got[1], 1)
    with part("the output, under the same maximum, not divided"):
        pair = _pair(draw)
        _require(pair, _merged(merge_partials, pair)[2], 2)
    with part("maxima in the thousands and far apart: nothing overflows"):
        pair = _pair(draw, apart=True)
        got = _merged(merge_partials, pair)
        if not got[1].isfinite().all():
            _require_maximum(pair, got[0])  # factors above 1 look alike here: the maximum tells them apart
        for place in (1, 2):
            _require(pair, got[place], place)
    with part("a side that saw no key: −inf, 0 and zeros change nothing, and two of them stay so"):
        _require_masked(merge_partials, draw)
    with part("five blocks of keys, merged in any order, are the whole attention"):
        _require_attention(merge_partials, draw)


def _pair(draw: torch.Generator, *, apart: bool = False) -> Pair:
    """Draw sides of which either has the larger maximum in some rows, by 0.5 to 2.5, or by thousands."""
    rows, width = 8, drawn(4, 6, draw)
    low, high = (2_000.0, 6_000.0) if apart else (0.5, 2.5)
    gap = uniform(low, high, (rows,), draw) * torch.tensor([1.0, -1.0]).repeat(rows // 2)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(rows // 4)  # with either gap
    maximum = signs * (uniform(500.0, 3_000.0, (rows,), draw) if apart else uniform(0.1, 3.0, (rows,), draw))
    sides = []
    for side in (maximum, maximum + gap):
        weights = uniform(0.05, 1.0, (rows, 7), draw)
        weights[:, 0] = 1.0  # of the largest score
        sides.append((side, weights.sum(1), weights @ torch.randn(7, width, generator=draw)))
    return Pair(*sides)


def _merged(merge_partials: LearnerFunction, pair: Pair) -> Partial:
    found = unpacked(merge_partials(pair.a, pair.b), NAMES, call=CALL)
    shapes = [tuple(t.shape) for t in pair.a]
    read = [as_tensor(v, s, call=f"{CALL}[{i}]") for i, (v, s) in enumerate(zip(found, shapes, strict=True))]
    return read[0].double(), read[1].double(), read[2].double()


def _told(pair: Pair, place: int) -> Callable[[int], str]:
    def tell(i: int) -> str:
        row = i // (pair.a[2].shape[1] if place == 2 else 1)
        sides = (f"{name}: maximum {side[0][row]:.6g}, total {side[1][row]:.6g}" for name, side in _named(pair))
        return f"{', '.join(sides)} (the {NAMES[place]} of row {row})"

    return tell


def _named(pair: Pair) -> tuple[tuple[str, Partial], ...]:
    return ("a", pair.a), ("b", pair.b)


def _require_maximum(pair: Pair, got: Tensor) -> None:
    require_values(
        got.float(),  # a maximum is one of the two numbers: nothing is rounded
        pair.maximum.float(),
        given=_told(pair, 0),
        suspects=lambda: (Suspect(name, thought, values.float()) for name, thought, values in _wrong_maxima(pair)),
    )


def _require(pair: Pair, got: Tensor, place: int) -> None:
    require_near(
        got,
        pair.merged[place],
        pair.allowed[place - 1],
        given=_told(pair, place),
        slips=lambda: ((name, thought, values[place]) for name, thought, values in _slips(pair)),
    )


def _require_masked(merge_partials: LearnerFunction, draw: torch.Generator) -> None:
    pair = _pair(draw)
    for name, rows in (("a", [0, 1, 4]), ("b", [2, 3, 4])):  # rows of either, and row 4 of both
        side = dict(_named(pair))[name]
        side[0][rows], side[1][rows], side[2][rows] = -torch.inf, 0.0, 0.0
    maximum, total, output = _merged(merge_partials, pair)
    lost = bool(maximum.isnan().any() or total.isnan().any() or output.isnan().any())
    require(
        not lost,
        "given a row whose maximum is −inf, the result has NaN",
        misconception="nan-for-masked-rows",
        thought="−inf − (−inf) is NaN: where the new maximum is −inf subtract 0 instead, and exp gives the 0 you want.",
    )
    _require_maximum(pair, maximum)
    _require(pair, total, 1)
    _require(pair, output, 2)


def _require_attention(merge_partials: LearnerFunction, draw: torch.Generator) -> None:
    rows, columns, width = 5, 23, 4
    whole = Attention(*(torch.randn(n, width, generator=draw) for n in (rows, columns, columns)))
    scores = 3 * whole.scores
    parts = []
    for keys in (slice(0, 3), slice(3, 10), slice(10, 11), slice(11, 19), slice(19, 23)):
        maximum = scores[:, keys].amax(1).float()
        weights = (scores[:, keys] - maximum[:, None]).exp()
        parts.append((maximum, weights.sum(1).float(), (weights @ whole.v[keys].double()).float()))
    while len(parts) > 1:
        a, b = (parts.pop(drawn(0, len(parts) - 1, draw)) for _ in range(2))
        maximum, total, output = _merged(merge_partials, Pair(a, b))
        parts.append((maximum.float(), total.float(), output.float()))
    _, total, output = parts[0]
    weights = torch.softmax(scores, 1)
    # four merges, each as in `Pair.allowed` on maxima below 16, of numerators and of their sum
    room = 2 * 4 * UNIT * (16 * 16 + 24) * (weights @ whole.v.double().abs())
    require_near(
        output / total[:, None],
        weights @ whole.v.double(),
        room,
        given=lambda i: f"{columns} keys in five blocks, the output of row {i // width} divided by its total",
    )


def _wrong_maxima(pair: Pair) -> Iterator[tuple[str, str, Tensor]]:
    a, b = pair.a[0], pair.b[0]
    larger = "The new maximum is the larger of the two, row by row: `torch.maximum`."
    for values in (a, b):
        yield "keeps-one-maximum", larger, values
    yield "takes-the-minimum", larger, torch.minimum(a, b)
    yield "adds-the-maxima", larger, a + b
    yield "one-maximum-for-all-rows", "Each row has a maximum of its own.", torch.maximum(a, b).max().expand(len(a))
    lost = "A row that saw no key on either side keeps −inf: a number there says that it saw one."
    for instead in (0.0, -1e9, -1e30, torch.finfo(torch.float32).min):
        yield "loses-minus-infinity", lost, torch.maximum(a, b).nan_to_num(neginf=instead)


OLD = "The total of a counts exp(score − its own maximum): times exp(old maximum − new maximum) before b's is added."
NEW = "b's numbers, too, are under b's maximum: they need their own factor, exp(maximum of b − new maximum)."
SIGN = "The factor is exp(old − new), never above 1: exp(new − old) moves the other way, and overflows."
OUT = "The output holds the same exponentials as the total: it takes the same two factors."
UNDIVIDED = "The output is a sum that is not divided yet, here as there: divide once, after the last block."


def _slips(pair: Pair) -> Iterator[Slip]:
    maximum, (of_a, of_b), one = pair.maximum, pair.factors, torch.ones_like(pair.maximum)
    total = pair.merged[1]
    for name, thought, factors in (
        ("forgets-to-rescale-the-old-side", OLD, (one, of_b)),
        ("forgets-to-rescale-the-new-side", NEW, (of_a, one)),
        ("forgets-to-rescale", f"{OLD} So with b's.", (one, one)),
        ("rescales-the-wrong-way", SIGN, (1 / of_a, 1 / of_b)),
        ("rescales-the-wrong-way", SIGN, (1 / of_a, of_b)),
        ("rescales-the-wrong-way", SIGN, (of_a, 1 / of_b)),
        ("rescales-the-wrong-way", f"{SIGN} And b needs one as well.", (1 / of_a, one)),
        ("swaps-the-factors", "a's numbers take a's factor, b's take b's.", (of_b, of_a)),
        ("rescales-by-the-difference", "The new maximum is the larger one, not b's.", (of_a / of_b, one)),
        ("rescales-by-the-difference", "The new maximum is the larger one, not a's.", (one, of_b / of_a)),
        ("rescales-twice", "One factor, once.", (of_a**2, of_b**2)),
        ("drops-the-old-side", "Both sides count.", (0 * one, of_b)),
        ("drops-the-new-side", "Both sides count.", (of_a, 0 * one)),
    ):
        joined = pair.joined(*factors)
        yield name, f"{thought} {OUT}" if name.startswith("forgets") else thought, (maximum, *joined)
    units = "exp of a maximum overflows, or vanishes: take exp of the difference, old maximum − new maximum."
    yield "exponentiates-the-maxima", units, (maximum, *_by_exponentials(pair))
    ways = ((of_a, of_b), (one, one))
    for first, second in ways:
        yield "divides-too-early", UNDIVIDED, (maximum, total, pair.joined(first, second)[1] / total[:, None])
    mean = (pair.a[2] + pair.b[2]).double() / 2
    yield "averages-the-outputs", OUT, (maximum, total, mean)
    of_means = of_a[:, None] * pair.a[1][:, None] * pair.a[2] + of_b[:, None] * pair.b[1][:, None] * pair.b[2]
    for values in (of_means, of_means / total[:, None]):
        yield "takes-the-outputs-for-divided", UNDIVIDED, (maximum, total, values)


def _by_exponentials(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return total and output by way of exp(maximum), with all that FP32 makes of it."""
    (of_a, total_a, output_a), (of_b, total_b, output_b) = (
        (side[0].float().exp(), *side[1:]) for side in (pair.a, pair.b)
    )
    new = pair.maximum.nan_to_num(neginf=0.0).float().exp()
    output = of_a[:, None] * output_a + of_b[:, None] * output_b
    return (of_a * total_a + of_b * total_b) / new, output / new[:, None]
