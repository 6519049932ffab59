"""Answers to `dynamic_map`, exercise `dynamic_map`."""

import numpy as np
import torch

from qlab import codebooks
from tests.answers.bank import Bank

BANK = Bank("dynamic-map")


def middles(levels):
    edges = torch.linspace(0.1, 1, levels + 1)
    return (edges[1:] + edges[:-1]) / 2


@BANK.right
def decade_by_decade(bits, signed):
    positive = [10.0 ** (i - bits + 2) * middles(2**i * (1 if signed else 2)) for i in range(bits - 1)]
    positive = torch.cat(positive)
    return torch.cat([-positive if signed else positive[:0], torch.tensor([0.0, 1.0]), positive]).sort().values


@BANK.right
def a_sorted_list(bits, signed):
    levels = [0.0, 1.0]
    for decade in range(bits - 1):
        pieces = 2 ** (bits - 2 - decade) * (2 - signed)
        for piece in range(pieces):
            level = (0.1 + 0.9 * (piece + 0.5) / pieces) / 10**decade
            levels += [level, -level] if signed else [level]
    return sorted(levels)


@BANK.right
def as_bitsandbytes_writes_it(bits, signed):
    data = []
    for i in range(bits - 1):
        items = 2 ** (i + bits - (bits - 1)) + 1 if not signed else 2 ** (i + bits - (bits - 1) - 1) + 1
        bounds = torch.linspace(0.1, 1, items, dtype=torch.float32)
        means = (bounds[:-1] + bounds[1:]) / 2.0
        data += ((10 ** (-(bits - 2) + i)) * means).tolist()
        if signed:
            data += (-(10 ** (-(bits - 2) + i)) * means).tolist()
    data += [0, 1.0]
    data.sort()
    return torch.tensor(data, dtype=torch.float32)


@BANK.right
def in_numpy(bits, signed):
    positive = np.concatenate(
        [
            10.0 ** (i - bits + 2) * (0.1 + 0.9 * (np.arange(n) + 0.5) / n)
            for i, n in ((i, (2 - signed) << i) for i in range(bits - 1))
        ]
    )
    return np.sort(np.concatenate([positive, -positive if signed else [], [0, 1]]))


@BANK.right
def qlabs_at_eight_bits(bits, signed):
    return codebooks.dynamic_map(signed=signed) if bits == 8 else decade_by_decade(bits, signed)


@BANK.right
def by_reading_the_bits_of_each_code(bits, signed):
    """Read a code as the paper draws it: zeros count the decade, a one ends them, the rest is the fraction."""
    low = bits - 1 if signed else bits
    values = []
    for code in range(2**low):
        length = code.bit_length()
        if length < 2 - signed or (signed and length == 0):
            continue
        fraction_bits = length - 1
        decade = low - length
        pieces = 2**fraction_bits
        level = 10.0**-decade * (0.1 + 0.9 * (code - pieces + 0.5) / pieces)
        values += [level, -level] if signed else [level]
    return torch.tensor(sorted([*values, 0.0, 1.0]), dtype=torch.float64)


def made(decade=middles, scale=lambda i, bits: 10.0 ** (i - bits + 2), count=None, ends=(0.0, 1.0), twins=True):
    """Make an answer from its parts, so that each slip is one line."""
    count = count or (lambda i, bits, signed: 2**i * (1 if signed else 2))

    def answer(bits, signed):
        positive = torch.cat([scale(i, bits) * decade(count(i, bits, signed)) for i in range(bits - 1)])
        extra = torch.tensor(ends(signed) if callable(ends) else ends)
        return torch.cat([-positive if signed and twins else positive[:0], extra, positive]).sort().values

    return answer


def wrong(name, misconception, **parts):
    BANK.add(name, made(**parts), misconception=misconception)


wrong("lower_edges", "takes-edges-for-middles", decade=lambda n: torch.linspace(0.1, 1, n + 1)[:-1])
wrong("upper_edges", "takes-edges-for-middles", decade=lambda n: torch.linspace(0.1, 1, n + 1)[1:])
wrong("grids_of_n_points", "takes-edges-for-middles", decade=lambda n: torch.linspace(0.1, 1, n))
wrong("decades_from_zero", "decades-from-zero", decade=lambda n: (torch.arange(n) + 0.5) / n)
wrong("middles_in_ratio", "steps-in-ratios", decade=lambda n: 10 ** ((torch.arange(n) + 0.5) / n - 1))
wrong("one_decade_down", "shifts-the-decades", scale=lambda i, bits: 10.0 ** (i - bits + 1))
wrong("one_decade_up", "shifts-the-decades", scale=lambda i, bits: 10.0 ** (i - bits + 3))
wrong("powers_of_two", "octaves-for-decades", scale=lambda i, bits: 2.0 ** (i - bits + 2))
wrong("most_levels_at_the_bottom", "most-levels-near-zero", scale=lambda i, bits: 10.0**-i)
wrong("unsigned_like_signed", "unsigned-as-signed", count=lambda i, bits, signed: 2**i)
wrong("without_zero_and_one", "forgets-zero-and-one", ends=())
wrong("without_one", "forgets-one", ends=(0.0,))
wrong("without_zero", "forgets-zero", ends=(1.0,))
wrong("minus_one_too", "adds-minus-one", ends=lambda signed: (-1.0, 0.0, 1.0) if signed else (0.0, 1.0))
wrong("minus_one_for_zero", "minus-one-for-zero", ends=lambda signed: (-1.0, 1.0) if signed else (0.0, 1.0))
wrong("no_negative_levels", "wrong-number-of-levels", twins=False)
wrong("ten_levels_each", "wrong-number-of-levels", count=lambda i, bits, signed: 10)


@BANK.wrong("linear-map")
def evenly_spaced(bits, signed):
    return torch.linspace(-1 if signed else 0, 1, 2**bits)


@BANK.wrong("linear-map")
def whole_numbers_over_the_largest(bits, signed):
    return codebooks.linear_map(bits=bits, signed=signed)


@BANK.wrong("ignores-bits")
def always_eight_bits(bits, signed):
    return codebooks.dynamic_map(signed=signed)


@BANK.wrong("signed-as-unsigned")
def always_unsigned(bits, signed):
    return decade_by_decade(bits, False)


@BANK.wrong("ignores-signed")
def always_signed(bits, signed):
    return decade_by_decade(bits, True)


@BANK.wrong("not-ascending")
def not_sorted(bits, signed):
    positive = torch.cat([10.0 ** (i - bits + 2) * middles(2**i * (1 if signed else 2)) for i in range(bits - 1)])
    return torch.cat([positive, -positive if signed else positive[:0], torch.tensor([0.0, 1.0])])


@BANK.wrong("not-ascending")
def in_descending_order(bits, signed):
    return decade_by_decade(bits, signed).flip(0)


@BANK.wrong("wrong-value")
def a_tenth_percent_off(bits, signed):
    return decade_by_decade(bits, signed) * 1.001


@BANK.wrong("returns-nothing")
def returns_nothing(bits, signed):
    decade_by_decade(bits, signed)


@BANK.crashes
def integer_power(bits, signed):
    return torch.cat([torch.tensor(10) ** (i - bits + 2) * middles(2**i) for i in range(bits - 1)])
