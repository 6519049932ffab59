"""Answers to `stochastic_round`."""

import torch

from qlab import formats
from tests.answers.bank import Bank

BANK = Bank("stochastic-round")
LOW = 0xFFFF


def bits_of(x):
    return x.view(torch.int32)


def cut(bits):
    return (bits & ~LOW).view(torch.float32)


def neighbors(x):
    below = cut(bits_of(x))
    above = torch.where(below == x, bits_of(x), bits_of(below) + LOW + 1).view(torch.float32)
    return below, above


@BANK.right
def adds_random_low_bits(x, generator):
    noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32)
    return cut(bits_of(x) + noise).bfloat16()


@BANK.right
def by_qlab(x, generator):
    return formats.stochastic_round(x, formats.BF16, generator=generator)


@BANK.right
def compares_a_uniform_draw(x, generator):
    below, above = neighbors(x)
    gap = torch.where(above == below, 1.0, above - below)
    return torch.where(torch.rand(x.shape, generator=generator) < (x - below) / gap, above, below)


@BANK.right
def a_bernoulli_draw_in_double(x, generator):
    below, above = (t.double() for t in neighbors(x))
    share = ((x.double() - below) / (above - below)).nan_to_num(0.0)
    return below + torch.bernoulli(share, generator=generator) * (above - below)


@BANK.right
def dithers_then_floors(x, generator):
    step = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 8)
    return torch.floor(x / step + torch.rand(x.shape, generator=generator)) * step


@BANK.wrong("rounds-to-nearest")
def the_plain_cast(x, generator):
    return x.bfloat16()


@BANK.wrong("flips-a-fair-coin")
def coin(x, generator):
    below, above = neighbors(x)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.5, above, below)


@BANK.wrong("biased")
def odds_reversed(x, generator):
    below, above = neighbors(x)
    gap = torch.where(above == below, 1.0, above - below)
    return torch.where(torch.rand(x.shape, generator=generator) > (x - below) / gap, above, below)


@BANK.wrong("biased")
def noise_then_nearest(x, generator):
    noise = torch.randint(0, 2**15, x.shape, generator=generator, dtype=torch.int32)
    return cut(bits_of(x) + noise)


@BANK.wrong("not-a-neighbor")
def noise_then_rounding(x, generator):
    noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32)
    return (bits_of(x) + noise).view(torch.float32).bfloat16()


@BANK.wrong("truncates")
def always_down(x, generator):
    return cut(bits_of(x))


@BANK.wrong("one-draw-for-all")
def one_draw_for_all(x, generator):
    below, above = neighbors(x)
    gap = torch.where(above == below, 1.0, above - below)
    return torch.where(torch.rand((), generator=generator) < (x - below) / gap, above, below)


@BANK.wrong("ignores-the-generator")
def global_randomness(x, generator):
    return cut(bits_of(x) + torch.randint(0, 2**16, x.shape, dtype=torch.int32))


@BANK.wrong("ignores-the-generator")
def its_own_seed(x, generator):
    own = torch.Generator().manual_seed(7)
    return cut(bits_of(x) + torch.randint(0, 2**16, x.shape, generator=own, dtype=torch.int32))


@BANK.wrong("not-a-neighbor")
def adds_noise_only(x, generator):
    return x + torch.rand(x.shape, generator=generator) * 2.0**-8


@BANK.wrong("not-a-neighbor")
def rounds_to_fp16(x, generator):
    return x.half()


@BANK.wrong("returns-nothing")
def forgets_to_return(x, generator):
    adds_random_low_bits(x, generator)


@BANK.wrong("moves-exact-values")
def goes_up_from_exact_values_too(x, generator):
    below = cut(bits_of(x))
    above = (bits_of(below) + LOW + 1).view(torch.float32)
    share = (x - below) / (above - below)
    return torch.where(torch.rand(x.shape, generator=generator) <= share + (share == 0) * 0.5, above, below)


@BANK.wrong("biased")
def always_away_from_zero(x, generator):
    torch.rand(x.shape, generator=generator)
    return neighbors(x)[1]


@BANK.right_but_slow
def one_element_at_a_time(x, generator):
    return [adds_random_low_bits(x[i : i + 1], generator)[0] for i in range(len(x))]


@BANK.wrong("coarse-noise")
def noise_of_four_bits(x, generator):
    return cut(bits_of(x) + (torch.randint(0, 16, x.shape, generator=generator, dtype=torch.int32) << 12))


@BANK.wrong("coarse-noise")
def noise_of_eight_bits(x, generator):
    return cut(bits_of(x) + (torch.randint(0, 256, x.shape, generator=generator, dtype=torch.int32) << 8))


@BANK.wrong("same-noise-every-call")
def seeds_again_each_time(x, generator):
    generator.manual_seed(generator.initial_seed())
    return adds_random_low_bits(x, generator)


@BANK.wrong("biased")
def only_right_between_one_and_two(x, generator):
    inside = (x.abs() >= 1) & (x.abs() < 2)
    return torch.where(inside, adds_random_low_bits(x, generator), x.bfloat16())


@BANK.wrong("truncates-negatives")
def only_positive_values(x, generator):
    return torch.where(x < 0, cut(bits_of(x)), adds_random_low_bits(x, generator))


@BANK.wrong("ignores-the-generator")
def half_of_it_from_elsewhere(x, generator):
    high = torch.randint(0, 256, x.shape, generator=generator, dtype=torch.int32) << 8
    return cut(bits_of(x) + high + torch.randint(0, 256, x.shape, dtype=torch.int32))
