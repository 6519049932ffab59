"""Check of `smoothing_scales` and `smooth`: SmoothQuant's scales, shared by all readers and folded into the norm."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import outliers
from qlab.checks.expect import Suspect, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.outliers.reading import TOPIC, as_gain_and_weights, flat, where_in
from qlab.checks.quantization.codes import uniform
from qlab.checks.quantization.products import require_within
from qlab.checks.report import check, part, require

SCALES, CALL = "smoothing_scales(activation_absmax, weights, alpha)", "smooth(gain, weights, activation_absmax, alpha)"
# two powers and a quotient in FP32: each power errs by its logarithm, at most 12 here, times 6e-8
ROUNDING = 4e-6


@dataclass(frozen=True)
class Case:
    """One call of either function."""

    gain: Tensor
    weights: list[Tensor]
    absmax: Tensor
    alpha: float

    @property
    def weight_absmax(self) -> Tensor:
        return torch.cat(self.weights).abs().amax(0).double()

    @property
    def scales(self) -> Tensor:
        return _scales(self.absmax, self.weight_absmax, self.alpha)

    @property
    def told(self) -> str:
        """What was given, in words."""
        return f"{len(self.weights)} readers, alpha {self.alpha:g}"


@check(TOPIC, "smooth", outliers.smoothing_scales, outliers.smooth, points=5, forbids=("qlab.outliers.smoothed",))
def check_smooth(smoothing_scales: LearnerFunction, smooth: LearnerFunction, draw: torch.Generator) -> None:
    """Check the scales, and `smooth(gain, weights, activation_absmax, alpha)`, which folds them in."""
    with part("the scales at alpha = 0.5, one reader"):
        _require_scales(smoothing_scales, _case(draw, readers=1))
    with part("alpha 0, 1 and between: which side takes the difficulty"):
        for alpha in (0.2 + 0.2 * uniform(0.0, 1.0, (), draw).item(), 0.75, 0.0, 1.0):
            _require_scales(smoothing_scales, _case(draw, readers=1, alpha=alpha))
    with part("one set of scales for all readers, from the largest weight of any of them"):
        _require_scales(smoothing_scales, _case(draw, readers=3))
        _require_scales(smoothing_scales, _case(draw, readers=2, alpha=0.75))
    with part("folded: the gain divided and every reader's columns multiplied, so that the function stays"):
        _require_folded(smooth, _case(draw, readers=1))
        _require_folded(smooth, _case(draw, readers=3, alpha=0.7))
    with part("a channel that is never active, and one that is never read: all finite, and the function stays"):
        case = _case(draw, readers=2)
        _, silent, unread = _places(case)
        case.absmax[silent] = 0.0
        for weight in case.weights:
            weight[:, unread] = 0.0
        _require_finite(smooth, case)


def _scales(absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    return absmax.double() ** alpha / weight_absmax.double() ** (1 - alpha)


def _case(draw: torch.Generator, *, readers: int, alpha: float = 0.5) -> Case:
    """Draw readers with as many rows as columns: a slip of axes is a wrong value, not a crash.

    Each reader has the largest weight of some columns, and some of the largest are negative.
    """
    width = drawn(10, 16, draw)
    sizes = [10.0 ** uniform(-2.0, 0.5, (width,), draw) for _ in range(readers)]
    absmax = uniform(1.0, 4.0, (width,), draw)
    absmax[torch.randperm(width, generator=draw)[:3]] *= 64.0
    return Case(
        uniform(0.5, 2.0, (width,), draw),
        [size * torch.randn(width, width, generator=draw) for size in sizes],
        absmax,
        alpha,
    )


def _places(case: Case) -> tuple[int, int, int]:
    return int(case.absmax.argmax()), int(case.absmax.argmin()), int(case.absmax.median(0).indices)


def _require_scales(smoothing_scales: LearnerFunction, case: Case) -> None:
    got = as_tensor(smoothing_scales(case.absmax, case.weights, case.alpha), tuple(case.absmax.shape), call=SCALES)

    def told(i: int) -> str:
        return f"{case.told}, max |X| {case.absmax[i]:.6g} and max |W| {case.weight_absmax[i]:.6g} (the scale)"

    require_within(
        got.double(),
        case.scales,
        ROUNDING * case.scales,
        given=told,
        suspects=lambda: (Suspect(name, thought, values) for name, thought, values in _wrong_scales(case)),
    )


def _require_folded(smooth: LearnerFunction, case: Case) -> None:
    gain, weights = _smoothed(smooth, case)
    expected = flat(case.gain / case.scales, [w * case.scales for w in case.weights])
    require_within(
        flat(gain, weights),
        expected,
        ROUNDING * expected.abs(),
        given=lambda i: f"{case.told}, at {where_in(i, case.gain, case.weights)}",
        suspects=lambda: _wrong_folds(case),
    )


def _require_finite(smooth: LearnerFunction, case: Case) -> None:
    """Require a property only: what the scales of such channels are is left to the answer."""
    gain, weights = _smoothed(smooth, case)
    lost = int((~flat(gain, weights).isfinite()).sum())
    require(
        not lost,
        f"given a channel with max |X| = 0 and one with max |W| = 0, {lost} values are not finite",
        misconception="divides-by-zero",
        thought="A magnitude of 0 makes a scale of 0 or infinity: clamp both magnitudes from below, to 1e-5.",
    )
    moved = float(((gain - case.gain).abs() / case.gain).max())
    require(
        moved > 1e-3,
        "the gain came back as it was",
        misconception="not-folded",
        thought=FOLD,
    )
    for number, (new, old) in enumerate(zip(weights, case.weights, strict=True)):
        before, after = case.gain.double() * old.double(), gain * new
        change = (after - before).abs() - ROUNDING * before.abs()
        require(
            bool((change <= 0).all()),
            f"gain · column {int(change.amax(0).argmax())} of weights[{number}] is not what it was",
            misconception="changes-the-function",
            thought="What the gain is divided by, the matching column of every reader must be multiplied by.",
        )


def _smoothed(smooth: LearnerFunction, case: Case) -> tuple[Tensor, list[Tensor]]:
    returned = smooth(case.gain, case.weights, case.absmax, case.alpha)
    return as_gain_and_weights(returned, case.gain, case.weights, call=CALL)


FOLD = "Nothing may be left to do at run time: divide the *gain* by the scales, and multiply the columns by them."
REVERSED = (
    "Alpha is how much of the difficulty moves into the weights: it is the power of max |X|, and 1 − alpha of max |W|."
)
SHARED = "The readers share one input, so they share its scales: take the largest weight of any of them."
Maximum = Callable[[list[Tensor]], Tensor]


def _wrong_scales(case: Case) -> Iterator[tuple[str, str, Tensor]]:
    a, w, alpha = case.absmax.double(), case.weight_absmax, case.alpha
    yield "alpha-reversed", REVERSED, _scales(a, w, 1 - alpha)
    upside = "This is 1 / s: max |X| stands above the line."
    yield "inverse-scales", upside, 1 / case.scales
    yield "inverse-scales", upside, 1 / _scales(a, w, 1 - alpha)
    yield "ignores-alpha", "The power follows from alpha.", _scales(a, w, 0.5)
    product = "The weights' magnitude divides."
    yield "multiplies-by-the-weights", product, a**alpha * w ** (1 - alpha)
    yield "same-power-twice", "The powers of X and W add up to 1: alpha and 1 − alpha.", (a / w) ** alpha
    yield "forgets-the-weights", "The weights' magnitude divides.", a**alpha
    own = torch.stack([_scales(a, one.abs().amax(0), alpha) for one in case.weights])
    for joined in (own.amax(0), own.mean(0), own.prod(0)):
        yield "joins-scales-of-readers", SHARED, joined
    for maximum, name, thought in MAXIMA:
        if case.weights[0].shape[0] == len(a):
            yield name, thought, _scales(a, maximum(case.weights), alpha)


MAXIMA: tuple[tuple[Maximum, str, str], ...] = (
    (
        lambda weights: torch.stack([w.abs().amax(1) for w in weights]).amax(0),
        "max-over-the-wrong-axis",
        "A channel that comes in meets a column of the (out, in) weight: the maximum runs down it, `amax(0)`.",
    ),
    (lambda weights: torch.cat(weights).amax(0), "forgets-the-sign", "The largest *magnitude*: `.abs()` comes first."),
    (lambda weights: torch.cat(weights).abs().mean(0), "mean-not-max", "The scale follows from the largest magnitude."),
    (lambda weights: weights[0].abs().amax(0), "max-of-one-reader", SHARED),
    (lambda weights: weights[-1].abs().amax(0), "max-of-one-reader", SHARED),
    (lambda weights: torch.stack(weights).abs().amax((0, 1, 2)), "max-over-all", "One scale for each channel."),
    (lambda weights: torch.stack([w.abs().amax(0) for w in weights]).sum(0), "sum-of-readers", SHARED),
    (lambda weights: torch.stack([w.abs().amax(0) for w in weights]).mean(0), "mean-of-readers", SHARED),
)


def _wrong_folds(case: Case) -> Iterator[Suspect]:
    gain, weights, s = case.gain.double(), [w.double() for w in case.weights], case.scales
    smoothed = [w * s for w in weights]

    def suspect(misconception: str, thought: str, new_gain: Tensor, new_weights: list[Tensor]) -> Suspect:
        return Suspect(misconception, thought, flat(new_gain, new_weights))

    yield suspect("smooths-nothing", FOLD, gain, weights)
    yield suspect("not-folded", FOLD, gain, smoothed)
    yield suspect("not-folded", f"{FOLD} The columns stayed.", gain / s, weights)
    turned = "The activations get smaller and the weights larger: divide the gain, multiply the columns."
    yield suspect("smooths-the-wrong-way", turned, gain * s, [w / s for w in weights])
    yield suspect("divides-both", turned, gain / s, [w / s for w in weights])
    yield suspect("multiplies-both", turned, gain * s, smoothed)
    for forgotten in (slice(1, None), slice(0, -1)):
        kept = list(smoothed)
        kept[forgotten] = weights[forgotten]
        yield suspect("forgets-a-reader", "Every linear layer that reads the norm is multiplied.", gain / s, kept)
    own = [_scales(case.absmax, w.abs().amax(0), case.alpha) for w in weights]
    each = [w * one for w, one in zip(weights, own, strict=True)]
    for one in (own[0], own[-1], s):
        yield suspect("a-scale-for-each-reader", SHARED, gain / one, each)
    product = torch.stack(own).prod(0)
    yield suspect("a-scale-for-each-reader", SHARED, gain / product, each)
    rows = "A channel meets a column of the (out, in) weight: multiply along the last axis."
    yield suspect("rows-instead-of-columns", rows, gain / s, [w * s[:, None] for w in weights])
    for misconception, thought, values in _wrong_scales(case):
        yield suspect(misconception, thought, gain / values, [w * values for w in weights])
