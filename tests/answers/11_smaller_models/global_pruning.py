"""Answers to `global_masks`, exercise `global_pruning`."""

import math

import numpy as np
import torch

from qlab import sparsity
from tests.answers.bank import Bank

BANK = Bank("global-pruning")


def row_of(weights):
    return torch.cat([weight.flatten() for weight in weights.values()])


def split(kept, weights):
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


@BANK.right
def by_qlab(weights, sparsity_asked):
    return sparsity.global_masks(weights, sparsity_asked)


@BANK.right
def sorts_positions(weights, sparsity):
    magnitudes = row_of(weights).abs()
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[magnitudes.argsort()[: round(sparsity * len(magnitudes))]] = False
    return split(kept, weights)


@BANK.right
def topk_of_what_stays_as_floats(weights, sparsity):
    squares = row_of(weights).double() ** 2
    stay = len(squares) - round(sparsity * len(squares))
    kept = torch.zeros(len(squares))
    kept[squares.topk(stay).indices] = 1.0
    return split(kept, weights)


@BANK.right
def a_loop_over_sorted_places(weights, sparsity):
    places = [
        (abs(weight[i, j].item()), name, i, j)
        for name, weight in weights.items()
        for i in range(weight.shape[0])
        for j in range(weight.shape[1])
    ]
    masks = {name: np.ones(tuple(weight.shape), dtype=bool) for name, weight in weights.items()}
    for _, name, i, j in sorted(places)[: round(sparsity * len(places))]:
        masks[name][i, j] = False
    return masks


@BANK.right
def numpy_partition(weights, sparsity):
    magnitudes = np.concatenate([np.abs(weight.numpy()).ravel() for weight in weights.values()])
    cut = round(sparsity * len(magnitudes))
    kept = np.ones(len(magnitudes), dtype=np.int64)
    if cut:
        kept[np.argpartition(magnitudes, cut - 1)[:cut]] = 0
    return split(torch.from_numpy(kept), weights)


@BANK.right
def one_at_a_time_over_ranks(weights, sparsity):
    magnitudes = row_of(weights).abs()
    ranks = magnitudes.argsort(stable=True).argsort()
    kept = ranks >= round(sparsity * len(ranks))
    return {name: mask.tolist() for name, mask in split(kept, weights).items()}


def threshold(weights, sparsity, *, strict):
    magnitudes = row_of(weights).abs()
    cut = round(sparsity * len(magnitudes))
    if cut == 0:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    limit = magnitudes.kthvalue(cut).values
    return {n: w.abs() > limit if strict else w.abs() >= limit for n, w in weights.items()}


@BANK.wrong("threshold-moves-the-count")
def above_the_kth_value(weights, sparsity):
    return threshold(weights, sparsity, strict=True)


@BANK.wrong("threshold-moves-the-count")
def at_least_the_kth_value(weights, sparsity):
    return threshold(weights, sparsity, strict=False)


@BANK.wrong("threshold-moves-the-count")
def above_a_quantile(weights, sparsity):
    limit = row_of(weights).abs().quantile(sparsity)
    return {name: weight.abs() > limit for name, weight in weights.items()}


@BANK.wrong("threshold-moves-the-count")
def by_torch_pruning_of_one_fewer(weights, sparsity):
    magnitudes = row_of(weights).abs()
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[magnitudes.argsort()[: max(0, round(sparsity * len(magnitudes)) - 1)]] = False
    return split(kept, weights)


def smallest_go(weights, count):
    magnitudes = row_of(weights).abs()
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[magnitudes.argsort()[:count]] = False
    return split(kept, weights)


@BANK.wrong("rounds-another-way")
def drops_the_fraction(weights, sparsity):
    return smallest_go(weights, int(sparsity * len(row_of(weights)) + 1e-6))


@BANK.wrong("rounds-another-way")
def rounds_up(weights, sparsity):
    return smallest_go(weights, math.ceil(sparsity * len(row_of(weights)) - 1e-6))


@BANK.wrong("keeps-the-share")
def sparsity_is_what_stays(weights, sparsity):
    return smallest_go(weights, round((1 - sparsity) * len(row_of(weights))))


@BANK.wrong("per-layer-threshold")
def each_layer_for_itself(weights, sparsity):
    masks = {}
    for name, weight in weights.items():
        kept = torch.ones(weight.numel(), dtype=torch.bool)
        kept[weight.flatten().abs().argsort()[: round(sparsity * weight.numel())]] = False
        masks[name] = kept.view(weight.shape)
    return masks


@BANK.wrong("per-layer-threshold")
def a_quantile_for_each_layer(weights, sparsity):
    return {name: weight.abs() > weight.abs().quantile(sparsity) for name, weight in weights.items()}


@BANK.wrong("per-layer-threshold")
def scaled_by_each_layers_largest(weights, sparsity):
    return sorts_positions({name: each_layer_ranks(weight) for name, weight in weights.items()}, sparsity)


def each_layer_ranks(weight):
    ranks = weight.flatten().abs().argsort().argsort().float() + 0.5
    return (ranks / weight.numel()).view(weight.shape)


@BANK.wrong("inverted-mask")
def marks_those_that_go(weights, sparsity):
    return {name: ~mask for name, mask in sorts_positions(weights, sparsity).items()}


@BANK.wrong("cuts-the-largest")
def sorts_the_wrong_way(weights, sparsity):
    magnitudes = row_of(weights).abs()
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[magnitudes.argsort(descending=True)[: round(sparsity * len(magnitudes))]] = False
    return split(kept, weights)


@BANK.wrong("ignores-the-sign")
def sorts_signed_values(weights, sparsity):
    values = row_of(weights)
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[values.argsort()[: round(sparsity * len(values))]] = False
    return split(kept, weights)


@BANK.wrong("returns-the-weights")
def multiplies_already(weights, sparsity):
    masks = sorts_positions(weights, sparsity)
    return {name: weight * masks[name] for name, weight in weights.items()}


@BANK.wrong("changes-the-weights")
def cuts_in_place(weights, sparsity):
    masks = sorts_positions(weights, sparsity)
    for name, weight in weights.items():
        weight.mul_(masks[name])
    return masks


@BANK.wrong("loses-entries")
def the_first_layer_only(weights, sparsity):
    masks = sorts_positions(weights, sparsity)
    return {"first": masks["first"]}


@BANK.wrong("returns-wrong-type")
def one_long_mask(weights, sparsity):
    return row_of(weights).abs() > row_of(weights).abs().quantile(sparsity)


@BANK.wrong("wrong-shape")
def flat_masks(weights, sparsity):
    return {name: mask.flatten() for name, mask in sorts_positions(weights, sparsity).items()}


@BANK.wrong("wrong-value")
def by_the_mean_magnitude(weights, sparsity):
    means = {name: weight.abs() - weight.abs().mean() for name, weight in weights.items()}
    return sorts_positions(means, sparsity)


@BANK.wrong("returns-nothing")
def returns_nothing(weights, sparsity):
    sorts_positions(weights, sparsity)


@BANK.crashes
def forgets_that_shapes_differ(weights, sparsity):
    return torch.stack(list(weights.values()))
