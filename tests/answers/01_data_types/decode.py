"""Answers to `decode`."""

import math
import struct
import sys
import warnings

import numpy as np
import torch

from qlab import formats
from tests.answers.bank import Bank

BANK = Bank("decode")


def fields(code, e, m):
    return code >> (e + m) & 1, code >> m & (2**e - 1), code & (2**m - 1)


def value(sign, exponent, fraction, e, m, *, bias=None):  # noqa: PLR0913
    bias = 2 ** (e - 1) - 1 if bias is None else bias
    if exponent == 2**e - 1:
        return math.nan if fraction else (-1) ** sign * math.inf
    if exponent == 0:
        return (-1) ** sign * fraction / 2**m * 2.0 ** (1 - bias)
    return (-1) ** sign * (1 + fraction / 2**m) * 2.0 ** (exponent - bias)


@BANK.right
def by_the_formula(code, exponent_bits, mantissa_bits):
    return value(*fields(code, exponent_bits, mantissa_bits), exponent_bits, mantissa_bits)


@BANK.right
def by_qlab(code, exponent_bits, mantissa_bits):
    fmt = formats.FloatFormat("mine", exponent_bits, mantissa_bits)
    return formats.decode(torch.tensor([code]), fmt)


@BANK.right
def from_a_string_of_digits(code, exponent_bits, mantissa_bits):
    digits = format(code, "b").zfill(1 + exponent_bits + mantissa_bits)
    exponent = int(digits[1 : 1 + exponent_bits], 2)
    significand = sum(int(d) / 2 ** (i + 1) for i, d in enumerate(digits[1 + exponent_bits :]))
    if "0" not in digits[1 : 1 + exponent_bits]:
        result = float("nan") if significand else float("inf")
    else:
        result = (significand + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 2 ** (exponent_bits - 1) + 1)
    return np.float64(-result if digits[0] == "1" else result)


