"""Answers to `nf4_codebook`, exercise `nf4_codebook`."""

from statistics import NormalDist

import numpy as np
import torch

from qlab import codebooks
from tests.answers.bank import Bank

BANK = Bank("nf4-codebook")
BANK.add("by_qlab", codebooks.normal_map)


def quantiles(offset, count):
    return torch.special.ndtri(torch.linspace(offset, 0.5, count + 1))[:-1]


@BANK.right
def in_two_halves(offset):
    positive, negative = quantiles(offset, 8), quantiles(offset, 7)
    return torch.cat([-negative, torch.zeros(1), positive.flip(0)]) / positive.max()


@BANK.right
def sorted_in_a_list(offset):
    inverse = NormalDist().inv_cdf
    up = [inverse(offset - i * (offset - 0.5) / 8) for i in range(8)]
    down = [-inverse(offset - i * (offset - 0.5) / 7) for i in range(7)]
    return [level / max(up) for level in sorted([*up, 0.0, *down])]


@BANK.right
def by_scipy(offset):
    from scipy.stats import norm  # noqa: PLC0415 - takes a second

    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = norm.ppf(np.linspace(1 - offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, [0.0], negative]))
    return (levels / np.abs(levels).max()).astype(np.float32)


@BANK.right
def by_erfinv(offset):
    probabilities = torch.cat([torch.linspace(1 - offset, 0.5, 8), torch.linspace(0.5, offset, 9)[1:]])
    levels = torch.erfinv(2 * probabilities - 1)
    levels = levels / levels.max()
    levels[0], levels[7] = -1.0, 0.0
    return levels


@BANK.right
def by_torch_distributions(offset):
    normal = torch.distributions.Normal(0.0, 1.0)
    levels = [*(-normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])), torch.tensor(0.0)]
    levels += [*normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])]
    return torch.stack(levels).div(max(levels)).sort().values


@BANK.right
def by_bisection(offset):
    def inverse(p):
        low, high = -8.0, 8.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if NormalDist().cdf(middle) < p else (low, middle)
        return low

    largest = inverse(offset)
    negative = [-inverse(offset + (0.5 - offset) * i / 7) / largest for i in range(7)]
    positive = [inverse(0.5 + (offset - 0.5) * i / 8) / largest for i in range(1, 9)]
    return torch.tensor([*negative, 0.0, *positive])


def wrong(name, misconception, levels):
    BANK.add(name, levels, misconception=misconception)


def normalized(levels):
    return levels / levels.abs().max()


wrong("even_levels", "uniform", lambda offset: torch.linspace(-1, 1, 16))
wrong("even_halves", "uniform", lambda offset: torch.cat([torch.linspace(-1, 0, 8), torch.linspace(0, 1, 9)[1:]]))
wrong("int4_levels", "uniform", lambda offset: torch.arange(-8, 8) / 8)
wrong(
    "sixteen_quantiles",
    "no-exact-zero",
    lambda offset: normalized(torch.special.ndtri(torch.linspace(1 - offset, offset, 16))),
)
wrong(
    "eight_on_either_side",
    "no-exact-zero",
    lambda offset: normalized(torch.cat([-quantiles(offset, 8), quantiles(offset, 8).flip(0)])),
)
wrong(
    "medians_of_sixteen_parts",
    "no-exact-zero",
    lambda offset: normalized(torch.special.ndtri((torch.arange(16) + 0.5) / 16)),
)


@BANK.wrong("no-exact-zero")
def zero_by_an_epsilon(offset):
    levels = in_two_halves(offset)
    levels[7] = 1e-6
    return levels


@BANK.wrong("zero-twice")
def both_halves_with_their_zero(offset):
    half = torch.special.ndtri(torch.linspace(offset, 0.5, 8))
    return normalized(torch.cat([-half, half.flip(0)]))


@BANK.wrong("zero-twice")
def seventeen_levels(offset):
    up, down = (torch.special.ndtri(torch.linspace(offset, 0.5, count)) for count in (9, 8))
    return normalized(torch.cat([-down, up.flip(0)]))


@BANK.wrong("eight-negative")
def sides_exchanged(offset):
    return -in_two_halves(offset).flip(0)


@BANK.wrong("one-spacing-for-both-halves")
def negative_half_cut_short(offset):
    eight = quantiles(offset, 8)
    return torch.cat([-eight[:7], torch.zeros(1), eight.flip(0)]) / eight[0]


@BANK.wrong("not-normalized")
def raw_quantiles(offset):
    return torch.cat([-quantiles(offset, 7), torch.zeros(1), quantiles(offset, 8).flip(0)])


@BANK.wrong("ignores-the-offset")
def the_paper_by_heart(offset):
    return in_two_halves(0.9677083)


@BANK.wrong("infinite-levels")
def quantiles_up_to_one(offset):
    return in_two_halves(1.0)


@BANK.wrong("not-ascending")
def unsorted(offset):
    return torch.cat([quantiles(offset, 7).neg(), torch.zeros(1), quantiles(offset, 8)]) / quantiles(offset, 8)[0]


@BANK.wrong("wrong-value")
def another_distribution(offset):
    def half(count):
        return torch.logit(torch.linspace(offset, 0.5, count + 1))[:-1]

    return torch.cat([-half(7), torch.zeros(1), half(8).flip(0)]) / half(8).max()


@BANK.wrong("wrong-value")
def rounded_to_bf16(offset):
    return in_two_halves(offset).bfloat16().float()


@BANK.wrong("wrong-dtype")
def in_fp64(offset):
    return in_two_halves(offset).double()


@BANK.wrong("wrong-shape")
def fifteen_levels(offset):
    return in_two_halves(offset)[1:]


@BANK.wrong("returns-nothing")
def returns_nothing(offset):
    in_two_halves(offset)


@BANK.crashes
def quantile_of_a_number(offset):
    return torch.special.ndtri(offset)
