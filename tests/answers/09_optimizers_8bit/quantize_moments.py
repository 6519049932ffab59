"""Answers to `quantize_moments` and `dequantize_moments`, exercise `blockwise_state`."""

import numpy as np
import torch

from qlab.codebooks import BlockwiseCodes, dynamic_map, linear_map, nearest_codes, quantize_blockwise
from qlab.optimizers import QuantizedMoment
from tests.answers.bank import Answer, Bank

BANK = Bank("blockwise-state")
SIGNED, UNSIGNED = dynamic_map(signed=True), dynamic_map(signed=False)


def two(quantize, dequantize, name, misconception="", *, back=None):
    """Add a pair of answers made of functions for one moment and its map."""

    def quantize_moments(exp_avg, exp_avg_sq, block_size):
        return *quantize(exp_avg, SIGNED, block_size), *quantize(exp_avg_sq, UNSIGNED, block_size)

    def dequantize_moments(codes, absmax, codes_sq, absmax_sq, block_size):
        first, second = (codes, absmax, SIGNED, block_size), (codes_sq, absmax_sq, UNSIGNED, block_size)
        return dequantize(*first), (back or dequantize)(*second)

    BANK.add(name, quantize_moments, dequantize_moments, misconception=misconception)


def padded(x, block_size):
    return torch.nn.functional.pad(x.flatten(), (0, -x.numel() % block_size)).view(-1, block_size)


def rows(x, codebook, block_size):
    blocks = padded(x, block_size)
    absmax = blocks.abs().amax(1)
    divisor = torch.where(absmax > 0, absmax, 1.0)
    codes = nearest_codes(blocks / divisor[:, None], codebook)
    return codes.flatten()[: x.numel()].view(x.shape), absmax


def spread(codes, absmax, codebook, block_size):
    return codebook[codes.long()] * absmax.repeat_interleave(block_size)[: codes.numel()].view(codes.shape)


two(rows, spread, "in_rows_of_a_block")


def by_qlab_codes(x, codebook, block_size):
    coded = quantize_blockwise(x, codebook, block_size=block_size)
    return coded.codes, coded.absmax


def by_qlab_values(codes, absmax, codebook, block_size):
    return BlockwiseCodes(codes.flatten(), absmax, codebook, block_size, codes.shape).dequantize()


two(by_qlab_codes, by_qlab_values, "by_qlabs_codebooks")


def by_moments(x, codebook, block_size):
    moment = QuantizedMoment.quantize(x, signed=codebook is SIGNED, block_size=block_size)
    return moment.codes, moment.absmax


def of_moments(codes, absmax, codebook, block_size):
    return QuantizedMoment(codes, absmax, codebook is SIGNED, block_size).dequantize()


two(by_moments, of_moments, "by_qlabs_moments")


def block_by_block(x, codebook, block_size):
    codes, absmax = [], []
    for block in x.flatten().split(block_size):
        largest = block.abs().max().item()
        absmax.append(largest)
        codes.append(nearest_codes(block * (1 / largest if largest else 0.0), codebook))
    return torch.cat(codes).reshape(x.shape), absmax


def value_by_value(codes, absmax, codebook, block_size):
    levels, flat = codebook.tolist(), codes.flatten().tolist()
    values = [levels[code] * absmax[place // block_size].item() for place, code in enumerate(flat)]
    return np.array(values).reshape(tuple(codes.shape))


two(block_by_block, value_by_value, "in_loops")


def in_numpy(x, codebook, block_size):
    flat, levels = x.numpy().astype(np.float64).ravel(), codebook.numpy().astype(np.float64)
    absmax = np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, block_size))
    wide = np.repeat(np.where(absmax == 0, 1, absmax), block_size)[: flat.size]
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, flat / wide).astype(np.uint8)
    return codes.reshape(x.shape), absmax.astype(np.float32)


def from_numpy(codes, absmax, codebook, block_size):
    codes, absmax = torch.as_tensor(codes), torch.as_tensor(absmax)
    return spread(codes, absmax, codebook, block_size)


two(in_numpy, from_numpy, "in_numpy")


def one_for_zero(x, codebook, block_size):
    """Keep an absmax of 1 for a block of zeros, which comes back as zeros all the same."""
    codes, absmax = rows(x, codebook, block_size)
    return codes, torch.where(absmax == 0, 1.0, absmax)


two(one_for_zero, spread, "keeps_one_for_a_block_of_zeros")


def slip(divisor, *, codebook=lambda codebook: codebook, code=nearest_codes, keep=lambda absmax, x: absmax):
    """Make a quantizer from its parts: what it divides by, the map, the search and the absmax it returns."""

    def quantize(x, levels, block_size):
        wide = divisor(x.flatten(), block_size, x)
        codes = code(torch.where(wide == 0, 0.0, x.flatten() / wide), codebook(levels))
        return codes.view(x.shape), keep(rows(x, levels, block_size)[1], wide)

    return quantize


