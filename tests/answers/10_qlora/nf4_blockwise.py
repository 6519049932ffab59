"""Answers to `quantize_blocks` and `dequantize_blocks`, exercise `nf4_blockwise`."""

import numpy as np
import torch
import torch.nn.functional as F

from qlab import codebooks
from tests.answers.bank import Answer, Bank

BANK = Bank("nf4-blockwise")


def rows_of(x, size):
    return F.pad(x, (0, -len(x) % size)).view(-1, size)


def safe(absmax):
    return torch.where(absmax == 0, 1.0, absmax)


def pack(codes):
    return (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)


def unpack(packed):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()


def nearest(values, codebook):
    return (values[:, None] - codebook).abs().argmin(1)


def quantize(x, codebook, size):
    rows = rows_of(x, size)
    absmax = rows.abs().amax(1)
    values = (rows / safe(absmax)[:, None]).flatten()[: len(x)]
    return pack(nearest(values, codebook)), absmax


def dequantize(packed, absmax, codebook, size):
    codes = unpack(packed)
    return codebook[codes] * absmax.repeat_interleave(size)[: len(codes)]


BANK.add("by_distances", quantize, dequantize)


def by_qlab(x, codebook, size):
    codes = codebooks.quantize_blockwise(x, codebook, block_size=size)
    return codes.packed, codes.absmax


def back_by_qlab(packed, absmax, codebook, size):
    shape = torch.Size((2 * len(packed),))
    return codebooks.BlockwiseCodes(packed, absmax, codebook, size, shape).dequantize()


BANK.add("by_qlab", by_qlab, back_by_qlab)


def by_midpoints(x, codebook, size):
    absmax = torch.stack([block.abs().max() for block in x.split(size)])
    inverse = torch.where(absmax > 0, 1 / absmax, 0.0)
    codes = torch.bucketize(x * inverse.repeat_interleave(size)[: len(x)], (codebook[1:] + codebook[:-1]) / 2)
    return (codes.view(-1, 2) * torch.tensor([16, 1])).sum(1).byte(), absmax


