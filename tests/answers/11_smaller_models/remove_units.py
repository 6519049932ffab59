"""Answers to `remove_units`, exercise `remove_units`."""

import copy

import torch
from torch import nn

from qlab import sparsity
from tests.answers.bank import Bank

BANK = Bank("remove-units")


@BANK.right
def by_qlab(first, second, keep):
    scores = sparsity.unit_scores([first], second)
    return sparsity.remove_units(first, second, sparsity.largest_units(scores, count=keep))


def strengths(first, second):
    return first.weight.norm(dim=1) * second.weight.norm(dim=0)


def built(first, second, kept, *, first_bias=True, second_bias=True):
    a = nn.Linear(first.in_features, len(kept), bias=first.bias is not None)
    b = nn.Linear(len(kept), second.out_features, bias=second.bias is not None)
    with torch.no_grad():
        a.weight.copy_(first.weight[kept])
        b.weight.copy_(second.weight[:, kept])
        for made, values, wanted in (
            (a, first.bias[kept] if a.bias is not None else None, first_bias),
            (b, second.bias, second_bias),
        ):
            if values is not None and wanted:
                made.bias.copy_(values)
            elif values is not None:
                made.bias.zero_()
    return a, b


@BANK.right
def strongest_first(first, second, keep):
    return built(first, second, strengths(first, second).topk(keep).indices)


@BANK.right
def in_their_order_as_a_list(first, second, keep):
    order = sorted(range(first.out_features), key=lambda unit: strengths(first, second)[unit].item())
    return list(built(first, second, sorted(order[-keep:])))


@BANK.right
def parameters_put_into_copies(first, second, keep):
    kept = strengths(first, second).argsort(descending=True)[:keep]
    a, b = copy.deepcopy(first), copy.deepcopy(second)
    a.weight, b.weight = nn.Parameter(first.weight[kept]), nn.Parameter(second.weight[:, kept])
    if a.bias is not None:
        a.bias = nn.Parameter(first.bias[kept])
    a.out_features = b.in_features = keep
    return a, b


@BANK.right
def as_a_sequential(first, second, keep):
    a, b = strongest_first(first, second, keep)
    return nn.Sequential(a, nn.ReLU(), b)


@BANK.right
def by_norms_of_outer_products(first, second, keep):
    norms = torch.stack([torch.outer(c, r).norm() for r, c in zip(first.weight, second.weight.t(), strict=True)])
    mask = torch.zeros(first.out_features, dtype=torch.bool)
    mask[norms.topk(keep).indices] = True
    return built(first, second, mask.nonzero().flatten())


@BANK.right
def by_squares_in_double(first, second, keep):
    squares = first.weight.double().square().sum(1) * second.weight.double().square().sum(0)
    return built(first, second, squares.argsort()[-keep:])


@BANK.wrong("masks-only")
def zeros_the_rest(first, second, keep):
    a, b = copy.deepcopy(first), copy.deepcopy(second)
    weakest = strengths(first, second).argsort()[: first.out_features - keep]
    with torch.no_grad():
        a.weight[weakest] = 0
        b.weight[:, weakest] = 0
    return a, b


@BANK.wrong("wrong-shape")
def rows_of_the_first_alone(first, second, keep):
    a, _ = strongest_first(first, second, keep)
    return a, copy.deepcopy(second)


@BANK.wrong("keeps-the-others")
def removes_as_many_as_it_should_keep(first, second, keep):
    return strongest_first(first, second, first.out_features - keep)


@BANK.wrong("holds-the-large-storage")
def slices_a_sorted_copy(first, second, keep):
    order = strengths(first, second).argsort(descending=True)
    a, b = built(first, second, order[:keep])
    a.weight = nn.Parameter(first.weight.detach()[order][:keep])
    return a, b


@BANK.wrong("keeps-the-weakest")
def sorts_the_wrong_way(first, second, keep):
    return built(first, second, strengths(first, second).argsort()[:keep])


@BANK.wrong("counts-what-goes-in")
def rows_only(first, second, keep):
    return built(first, second, first.weight.norm(dim=1).topk(keep).indices)


