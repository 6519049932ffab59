"""Answers to `double_quantize` and `bits_per_weight`, exercise `double_quantization`."""

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F

from qlab import codebooks
from tests.answers.bank import Answer, Bank

BANK = Bank("double-quantization")


def rows_of(x, size):
    return F.pad(x, (0, -len(x) % size)).view(-1, size)


def safe(scales):
    return torch.where(scales == 0, 1.0, scales)


def nearest(values, codebook):
    return (values[:, None] - codebook).abs().argmin(1)


def quantize(absmax, codebook, size):
    mean = absmax.mean()
    rows = rows_of(absmax - mean, size)
    scales = rows.abs().amax(1)
    values = (rows / safe(scales)[:, None]).flatten()[: len(absmax)]
    return nearest(values, codebook).to(torch.uint8), scales, mean


def bits(weights, size, second_size):
    blocks = ceil(weights / size)
    return 4 + (8 * blocks + 32 * ceil(blocks / second_size) + 32) / weights


BANK.add("by_distances", quantize, bits)


def by_qlab(absmax, codebook, size):
    packed = torch.zeros(len(absmax) * 8, dtype=torch.uint8)
    shape = torch.Size((len(absmax) * 16,))
    codes = codebooks.BlockwiseCodes(packed, absmax, codebooks.NF4, 16, shape)
    double = codebooks.double_quantize(codes, block_size=size)
    return double.absmax_codes.packed, double.absmax_codes.absmax, double.absmax_mean


def bits_by_qlab(weights, size, second_size):
    codes = codebooks.quantize_blockwise(torch.linspace(-1, 1, weights), codebooks.NF4, block_size=size)
    return codebooks.double_quantize(codes, block_size=second_size).bits_per_value


BANK.add("by_qlab", by_qlab, bits_by_qlab)


def by_midpoints(absmax, codebook, size):
    mean = absmax.double().mean().float()
    left = absmax - mean
    scales = [block.abs().max().item() for block in left.split(size)]
    codes = []
    for block, scale in zip(left.split(size), scales, strict=True):
        codes.append(torch.bucketize(block / (scale or 1.0), (codebook[1:] + codebook[:-1]) / 2))
    return torch.cat(codes).byte(), scales, mean.item()


