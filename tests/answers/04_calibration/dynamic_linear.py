"""Answers to `dynamic_linear`."""

import numpy as np
import torch

from qlab import quantize
from tests.answers.bank import Bank

BANK = Bank("dynamic-linear")


def scale_of(x):
    absmax = x.abs().amax(1, keepdim=True)
    return torch.where(absmax > 0, absmax, 127.0) / 127


def codes_of(x, scale):
    return (x / scale).round().clamp(-127, 127).to(torch.int8)


def summed(x_codes, w_codes):
    return (x_codes.int() @ w_codes.int().T).float()


@BANK.right
def in_int32(x, w_codes, w_scale):
    scale = scale_of(x)
    return summed(codes_of(x, scale), w_codes) * scale * w_scale.T


@BANK.right
def dequantizes_both(x, w_codes, w_scale):
    scale = scale_of(x)
    return (codes_of(x, scale) * scale) @ (w_codes * w_scale).T


@BANK.right
def token_by_token(x, w_codes, w_scale):
    rows = []
    for token in x:
        scale = token.abs().max().item() / 127 or 1.0
        codes = torch.round(token / scale)
        rows.append([float((codes * row).sum()) * scale * s.item() for row, s in zip(w_codes, w_scale, strict=True)])
    return rows


@BANK.right
def inverse_scale_and_doubles(x, w_codes, w_scale):
    steps = 127 / x.double().abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (x * steps).round() @ w_codes.double().T / steps * w_scale.double().flatten()


@BANK.right
def in_numpy(x, w_codes, w_scale):
    values = x.numpy()
    scale = np.maximum(np.abs(values).max(1, keepdims=True) / 127, np.float32(1e-20))
    codes = np.rint(values / scale).astype(np.int32)
    return (codes @ w_codes.numpy().astype(np.int32).T) * scale * w_scale.numpy().T


@BANK.right
def by_int_mm(x, w_codes, w_scale):
    scale = scale_of(x)
    codes = torch.zeros(32, x.shape[1], dtype=torch.int8)
    codes[: len(x)] = codes_of(x, scale)
    weight = torch.zeros(x.shape[1], 40, dtype=torch.int8)
    weight[:, : len(w_codes)] = w_codes.T
    return torch._int_mm(codes, weight)[: len(x), : len(w_codes)] * scale * w_scale.T


@BANK.right
def by_qlab(x, w_codes, w_scale):
    weight = quantize.Quantized(w_codes, quantize.Grid(w_scale, None, 8, quantize.PER_ROW))
    return quantize.int8_matmul(quantize.quantize_symmetric(x, bits=8, tile=quantize.PER_ROW), weight)


@BANK.right
def transposed_throughout(x, w_codes, w_scale):
    scale = scale_of(x).T
    return (w_codes.float() @ codes_of(x.T, scale).float() * w_scale * scale).T


@BANK.wrong("one-scale-for-all")
def one_scale_for_all(x, w_codes, w_scale):
    scale = (x.abs().max() / 127).clamp(min=1e-12)
    return summed(codes_of(x, scale), w_codes) * scale * w_scale.T


@BANK.wrong("scale-on-the-wrong-axis")
def a_scale_for_each_channel(x, w_codes, w_scale):
    scale = (x.abs().amax(0, keepdim=True) / 127).clamp(min=1e-12)
    return (codes_of(x, scale) * scale) @ (w_codes * w_scale).T


@BANK.wrong("not-quantized")
def multiplies_floats(x, w_codes, w_scale):
    return x @ (w_codes * w_scale).T


@BANK.wrong("not-quantized")
def forgets_to_round(x, w_codes, w_scale):
    scale = scale_of(x)
    return (x / scale) @ w_codes.float().T * scale * w_scale.T


@BANK.wrong("truncates")
def truncates(x, w_codes, w_scale):
    scale = scale_of(x)
    return summed((x / scale).to(torch.int8), w_codes) * scale * w_scale.T