@BANK.wrong("counts-what-comes-out")
def columns_only(first, second, keep):
    return built(first, second, second.weight.norm(dim=0).topk(keep).indices)


@BANK.wrong("adds-the-norms")
def sum_of_norms(first, second, keep):
    return built(first, second, (first.weight.norm(dim=1) + second.weight.norm(dim=0)).topk(keep).indices)


@BANK.wrong("keeps-the-first")
def the_first_rows(first, second, keep):
    return built(first, second, torch.arange(keep))


@BANK.wrong("loses-the-bias")
def forgets_the_biases(first, second, keep):
    a, b = built(first, second, strengths(first, second).topk(keep).indices)
    small = nn.Linear(a.in_features, keep, bias=False), nn.Linear(keep, b.out_features, bias=False)
    for made, values in zip(small, (a, b), strict=True):
        made.weight = values.weight
    return small


@BANK.wrong("loses-the-bias")
def forgets_the_second_bias(first, second, keep):
    return built(first, second, strengths(first, second).topk(keep).indices, second_bias=False)


@BANK.wrong("loses-the-bias")
def forgets_the_first_bias(first, second, keep):
    return built(first, second, strengths(first, second).topk(keep).indices, first_bias=False)


@BANK.wrong("loses-the-bias")
def biases_of_the_first_units(first, second, keep):
    a, b = strongest_first(first, second, keep)
    if a.bias is not None:
        a.bias = nn.Parameter(first.bias[:keep].clone())
    return a, b


@BANK.wrong("invents-a-bias")
def layers_always_with_a_bias(first, second, keep):
    a, b = strongest_first(first, second, keep)
    with_bias = nn.Linear(a.in_features, keep), nn.Linear(keep, b.out_features)
    for made, values in zip(with_bias, (a, b), strict=True):
        made.weight = values.weight
        if values.bias is not None:
            made.bias = values.bias
    return with_bias


@BANK.wrong("loses-the-bias")
def biases_stay_as_drawn(first, second, keep):
    a, b = strongest_first(first, second, keep)
    for made in (a, b):
        if made.bias is not None:
            nn.init.uniform_(made.bias, 0.1, 0.3)
    return a, b


@BANK.wrong("sums-the-magnitudes")
def sums_of_magnitudes(first, second, keep):
    scores = first.weight.abs().sum(1) * second.weight.abs().sum(0)
    return built(first, second, scores.topk(keep).indices)


@BANK.wrong("counts-the-bias")
def bias_as_another_weight(first, second, keep):
    rows = first.weight if first.bias is None else torch.cat([first.weight, first.bias[:, None]], dim=1)
    return built(first, second, (rows.norm(dim=1) * second.weight.norm(dim=0)).topk(keep).indices)


@BANK.wrong("orders-differ")
def columns_in_another_order(first, second, keep):
    kept = strengths(first, second).topk(keep).indices
    a, b = built(first, second, kept)
    b.weight = nn.Parameter(second.weight[:, kept.sort().values.flip(0)].clone())
    return a, b


@BANK.wrong("orders-differ")
def sorts_the_columns_only(first, second, keep):
    kept = strengths(first, second).topk(keep).indices
    a, b = built(first, second, kept)
    b.weight = nn.Parameter(second.weight[:, kept.sort().values].clone())
    return a, b


@BANK.wrong("changes-the-given-layers")
def shrinks_the_given_layers(first, second, keep):
    a, b = strongest_first(first, second, keep)
    with torch.no_grad():
        first.weight.zero_()
    return a, b


@BANK.wrong("returns-wrong-type")
def returns_weights(first, second, keep):
    kept = strengths(first, second).topk(keep).indices
    return first.weight[kept], second.weight[:, kept]


@BANK.wrong("returns-nothing")
def returns_nothing(first, second, keep):
    strongest_first(first, second, keep)


@BANK.crashes
def takes_columns_of_the_first(first, second, keep):
    kept = strengths(first, second).topk(keep).indices
    return first.weight[:, kept + first.in_features], second
