"""Answers to `quantize_affine` and `dequantize_affine`."""

from typing import NamedTuple

import numpy as np
import torch

from qlab import quantize
from tests.answers.bank import Answer, Bank

BANK = Bank("quantize-affine")


def grid(x, bits):
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = (high - low) / (2**bits - 1)
    return torch.where(scale > 0, scale, 1.0), low


def forward(x, bits):
    scale, low = grid(x, bits)
    zero_point = torch.round(-low / scale)
    return torch.round(x / scale + zero_point).clamp(0, 2**bits - 1).to(torch.uint8), scale, zero_point


def back(codes, scale, zero_point):
    return (codes.float() - zero_point) * scale


BANK.add("as_written", forward, back)


def with_qlab(x, bits):
    made = quantize.quantize_affine(x, bits=bits)
    return made.codes, made.scale, made.zero_point


def back_with_qlab(codes, scale, zero_point):
    made = quantize.Grid(scale.reshape(1, 1), zero_point.reshape(1, 1).to(torch.uint8), 8, quantize.PER_TENSOR)
    return quantize.Quantized(codes, made).dequantize()


BANK.add("by_qlab", with_qlab, back_with_qlab)


def by_a_loop(x, bits):
    values = x.flatten().tolist()
    low, high = min([0.0, *values]), max([0.0, *values])
    scale = (high - low) / (2**bits - 1) or 1.0
    zero_point = round(-low / scale)
    codes = [min(max(round(value / scale) + zero_point, 0), 2**bits - 1) for value in values]
    return torch.tensor(codes, dtype=torch.uint8).reshape(x.shape), scale, zero_point


def back_by_a_loop(codes, scale, zero_point):
    return [[(code - int(zero_point)) * scale.item() for code in row] for row in codes.tolist()]


BANK.add("loops_and_python_numbers", by_a_loop, back_by_a_loop)


def with_numpy(x, bits):
    a = x.numpy()
    low, high = np.minimum(a.min(), 0), np.maximum(a.max(), 0)
    scale = (high - low) / np.float32(2**bits - 1) if high > low else np.float32(1)
    zero_point = np.rint(-low / scale)
    return np.clip(np.rint(a / scale + zero_point), 0, 2**bits - 1).astype(np.uint8), scale, zero_point


def back_with_numpy(codes, scale, zero_point):
    return scale.numpy() * (codes.numpy().astype(np.int32) - zero_point.numpy())


BANK.add("numpy", with_numpy, back_with_numpy)


def with_the_inverse(x, bits):
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    per_unit = (2**bits - 1) / (high - low) if high > low else 1.0
    zero_point = int(torch.round(torch.tensor(-low * per_unit)))
    codes = torch.floor(x * per_unit + 0.5).int() + zero_point
    return codes.clamp(0, 2**bits - 1).byte(), 1 / per_unit, zero_point


BANK.add("multiplies_and_rounds_half_up", with_the_inverse, lambda codes, s, z: s * (codes.short() - z))


def in_double(x, bits):
    codes, scale, zero_point = forward(x.double(), bits)
    return codes, scale.reshape(1), zero_point.to(torch.uint8)


BANK.add("double", in_double, lambda codes, s, z: s.double() * codes - s.double() * z)


class Made(NamedTuple):
    codes: torch.Tensor
    scale: float
    zero_point: float


def from_the_upper_end(x, bits):
    """Return a transposed view, and Z counted from the largest code."""
    scale, _ = grid(x, bits)
    zero_point = torch.round(2**bits - 1 - x.max().clamp(min=0) / scale)
    codes = (torch.round(x.T.contiguous() / scale) + zero_point).clamp(0, 2**bits - 1).to(torch.uint8)
    return Made(codes.T, scale.item(), zero_point.item())


def from_the_upper_end_of_any_rank(x, bits):
    if x.ndim == 1:
        made = from_the_upper_end(x[None], bits)
        return Made(made.codes[0], made.scale, made.zero_point)
    return from_the_upper_end(x, bits)


BANK.add("upper_end_and_a_view", from_the_upper_end_of_any_rank, back)


def constants_apart(x, bits):
    value = x.flatten()[0].item()
    if (x == value).all():
        return torch.full(x.shape, int(value > 0)).byte(), abs(value) or 1.0, int(value < 0)
    return forward(x, bits)


BANK.add("constants_apart", constants_apart, back)


def variant(
    *,
    steps=lambda bits: 2**bits - 1,
    ends=lambda x: (x.min().clamp(max=0.0), x.max().clamp(min=0.0)),
    zero=lambda low, scale, bits: torch.round(-low / scale),
    codes=lambda x, scale, z, bits: torch.round(x / scale + z).clamp(0, 2**bits - 1).to(torch.uint8),
):
    """Return the right answer with one thing of it changed."""

    def quantize_affine(x, bits):
        low, high = ends(x)
        scale = (high - low) / steps(bits)
        scale = torch.where(scale > 0, scale, 1.0)
        zero_point = zero(low, scale, bits)
        return codes(x, scale, zero_point, bits), scale, zero_point

    return quantize_affine


