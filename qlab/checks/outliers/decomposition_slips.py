"""What goes wrong in a mixed decomposition: other columns, other scales, and parts that are not rounded at all."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, float], Tensor]
Absmax = Callable[[Tensor, Tensor], Tensor]

SUM = "Magnitudes of different tokens do not add up to an outlier: look at each value, and ask whether any is large."
SIGNED = "An outlier may be negative: compare magnitudes."
STRICT = "A magnitude that is the threshold itself counts: use `>=`."
ANY = "One token is enough for the column to be taken out: `.any(0)`."
FLOAT = "Nothing here is rounded: the rest of the columns is to go through int8 codes, which is what saves the memory."
ALONE = "Outlier columns stay in FP32: take them out *before* you quantize."
WITHOUT = "A scale found over all columns still has the outliers in it: take the maximum over the rest only."
ONE_SCALE = "One scale for all is set by the largest token or row: take `amax(1, keepdim=True)`, one for each."


def by_row_of_the_rest(values: Tensor, rest: Tensor) -> Tensor:
    """Return the largest magnitude of each row without the outlier columns."""
    return (values * rest).abs().amax(1, keepdim=True)


def _by_row(values: Tensor, _: Tensor) -> Tensor:
    return values.abs().amax(1, keepdim=True)


def _of_the_rest(values: Tensor, rest: Tensor) -> Tensor:
    return (values * rest).abs().amax((0, 1), keepdim=True)


def _of_all(values: Tensor, _: Tensor) -> Tensor:
    return values.abs().amax((0, 1), keepdim=True)


def _coded(
    values: Tensor,
    rest: Tensor,
    absmax: Absmax,
    to_integer: Callable[[Tensor], Tensor] = torch.round,
    levels: int = 127,
) -> tuple[Tensor, Tensor]:
    scale = absmax(values, rest) / levels
    scale = torch.where(scale > 0, scale, 1.0)
    return to_integer(values * rest / scale).clamp(-levels, 127).double(), scale.double()


def as_it_should(x: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """Return the product with `columns` in FP64 and the rest through int8 codes."""
    return _exact(x, weight, columns) + _rounded(x, weight, ~columns)


def _exact(x: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    return (x * columns).double() @ (weight * columns).double().T


def _rounded(
    x: Tensor,
    weight: Tensor,
    rest: Tensor,
    scales: tuple[Absmax, Absmax] = (by_row_of_the_rest, by_row_of_the_rest),
    **coding: object,
) -> Tensor:
    x_codes, x_scale = _coded(x, rest, scales[0], **coding)
    w_codes, w_scale = _coded(weight, rest, scales[1], **coding)
    return x_codes @ w_codes.T * x_scale * w_scale.T


def rule_slips() -> Iterator[tuple[str, str, Rule]]:
    """Yield the wrong ways to tell an outlier column."""
    yield "threshold-on-the-sum", SUM, lambda x, w, t: x.abs().sum(0) >= t
    yield "threshold-on-the-sum", SUM, lambda x, w, t: x.sum(0) >= t
    yield "threshold-on-the-sum", SUM, lambda x, w, t: x.sum(0).abs() >= t
    yield "threshold-on-the-mean", SUM, lambda x, w, t: x.abs().mean(0) >= t
    yield "threshold-on-the-mean", SUM, lambda x, w, t: x.mean(0).abs() >= t
    yield "threshold-on-signed-values", SIGNED, lambda x, w, t: (x >= t).any(0)
    yield "threshold-on-signed-values", SIGNED, lambda x, w, t: (x > t).any(0)
    yield "threshold-excluded", STRICT, lambda x, w, t: (x.abs() > t).any(0)
    yield "every-token-must-be-large", ANY, lambda x, w, t: (x.abs() >= t).all(0)
    yield "every-token-must-be-large", ANY, lambda x, w, t: (x.abs() > t).all(0)
    weights = "Outliers are in the activations: the threshold is one for x."
    yield "looks-at-weights", weights, lambda x, w, t: (w.abs() >= t).any(0)
    turned = "True says outlier: this is the mask of the rest."
    yield "mask-of-the-rest", turned, lambda x, w, t: (x.abs() < t).all(0)
    fixed = "The threshold is an argument: 6 is the paper's value."
    yield "ignores-the-threshold", fixed, lambda x, w, t: (x.abs() >= 6).any(0)


def product_slips(x: Tensor, weight: Tensor, threshold: float) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the wrong products, those with the right columns first."""
    columns = (x.abs() >= threshold).any(0)
    every = torch.ones_like(columns)
    yield "whole-product-in-float", FLOAT, x.double() @ weight.double().T
    yield "whole-product-in-float", FLOAT, (x @ weight.T).bfloat16()
    yield from _half_rounded(x, weight, columns)
    yield from _single_values(x, weight, threshold)
    # without outliers the first of both fits what the second explains better
    for slips in (_outliers_rounded, _scales) if columns.any() else (_scales, _outliers_rounded):
        yield from slips(x, weight, columns)
    yield from _parts(x, weight, columns)
    cut = "A cast to int8 cuts the fraction off: round to the nearest code first."
    for to_integer in (torch.trunc, torch.floor):
        yield "truncates", cut, _exact(x, weight, columns) + _rounded(x, weight, ~columns, to_integer=to_integer)
    ends = "The codes run from −127 to 127: S is the largest magnitude over 127."
    yield "divides-by-128", ends, _exact(x, weight, columns) + _rounded(x, weight, ~columns, levels=128)
    x_codes, x_scale = _coded(x, ~columns, by_row_of_the_rest)
    w_codes, w_scale = _coded(weight, ~columns, by_row_of_the_rest)
    wrapped = (x_codes @ w_codes.T + 128) % 256 - 128
    narrow = "A sum of products of codes needs 32 bits: `.int()` before you multiply."
    yield "accumulates-in-8-bits", narrow, _exact(x, weight, columns) + wrapped * x_scale * w_scale.T
    for misconception, thought, values in _other_number_types(x, weight, columns):
        yield misconception, thought, values
    lost = "One integer of the sum is worth S of its token times S of its row of weight."
    for scale in (x_scale, w_scale.T, 1.0):
        yield "forgets-a-scale", lost, _exact(x, weight, columns) + x_codes @ w_codes.T * scale
    for misconception, thought, rule in rule_slips():
        yield misconception, thought, as_it_should(x, weight, rule(x, weight, threshold) & every)
    large = (x.abs() >= threshold).any(1, keepdim=True)
    tokens = torch.where(large, x.double() @ weight.double().T, as_it_should(x, weight, ~every))
    yield "outlier-tokens", "The outliers share a column, not a token: look along the first axis, `.any(0)`.", tokens


