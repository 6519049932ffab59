"""Answers to `bits_per_weight`."""

import math
from fractions import Fraction

import numpy as np
import torch

from qlab import quantize
from qlab.checks.quantization import storage
from tests.answers.bank import Bank

BANK = Bank("bits-per-weight")
BANK.add("by_the_check", storage.bits_per_weight)


@BANK.right
def from_one_row(shape, bits, group_size, scale_bits, zero_point_bits):
    groups = math.ceil(shape[1] / group_size)
    return bits + groups * (scale_bits + zero_point_bits) / shape[1]


@BANK.right
def counted_one_by_one(shape, bits, group_size, scale_bits, zero_point_bits):
    total = 0
    for _ in range(shape[0]):
        for column in range(shape[1]):
            total += bits
            if column % group_size == 0:
                total += scale_bits + zero_point_bits
    return Fraction(total, shape[0] * shape[1]).__float__()


@BANK.right
def by_the_grid_of_qlab(shape, bits, group_size, scale_bits, zero_point_bits):
    grid = quantize.symmetric_grid(torch.ones(shape), bits=bits, tile=quantize.per_group(group_size))
    return torch.tensor(bits + grid.scale.numel() * (scale_bits + zero_point_bits) / math.prod(shape))


@BANK.right
def with_floor_division_in_numpy(shape, bits, group_size, scale_bits, zero_point_bits):
    rows, columns = np.array(shape)
    groups = rows * ((columns + group_size - 1) // group_size)
    return np.float64(bits) + groups * np.float64(scale_bits + zero_point_bits) / (rows * columns)


@BANK.wrong("forgets-scales")
def codes_alone(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits


@BANK.wrong("forgets-zero-points")
def scales_alone(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + math.ceil(shape[1] / group_size) * scale_bits / shape[1]


@BANK.wrong("ragged-rounded-away")
def constants_over_the_group_size(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + (scale_bits + zero_point_bits) / group_size


@BANK.wrong("ragged-rounded-away")
def whole_groups_only(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + shape[1] // group_size * (scale_bits + zero_point_bits) / shape[1]


@BANK.wrong("one-group-too-many")
def one_more_whatever_is_left(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + (shape[1] // group_size + 1) * (scale_bits + zero_point_bits) / shape[1]


@BANK.wrong("groups-cross-rows")
def groups_of_the_flat_matrix(shape, bits, group_size, scale_bits, zero_point_bits):
    weights = math.prod(shape)
    return bits + math.ceil(weights / group_size) * (scale_bits + zero_point_bits) / weights


@BANK.wrong("wrong-axis")
def groups_down_the_columns(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + math.ceil(shape[0] / group_size) * (scale_bits + zero_point_bits) / shape[0]


@BANK.wrong("one-scale-for-all")
def one_scale_for_the_matrix(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + (scale_bits + zero_point_bits) / math.prod(shape)


@BANK.wrong("one-scale-for-all")
def one_scale_for_a_row(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + (scale_bits + zero_point_bits) / shape[1]


@BANK.wrong("counts-bytes")
def in_bytes(*arguments):
    return from_one_row(*arguments) / 8


@BANK.wrong("counts-bytes")
def constants_in_bytes(shape, bits, group_size, scale_bits, zero_point_bits):
    return from_one_row(shape, bits, group_size, scale_bits / 8, zero_point_bits / 8)


@BANK.wrong("a-byte-for-a-few-bits")
def codes_in_int8(shape, bits, *others):
    return from_one_row(shape, 8, *others)


@BANK.wrong("returns-the-total")
def bits_of_the_matrix(shape, *others):
    return from_one_row(shape, *others) * math.prod(shape)


@BANK.wrong("constants-for-every-weight")
def a_scale_for_every_weight(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + scale_bits + zero_point_bits


@BANK.wrong("scales-always-fp32")
def thirty_two_bits(shape, bits, group_size, scale_bits, zero_point_bits):
    return from_one_row(shape, bits, group_size, 32, zero_point_bits)


@BANK.wrong("rounds-the-result")
def to_two_places(*arguments):
    return round(from_one_row(*arguments), 2)


@BANK.wrong("wrong-value")
def half_a_bit_for_the_constants(shape, bits, *_):
    return bits + 0.5


@BANK.wrong("wrong-value")
def infinite(*_):
    return math.inf


@BANK.wrong("returns-nothing")
def prints(*arguments):
    from_one_row(*arguments)


@BANK.crashes
def with_a_size_for_a_shape(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + math.ceil(shape / group_size) * (scale_bits + zero_point_bits) / shape


@BANK.right
def by_splitting_a_tensor_without_data(shape, bits, group_size, scale_bits, zero_point_bits):
    groups = len(torch.empty(shape, device="meta").split(group_size, dim=1))
    return torch.tensor(bits + groups * (scale_bits + zero_point_bits) / shape[1])


@BANK.wrong("wrong-value")
def bytes_of_packed_groups(shape, bits, group_size, scale_bits, zero_point_bits):
    sizes = [min(group_size, shape[1] - start) for start in range(0, shape[1], group_size)]
    return sum(8 * math.ceil(n * bits / 8) + scale_bits + zero_point_bits for n in sizes) / shape[1]


@BANK.wrong("wrong-value")
def one_zero_point_a_row(shape, bits, group_size, scale_bits, zero_point_bits):
    return bits + (math.ceil(shape[1] / group_size) * scale_bits + zero_point_bits) / shape[1]
