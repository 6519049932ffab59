"""Answers to `weight_gib`."""

import math

import numpy as np
import torch

from qlab.checks.memory import weights
from tests.answers.bank import Bank

BANK = Bank("weight-gib")
BANK.add("by_qlab", weights.weight_gib)


def gib(parameters, bits, block_size, second_block_size, *, constant=32.0, small=8.0, unit=2.0**33):  # noqa: PLR0913
    if block_size:
        bits += (small + 32 / second_block_size if second_block_size else constant) / block_size
    return parameters * bits / unit


@BANK.right
def by_counting_bytes(parameters, bits, block_size, second_block_size):
    total = parameters * bits // 8
    if block_size:
        blocks = math.ceil(parameters / block_size)
        total += blocks + 4 * math.ceil(blocks / second_block_size) if second_block_size else 4 * blocks
    return total / 1024**3


@BANK.right
def in_fp32(parameters, bits, block_size, second_block_size):
    return torch.tensor([gib(parameters, bits, block_size, second_block_size)], dtype=torch.float32)


@BANK.right
def in_numpy(parameters, bits, block_size, second_block_size):
    sizes = np.array([bits, 0.0, 0.0])
    if second_block_size:
        sizes[1:] = 8 / block_size, 32 / (block_size * second_block_size)
    elif block_size:
        sizes[1] = 32 / block_size
    return np.float64(parameters) / 8 / 2**30 * sizes.sum()


@BANK.right
def by_recursion(parameters, bits, block_size, second_block_size):
    total = parameters * bits / 2**33
    if second_block_size:
        return total + by_recursion(parameters / block_size, 8, second_block_size, 0)
    return total + by_recursion(parameters / block_size, 32, 0, 0) if block_size else total


@BANK.right
def by_a_shift(parameters, bits, block_size, second_block_size):
    constant = 8 + 32 / (second_block_size or np.inf) if second_block_size else 32
    return np.array([math.ldexp(parameters * (bits + constant / (block_size or np.inf)), -33)])


@BANK.wrong("gb-for-gib")
def in_gigabytes(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, unit=8e9)


@BANK.wrong("bits-for-bytes")
def in_gibibits(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, unit=2.0**30)


@BANK.wrong("returns-bytes")
def in_bytes(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, unit=8)


@BANK.wrong("forgets-block-constants")
def without_constants(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, 0, 0)


@BANK.wrong("a-byte-for-a-few-bits")
def seventy_billion_in_four_bits_is_65(parameters, bits, block_size, second_block_size):
    return gib(parameters, max(bits, 8), block_size, second_block_size)


@BANK.wrong("four-bytes-whatever-the-bits")
def seventy_billion_in_sixteen_bits_is_260(parameters, bits, block_size, second_block_size):
    return gib(parameters, 32, block_size, second_block_size)


@BANK.wrong("constants-in-16-bits")
def constants_in_16_bits(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, constant=16)


@BANK.wrong("bits-and-bytes-mixed")
def four_bits_for_a_constant(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, constant=4)


@BANK.wrong("ignores-double-quantization")
def one_level(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, 0)


@BANK.wrong("forgets-second-constants")
def eight_bit_constants_alone(parameters, bits, block_size, second_block_size):
    return gib(
        parameters, bits + (8 / block_size if second_block_size else 0), 0 if second_block_size else block_size, 0
    )


@BANK.wrong("second-constants-for-every-block")
def both_constants_for_every_block(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits + (8 / block_size if second_block_size else 0), block_size, 0)


@BANK.wrong("second-constants-for-every-weight-group")
def second_constants_by_weights(parameters, bits, block_size, second_block_size):
    if not second_block_size:
        return gib(parameters, bits, block_size, 0)
    return gib(parameters, bits + 8 / block_size + 32 / second_block_size, 0, 0)


@BANK.wrong("ignores-double-quantization")
def both_constants_in_fp32(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, small=32)


@BANK.wrong("the-next-wider-type")
def sixty_five_and_two_hundred_sixty(parameters, bits, block_size, second_block_size):
    return gib(parameters, 2 * bits, block_size, second_block_size)


@BANK.wrong("rounds-the-result")
def cut_to_whole_gibibytes(parameters, bits, block_size, second_block_size):
    return int(gib(parameters, bits, block_size, second_block_size))


@BANK.wrong("rounds-the-result")
def to_one_decimal(parameters, bits, block_size, second_block_size):
    return round(gib(parameters, bits, block_size, second_block_size), 1)


@BANK.wrong("rounds-the-result")
def to_four_decimals(parameters, bits, block_size, second_block_size):
    return round(gib(parameters, bits, block_size, second_block_size), 4)


@BANK.wrong("rounds-the-result")
def to_whole_gibibytes(parameters, bits, block_size, second_block_size):
    return round(gib(parameters, bits, block_size, second_block_size))


@BANK.wrong("wrong-value")
def small_constants_in_4_bits(parameters, bits, block_size, second_block_size):
    return gib(parameters, bits, block_size, second_block_size, small=4)


@BANK.wrong("wrong-value")
def the_seventy_billion_of_the_try_out(parameters, bits, block_size, second_block_size):
    return gib(70 * 10**9, bits, block_size, second_block_size)


@BANK.wrong("returns-nothing")
def forgets_to_return(parameters, bits, block_size, second_block_size):
    gib(parameters, bits, block_size, second_block_size)


@BANK.wrong("returns-wrong-type")
def as_text(parameters, bits, block_size, second_block_size):
    return f"{gib(parameters, bits, block_size, second_block_size)} GiB"


@BANK.crashes
def splits_a_number(parameters, bits, block_size, second_block_size):
    return parameters.split() * bits