def right_divisor(flat, block_size, x):
    return rows(x, SIGNED, block_size)[1].repeat_interleave(block_size)[: len(flat)]


def of_the_tensor(flat, block_size, x):
    return flat.abs().max().expand_as(flat)


two(slip(of_the_tensor, keep=lambda a, wide: wide[:1]), spread, "one_absmax_for_the_tensor", "absmax-per-tensor")
two(
    slip(of_the_tensor, keep=lambda a, wide: wide[: len(a)]),
    spread,
    "one_absmax_for_the_tensor_repeated",
    "absmax-per-tensor",
)
two(slip(of_the_tensor), spread, "divides_by_the_largest_of_all", "absmax-per-tensor")


def signed_for_both(codes, absmax, codebook, block_size):
    return spread(codes, absmax, SIGNED, block_size)


def unsigned_for_both(codes, absmax, codebook, block_size):
    return spread(codes, absmax, UNSIGNED, block_size)


two(
    slip(right_divisor, codebook=lambda _: SIGNED),
    signed_for_both,
    "the_signed_map_for_both",
    "signed-map-for-second-moment",
)
two(rows, signed_for_both, "the_signed_map_on_the_way_back", "signed-map-for-second-moment")
two(
    slip(right_divisor, codebook=lambda _: UNSIGNED),
    unsigned_for_both,
    "the_unsigned_map_for_both",
    "unsigned-map-for-first-moment",
)


def linear(levels):
    return linear_map(bits=8, signed=levels is SIGNED)


def linear_back(codes, absmax, codebook, block_size):
    return spread(codes.clamp(max=len(linear(codebook)) - 1), absmax, linear(codebook), block_size)


two(slip(right_divisor, codebook=linear), linear_back, "evenly_spaced_levels", "linear-map")


def largest_of_each(flat, block_size, x):
    return torch.cat([block.max().expand_as(block) for block in flat.split(block_size)])


def max_without_abs(x, codebook, block_size):
    absmax = torch.stack([block.max() for block in x.flatten().split(block_size)])
    wide = largest_of_each(x.flatten(), block_size, x)
    codes = nearest_codes(x.flatten() / torch.where(wide == 0, 1.0, wide), codebook)
    return codes.view(x.shape), absmax


two(max_without_abs, spread, "max_without_abs", "forgets-negative-values")