def _single_values(x: Tensor, weight: Tensor, threshold: float) -> Iterator[tuple[str, str, Tensor]]:
    """Take single values out of x, and quantize all columns of what is left."""
    every, large = torch.ones(x.shape[1], dtype=torch.bool), x.abs() >= threshold
    if large.any():
        calm = x.masked_fill(large, 0.0)
        whole = "With one outlier the whole *column* is taken out, of x and of weight: reduce the mask by `.any(0)`."
        yield "takes-out-single-values", whole, _exact(x - calm, weight, every) + _rounded(calm, weight, every)


def _half_rounded(x: Tensor, weight: Tensor, columns: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    for absmax in (by_row_of_the_rest, _by_row):
        x_codes, x_scale = _coded(x, ~columns, absmax)
        w_codes, w_scale = _coded(weight, ~columns, absmax)
        exact = _exact(x, weight, columns)
        half = "Both factors of the rest get codes, x and weight."
        yield "rounds-one-factor", half, exact + (x * ~columns).double() @ (w_codes * w_scale).T
        yield "rounds-one-factor", half, exact + x_codes * x_scale @ (weight * ~columns).double().T


def _other_number_types(x: Tensor, weight: Tensor, columns: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield parts in 16 bits, scales that run the other way, and scales with an epsilon."""
    exact, by_row = _exact(x, weight, columns), by_row_of_the_rest
    for dtype in (torch.float16, torch.bfloat16):
        half = _exact(x.to(dtype).float(), weight.to(dtype).float(), columns) + _rounded(x, weight, ~columns)
        yield "outliers-in-16-bits", "Here the outlier columns are multiplied in FP32.", half
    turned = "A scale for each row: `amax(1, keepdim=True)`. A scale for each column cannot leave the sum over columns."
    x_codes, x_scale = _coded(x, ~columns, by_row)
    w_codes, w_scale = _coded((weight * ~columns).T, torch.tensor(True), by_row)
    yield "scale-on-the-wrong-axis", turned, exact + (x_codes * x_scale) @ (w_codes * w_scale)
    for epsilon in (1e-4, 1e-5, 1e-6, 1e-7, 127e-3, 127e-4, 127e-5, 127e-6, 127e-7):
        raised = lambda values, rest, more=epsilon: by_row_of_the_rest(values, rest) + more  # noqa: E731
        small = "An epsilon that is added changes small scales: replace a scale only where it is 0."
        yield "changes-small-scales", small, exact + _rounded(x, weight, ~columns, (raised, raised))


def _outliers_rounded(x: Tensor, weight: Tensor, columns: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    every = torch.ones_like(columns)
    for x_absmax in (_by_row, _of_all):
        for w_absmax in (_by_row, _of_all):
            yield "quantizes-the-outliers-too", ALONE, _rounded(x, weight, every, (x_absmax, w_absmax))
    apart = _rounded(x, weight, columns) + _rounded(x, weight, ~columns)
    yield "quantizes-the-outliers-too", ALONE, apart
    w_codes, w_scale = _coded(weight, every, _by_row)
    kept = "The outlier columns of weight stay in FP32 too."
    dequantized = (x * columns).double() @ (w_codes * w_scale).T
    for scales in ((by_row_of_the_rest, by_row_of_the_rest), (by_row_of_the_rest, _by_row)):
        yield "quantizes-the-outliers-too", kept, dequantized + _rounded(x, weight, ~columns, scales)


def _parts(x: Tensor, weight: Tensor, columns: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    every = torch.ones_like(columns)
    both = "The product has two parts, and y is their sum."
    yield "drops-the-outliers", f"{both} The outlier columns are missing.", _rounded(x, weight, ~columns)
    yield "drops-the-rest", f"{both} The int8 part is missing.", _exact(x, weight, columns)
    twice = "The outlier columns are in both parts: set them to zero, or leave them out, before you quantize."
    yield "counts-outliers-twice", twice, _exact(x, weight, columns) + _rounded(x, weight, every, (_by_row, _by_row))


def _scales(x: Tensor, weight: Tensor, columns: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    ways = (by_row_of_the_rest, _by_row, _of_the_rest, _of_all)
    for x_absmax in ways:
        for w_absmax in ways:
            one = _of_the_rest in (x_absmax, w_absmax) or _of_all in (x_absmax, w_absmax)
            name, thought = ("one-scale-for-all", ONE_SCALE) if one else ("scales-found-with-the-outliers", WITHOUT)
            values = _exact(x, weight, columns) + _rounded(x, weight, ~columns, (x_absmax, w_absmax))
            if (x_absmax, w_absmax) != (by_row_of_the_rest, by_row_of_the_rest):
                yield name, thought, values
