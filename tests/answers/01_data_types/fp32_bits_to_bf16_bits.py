"""Answers to `fp32_bits_to_bf16_bits`."""

import numpy as np
import torch

from qlab import formats
from tests.answers.bank import Bank

BANK = Bank("fp32-bits-to-bf16-bits")


def is_nan(bits):
    return (bits & 0x7FFFFFFF) > 0x7F800000


def carried(bits):
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


BANK.add("by_qlab", formats.fp32_bits_to_bf16_bits)


@BANK.right
def adds_and_keeps_nan(bits):
    return torch.where(is_nan(bits), 0x7FC0 | (bits >> 16 & 0x8000), carried(bits))


@BANK.right
def compares_the_lower_half(bits):
    upper, lower = bits >> 16, bits & 0xFFFF
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    return torch.where(is_nan(bits), upper | 0x40, upper + up)


@BANK.right
def a_loop_that_returns_a_list(bits):
    results = []
    for b in bits.tolist():
        upper, lower = b >> 16, b & 0xFFFF
        if b & 0x7FFFFFFF > 0x7F800000:
            upper |= 1
        elif lower > 0x8000 or (lower == 0x8000 and upper & 1):
            upper += 1
        results.append(upper)
    return results


@BANK.right
def in_numpy_uint32(bits):
    b = bits.numpy().astype(np.uint32)
    rounded = ((b.astype(np.uint64) + 0x7FFF + ((b >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where((b & 0x7FFFFFFF) > 0x7F800000, np.uint16(0x7FFF), rounded)


@BANK.right
def by_the_cast_as_int16(bits):
    return bits.to(torch.int32).view(torch.float32).bfloat16().view(torch.int16)


@BANK.wrong("truncates")
def shifts(bits):
    return bits >> 16


@BANK.wrong("truncates")
def shifts_and_keeps_nan(bits):
    return torch.where(is_nan(bits), (bits >> 16) | 0x40, bits >> 16)


@BANK.wrong("turns-nan-into-infinity")
def carries_into_nan(bits):
    return carried(bits) & 0xFFFF


@BANK.wrong("turns-nan-into-infinity")
def keeps_only_the_canonical_nan(bits):
    return torch.where(bits == 0x7FC00000, 0x7FC0, carried(bits) & 0xFFFF)


@BANK.wrong("turns-nan-into-infinity")
def nan_by_truncation(bits):
    return torch.where(is_nan(bits), bits >> 16, carried(bits))


@BANK.wrong("ties-away-from-zero")
def adds_half(bits):
    return torch.where(is_nan(bits), 0x7FC0, (bits + 0x8000) >> 16)


@BANK.wrong("ties-toward-zero")
def adds_less_than_half(bits):
    return torch.where(is_nan(bits), 0x7FC0, (bits + 0x7FFF) >> 16)


@BANK.wrong("not-shifted")
def clears_the_lower_half(bits):
    return torch.where(is_nan(bits), bits | 0x400000, carried(bits) << 16) & 0xFFFF0000


@BANK.wrong("wrong-value")
def saturates_instead_of_overflowing(bits):
    rounded = carried(bits)
    too_large = ((rounded & 0x7FFF) == 0x7F80) & ((bits & 0x7FFFFFFF) != 0x7F800000)
    return torch.where(is_nan(bits), 0x7FC0, torch.where(too_large, rounded - 1, rounded))


@BANK.wrong("wrong-value")
def infinity_becomes_nan(bits):
    return torch.where((bits & 0x7F800000) == 0x7F800000, 0x7FC0, carried(bits))


@BANK.wrong("ignores-sign")
def loses_the_sign(bits):
    return adds_and_keeps_nan(bits & 0x7FFFFFFF)


@BANK.wrong("wrong-value")
def returns_the_values(bits):
    return bits.to(torch.int32).view(torch.float32).bfloat16()


@BANK.wrong("ties-to-odd")
def adds_the_opposite_bit(bits):
    return torch.where(is_nan(bits), 0x7FC0, (bits + 0x8000 - ((bits >> 16) & 1)) >> 16)


@BANK.wrong("signed-pattern")
def shifts_signed_integers(bits):
    signed = bits.to(torch.int32)
    rounded = (signed.long() + 0x7FFF + ((signed >> 16) & 1)) >> 16
    return torch.where(is_nan(bits), signed.long() >> 16 | 0x40, rounded)
