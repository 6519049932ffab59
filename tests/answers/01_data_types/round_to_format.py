"""Answers to `round_to_format`."""

import math

import numpy as np
import torch

from qlab import formats
from tests.answers.bank import Bank

BANK = Bank("round-to-format")


def limits(e, m):
    bias = 2 ** (e - 1) - 1
    return bias, (2 - 2.0**-m) * 2.0**bias


def steps(x, e, m):
    bias, _ = limits(e, m)
    exponent = (torch.frexp(x).exponent - 1).clamp(min=1 - bias)
    return torch.ldexp(torch.ones_like(x), exponent - m)


def overflowed(rounded, e, m, saturate):
    _, largest = limits(e, m)
    instead = torch.copysign(torch.full_like(rounded, largest if saturate else math.inf), rounded)
    return torch.where(rounded.abs() > largest, instead, rounded)


@BANK.right
def by_frexp(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    return overflowed(torch.round(x / step) * step, exponent_bits, mantissa_bits, saturate)


@BANK.right
def by_qlab(x, exponent_bits, mantissa_bits, saturate):
    return formats.round_to_format(x, formats.FloatFormat("mine", exponent_bits, mantissa_bits), saturate=saturate)


@BANK.right
def by_numpy_in_double(x, exponent_bits, mantissa_bits, saturate):
    a = x.double().numpy()
    bias, largest = limits(exponent_bits, mantissa_bits)
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(a))), 1 - bias)
        exponent = np.where(np.isfinite(exponent), exponent, 1 - bias)
        step = 2.0 ** (exponent - mantissa_bits)
        rounded = np.rint(a / step) * step
    return np.where(np.abs(rounded) > largest, np.copysign(largest if saturate else np.inf, a), rounded)


@BANK.right
def by_a_python_loop(x, exponent_bits, mantissa_bits, saturate):
    bias, largest = limits(exponent_bits, mantissa_bits)
    results = []
    for value in x.tolist():
        if math.isnan(value):
            results.append(value)
            continue
        if math.isinf(value):
            results.append(math.copysign(largest, value) if saturate else value)
            continue
        exponent = max(math.frexp(value)[1] - 1, 1 - bias)
        rounded = round(value / 2.0 ** (exponent - mantissa_bits)) * 2.0 ** (exponent - mantissa_bits)
        if abs(rounded) > largest:
            rounded = math.copysign(largest if saturate else math.inf, value)
        results.append(rounded)
    return results


@BANK.right
def by_the_magic_number(x, exponent_bits, mantissa_bits, saturate):
    bias, largest = limits(exponent_bits, mantissa_bits)
    inside = x.clamp(-4 * largest, 4 * largest)
    magic = 1.5 * torch.ldexp(torch.ones_like(x), (torch.frexp(inside).exponent - 1).clamp(min=1 - bias) + 23)
    magic = magic * 2.0**-mantissa_bits
    return overflowed((inside + magic) - magic, exponent_bits, mantissa_bits, saturate)


