"""Answers to `quantize_symmetric`, `quantize_on` and `dequantize`."""

import numpy as np
import torch

from qlab import quantize
from tests.answers.bank import Answer, Bank

BANK = Bank("quantize-symmetric")


def scale_of(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale, 1.0)


def on(x, scale, bits):
    largest = 2 ** (bits - 1) - 1
    return torch.round(x / scale).clamp(-largest, largest).to(torch.int8)


def forward(x, bits):
    scale = scale_of(x, bits)
    return on(x, scale, bits), scale


def back(codes, scale):
    return codes.float() * scale


BANK.add("as_written", forward, on, back)


def grid_of_qlab(scale, bits):
    return quantize.Grid(scale.reshape(1, 1), None, bits, quantize.PER_TENSOR)


def with_qlab(x, bits):
    made = quantize.quantize_symmetric(x, bits=bits)
    return made.codes, made.scale


BANK.add(
    "by_qlab",
    with_qlab,
    lambda x, scale, bits: quantize.quantize_with(x, grid_of_qlab(scale, bits)).codes,
    lambda codes, scale: quantize.Quantized(codes, grid_of_qlab(scale, 8)).dequantize(),
)


def on_by_a_loop(x, scale, bits):
    largest, step = 2 ** (bits - 1) - 1, float(scale)
    codes = [max(-largest, min(largest, round(value / step))) for value in x.flatten().tolist()]
    return torch.tensor(codes, dtype=torch.int8).view(x.shape)


def by_a_loop(x, bits):
    scale = max(abs(value) for value in x.flatten().tolist()) / (2 ** (bits - 1) - 1) or 1.0
    return on_by_a_loop(x, scale, bits), scale


def back_by_a_loop(codes, scale):
    return [tuple(code * scale.item() for code in row) for row in codes.tolist()]


BANK.add("loops_and_python_numbers", by_a_loop, on_by_a_loop, back_by_a_loop)


def on_with_numpy(x, scale, bits):
    largest = 2 ** (bits - 1) - 1
    return np.clip(np.rint(x.numpy() / np.float32(scale)), -largest, largest).astype(np.int8)


def with_numpy(x, bits):
    scale = np.abs(x.numpy()).max() / np.float32(2 ** (bits - 1) - 1) or np.float32(1)
    return on_with_numpy(x, scale, bits), scale


BANK.add("numpy", with_numpy, on_with_numpy, lambda codes, scale: codes.numpy() * scale.numpy())


def on_by_the_inverse(x, scale, bits):
    largest = 2 ** (bits - 1) - 1
    return torch.floor(x * (1 / scale) + 0.5).clamp(min=-largest).clamp(max=largest).char()


def by_the_inverse(x, bits):
    absmax = x.abs().max().clamp(min=1e-12)
    return on_by_the_inverse(x, absmax / (2 ** (bits - 1) - 1), bits), 1 / ((2 ** (bits - 1) - 1) / absmax)


BANK.add("multiplies_and_rounds_half_up", by_the_inverse, on_by_the_inverse, lambda codes, scale: scale * codes)


def in_double_and_transposed(x, bits):
    codes, scale = forward(x.double().movedim(0, -1), bits)
    return [codes.movedim(-1, 0), scale.reshape(1)]


BANK.add("double_a_view_and_a_list", in_double_and_transposed, on, lambda codes, scale: codes.double() * scale)
BANK.add(
    "magnitude_and_sign",
    lambda x, bits: (on(x, scale_of(x, bits), bits), scale_of(-x, bits).item()),
    lambda x, s, bits: (x.sign() * (x.abs() / s).round().clamp(max=2 ** (bits - 1) - 1)).to(torch.int8),
    lambda codes, s: torch.arange(-127, 128)[codes.int() + 127] * s,
)


def scaled(rule):
    def quantize_symmetric(x, bits):
        scale = torch.as_tensor(rule(x, bits))
        scale = torch.where(scale != 0, scale, 1.0)
        return on(x, scale, bits), scale

    return quantize_symmetric


def rounded(rule):
    return lambda x, scale, bits: rule(x / scale, 2 ** (bits - 1) - 1).to(torch.int32).to(torch.int8)


def with_rule(rule):
    quantize_on = rounded(rule)
    return (lambda x, bits: (quantize_on(x, scale_of(x, bits), bits), scale_of(x, bits))), quantize_on