def to_int8(rule):
    return lambda x, scale, z, bits: rule(x / scale + z, bits).to(torch.int32).to(torch.int8)


def to_uint8(rule):
    return lambda x, scale, z, bits: rule(x / scale + z, bits).to(torch.int32).to(torch.uint8)


def with_epsilon(x, bits):
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = (high - low) / (2**bits - 1) + 1e-7
    zero_point = torch.round(-low / scale)
    return torch.round(x / scale + zero_point).clamp(0, 2**bits - 1).byte(), scale, zero_point


def rounded(steps, bits):
    return steps.round().clamp(0, 2**bits - 1)


def raw_range(x):
    return x.min(), x.max()


WRONG = {
    "casts_without_rounding": (
        "truncates",
        variant(codes=to_uint8(lambda steps, bits: steps.clamp(0, 2**bits - 1))),
    ),
    "cuts_before_the_zero_point": (
        "truncates",
        variant(codes=lambda x, s, z, bits: ((x / s).int() + z.int()).clamp(0, 2**bits - 1).byte()),
    ),
    "floors": ("truncates", variant(codes=to_uint8(lambda steps, bits: steps.floor().clamp(0, 2**bits - 1)))),
    "rounds_but_never_clamps": ("no-clamp", variant(codes=to_uint8(lambda steps, bits: steps.round()))),
    "adds_after_rounding_and_never_clamps": (
        "no-clamp",
        variant(codes=lambda x, s, z, bits: ((x / s).round() + z).int().byte()),
    ),
    "clamps_to_255_whatever_the_bits": ("no-clamp", variant(codes=to_uint8(lambda steps, _: rounded(steps, 8)))),
    "casts_to_int8": ("unsigned-codes-in-int8", variant(codes=to_int8(rounded))),
    "casts_to_int8_without_clamp": ("unsigned-codes-in-int8", variant(codes=to_int8(lambda steps, _: steps.round()))),
    "int8_and_clamped_to_127": (
        "not-uint8",
        variant(codes=to_int8(lambda steps, _: steps.round().clamp(-128, 127))),
    ),
    "codes_stay_float": ("not-uint8", variant(codes=lambda x, s, z, bits: rounded(x / s + z, bits))),
    "codes_stay_int32": ("not-uint8", variant(codes=lambda x, s, z, bits: rounded(x / s + z, bits).int())),
    "codes_as_a_list": ("not-uint8", variant(codes=lambda x, s, z, bits: rounded(x / s + z, bits).tolist())),
    "raw_range_and_z_anywhere": ("excludes-zero", variant(ends=raw_range)),
    "raw_range_and_z_clamped": (
        "excludes-zero",
        variant(ends=raw_range, zero=lambda low, s, bits: torch.round(-low / s).clamp(0, 2**bits - 1)),
    ),
    "widens_one_side": ("excludes-zero", variant(ends=lambda x: (x.min().clamp(max=0.0), x.max()))),
    "zero_point_not_rounded": ("zero-point-not-whole", variant(zero=lambda low, s, bits: -low / s)),
    "zero_point_cut": ("truncates-the-zero-point", variant(zero=lambda low, s, bits: (-low / s).int())),
    "zero_point_minus_128": (
        "signed-zero-point",
        variant(
            zero=lambda low, s, bits: torch.round(-(2 ** (bits - 1)) - low / s),
            codes=lambda x, s, z, bits: torch.round(x / s + z).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).char(),
        ),
    ),
    "zero_point_of_the_other_sign": (
        "sign-of-the-zero-point",
        variant(
            zero=lambda low, s, bits: torch.round(low / s),
            codes=lambda x, s, z, bits: torch.round(x / s - z).clamp(0, 2**bits - 1).byte(),
        ),
    ),
    "zero_point_in_units_of_x": (
        "zero-point-in-units-of-x",
        variant(
            zero=lambda low, s, bits: low,
            codes=lambda x, s, z, bits: torch.round((x - z) / s).clamp(0, 2**bits - 1).byte(),
        ),
    ),
    "steps_are_256": ("divides-by-256", variant(steps=lambda bits: 2**bits)),
    "always_8_bits": ("ignores-bits", variant(steps=lambda bits: 255)),
    "half_of_the_codes": ("half-of-the-codes", variant(steps=lambda bits: 2 ** (bits - 1) - 1)),
    "symmetric": (
        "symmetric-range",
        variant(
            ends=lambda x: (-x.abs().max(), x.abs().max()),
            zero=lambda low, s, bits: torch.tensor(2.0 ** (bits - 1)),
        ),
    ),
    "always_128": ("fixed-zero-point", variant(zero=lambda low, s, bits: torch.tensor(128))),
    "never_uses_the_last_code": (
        "loses-a-code",
        variant(codes=to_uint8(lambda steps, bits: steps.round().clamp(0, 2**bits - 2))),
    ),
    "zero_point_in_int8": (
        "zero-point-in-int8",
        variant(
            zero=lambda low, s, bits: torch.round(-low / s).int().char(),
            codes=lambda x, s, z, bits: torch.round(x / s + z.int() % 256).clamp(0, 2**bits - 1).byte(),
        ),
    ),
    "counts_from_the_low_end": (
        "counts-from-the-low-end",
        variant(
            codes=lambda x, s, z, bits: torch.round((x - x.min().clamp(max=0)) / s).clamp(0, 2**bits - 1).byte(),
        ),
    ),
    "adds_an_epsilon": ("changes-small-scales", with_epsilon),
    "forgets_z_in_the_codes": (
        "forgets-the-zero-point",
        variant(codes=lambda x, s, z, bits: torch.round(x / s).clamp(0, 2**bits - 1).byte()),
    ),
}
for name, (misconception, function) in WRONG.items():
    BANK.add(name, function, back, misconception=misconception)


