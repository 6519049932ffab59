"""Answers to `mixed_decomposition_matmul`."""

import numpy as np
import torch

from qlab import outliers
from tests.answers.bank import Bank

BANK = Bank("mixed-decomposition-matmul")


def quantized(values):
    scale = values.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (values / scale).round().to(torch.int8), scale


def int8_part(x, weight):
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x), quantized(weight)
    return (x_codes.int() @ w_codes.int().T) * x_scale * w_scale.T


def outlier_mask(x, threshold):
    return (x.abs() >= threshold).any(0)


def decomposed(x, weight, mask):
    return x[:, mask] @ weight[:, mask].T + int8_part(x * ~mask, weight * ~mask)


@BANK.right
def with_masks(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return decomposed(x, weight, mask), mask


@BANK.right
def by_qlab(x, weight, threshold):
    found = outliers.mixed_decomposition_matmul(x, weight, threshold=threshold)
    return found.output, found.outlier_columns


@BANK.right
def with_indices(x, weight, threshold):
    columns = (x.abs().amax(0) >= threshold).nonzero().flatten()
    rest = torch.tensor([j for j in range(x.shape[1]) if j not in columns.tolist()], dtype=torch.long)
    y = x.index_select(1, columns) @ weight.index_select(1, columns).T
    if len(rest):
        y = y + int8_part(x[:, rest], weight[:, rest])
    return y, columns


@BANK.right
def in_numpy_as_lists(x, weight, threshold):
    x, weight = x.numpy().astype(np.float64), weight.numpy().astype(np.float64)
    mask = (np.abs(x) >= threshold).any(axis=0)

    def codes(values):
        scale = np.abs(values).max(axis=1, keepdims=True) / 127
        scale[scale == 0] = 1
        return np.rint(values / scale), scale

    (a, a_scale), (b, b_scale) = codes(np.where(mask, 0, x)), codes(np.where(mask, 0, weight))
    return [(x[:, mask] @ weight[:, mask].T + a @ b.T * a_scale * b_scale.T).tolist(), mask.tolist()]


@BANK.right
def one_column_after_another(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x * ~mask), quantized(weight * ~mask)
    y, total = torch.zeros(len(x), len(weight)), torch.zeros(len(x), len(weight), dtype=torch.int32)
    for j in range(x.shape[1]):
        if mask[j]:
            y += torch.outer(x[:, j], weight[:, j])
        else:
            total += torch.outer(x_codes[:, j].int(), w_codes[:, j].int())
    return y + total * (x_scale * w_scale.T), mask.nonzero()


@BANK.right
def dequantized_before_the_product(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x * ~mask), quantized(weight * ~mask)
    return (x_codes * x_scale + x * mask) @ (w_codes * w_scale + weight * mask).T, set(
        mask.nonzero().flatten().tolist()
    )


@BANK.right
def by_torchs_own_rounding(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    rest = [values.masked_fill(mask, 0) for values in (x, weight)]
    inverse = [127 / values.abs().amax(1, keepdim=True).clamp(min=1e-30) for values in rest]
    codes = [torch.round(values * scale) for values, scale in zip(rest, inverse, strict=True)]
    return x[:, mask] @ weight[:, mask].T + codes[0] @ codes[1].T / inverse[0] / inverse[1].T, mask.int()


@BANK.right
def with_an_epsilon_that_is_small(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    scales = [(values * ~mask).abs().amax(1, keepdim=True) / 127 + 1e-8 for values in (x, weight)]
    codes = [(values * ~mask / scale).round() for values, scale in zip((x, weight), scales, strict=True)]
    return x[:, mask] @ weight[:, mask].T + codes[0] @ codes[1].T * scales[0] * scales[1].T, mask.float()


@BANK.wrong("whole-product-in-float")
def nothing_rounded(x, weight, threshold):
    return x @ weight.T, outlier_mask(x, threshold)


@BANK.wrong("whole-product-in-float")
def two_parts_in_float(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return x[:, mask] @ weight[:, mask].T + x[:, ~mask] @ weight[:, ~mask].T, mask


@BANK.wrong("whole-product-in-float")
def the_rest_in_double(x, weight, threshold):
    return (x.double() @ weight.double().T).float(), outlier_mask(x, threshold)


@BANK.wrong("quantizes-the-outliers-too")
def everything_in_int8(x, weight, threshold):
    return int8_part(x, weight), outlier_mask(x, threshold)


@BANK.wrong("quantizes-the-outliers-too")
def both_parts_in_int8(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return int8_part(x * mask, weight * mask) + int8_part(x * ~mask, weight * ~mask), mask


@BANK.wrong("threshold-on-the-sum")
def sum_of_magnitudes(x, weight, threshold):
    mask = x.abs().sum(0) >= threshold
    return decomposed(x, weight, mask), mask


@BANK.wrong("threshold-on-the-sum")
def magnitude_of_the_sum(x, weight, threshold):
    mask = x.sum(0).abs() >= threshold
    return decomposed(x, weight, mask), mask


@BANK.wrong("threshold-on-the-mean")
def mean_magnitude(x, weight, threshold):
    mask = x.abs().mean(0) >= threshold
    return decomposed(x, weight, mask), mask


@BANK.wrong("threshold-on-signed-values")
def forgets_the_magnitude(x, weight, threshold):
    mask = (x >= threshold).any(0)
    return decomposed(x, weight, mask), mask


@BANK.wrong("threshold-excluded")
def strictly_larger(x, weight, threshold):
    mask = (x.abs() > threshold).any(0)
    return decomposed(x, weight, mask), mask


@BANK.wrong("every-token-must-be-large")
def all_tokens(x, weight, threshold):
    mask = (x.abs() >= threshold).all(0)
    return decomposed(x, weight, mask), mask


@BANK.wrong("looks-at-weights")
def threshold_on_the_weights(x, weight, threshold):
    mask = (weight.abs() >= threshold).any(0)
    return decomposed(x, weight, mask), mask


@BANK.wrong("mask-of-the-rest")
def the_mask_turned_round(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return decomposed(x, weight, mask), ~mask


@BANK.wrong("scales-found-with-the-outliers")
def scales_of_whole_rows(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    x_scale, w_scale = (values.abs().amax(1, keepdim=True) / 127 for values in (x, weight))
    x_codes, w_codes = (x * ~mask / x_scale).round(), (weight * ~mask / w_scale).round()
    return x[:, mask] @ weight[:, mask].T + x_codes @ w_codes.T * x_scale * w_scale.T, mask


@BANK.wrong("scales-found-with-the-outliers")
def weights_quantized_beforehand(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x * ~mask), quantized(weight)
    return x[:, mask] @ weight[:, mask].T + x_codes.float() @ w_codes.float().T * x_scale * w_scale.T, mask


@BANK.wrong("one-scale-for-all")
def a_scale_for_a_matrix(x, weight, threshold):
    mask = outlier_mask(x, threshold)

    def coded(values):
        scale = values.abs().max() / 127 + (values.abs().max() == 0)
        return (values / scale).round(), scale

    (x_codes, x_scale), (w_codes, w_scale) = coded(x * ~mask), coded(weight * ~mask)
    return x[:, mask] @ weight[:, mask].T + x_codes @ w_codes.T * x_scale * w_scale, mask


@BANK.wrong("one-scale-for-all")
def a_scale_for_all_tokens(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    w_codes, w_scale = quantized(weight * ~mask)
    x_scale = (x * ~mask).abs().max() / 127
    x_scale = torch.where(x_scale > 0, x_scale, 1.0)
    x_codes = (x * ~mask / x_scale).round()
    return x[:, mask] @ weight[:, mask].T + x_codes @ w_codes.float().T * x_scale * w_scale.T, mask


@BANK.wrong("rounds-one-factor")
def weights_only(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    w_codes, w_scale = quantized(weight * ~mask)
    return x[:, mask] @ weight[:, mask].T + (x * ~mask) @ (w_codes * w_scale).T, mask


@BANK.wrong("drops-the-outliers")
def the_rest_alone(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return int8_part(x * ~mask, weight * ~mask), mask


@BANK.wrong("counts-outliers-twice")
def outliers_in_both_parts(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return x[:, mask] @ weight[:, mask].T + int8_part(x, weight), mask


@BANK.wrong("outlier-tokens")
def outlier_rows(x, weight, threshold):
    tokens = (x.abs() >= threshold).any(1, keepdim=True)
    return torch.where(tokens, x @ weight.T, int8_part(x, weight)), outlier_mask(x, threshold)


@BANK.wrong("takes-out-single-values")
def values_instead_of_columns(x, weight, threshold):
    large = x.abs() >= threshold
    return (x * large) @ weight.T + int8_part(x * ~large, weight), large.any(0)


@BANK.wrong("outliers-in-16-bits")
def outliers_in_half_precision(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    exact = x[:, mask].half().float() @ weight[:, mask].half().float().T
    return exact + int8_part(x * ~mask, weight * ~mask), mask


@BANK.wrong("scale-on-the-wrong-axis")
def a_scale_for_each_column_of_weight(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x * ~mask), quantized((weight * ~mask).T)
    return x[:, mask] @ weight[:, mask].T + (x_codes * x_scale) @ (w_codes * w_scale), mask


@BANK.wrong("changes-small-scales")
def a_large_epsilon(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    scales = [(values * ~mask).abs().amax(1, keepdim=True) / 127 + 1e-4 for values in (x, weight)]
    codes = [(values * ~mask / scale).round() for values, scale in zip((x, weight), scales, strict=True)]
    return x[:, mask] @ weight[:, mask].T + codes[0] @ codes[1].T * scales[0] * scales[1].T, mask


@BANK.wrong("truncates")
def cast_without_rounding(x, weight, threshold):
    mask = outlier_mask(x, threshold)

    def coded(values):
        scale = values.abs().amax(1, keepdim=True) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        return (values / scale).to(torch.int8).int(), scale

    (x_codes, x_scale), (w_codes, w_scale) = coded(x * ~mask), coded(weight * ~mask)
    return x[:, mask] @ weight[:, mask].T + (x_codes @ w_codes.T) * x_scale * w_scale.T, mask


@BANK.wrong("accumulates-in-8-bits")
def product_of_int8_tensors(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    (x_codes, x_scale), (w_codes, w_scale) = quantized(x * ~mask), quantized(weight * ~mask)
    return x[:, mask] @ weight[:, mask].T + (x_codes @ w_codes.T) * x_scale * w_scale.T, mask


@BANK.wrong("divides-by-zero")
def nan_for_a_token_of_zeros(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    x_rest, w_rest = x * ~mask, weight * ~mask
    x_scale, w_scale = (values.abs().amax(1, keepdim=True) / 127 for values in (x_rest, w_rest))
    y = (x_rest / x_scale).round() @ (w_rest / w_scale).round().T * x_scale * w_scale.T
    return x[:, mask] @ weight[:, mask].T + y, mask


@BANK.wrong("wrong-value")
def four_bits(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    x_rest, w_rest = x * ~mask, weight * ~mask
    scales = [values.abs().amax(1, keepdim=True).clamp(min=1e-9) / 7 for values in (x_rest, w_rest)]
    codes = [(values / scale).round() for values, scale in zip((x_rest, w_rest), scales, strict=True)]
    return x[:, mask] @ weight[:, mask].T + codes[0] @ codes[1].T * scales[0] * scales[1].T, mask


@BANK.wrong("drops-the-rest")
def zeros(x, weight, threshold):
    return torch.zeros(len(x), len(weight)), outlier_mask(x, threshold)


@BANK.wrong("returns-wrong-type")
def the_product_alone(x, weight, threshold):
    return decomposed(x, weight, outlier_mask(x, threshold))


@BANK.wrong("returns-shares")
def magnitudes_for_columns(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return decomposed(x, weight, mask), x.abs().amax(0)


@BANK.wrong("returns-nothing")
def forgets_to_return(x, weight, threshold):
    decomposed(x, weight, outlier_mask(x, threshold))


@BANK.crashes
def multiplies_two_types(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    (x_codes, _), (w_codes, _) = quantized(x), quantized(weight)
    return x_codes @ w_codes.T.float(), mask


@BANK.crashes
def selects_columns_and_finds_none_left(x, weight, threshold):
    mask = outlier_mask(x, threshold)
    return x[:, mask] @ weight[:, mask].T + int8_part(x[:, ~mask], weight[:, ~mask]), mask