@BANK.right
def in_place_on_its_input(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    x.div_(step).round_().mul_(step)
    return overflowed(x, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("truncates")
def truncates(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    return overflowed(torch.trunc(x / step) * step, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("ties-away-from-zero")
def ties_away(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    rounded = torch.copysign(torch.floor(x.abs() / step + 0.5) * step, x)
    return overflowed(rounded, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("ties-toward-zero")
def ties_down(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    rounded = torch.copysign(torch.ceil(x.abs() / step - 0.5) * step, x)
    return overflowed(rounded, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("flushes-subnormals")
def flushes_before(x, exponent_bits, mantissa_bits, saturate):
    bias, _ = limits(exponent_bits, mantissa_bits)
    return by_frexp(torch.where(x.abs() < 2.0 ** (1 - bias), 0.0, x), exponent_bits, mantissa_bits, saturate)


@BANK.wrong("flushes-subnormals")
def flushes_after(x, exponent_bits, mantissa_bits, saturate):
    bias, _ = limits(exponent_bits, mantissa_bits)
    rounded = by_frexp(x, exponent_bits, mantissa_bits, saturate)
    return torch.where(rounded.abs() < 2.0 ** (1 - bias), 0.0, rounded)


@BANK.wrong("subnormals-too-fine")
def no_smallest_exponent(x, exponent_bits, mantissa_bits, saturate):
    step = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 1 - mantissa_bits)
    return overflowed(torch.round(x / step) * step, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("overflows-one-binade-early")
def overflows_early(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    rounded = torch.round(x / step) * step
    largest = limits(exponent_bits, mantissa_bits)[1] / 2
    instead = torch.copysign(torch.full_like(x, largest if saturate else math.inf), x)
    return torch.where(rounded.abs() > largest, instead, rounded)


@BANK.wrong("overflow-tested-before-rounding")
def compares_before_rounding(x, exponent_bits, mantissa_bits, saturate):
    largest = limits(exponent_bits, mantissa_bits)[1]
    rounded = by_frexp(x, exponent_bits, mantissa_bits, True)
    return rounded if saturate else torch.where(x.abs() > largest, torch.copysign(torch.tensor(math.inf), x), rounded)


@BANK.wrong("ignores-saturate")
def always_saturates(x, exponent_bits, mantissa_bits, saturate):
    return by_frexp(x, exponent_bits, mantissa_bits, True)


@BANK.wrong("ignores-saturate")
def never_saturates(x, exponent_bits, mantissa_bits, saturate):
    return by_frexp(x, exponent_bits, mantissa_bits, False)


@BANK.wrong("never-overflows")
def has_no_largest_number(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    return torch.round(x / step) * step


@BANK.wrong("ignores-nan")
def zero_for_nan(x, exponent_bits, mantissa_bits, saturate):
    return torch.nan_to_num(
        by_frexp(x, exponent_bits, mantissa_bits, saturate), nan=0.0, posinf=math.inf, neginf=-math.inf
    )


@BANK.wrong("rounds-twice")
def rounds_twice_through_fp16(x, exponent_bits, mantissa_bits, saturate):
    return by_frexp(x.half().float(), exponent_bits, mantissa_bits, saturate)


@BANK.wrong("wrong-value")
def returns_its_input(x, exponent_bits, mantissa_bits, saturate):
    return x


@BANK.wrong("split-hard-coded")
def hard_codes_e5m2(x, exponent_bits, mantissa_bits, saturate):
    return by_frexp(x, 5, 2, saturate)


@BANK.wrong("wrong-shape")
def rounds_the_first_only(x, exponent_bits, mantissa_bits, saturate):
    return by_frexp(x[:1], exponent_bits, mantissa_bits, saturate)


@BANK.wrong("ignores-nan")
def saturates_nan_too(x, exponent_bits, mantissa_bits, saturate):
    rounded = by_frexp(x, exponent_bits, mantissa_bits, saturate)
    largest = limits(exponent_bits, mantissa_bits)[1]
    return torch.where(rounded.isnan(), -largest, rounded) if saturate else rounded


@BANK.wrong("step-one-binade-too-wide")
def frexp_as_it_comes(x, exponent_bits, mantissa_bits, saturate):
    exponent = torch.frexp(x).exponent.clamp(min=1 - limits(exponent_bits, mantissa_bits)[0])
    step = torch.ldexp(torch.ones_like(x), exponent - mantissa_bits)
    return overflowed(torch.round(x / step) * step, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("ties-away-from-zero")
def half_up(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    return overflowed(torch.floor(x / step + 0.5) * step, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("rounds-down")
def floors(x, exponent_bits, mantissa_bits, saturate):
    step = steps(x, exponent_bits, mantissa_bits)
    return overflowed(torch.floor(x / step) * step, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("subnormals-too-fine")
def smallest_exponent_is_minus_bias(x, exponent_bits, mantissa_bits, saturate):
    exponent = (torch.frexp(x).exponent - 1).clamp(min=-limits(exponent_bits, mantissa_bits)[0])
    step = torch.ldexp(torch.ones_like(x), exponent - mantissa_bits)
    return overflowed(torch.round(x / step) * step, exponent_bits, mantissa_bits, saturate)


@BANK.wrong("ignores-sign")
def infinity_loses_its_sign(x, exponent_bits, mantissa_bits, saturate):
    rounded = by_frexp(x, exponent_bits, mantissa_bits, saturate)
    return torch.where(rounded.isinf(), math.inf, rounded)


@BANK.wrong("wrong-value")
def magic_number_without_a_clamp(x, exponent_bits, mantissa_bits, saturate):
    bias, _ = limits(exponent_bits, mantissa_bits)
    magic = 1.5 * torch.ldexp(torch.ones_like(x), (torch.frexp(x).exponent - 1).clamp(min=1 - bias) + 23)
    magic = magic * 2.0**-mantissa_bits
    return overflowed((x + magic) - magic, exponent_bits, mantissa_bits, saturate)
