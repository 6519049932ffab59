"""Answers to `quantize_min_max`."""

import numpy as np
import torch

from qlab import quantize
from qlab.checks.quantization import snippet
from tests.answers.bank import Bank

BANK = Bank("quantize-min-max")
BANK.add("by_the_check", snippet.quantize_min_max)


def grid(x):
    return (x.max() - x.min()) / 255, x.min()


@BANK.right
def clamped_uint8(x):
    scale, low = grid(x)
    return ((x - low) / scale).round().clamp(0, 255).byte(), scale.item(), low.item()


@BANK.right
def int8_from_minus_128(x):
    scale, low = grid(x)
    codes = (((x - low) / scale).round() - 128).to(torch.int8)
    return codes, scale, low + 128 * scale


@BANK.right
def int8_around_the_middle(x):
    scale, middle = (x.max() - x.min()) / 255, (x.max() + x.min()) / 2
    return ((x - middle) / scale).floor().clamp(-128, 127).to(torch.int8), scale, middle + scale / 2


@BANK.right
def by_a_loop_in_numpy(x):
    low, high = float(x.min()), float(x.max())
    scale = (high - low) / 255
    return np.array([round((value - low) / scale) for value in x.tolist()], dtype=np.uint8), scale, low


@BANK.right
def wide_and_back(x):
    scale, low = grid(x.double())
    return [((x - low) / scale + 0.5).long().clamp(max=255).to(torch.uint8), scale, low]


@BANK.wrong("casts-to-int8")
def as_copied(x):
    scale, low = grid(x)
    return ((x - low) / scale).round().to(torch.int32).to(torch.int8), scale, low


@BANK.wrong("clamps-to-127")
def clamps(x):
    scale, low = grid(x)
    return ((x - low) / scale).round().clamp(-128, 127).to(torch.int8), scale, low


@BANK.wrong("halves-the-range")
def only_127_steps(x):
    low = x.min()
    scale = (x.max() - low) / 127
    return ((x - low) / scale).round().to(torch.int8), scale, low


@BANK.right
def symmetric_around_the_middle(x):
    scale, middle = (x.max() - x.min()) / 254, (x.max() + x.min()) / 2
    return ((x - middle) / scale).round().clamp(-127, 127).to(torch.int8), scale, middle


@BANK.wrong("shifts-one-way")
def shifts_the_codes_alone(x):
    scale, low = grid(x)
    return (((x - low) / scale).round() - 128).to(torch.int8), scale, low


@BANK.wrong("not-one-byte")
def in_int16(x):
    scale, low = grid(x)
    return ((x - low) / scale).round().to(torch.int16), scale, low


@BANK.wrong("not-one-byte")
def codes_stay_float(x):
    scale, low = grid(x)
    return ((x - low) / scale).round(), scale, low


@BANK.wrong("truncates")
def casts_without_rounding(x):
    scale, low = grid(x)
    return ((x - low) / scale).to(torch.uint8), scale, low


@BANK.wrong("casts-to-int8")
def casts_twice(x):
    return as_copied(x)[0].view(torch.uint8).view(torch.int8), *grid(x)


@BANK.wrong("wastes-codes")
def symmetric(x):
    made = quantize.quantize_symmetric(x, bits=8)
    return made.codes, made.scale, 0.0


@BANK.wrong("wrong-value")
def divides_by_256_and_wraps(x):
    low = x.min()
    scale = (x.max() - low) / 256
    return ((x - low) / scale).round().int().to(torch.uint8), scale, low


@BANK.wrong("wrong-value")
def returns_a_zero_point(x):
    scale, low = grid(x)
    return ((x - low) / scale).round().to(torch.uint8), scale, (-low / scale).round()


@BANK.wrong("returns-wrong-type")
def codes_only(x):
    return clamped_uint8(x)[0]


@BANK.wrong("returns-nothing")
def forgets_to_return(x):
    clamped_uint8(x)


@BANK.crashes
def with_an_unknown_type(x):
    return x.to(torch.uint9), *grid(x)


@BANK.right
def from_the_upper_end(x):
    high, scale = x.max(), (x.max() - x.min()) / 255
    return ((high - x) / scale).round().to(torch.uint8), -scale, high


@BANK.right
def around_the_middle(x):
    middle, scale = (x.max() + x.min()) / 2, (x.max() - x.min()) / 254
    return ((x - middle) / scale).round().clamp(-127, 127).to(torch.int8), scale, middle


@BANK.wrong("wrong-shape")
def hides_the_floats_in_the_scale(x):
    return torch.ones(x.shape, dtype=torch.uint8), x, 0.0


@BANK.wrong("wrong-value")
def clips_one_percent(x):
    low, high = torch.quantile(x, 0.01), torch.quantile(x, 0.99)
    return ((x - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8), (high - low) / 255, low
