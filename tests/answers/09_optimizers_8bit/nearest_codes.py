"""Answers to `nearest_codes`, exercise `nearest_code`."""

import bisect

import numpy as np
import torch

from qlab import codebooks
from tests.answers.bank import Bank

BANK = Bank("nearest-code")
BANK.add("by_qlab", codebooks.nearest_codes)


def middles(codebook):
    return (codebook[1:] + codebook[:-1]) / 2


@BANK.right
def among_the_middles(x, codebook):
    return torch.searchsorted(middles(codebook), x.contiguous()).to(torch.uint8)


@BANK.right
def by_bucketize_on_the_other_side_of_a_tie(x, codebook):
    return torch.bucketize(x, middles(codebook), right=True).byte()


@BANK.right
def the_nearer_of_two_neighbors(x, codebook):
    above = torch.searchsorted(codebook, x.contiguous()).clamp(1, len(codebook) - 1)
    below = above - 1
    return torch.where(x - codebook[below] <= codebook[above] - x, below, above).to(torch.uint8)


@BANK.right
def in_fp64(x, codebook):
    codebook = codebook.double()
    return torch.bucketize(x.double(), middles(codebook), out_int32=True).to(torch.uint8)


@BANK.right
def in_numpy(x, codebook):
    levels = codebook.numpy().astype(np.float64)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x.numpy()).astype(np.uint8)


@BANK.right
def level_by_level(x, codebook):
    """Keep the best level so far: one pass over x for each level, and little memory."""
    best, codes = (x - codebook[0]).abs(), torch.zeros(x.shape, dtype=torch.uint8)
    for code, level in enumerate(codebook[1:].tolist(), 1):
        distance = (x - level).abs()
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        codes[nearer] = code
    return codes


@BANK.right
def a_table_for_a_few_values_at_a_time(x, codebook):
    flat = x.reshape(-1)
    codes = [(piece[:, None] - codebook).abs().argmin(1).to(torch.uint8) for piece in flat.split(512)]
    return torch.cat(codes).view(x.shape)


@BANK.wrong("compares-with-every-level")
def a_table_in_numpy(x, codebook):
    return np.abs(x.numpy()[..., None] - codebook.numpy()).argmin(-1).astype(np.uint8)


@BANK.wrong("compares-with-every-level")
def a_table_of_bools_in_numpy(x, codebook):
    return (x.numpy()[..., None] > middles(codebook).numpy()).sum(-1).astype(np.uint8)


@BANK.right_but_slow
def value_by_value(x, codebook):
    edges = middles(codebook).tolist()
    codes = [bisect.bisect_left(edges, value) for value in x.flatten().tolist()]
    return torch.tensor(codes, dtype=torch.uint8).view(x.shape)


@BANK.right
def by_counting_boundaries(x, codebook):
    codes = torch.zeros_like(x, dtype=torch.uint8)
    for edge in middles(codebook):
        codes += x > edge
    return codes


@BANK.wrong("compares-with-every-level")
def a_table_of_all_distances(x, codebook):
    return (x[..., None] - codebook).abs().argmin(-1).to(torch.uint8)


@BANK.wrong("compares-with-every-level")
def by_cdist(x, codebook):
    distances = torch.cdist(x.reshape(-1, 1).double(), codebook.double()[:, None], p=1)
    return distances.argmin(1).to(torch.uint8).view(x.shape)


@BANK.wrong("takes-the-level-below")
def floor(x, codebook):
    return (torch.bucketize(x, codebook, right=True) - 1).clamp(min=0).to(torch.uint8)


@BANK.wrong("takes-the-level-above")
def ceil(x, codebook):
    return torch.bucketize(x, codebook).clamp(max=len(codebook) - 1).to(torch.uint8)


@BANK.wrong("takes-the-level-above")
def ceil_that_ends_beyond(x, codebook):
    return torch.bucketize(x, codebook).to(torch.uint8)


@BANK.wrong("assumes-even-levels")
def by_a_formula(x, codebook):
    share = (x - codebook[0]) / (codebook[-1] - codebook[0])
    return (share * (len(codebook) - 1)).round().clamp(0, len(codebook) - 1).to(torch.uint8)


@BANK.wrong("assumes-even-levels")
def for_values_from_minus_one_to_one(x, codebook):
    return ((x + 1) / 2 * (len(codebook) - 1)).round().clamp(0, len(codebook) - 1).to(torch.uint8)


@BANK.wrong("takes-the-farthest")
def argmax(x, codebook):
    return level_of(x, codebook, lambda distance: distance.abs().argmax(-1))


@BANK.wrong("forgets-the-sign")
def argmin_without_abs(x, codebook):
    return level_of(x, codebook, lambda distance: distance.argmin(-1))


def level_of(x, codebook, choose):
    codes = [choose(piece[:, None] - codebook) for piece in x.reshape(-1).split(512)]
    return torch.cat(codes).to(torch.uint8).view(x.shape)


@BANK.wrong("compares-magnitudes")
def of_magnitudes(x, codebook):
    codes = [(piece.abs()[:, None] - codebook.abs()).abs().argmin(1) for piece in x.reshape(-1).split(512)]
    return torch.cat(codes).to(torch.uint8).view(x.shape)


@BANK.wrong("one-code-off")
def one_too_many(x, codebook):
    return (torch.bucketize(x, middles(codebook)) + 1).clamp(max=len(codebook) - 1).to(torch.uint8)


@BANK.wrong("code-beyond-the-end")
def one_too_many_and_not_clamped(x, codebook):
    return (torch.bucketize(x, middles(codebook)) + 1).to(torch.uint8)


@BANK.wrong("not-uint8")
def int64_codes(x, codebook):
    return torch.bucketize(x, middles(codebook))


@BANK.wrong("negative-code")
def int8_codes(x, codebook):
    return torch.bucketize(x, middles(codebook)).to(torch.int8)


@BANK.wrong("returns-the-levels")
def the_levels_themselves(x, codebook):
    return codebook[torch.bucketize(x, middles(codebook))]


@BANK.wrong("wrong-shape")
def flattened(x, codebook):
    return torch.bucketize(x.reshape(-1), middles(codebook)).to(torch.uint8)


@BANK.wrong("not-the-nearest")
def boundaries_a_little_off(x, codebook):
    return torch.bucketize(x, 0.45 * codebook[1:] + 0.55 * codebook[:-1]).to(torch.uint8)


@BANK.wrong("clamps-to-one")
def takes_the_ends_for_one(x, codebook):
    return torch.bucketize(x.clamp(-1, 1), middles(codebook)).to(torch.uint8)


@BANK.wrong("not-the-nearest")
def the_smallest_relative_distance(x, codebook):
    return (x[..., None] / codebook - 1).abs().argmin(-1).to(torch.uint8)


@BANK.wrong("returns-nothing")
def returns_nothing(x, codebook):
    torch.bucketize(x, middles(codebook)).to(torch.uint8)


@BANK.crashes
def adds_shapes_that_do_not_fit(x, codebook):
    return (x + middles(codebook)[:, None, None, None, None] @ x).to(torch.uint8)
