"""Answers to `decode_e4m3`."""

import math

import ml_dtypes
import numpy as np
import torch

from qlab import formats
from tests.answers.bank import Bank

BANK = Bank("decode-e4m3")


def formula(code):
    exponent, fraction = code >> 3 & 15, code & 7
    magnitude = (fraction / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
    return -magnitude if code & 0x80 else magnitude


@BANK.right
def by_the_formula(code):
    return math.nan if code & 0x7F == 0x7F else formula(code)


@BANK.right
def by_qlab(code):
    return formats.decode(torch.tensor(code, dtype=torch.uint8), formats.E4M3)


@BANK.right
def by_ml_dtypes(code):
    return np.uint8(code).view(ml_dtypes.float8_e4m3fn)


@BANK.right
def by_a_table_of_steps(code):
    if code % 128 == 127:
        return float("nan")
    walked, step = 0.0, 2.0**-9
    for lower in range(code % 128):
        walked += step * 2 ** max(lower // 8 - 1, 0)
    return walked * (1 - 2 * (code // 128))


@BANK.right
def by_torch_as_a_list(code):
    return [torch.tensor([code], dtype=torch.uint8).view(torch.float8_e4m3fn).float().item()]


@BANK.wrong("treats-1111-as-special")
def ieee_with_infinity(code):
    if code & 0x78 == 0x78:
        return math.nan if code & 7 else math.copysign(math.inf, formula(code))
    return formula(code)


@BANK.wrong("treats-1111-as-special")
def every_1111_is_nan(code):
    return math.nan if code & 0x78 == 0x78 else formula(code)


@BANK.wrong("treats-1111-as-special")
def every_1111_is_infinity(code):
    return math.copysign(math.inf, formula(code)) if code & 0x78 == 0x78 else formula(code)


@BANK.wrong("treats-1111-as-special")
def saturates_at_240(code):
    return math.nan if code & 0x7F == 0x7F else max(-240.0, min(240.0, formula(code)))


@BANK.wrong("nan-is-a-number")
def nan_is_480(code):
    return formula(code)


@BANK.wrong("nan-is-infinity")
def nan_is_infinity(code):
    return math.copysign(math.inf, formula(code)) if code & 0x7F == 0x7F else formula(code)


@BANK.wrong("nan-of-one-sign-only")
def only_the_positive_nan(code):
    return math.nan if code == 0x7F else formula(code)


@BANK.wrong("forgets-subnormals")
def no_subnormals(code):
    magnitude = (1 + (code & 7) / 8) * 2.0 ** ((code >> 3 & 15) - 7)
    return math.nan if code & 0x7F == 0x7F else math.copysign(magnitude, 0.5 - (code >> 7))


@BANK.wrong("bias-off-by-one")
def bias_of_eight(code):
    return by_the_formula(code) / 2


@BANK.wrong("ignores-sign")
def no_sign(code):
    return abs(by_the_formula(code))


@BANK.wrong("wrong-value")
def decodes_e5m2_instead(code):
    return torch.tensor([code], dtype=torch.uint8).view(torch.float8_e5m2).float()


@BANK.crashes
def takes_two_arguments(code, bias):
    return code - bias


@BANK.wrong("nan-of-one-sign-only")
def only_the_negative_nan(code):
    return math.nan if code == 0xFF else formula(code)