for name, misconception, rule in [
    ("divides_by_128", "divides-by-128", lambda x, bits: x.abs().max() / 2 ** (bits - 1)),
    ("counts_255_levels", "counts-255-levels", lambda x, bits: 2 * x.abs().max() / (2**bits - 1)),
    ("absmax_over_255", "counts-255-levels", lambda x, bits: x.abs().max() / (2**bits - 1)),
    ("range_over_255", "range-not-magnitude", lambda x, bits: (x.max() - x.min()) / (2**bits - 1)),
    ("largest_without_abs", "forgets-the-sign", lambda x, bits: x.max() / (2 ** (bits - 1) - 1)),
    ("the_other_convention", "inverse-scale", lambda x, bits: 1 / scale_of(x, bits)),
    ("always_127", "ignores-bits", lambda x, bits: x.abs().max() / 127),
    ("adds_an_epsilon", "changes-small-scales", lambda x, bits: x.abs().max() / (2 ** (bits - 1) - 1) + 1e-8),
    ("epsilon_on_absmax", "changes-small-scales", lambda x, bits: (x.abs().max() + 1e-5) / (2 ** (bits - 1) - 1)),
    ("clamps_the_scale", "changes-small-scales", lambda x, bits: scale_of(x, bits).clamp(min=1e-4)),
    ("clamps_the_scale_low", "changes-small-scales", lambda x, bits: scale_of(x, bits).clamp(min=1e-8)),
    (
        "largest_without_abs_or_one",
        "forgets-the-sign",
        lambda x, bits: torch.where(x.max() > 0, x.max() / (2 ** (bits - 1) - 1), 1.0),
    ),
    ("mean_magnitude", "wrong-value", lambda x, bits: x.abs().mean() / (2 ** (bits - 1) - 1)),
]:
    BANK.add(name, scaled(rule), on, back, misconception=misconception)
for name, misconception, rule in [
    ("casts_without_rounding", "truncates", lambda steps, top: steps.clamp(-top, top)),
    ("floors", "truncates", lambda steps, top: steps.floor().clamp(-top, top)),
    ("never_clamps", "no-clamp", lambda steps, top: steps.round()),
    ("clamps_at_127", "clamps-at-127", lambda steps, top: steps.round().clamp(-127, 127)),
    ("down_to_minus_128", "uses-the-lowest-code", lambda steps, top: steps.round().clamp(-top - 1, top)),
    ("clamps_the_upper_end", "clamps-one-end", lambda steps, top: steps.round().clamp(max=top)),
]:
    BANK.add(name, *with_rule(rule), back, misconception=misconception)
BANK.add(
    "on_a_scale_of_its_own", forward, lambda x, s, bits: forward(x, bits)[0], back, misconception="ignores-the-scale"
)
BANK.add("multiplies_by_s", forward, lambda x, s, bits: on(x, 1 / s, bits), back, misconception="inverse-scale")
BANK.add(
    "clamps_from_zero",
    forward,
    lambda x, s, bits: (x / s).round().clamp(0, 2**bits - 1),
    back,
    misconception="unsigned-codes",
)
BANK.add(
    "codes_stay_float",
    lambda x, bits: (forward(x, bits)[0].float(), scale_of(x, bits)),
    on,
    back,
    misconception="not-int8",
)
BANK.add(
    "codes_as_a_list",
    lambda x, bits: (forward(x, bits)[0].tolist(), scale_of(x, bits)),
    on,
    back,
    misconception="not-int8",
)


def no_care_for_zeros(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(x / scale).nan_to_num().to(torch.int8), scale


def hides_the_nan(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(x / scale).nan_to_num().to(torch.int8), (scale / scale) * scale


BANK.add("no_care_for_zeros", no_care_for_zeros, on, back, misconception="divides-by-zero")
BANK.add("scale_is_nan_for_zeros", hides_the_nan, on, back, misconception="divides-by-zero")
for name, misconception, wrong_back in [
    ("divides_back", "inverse-scale", lambda codes, scale: codes.float() / scale),
    ("back_in_int8", "stays-in-int8", lambda codes, scale: (codes * scale).int().char()),
    ("codes_as_they_are", "forgets-the-scale", lambda codes, scale: codes.float()),
    ("back_in_half_precision", "wrong-value", lambda codes, scale: (codes * scale).half()),
    ("hands_nothing_back", "returns-nothing", lambda codes, scale: None),
]:
    BANK.add(name, forward, on, wrong_back, misconception=misconception)
BANK.add("returns_nothing", lambda x, bits: None, on, back, misconception="returns-nothing")
BANK.add("codes_only", lambda x, bits: forward(x, bits)[0], on, back, misconception="returns-wrong-type")
BANK.answers.append(Answer(BANK.exercise, "shifts_floats", (lambda x, bits: (x << 2, 1), on, back), outcome="crashed"))


def by_midpoints(x, scale, bits):
    """Count the midpoints between neighboring codes that lie below each value."""
    top = 2 ** (bits - 1) - 1
    return (torch.bucketize(x, (torch.arange(-top, top) + 0.5) * scale) - top).to(torch.int8)


def on_every_code(x, scale, bits):
    codes = torch.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1))
    return codes[(x[..., None] - codes * scale).abs().argmin(-1)].to(torch.int8)


def in_place(x, scale, bits):
    return x.div_(scale).round_().clamp_(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1).to(torch.int8)


def by_rule(rule):
    def quantize_symmetric(x, bits):
        scale = scale_of(x, bits)
        return rule(x, scale, bits), scale

    return quantize_symmetric


for name, rule in [("midpoints", by_midpoints), ("every_code", on_every_code), ("in_place", in_place)]:
    BANK.add(name, by_rule(rule), rule, back)