def inverse(x, bits):
    codes, scale, zero_point = forward(x, bits)
    return codes, 1 / scale, zero_point


def no_care_for_zeros(x, bits):
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = (high - low) / (2**bits - 1)
    zero_point = torch.round(-low / scale)
    return torch.round(x / scale + zero_point).nan_to_num().clamp(0, 2**bits - 1).byte(), scale, zero_point


def zeros_for_constants(x, bits):
    if x.min() == x.max():
        return torch.zeros(x.shape, dtype=torch.uint8), 1.0, 0
    return forward(x, bits)


BANK.add("returns_one_over_s", inverse, back, misconception="inverse-scale")
BANK.add("no_care_for_zeros", no_care_for_zeros, back, misconception="divides-by-zero")
BANK.add("a_constant_becomes_zero", zeros_for_constants, back, misconception="loses-a-constant")
for name, misconception, wrong_back in [
    ("subtracts_in_uint8", "wraps-in-uint8", lambda codes, s, z: (codes - z.byte()) * s),
    ("subtracts_an_int_in_uint8", "wraps-in-uint8", lambda codes, s, z: s * (codes - int(z))),
    ("reads_codes_as_int8", "wraps-in-int8", lambda codes, s, z: s * (codes.view(torch.int8).int() - z)),
    ("subtracts_in_int8", "wraps-in-int8", lambda codes, s, z: s * (codes.char() - z)),
    ("scales_before_it_subtracts", "zero-point-not-scaled", lambda codes, s, z: s * codes - z),
    ("adds_z", "adds-the-zero-point", lambda codes, s, z: s * (codes.float() + z)),
    ("leaves_z_out", "forgets-the-zero-point", lambda codes, s, z: s * codes),
    ("divides_by_s", "inverse-scale", lambda codes, s, z: (codes.float() - z) / s),
    ("back_in_half_precision", "wrong-value", lambda codes, s, z: ((codes.float() - z) * s).half()),
    ("hands_nothing_back", "returns-nothing", lambda codes, s, z: None),
]:
    BANK.add(name, forward, wrong_back, misconception=misconception)
BANK.add("returns_nothing", lambda x, bits: None, back, misconception="returns-nothing")
BANK.add("codes_only", lambda x, bits: forward(x, bits)[0], back, misconception="returns-wrong-type")
BANK.add(
    "scale_first", lambda x, bits: (forward(x, bits)[1], forward(x, bits)[0], 0), back, misconception="wrong-shape"
)
BANK.add(
    "flattens",
    lambda x, bits: (forward(x, bits)[0].flatten()[1:], *forward(x, bits)[1:]),
    back,
    misconception="wrong-shape",
)
BANK.answers.append(Answer(BANK.exercise, "shifts_floats", (lambda x, bits: (x << 2, 1, 0), back), outcome="crashed"))


def with_a_little_more(x, bits):
    codes, scale, zero_point = forward(x, bits)
    return codes, scale + 1e-12, zero_point


BANK.add(
    "clamps_the_upper_end",  # with Z and x / S rounded alike, no code falls below 0
    variant(
        codes=lambda x, s, z, bits: (torch.round(x / s) + z).clamp(max=2**bits - 1).to(torch.int32).to(torch.uint8)
    ),
    back,
)
for name, misconception, wrong in [
    ("z_rounded_up", "wrong-value", variant(zero=lambda low, s, bits: torch.ceil(-low / s))),
    ("four_bits_for_five_to_seven", "wrong-value", lambda x, bits: forward(x, 4 if 4 < bits < 8 else bits)),
    (
        "epsilon_of_a_trillionth",
        "changes-small-scales",
        with_a_little_more,
    ),
]:
    BANK.add(name, wrong, back, misconception=misconception)