def back_block_by_block(packed, absmax, codebook, size):
    codes = torch.stack([packed // 16, packed % 16], dim=1).view(-1).int()
    return torch.cat([codebook[c] * a for c, a in zip(codes.split(size), absmax, strict=True)])


BANK.add("by_midpoints", by_midpoints, back_block_by_block)


def in_numpy(x, codebook, size):
    x, codebook = x.numpy().astype(np.float64), codebook.numpy().astype(np.float64)
    starts = np.arange(0, len(x), size)
    absmax = np.maximum.reduceat(np.abs(x), starts)
    scale = np.where(absmax == 0, 1, absmax)[np.arange(len(x)) // size]
    codes = np.abs(x[:, None] / scale[:, None] - codebook).argmin(1).astype(np.uint8)
    return codes[::2] << 4 | codes[1::2], absmax.astype(np.float32)


def back_in_numpy(packed, absmax, codebook, size):
    packed, codes = packed.numpy(), np.empty(2 * len(packed), dtype=np.uint8)
    codes[::2], codes[1::2] = packed >> 4, packed & 15
    return codebook.numpy()[codes] * absmax.numpy()[np.arange(len(codes)) // size]


BANK.add("in_numpy", in_numpy, back_in_numpy)


def with_loops(x, codebook, size):
    levels, codes, absmax = codebook.tolist(), [], []
    for block in x.split(size):
        largest = max(map(abs, block.tolist()))
        absmax.append(largest)
        for value in block.tolist():
            t = value / (largest or 1)
            codes.append(min(range(16), key=lambda c: abs(levels[c] - t)))
    return [16 * a + b for a, b in zip(codes[::2], codes[1::2], strict=True)], absmax


def back_with_loops(packed, absmax, codebook, size):
    codes = [nibble for byte in packed.tolist() for nibble in divmod(byte, 16)]
    return [codebook[code].item() * absmax[place // size].item() for place, code in enumerate(codes)]


BANK.add("with_loops", with_loops, back_with_loops)


def upper_level_at_ties(x, codebook, size):
    rows = rows_of(x, size)
    absmax = rows.abs().amax(1, keepdim=True)
    values = rows.div(absmax).nan_to_num(0.0).flatten()[: len(x)]
    return pack(torch.bucketize(values, (codebook[1:] + codebook[:-1]) / 2, right=True)), absmax.view(-1)


BANK.add("upper_level_at_ties", upper_level_at_ties, dequantize)


def there(name, misconception, answer):
    BANK.add(name, answer, dequantize, misconception=misconception)


def back(name, misconception, answer):
    BANK.add(name, quantize, answer, misconception=misconception)


def coded(*, divide=None, find=nearest, packing=pack, constants=lambda rows: rows.abs().amax(1)):
    """Make an answer of which one piece may differ."""

    def answer(x, codebook, size):
        rows = rows_of(x, size)
        absmax = constants(rows)
        values = rows / safe(absmax)[:, None] if divide is None else divide(rows)
        return packing(find(values.flatten()[: len(x)], codebook)), absmax

    return answer


def below(values, codebook):
    return (torch.bucketize(values, codebook, right=True) - 1).clamp(0, 15)


there("the_level_below", "floors", coded(find=below))
there("the_level_above", "floors", coded(find=lambda values, levels: torch.bucketize(values, levels).clamp(max=15)))
there(
    "even_steps",
    "even-steps",
    coded(find=lambda values, levels: ((values + 1) * 7.5).round().clamp(0, 15).long()),
)
there("not_divided", "forgets-to-normalize", coded(divide=lambda rows: rows))
there("divided_by_the_largest_of_all", "one-absmax-for-all", coded(divide=lambda rows: rows / rows.abs().max()))
there("largest_of_all_kept", "one-absmax-for-all", coded(constants=lambda rows: rows.abs().max().expand(len(rows))))
there("maximum_for_absmax", "forgets-the-sign", coded(constants=lambda rows: rows.amax(1)))
there("codes_of_magnitudes", "forgets-the-sign", coded(find=lambda values, levels: nearest(values.abs(), levels)))
there("low_nibble_first", "nibbles-swapped", coded(packing=lambda c: (c[1::2] << 4 | c[0::2]).to(torch.uint8)))
there(
    "first_half_high",
    "packs-halves",
    coded(packing=lambda c: (c[: len(c) // 2] << 4 | c[len(c) // 2 :]).to(torch.uint8)),
)
there("one_code_a_byte", "not-packed", coded(packing=lambda c: c.to(torch.uint8)))
there("two_codes_in_eight_bytes", "wide-codes", coded(packing=lambda c: c[0::2] << 4 | c[1::2]))


def one_constant(x, codebook, size):
    codes = nearest(x / x.abs().max(), codebook)
    return pack(codes), x.abs().max()


there("one_constant", "one-absmax-for-all", one_constant)


def steps_kept(x, codebook, size):
    packed, absmax = quantize(x, codebook, size)
    return packed, absmax / 7


there("steps_kept", "step-for-absmax", steps_kept)


def inverses_kept(x, codebook, size):
    packed, absmax = quantize(x, codebook, size)
    return packed, 1 / absmax


there("inverses_kept", "inverse-for-absmax", inverses_kept)


def nan_for_zeros(x, codebook, size):
    rows = rows_of(x, size)
    absmax = rows.abs().amax(1)
    values = (rows / absmax[:, None]).flatten()[: len(x)]
    return pack(nearest(values, codebook)), absmax


there("nan_for_zeros", "wrong-code-for-zeros", nan_for_zeros)


def ones_for_zeros(x, codebook, size):
    packed, absmax = quantize(x, codebook, size)
    return packed, safe(absmax)


there("ones_for_zeros", "changes-zero-blocks", ones_for_zeros)


def epsilon_for_zeros(x, codebook, size):
    packed, absmax = quantize(x, codebook, size)
    return packed, absmax.clamp(min=1e-8)


there("epsilon_for_zeros", "changes-zero-blocks", epsilon_for_zeros)


def midpoints_in_bf16(x, codebook, size):
    return by_midpoints(x.bfloat16().float(), codebook, size)[0], rows_of(x, size).abs().amax(1)


there("values_in_bf16", "wrong-value", midpoints_in_bf16)


def floats(x, codebook, size):
    return x[::2].clone(), rows_of(x, size).abs().amax(1)


there("half_of_the_values", "not-a-byte", floats)
there("into_nf4_whatever_is_given", "own-codebook", lambda x, codebook, size: quantize(x, codebooks.NF4, size))
there("returns_codes_alone", "returns-wrong-type", lambda x, codebook, size: quantize(x, codebook, size)[0])
there("returns_nothing", "returns-nothing", lambda x, codebook, size: None)


def without_padding(x, codebook, size):
    rows = x.view(-1, size)
    return quantize(rows.flatten(), codebook, size)


BANK.answers.append(Answer(BANK.exercise, "without_padding", (without_padding, dequantize), outcome="crashed"))


def levels_of(packed, codebook, order=(4, 0)):
    return codebook[torch.stack([packed >> shift & 15 for shift in order], dim=1).flatten().int()]


back(
    "back_low_nibble_first",
    "nibbles-swapped",
    lambda p, a, c, s: levels_of(p, c, (0, 4)) * a.repeat_interleave(s)[: 2 * len(p)],
)
back("back_without_absmax", "forgets-the-absmax", lambda p, a, c, s: levels_of(p, c))
back("back_with_one_absmax", "one-absmax-for-all", lambda p, a, c, s: levels_of(p, c) * a.max())
back(
    "back_with_tiled_absmax", "absmax-of-another-block", lambda p, a, c, s: levels_of(p, c) * a.repeat(s)[: 2 * len(p)]
)
back(
    "back_in_halves",
    "packs-halves",
    lambda p, a, c, s: c[torch.cat([p >> 4, p & 15]).int()] * a.repeat_interleave(s)[: 2 * len(p)],
)
back("back_to_codes", "codes-for-levels", lambda p, a, c, s: unpack(p) * a.repeat_interleave(s)[: 2 * len(p)])
back(
    "back_to_even_steps",
    "even-steps",
    lambda p, a, c, s: (unpack(p) / 7.5 - 1) * a.repeat_interleave(s)[: 2 * len(p)],
)
back(
    "back_in_blocks_of_bytes",
    "counts-bytes-for-values",
    lambda p, a, c, s: levels_of(p, c) * a.repeat_interleave(2 * s)[: 2 * len(p)],
)
back("back_in_fp16", "wrong-value", lambda p, a, c, s: dequantize(p, a, c, s).half())
back("back_with_nothing", "returns-nothing", lambda p, a, c, s: None)
back("back_in_pairs", "wrong-shape", lambda p, a, c, s: dequantize(p, a, c, s).view(-1, 2))