def bits_by_bytes(weights, size, second_size):
    blocks = -(-weights // size)
    stored = weights // 2 + blocks + 4 * -(-blocks // second_size) + 4
    return torch.tensor(8 * stored / weights, dtype=torch.float64)


BANK.add("by_midpoints", by_midpoints, bits_by_bytes)


def in_numpy(absmax, codebook, size):
    absmax, codebook = absmax.numpy(), codebook.numpy()
    mean = absmax.mean()
    left = (absmax - mean).astype(np.float64)
    scales = np.maximum.reduceat(np.abs(left), np.arange(0, len(left), size))
    values = left / np.where(scales == 0, 1, scales).repeat(size)[: len(left)]
    return np.abs(values[:, None] - codebook).argmin(1).astype(np.uint8), scales.astype(np.float32), mean


def bits_in_numpy(weights, size, second_size):
    blocks = np.ceil(weights / size)
    return 4 + 8 * blocks / weights + 32 * np.ceil(blocks / second_size) / weights + 32 / weights


BANK.add("in_numpy", in_numpy, bits_in_numpy)


def with_an_inverse(absmax, codebook, size):
    mean = absmax.sum() / absmax.numel()
    left = absmax - mean
    scales = torch.tensor([left[start : start + size].abs().max() for start in range(0, len(left), size)])
    inverse = scales.reciprocal().nan_to_num(0.0, posinf=0.0)
    return nearest(left * inverse.repeat_interleave(size)[: len(left)], codebook).short().byte(), scales, mean


BANK.add("with_an_inverse", with_an_inverse, bits)


def there(name, misconception, answer):
    BANK.add(name, answer, bits, misconception=misconception)


def billed(name, misconception, answer):
    BANK.add(name, quantize, answer, misconception=misconception)


def coded(*, center=torch.mean, told=None, find=nearest, constants=lambda rows: rows.abs().amax(1)):
    """Make an answer of which one piece may differ."""

    def answer(absmax, codebook, size):
        mean = center(absmax)
        rows = rows_of(absmax - mean, size)
        scales = constants(rows)
        values = (rows / safe(scales)[:, None]).flatten()[: len(absmax)]
        return find(values, codebook).to(torch.uint8), scales, mean if told is None else told(absmax)

    return answer


def zero(absmax):
    return absmax.new_zeros(())


def below(values, codebook):
    return (torch.bucketize(values, codebook, right=True) - 1).clamp(0, 255)


there("no_mean_at_all", "forgets-the-mean", coded(center=zero))
there("mean_only_told", "forgets-the-mean", coded(center=zero, told=torch.mean))
there("mean_not_told", "forgets-the-mean", coded(told=zero))
there("median", "median-for-mean", coded(center=lambda absmax: absmax.double().median().float()))
there("smallest", "smallest-for-mean", coded(center=torch.min))
there("middle_of_the_range", "middle-for-mean", coded(center=lambda absmax: (absmax.min() + absmax.max()) / 2))
there("the_level_below", "floors", coded(find=below))
there("even_steps", "even-steps", coded(find=lambda values, _: (values * 127).round() + 127))
there("even_grid", "even-steps", coded(find=lambda values, _: nearest(values, torch.linspace(-1, 1, 256))))
there("largest_of_all", "one-scale-for-all", coded(constants=lambda rows: rows.abs().max().expand(len(rows))))
there("largest_not_of_magnitudes", "forgets-the-sign", coded(constants=lambda rows: rows.amax(1)))
there("codes_as_int64", "wide-codes", lambda a, c, s: (quantize(a, c, s)[0].long(), *quantize(a, c, s)[1:]))
there("nothing", "returns-nothing", lambda a, c, s: None)
there("without_the_mean", "returns-wrong-type", lambda a, c, s: quantize(a, c, s)[:2])
there("mean_of_the_scales", "wrong-value", coded(told=lambda absmax: absmax.mean() * 1.001))
there(
    "one_scale", "one-scale-for-all", lambda a, c, s: (quantize(a, c, len(a))[0], (a - a.mean()).abs().max(), a.mean())
)


def mean_of_every_block(absmax, codebook, size):
    rows = rows_of(absmax, size)
    left = rows - rows.mean(1, keepdim=True)
    scales = left.abs().amax(1)
    codes = nearest((left / safe(scales)[:, None]).flatten()[: len(absmax)], codebook)
    return codes.to(torch.uint8), scales, absmax.mean()


there("mean_of_every_block", "mean-by-block", mean_of_every_block)


def raw_codes(absmax, codebook, size):
    _, scales, mean = quantize(absmax, codebook, size)
    values = absmax / rows_of(absmax, size).abs().amax(1).repeat_interleave(size)[: len(absmax)]
    return nearest(values, codebook).to(torch.uint8), scales, mean


there("raw_codes", "forgets-the-mean", raw_codes)


def nan_for_equal_constants(absmax, codebook, size):
    mean = absmax.mean()
    rows = rows_of(absmax - mean, size)
    scales = rows.abs().amax(1)
    return nearest((rows / scales[:, None]).flatten()[: len(absmax)], codebook).byte(), scales / scales * scales, mean


there("nan_for_equal_constants", "not-finite", nan_for_equal_constants)

billed("first_level_alone", "counts-constants-once", lambda w, b, s: 4 + 8 * ceil(w / b) / w)
billed("first_level_and_mean", "counts-constants-once", lambda w, b, s: 4 + (8 * ceil(w / b) + 32) / w)
billed("second_level_alone", "counts-constants-once", lambda w, b, s: 4 + 32 * ceil(ceil(w / b) / s) / w)
billed("no_second_quantization", "constants-still-in-fp32", lambda w, b, s: 4 + 32 * ceil(w / b) / w)
billed("codes_alone", "forgets-the-constants", lambda w, b, s: 4.0)
billed("without_the_mean_in_the_bill", "leaves-out-the-mean", lambda w, b, s: bits(w, b, s) - 32 / w)
billed(
    "the_formula_of_the_paper",
    "leaves-out-the-mean",
    lambda w, b, s: 4 + (8 * ceil(w / b) + 32 * ceil(ceil(w / b) / s)) / w,
)
billed("the_formula_with_even_blocks", "ragged-rounded-away", lambda w, b, s: 4 + 8 / b + 32 / (b * s) + 32 / w)
billed("blocks_rounded_down", "ragged-rounded-away", lambda w, b, s: 4 + (8 * (w // b) + 32 * (w // b // s) + 32) / w)
billed(
    "second_blocks_of_weights",
    "second-blocks-of-weights",
    lambda w, b, s: 4 + (8 * ceil(w / b) + 32 * ceil(w / s) + 32) / w,
)
billed("mean_for_every_block", "mean-for-every-block", lambda w, b, s: bits(w, b, s) + 32 * (ceil(w / b) - 1) / w)
billed("in_bytes", "counts-bytes", lambda w, b, s: bits(w, b, s) / 8)
billed("in_all", "returns-the-total", lambda w, b, s: bits(w, b, s) * w)
billed("codes_of_a_byte", "a-byte-for-four-bits", lambda w, b, s: bits(w, b, s) + 4)
billed("rounded", "rounds-the-result", lambda w, b, s: round(bits(w, b, s), 3))
billed("no_bits", "returns-nothing", lambda w, b, s: None)
billed("a_little_more", "wrong-value", lambda w, b, s: bits(w, b, s) + 1e-4)


def divides_lists(absmax, codebook, size):
    return quantize(absmax.tolist() / size, codebook, size)


BANK.answers.append(Answer(BANK.exercise, "divides_lists", (divides_lists, bits), outcome="crashed"))