def drops_the_last(x, codebook, block_size):
    codes, absmax = rows(x, codebook, block_size)
    return codes, absmax[: x.numel() // block_size]


two(drops_the_last, spread, "no_absmax_for_the_short_block", "drops-the-short-block")


def a_row_a_block(x, codebook, block_size):
    if x.ndim == 1:
        return rows(x, codebook, block_size)
    absmax = x.abs().amax(-1)
    return nearest_codes(x / absmax[:, None], codebook), absmax


two(a_row_a_block, spread, "an_absmax_for_each_row", "absmax-per-row")


def strided(x, codebook, block_size):
    flat, blocks = x.flatten(), -(-x.numel() // block_size)
    absmax = torch.stack([flat[i::blocks].abs().max() for i in range(blocks)])
    return nearest_codes(flat / absmax[torch.arange(len(flat)) % blocks], codebook).view(x.shape), absmax


def strided_back(codes, absmax, codebook, block_size):
    turns = torch.arange(codes.numel()) % len(absmax)
    return codebook[codes.long()] * absmax[turns].view(codes.shape)


two(strided, strided_back, "every_nth_value_is_a_block", "blocks-are-not-neighbors")


def with_an_epsilon(x, codebook, block_size):
    blocks = padded(x, block_size)
    absmax = blocks.abs().amax(1) + 1e-8
    codes = nearest_codes(blocks / absmax[:, None], codebook)
    return codes.flatten()[: x.numel()].view(x.shape), absmax


two(with_an_epsilon, spread, "adds_an_epsilon", "changes-small-scales")


def with_a_small_epsilon(x, codebook, block_size):
    blocks = padded(x, block_size)
    absmax = blocks.abs().amax(1).clamp(min=1e-12)
    codes = nearest_codes(blocks / absmax[:, None], codebook)
    return codes.flatten()[: x.numel()].view(x.shape), absmax


two(with_a_small_epsilon, spread, "clamps_the_absmax", "swallows-small-blocks")


def divides_anyway(x, codebook, block_size):
    blocks = padded(x, block_size)
    absmax = blocks.abs().amax(1)
    normalized = blocks / absmax[:, None]
    codes = torch.bucketize(normalized, (codebook[1:] + codebook[:-1]) / 2).clamp(max=255).to(torch.uint8)
    return codes.flatten()[: x.numel()].view(x.shape), absmax


def back_by_division(codes, absmax, codebook, block_size):
    wide = absmax.repeat_interleave(block_size)[: codes.numel()].view(codes.shape)
    return codebook[codes.long()] / (1 / wide) + 0 / wide


two(divides_anyway, back_by_division, "zero_over_zero", "divides-by-zero")


def below(x, codebook):
    return (torch.bucketize(x, codebook, right=True) - 1).clamp(0, 255).to(torch.uint8)


two(slip(right_divisor, code=below), spread, "the_level_below", "takes-the-level-below")
two(slip(lambda flat, *_: torch.ones_like(flat)), spread, "without_dividing", "forgets-to-divide")
two(rows, lambda codes, absmax, levels, size: levels[codes.long()], "levels_alone", "forgets-the-absmax")
two(
    rows,
    lambda codes, absmax, levels, size: spread(codes, 1 / absmax, levels, size),
    "divides_on_the_way_back",
    "inverse-absmax",
)
two(
    rows,
    lambda codes, absmax, levels, size: spread(codes, absmax, torch.arange(256.0), size),
    "codes_for_levels",
    "codes-for-levels",
)
two(
    rows,
    lambda codes, absmax, levels, size: levels[codes.long()] * absmax.max(),
    "the_largest_absmax_on_the_way_back",
    "absmax-per-tensor",
)
two(lambda x, c, size: (rows(x, c, size)[0].long(), rows(x, c, size)[1]), spread, "int64_codes", "not-uint8")
two(lambda x, c, size: (rows(x, c, size)[0].flatten(), rows(x, c, size)[1]), spread, "flat_codes", "wrong-shape")


def second_first(codes, absmax, codes_sq, absmax_sq, block_size):
    return spread(codes_sq, absmax_sq, UNSIGNED, block_size), spread(codes, absmax, SIGNED, block_size)


def both(exp_avg, exp_avg_sq, block_size):
    return *rows(exp_avg, SIGNED, block_size), *rows(exp_avg_sq, UNSIGNED, block_size)


def nothing(*_):
    pass


BANK.add("hands_back_the_second_first", both, second_first, misconception="swaps-the-moments")
BANK.add("returns_nothing", nothing, second_first, misconception="returns-nothing")
BANK.add("returns_nothing_on_the_way_back", both, nothing, misconception="returns-nothing")


def in_blocks_of_256(exp_avg, exp_avg_sq, block_size):
    return both(exp_avg, exp_avg_sq, 256)


def back_from_blocks_of_256(codes, absmax, codes_sq, absmax_sq, block_size):
    return there_and_back(codes, absmax, codes_sq, absmax_sq, 256)


def largest_without_abs(exp_avg, exp_avg_sq, block_size):
    blocks = padded(exp_avg, block_size)
    absmax = blocks.amax(1)
    normalized = blocks / torch.where(absmax == 0, 1.0, absmax)[:, None]
    codes = nearest_codes(normalized, SIGNED).flatten()[: exp_avg.numel()].view(exp_avg.shape)
    return codes, absmax, *rows(exp_avg_sq, UNSIGNED, block_size)


def one_absmax_a_value(codes, absmax, codes_sq, absmax_sq, block_size):
    return SIGNED[codes.long()] * absmax, UNSIGNED[codes_sq.long()] * absmax_sq


def divides_by_zero(exp_avg, exp_avg_sq, block_size):
    """Hand NaN to `nearest_codes`, which refuses it."""
    blocks = [padded(x, block_size) for x in (exp_avg, exp_avg_sq)]
    codes = [
        nearest_codes(b / b.abs().amax(1, keepdim=True), m) for b, m in zip(blocks, (SIGNED, UNSIGNED), strict=True)
    ]
    first, second = (c.flatten()[: exp_avg.numel()].view(exp_avg.shape) for c in codes)
    return first, blocks[0].abs().amax(1), second, blocks[1].abs().amax(1)


def there_and_back(codes, absmax, codes_sq, absmax_sq, block_size):
    return spread(codes, absmax, SIGNED, block_size), spread(codes_sq, absmax_sq, UNSIGNED, block_size)


BANK.add("takes_256_for_granted", in_blocks_of_256, back_from_blocks_of_256, misconception="ignores-the-block-size")
BANK.add("takes_256_on_the_way_back", both, back_from_blocks_of_256, misconception="ignores-the-block-size")
BANK.add("largest_without_abs", largest_without_abs, there_and_back, misconception="forgets-negative-values")
BANK.answers.append(
    Answer("blockwise-state", "forgets_the_blocks_of_values", (both, one_absmax_a_value), outcome="crashed")
)
BANK.answers.append(
    Answer("blockwise-state", "zero_over_zero_refused", (divides_by_zero, there_and_back), outcome="crashed")
)
