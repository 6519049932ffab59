"""Check of `correct_bias` and `equalize`: a mean output that stays, and channels that share their range."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform, unpacked
from qlab.checks.report import check, part, require

SUMMED = 2.0**-22  # u = 2⁻²⁴ for each of the few roundings of a product and a mean, times the root of the terms
ROUNDING = 1e-4  # of a weight: a ratio, a root and a product round to 6e-8 each; an epsilon of 1e-6 may be added

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """One call of `correct_bias`, in the order of its arguments."""

    weight: Tensor
    rounded_weight: Tensor
    bias: Tensor
    inputs: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return self.weight, self.rounded_weight, self.bias, self.inputs

    @property
    def error(self) -> Tensor:
        return self.weight.double() - self.rounded_weight.double()


@check(TOPIC, "repairs", calibrate.bias_correction, calibrate.equalize, points=4)
def check_repairs(correct_bias: LearnerFunction, equalize: LearnerFunction, draw: torch.Generator) -> None:
    """Check `correct_bias(weight, rounded_weight, bias, inputs)` and `equalize(first, second)`."""
    with part("correct_bias: the mean output is what it was before rounding"):
        for tokens, width in ((300, 40), (40, 40), (1, 12)):
            _bias(correct_bias, _layer(tokens, width, draw))
    with part("equalize: both weights change, and what they compute with a ReLU between does not"):
        for pair in (_pair(9, draw), _pair(6, draw, square=True)):
            _same_function(equalize, pair, draw)
    with part("equalize: each channel has one range, the root of the product of its two"):
        for pair in (_pair(9, draw), _pair(6, draw, square=True)):
            _one_range(equalize, pair, live=torch.ones(len(pair[0]), dtype=torch.bool))
    with part("equalize: a channel whose row or column is all zeros leaves everything finite"):
        first, second = _pair(9, draw)
        row, column = torch.randperm(9, generator=draw)[:2].tolist()
        first[row], second[:, column] = 0.0, 0.0
        live = torch.ones(9, dtype=torch.bool)
        live[[row, column]] = False
        _one_range(equalize, (first, second), live=live)


def _layer(tokens: int, width: int, draw: torch.Generator) -> Layer:
    """Draw a layer rounded to 3 bits, and inputs of both signs whose mean is far from zero."""
    weight = torch.randn(drawn(5, 9, draw), width, generator=draw)
    scale = weight.abs().max() / 3
    means = uniform(0.3, 1.0, (width,), draw) * uniform(-1, 1, (width,), draw).sign()
    inputs = means + torch.randn(tokens, width, generator=draw)
    return Layer(weight, (weight / scale).round() * scale, torch.randn(len(weight), generator=draw), inputs)


def _bias(correct_bias: LearnerFunction, layer: Layer) -> None:
    call = f"correct_bias(…, inputs of shape {tuple(layer.inputs.shape)})"
    got = as_tensor(correct_bias(*layer.arguments), tuple(layer.bias.shape), call=call).double()
    sizes = layer.weight.double().abs() + layer.rounded_weight.double().abs()
    magnitudes = layer.inputs.double().abs().mean(0)
    room = SUMMED * layer.inputs.numel() ** 0.5 * (sizes @ magnitudes + layer.bias.double().abs())

    def snapped(values: Tensor) -> Tensor:
        return torch.where((got - values).abs() <= room, got, values)

    before = layer.bias.double()
    require_values(
        got,
        snapped(before + layer.error @ layer.inputs.double().mean(0)),
        given=lambda i: f"{len(layer.inputs)} tokens and an old bias of {before[i]:.5g} (the new one)",
        suspects=lambda: [Suspect(name, thought, snapped(values)) for name, thought, values in _wrong_biases(layer)],
    )


def _wrong_biases(layer: Layer) -> Iterable[tuple[str, str, Tensor]]:
    x, bias, error = layer.inputs.double(), layer.bias.double(), layer.error
    mean = x.mean(0)
    yield "wrong-sign", "Rounding *added* (Ŵ − W) · mean to the output: take that off again.", bias - error @ mean
    yield "wrong-sign", "Take the shift off the output, not the bias off the shift.", error @ mean - bias
    signs = "Positive and negative inputs cancel in the mean output: take the mean of x, not of |x|."
    for size in (x.abs().mean(0), x.square().mean(0).sqrt(), x.square().mean(0)):
        yield "mean-of-magnitudes", signs, bias + error @ size
        yield "mean-of-magnitudes", signs, bias - error @ size
    yield "mean-of-magnitudes", "An error has a sign: W − Ŵ, not |W − Ŵ|.", bias + error.abs() @ mean
    yield "forgets-the-old-bias", "Return the new bias: the old one, corrected.", error @ mean
    yield "forgets-the-old-bias", "Return the new bias: the old one, corrected.", -error @ mean
    yield "corrects-nothing", "This is the old bias.", bias
    yield "sum-over-tokens", "The mean over the tokens, not their sum.", bias + error @ x.sum(0)
    whole = "Only what rounding changed is to be made good: W − Ŵ."
    for weight in (layer.weight.double(), layer.rounded_weight.double()):
        yield "corrects-the-whole-output", whole, bias + weight @ mean
        yield "corrects-the-whole-output", whole, bias - weight @ mean
    yield "one-token", "The mean over all tokens, not one of them.", bias + error @ x[0]
    one = "Each output has a shift of its own."
    yield "one-shift-for-all", one, bias + (error @ mean).mean()
    if x.shape[0] == x.shape[1]:
        axis = "inputs are (tokens, in): the mean over the tokens, dimension 0."
        yield "mean-over-the-wrong-axis", axis, bias + error @ x.mean(1)
        yield "transposes", "The weight is (out, in): W − Ŵ times the mean input.", bias + error @ mean


def _pair(channels: int, draw: torch.Generator, *, square: bool = False) -> Pair:
    """Draw two weights whose channels differ in range up to a hundred times, each in its own way, and not by sign."""
    width, out = (channels, channels) if square else (5, 7)
    sizes = 10.0 ** uniform(-1, 1, (2, channels), draw)
    first = sizes[0][:, None] * torch.randn(channels, width, generator=draw)
    return first, sizes[1] * torch.randn(out, channels, generator=draw)


def _equalized(equalize: LearnerFunction, pair: Pair) -> Pair:
    results = unpacked(equalize(*pair), ("first", "second"), call="equalize(first, second)")
    shapes = [tuple(weight.shape) for weight in pair]
    return tuple(
        as_tensor(result, shape, call=f"equalize(first, second)[{i}]").double()
        for i, (result, shape) in enumerate(zip(results, shapes, strict=True))
    )


def _flat(pair: Sequence[Tensor]) -> Tensor:
    return torch.cat([weight.double().flatten() for weight in pair])


def _same_function(equalize: LearnerFunction, pair: Pair, draw: torch.Generator) -> None:
    got = _equalized(equalize, pair)
    x = torch.randn(30, pair[0].shape[1], generator=draw).double()
    before, after = (_computed(weights, x) for weights in (pair, got))
    size = x.abs() @ pair[0].double().abs().T @ pair[1].double().abs().T
    kept = bool(((after - before).abs() <= ROUNDING * size).all())
    require(
        not kept or (_flat(got) - _flat(pair)).abs().max() > 0,
        "both weights came back as they were",
        misconception="leaves-both-as-they-are",
        thought="Divide each row of `first`, and multiply the column of `second` that reads it.",
    )
    if not kept:
        _require_pair(got, pair, torch.ones(len(pair[0]), dtype=torch.bool))


def _computed(weights: Pair, x: Tensor) -> Tensor:
    first, second = (weight.double() for weight in weights)
    return (x @ first.T).relu() @ second.T


def _one_range(equalize: LearnerFunction, pair: Pair, *, live: Tensor) -> None:
    got = _equalized(equalize, pair)
    if not live.all():
        lost = int((~_flat(got).isfinite()).sum())
        require(
            lost == 0,
            f"given a channel with a row of zeros and one with a column of zeros, {lost} weights are NaN or infinite",
            misconception="divides-by-zero",
            thought="Where one of the two ranges is 0 there is nothing to share: leave that channel as it is.",
        )
    _require_pair(got, pair, live)


def _require_pair(got: Pair, pair: Pair, live: Tensor) -> None:
    """Require the one pair in which both ranges of each live channel are equal; the others may be anything."""
    counted = _flat((live[:, None].expand(pair[0].shape), live.expand(pair[1].shape))).bool()
    given, flat = _flat(pair)[counted], _flat(got)[counted]

    def snapped(values: Tensor) -> Tensor:
        values = values[counted]
        return torch.where((flat - values).abs() <= ROUNDING * values.abs(), flat, values)

    first, second = (weight.double() for weight in pair)
    rows, columns = first.abs().amax(1), second.abs().amax(0)
    divisor = (rows / columns).sqrt()
    of_first = int(live.sum()) * first.shape[1]
    require_values(
        flat,
        snapped(_flat((first / divisor[:, None], second * divisor))),
        given=lambda i: f"{given[i]:.5g} in `{'first' if i < of_first else 'second'}` (the equalized weight)",
        suspects=lambda: [Suspect(n, t, snapped(_flat(weights))) for n, t, weights in _wrong_pairs(first, second)],
    )


def _wrong_pairs(first: Tensor, second: Tensor) -> Iterable[tuple[str, str, Pair]]:
    rows, columns = first.abs().amax(1), second.abs().amax(0)
    right = (rows / columns).sqrt()
    function = "What `first` is divided by, `second` is multiplied with, or the pair computes something else."
    for d in (right, rows / columns, 1 / right):
        yield "scales-one-weight-only", function, (first / d[:, None], second)
        yield "scales-one-weight-only", function, (first, second * d)
        yield "scales-both-alike", function, (first / d[:, None], second / d)
    both = ((first.T * right).T, second / right)
    yield "reversed", "Rows of a wide range are to become smaller: divide `first`, multiply `second`.", both
    yield "leaves-both-as-they-are", "Both weights came back as they were.", (first, second)
    for name, thought, d in _wrong_divisors(first, second):
        yield name, thought, (first / d[:, None], second * d)
    if first.shape == second.shape == (len(right), len(right)):
        axis = "A channel is a row of `first` and a column of `second`."
        yield "channels-on-the-wrong-axis", axis, (first / right, second * right[:, None])
        for r, c in ((first.abs().amax(0), columns), (rows, second.abs().amax(1))):
            d = (r / c).sqrt()
            yield "channels-on-the-wrong-axis", axis, (first / d[:, None], second * d)
            yield "channels-on-the-wrong-axis", axis, (first / d, second * d[:, None])


def _wrong_divisors(first: Tensor, second: Tensor) -> Iterable[tuple[str, str, Any]]:
    rows, columns = first.abs().amax(1), second.abs().amax(0)
    root = "Both ranges become √(r · c): divide by √(r / c), not by r / c."
    yield "root-missing", root, rows / columns
    yield "root-missing", "Divide by √(r / c): half of the difference for each.", (rows * columns).sqrt()
    yield (
        "one-factor-for-all",
        "One factor leaves the channels as uneven as they were: one for each.",
        ((rows.max() / columns.max()).sqrt().expand(rows.shape)),
    )
    one = "Only one of the two weights got even: half of the work for each, by √(r / c)."
    yield "evens-one-weight-only", one, rows
    yield "evens-one-weight-only", one, 1 / columns
    sign = "A range is a largest magnitude: take `.abs()` before the maximum."
    for ratio in ((first.amax(1) / second.amax(0)), (first.amax(1) / second.amax(0)).abs()):
        yield "forgets-the-sign", sign, ratio.sqrt()
    other = "The scale follows from the largest magnitude: not from a mean or a norm."
    means = first.abs().mean(1), second.abs().mean(0)
    for r, c in (means, (first.norm(dim=1), second.norm(dim=0)), (first.std(1), second.std(0))):
        yield "not-the-range", other, (r / c).sqrt()