@BANK.wrong("forgets-the-sign")
def largest_value_and_not_magnitude(x, w_codes, w_scale):
    largest = x.amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, 127.0) / 127
    return summed(codes_of(x, scale), w_codes) * scale * w_scale.T


@BANK.wrong("wrong-largest-code")
def divides_by_128(x, w_codes, w_scale):
    scale = scale_of(x) * 127 / 128
    codes = (x / scale).round().clamp(-128, 128)
    return codes @ w_codes.float().T * scale * w_scale.T


@BANK.wrong("scale-has-a-floor")
def a_floor_for_the_scale(x, w_codes, w_scale):
    scale = (x.abs().amax(1, keepdim=True) / 127).clamp(min=1e-3)
    return summed(codes_of(x, scale), w_codes) * scale * w_scale.T


@BANK.right
def a_floor_far_below(x, w_codes, w_scale):
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-5) / 127
    return summed(codes_of(x, scale), w_codes) * scale * w_scale.T


@BANK.right
def zeros_for_what_is_not_a_number(x, w_codes, w_scale):
    scale = x.abs().amax(1, keepdim=True) / 127
    return (torch.round(x / scale) @ w_codes.float().T * scale * w_scale.T).nan_to_num()


@BANK.wrong("forgets-the-scale-of-x")
def forgets_the_scale_of_x(x, w_codes, w_scale):
    return summed(codes_of(x, scale_of(x)), w_codes) * w_scale.T


@BANK.wrong("forgets-the-scale-of-w")
def forgets_the_scale_of_w(x, w_codes, w_scale):
    scale = scale_of(x)
    return summed(codes_of(x, scale), w_codes) * scale


@BANK.wrong("forgets-the-scale-of-x")
def returns_the_sums(x, w_codes, w_scale):
    return x_codes_alone(x, w_codes)


def x_codes_alone(x, w_codes):
    return summed(codes_of(x, scale_of(x)), w_codes)


@BANK.wrong("sums-in-int8")
def sums_in_int8(x, w_codes, w_scale):
    scale = scale_of(x)
    return (codes_of(x, scale) @ w_codes.T) * scale * w_scale.T


@BANK.wrong("divides-by-zero")
def divides_by_zero(x, w_codes, w_scale):
    scale = x.abs().amax(1, keepdim=True) / 127
    return ((x / scale).round() @ w_codes.float().T) * scale * w_scale.T


def remembers_the_first_scale():
    kept = []

    def answer(x, w_codes, w_scale):
        kept.append(x.abs().max() / 127)
        return summed(codes_of(x, kept[0]), w_codes) * kept[0] * w_scale.T

    return answer


BANK.add("remembers_the_first_scale", remembers_the_first_scale(), misconception="wrong-value")


@BANK.wrong("wrong-value")
def affine_codes(x, w_codes, w_scale):
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale @ (w_codes * w_scale).T


@BANK.wrong("wrong-largest-code")
def four_bits(x, w_codes, w_scale):
    scale = scale_of(x) * 127 / 7
    return summed((x / scale).round(), w_codes) * scale * w_scale.T


@BANK.wrong("returns-nothing")
def returns_nothing(x, w_codes, w_scale):
    in_int32(x, w_codes, w_scale)


def transposes_the_result(x, w_codes, w_scale):
    return in_int32(x, w_codes, w_scale).T


BANK.add("transposes_the_result", transposes_the_result, misconception="wrong-shape")


def forgets_to_transpose_the_weight(x, w_codes, w_scale):
    scale = scale_of(x)
    return (codes_of(x, scale).int() @ w_codes.int()) * scale * w_scale.T


# the first part, where the weight is the identity, cannot tell; the shapes stop it later
BANK.crashes(forgets_to_transpose_the_weight)


@BANK.crashes
def multiplies_int8_by_float(x, w_codes, w_scale):
    return torch.round(x / scale_of(x)) @ w_codes.T