@BANK.right
def by_a_loop_over_bits(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    weight, total = 1.0, float(exponent > 0)
    for bit in reversed(range(mantissa_bits)):
        weight /= 2
        total += weight if fraction >> bit & 1 else 0.0
    scale = max(exponent, 1) - (2 ** (exponent_bits - 1) - 1)
    while scale > 0:
        total, scale = total * 2, scale - 1
    while scale < 0:
        total, scale = total / 2, scale + 1
    if exponent == 2**exponent_bits - 1:
        total = math.inf if fraction == 0 else math.nan
    return torch.tensor([-total if sign else total])


@BANK.right
def by_moving_the_fields_into_fp32(code, exponent_bits, mantissa_bits):
    """Widen the exponent by scaling: the FP32 pattern with the same fields, times a power of two."""
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    if exponent == 2**exponent_bits - 1:
        exponent = 255
    bits = sign << 31 | exponent << 23 | fraction << (23 - mantissa_bits)
    as_fp32 = struct.unpack("<f", struct.pack("<I", bits))[0]
    return as_fp32 if exponent == 255 else as_fp32 * 2.0 ** (127 - (2 ** (exponent_bits - 1) - 1))


@BANK.right
def warns_on_the_way(code, exponent_bits, mantissa_bits):
    warnings.warn("this is slow", stacklevel=1)
    print("working", file=sys.stderr)
    return by_the_formula(code, exponent_bits, mantissa_bits)


@BANK.wrong("forgets-subnormals")
def no_subnormals(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    if exponent == 2**exponent_bits - 1:
        return value(sign, exponent, fraction, exponent_bits, mantissa_bits)
    return (-1) ** sign * (1 + fraction / 2**mantissa_bits) * 2.0 ** (exponent - 2 ** (exponent_bits - 1) + 1)


@BANK.wrong("forgets-subnormals")
def no_subnormals_but_zero_is_zero(code, exponent_bits, mantissa_bits):
    if code & (2 ** (exponent_bits + mantissa_bits) - 1) == 0:
        return 0.0
    return no_subnormals(code, exponent_bits, mantissa_bits)


@BANK.wrong("forgets-subnormals")
def subnormals_are_zero(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    return 0.0 if exponent == 0 else value(sign, exponent, fraction, exponent_bits, mantissa_bits)


@BANK.wrong("bias-off-by-one")
def bias_is_a_power_of_two(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    return value(sign, exponent, fraction, exponent_bits, mantissa_bits, bias=2 ** (exponent_bits - 1))


@BANK.wrong("bias-off-by-one")
def bias_is_two_less(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    return value(sign, exponent, fraction, exponent_bits, mantissa_bits, bias=2 ** (exponent_bits - 1) - 2)


@BANK.wrong("bias-hard-coded")
def bias_of_fp16(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    return value(sign, exponent, fraction, exponent_bits, mantissa_bits, bias=15)


@BANK.wrong("all-ones-is-a-number")
def all_ones_is_a_number(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    one = exponent > 0
    scale = 2.0 ** (max(exponent, 1) - 2 ** (exponent_bits - 1) + 1)
    return (-1) ** sign * (one + fraction / 2**mantissa_bits) * scale


@BANK.wrong("nan-is-infinity")
def every_special_is_infinity(code, exponent_bits, mantissa_bits):
    sign, exponent, _ = fields(code, exponent_bits, mantissa_bits)
    if exponent == 2**exponent_bits - 1:
        return (-1) ** sign * math.inf
    return by_the_formula(code, exponent_bits, mantissa_bits)


@BANK.wrong("infinity-is-nan")
def every_special_is_nan(code, exponent_bits, mantissa_bits):
    _, exponent, _ = fields(code, exponent_bits, mantissa_bits)
    return math.nan if exponent == 2**exponent_bits - 1 else by_the_formula(code, exponent_bits, mantissa_bits)


@BANK.wrong("ignores-sign")
def infinity_without_its_sign(code, exponent_bits, mantissa_bits):
    result = by_the_formula(code, exponent_bits, mantissa_bits)
    return math.inf if math.isinf(result) else result


@BANK.wrong("ignores-sign")
def no_sign(code, exponent_bits, mantissa_bits):
    return abs(by_the_formula(code, exponent_bits, mantissa_bits))


@BANK.wrong("forgets-implicit-one")
def no_implicit_one(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    if exponent in (0, 2**exponent_bits - 1):
        return value(sign, exponent, fraction, exponent_bits, mantissa_bits)
    return (-1) ** sign * (fraction / 2**mantissa_bits) * 2.0 ** (exponent - 2 ** (exponent_bits - 1) + 1)


@BANK.wrong("subnormal-exponent-off-by-one")
def subnormals_one_binade_low(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    result = value(sign, exponent, fraction, exponent_bits, mantissa_bits)
    return result if exponent else result / 2


@BANK.wrong("keeps-implicit-one")
def subnormals_with_a_one(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    if exponent:
        return value(sign, exponent, fraction, exponent_bits, mantissa_bits)
    return (-1) ** sign * (1 + fraction / 2**mantissa_bits) * 2.0 ** (2 - 2 ** (exponent_bits - 1))


@BANK.wrong("wrong-value")
def always_zero(code, exponent_bits, mantissa_bits):
    return 0.0


@BANK.wrong("returns-nothing")
def forgets_to_return(code, exponent_bits, mantissa_bits):
    by_the_formula(code, exponent_bits, mantissa_bits)


@BANK.wrong("returns-wrong-type")
def returns_text(code, exponent_bits, mantissa_bits):
    return str(by_the_formula(code, exponent_bits, mantissa_bits))


@BANK.wrong("wrong-shape")
def returns_its_fields(code, exponent_bits, mantissa_bits):
    return fields(code, exponent_bits, mantissa_bits)


@BANK.crashes
def divides_by_zero(code, exponent_bits, mantissa_bits):
    return 1 / (code - code)


@BANK.crashes
def leaves_the_program(code, exponent_bits, mantissa_bits):
    raise SystemExit(0)


@BANK.crashes
def recurses_forever(code, exponent_bits, mantissa_bits):
    return recurses_forever(code, exponent_bits, mantissa_bits)


@BANK.wrong("forgets-bias")
def no_bias(code, exponent_bits, mantissa_bits):
    return value(*fields(code, exponent_bits, mantissa_bits), exponent_bits, mantissa_bits, bias=0)


@BANK.wrong("bias-hard-coded")
def bias_of_fp32(code, exponent_bits, mantissa_bits):
    return value(*fields(code, exponent_bits, mantissa_bits), exponent_bits, mantissa_bits, bias=127)


@BANK.wrong("fraction-off-by-one")
def mantissa_over_its_largest_value(code, exponent_bits, mantissa_bits):
    sign, exponent, fraction = fields(code, exponent_bits, mantissa_bits)
    result = value(sign, exponent, fraction, exponent_bits, mantissa_bits)
    if exponent == 2**exponent_bits - 1:
        return result
    one, scale = float(exponent > 0), 2.0 ** (max(exponent, 1) - 2 ** (exponent_bits - 1) + 1)
    return (-1) ** sign * (one + fraction / (2**mantissa_bits - 1)) * scale


@BANK.wrong("returns-wrong-type")
def complex_numbers(code, exponent_bits, mantissa_bits):
    return complex(by_the_formula(code, exponent_bits, mantissa_bits), 1)


@BANK.wrong("forgets-subnormals")
def fp32_subnormals_are_zero(code, exponent_bits, mantissa_bits):
    result = by_the_formula(code, exponent_bits, mantissa_bits)
    return 0.0 if mantissa_bits == 23 and abs(result) < 2.0**-126 else result


@BANK.wrong("wrong-value")
def wrong_for_fp16_infinity_only(code, exponent_bits, mantissa_bits):
    return math.nan if (code, mantissa_bits) == (0x7C00, 10) else by_the_formula(code, exponent_bits, mantissa_bits)
