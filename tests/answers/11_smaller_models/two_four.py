"""Answers to `two_four_mask` and `bits_per_weight`, exercise `two_four`."""

import numpy as np
import torch

from qlab import sparsity
from tests.answers.bank import Bank

BANK = Bank("two-four")


def bits(value_bits):
    return (2 * value_bits + 2 * 2) / 4


def by_topk(weight):
    groups = weight.abs().reshape(weight.shape[0], -1, 4)
    chosen = groups.topk(2, dim=-1).indices
    return torch.zeros(groups.shape, dtype=torch.bool).scatter(-1, chosen, True).reshape(weight.shape)


def by_a_loop(weight):
    mask = torch.zeros(weight.shape, dtype=torch.int64)
    for i in range(weight.shape[0]):
        for j in range(0, weight.shape[1], 4):
            order = sorted(range(4), key=lambda k: -abs(weight[i, j + k].item()))
            mask[i, j + order[0]] = mask[i, j + order[1]] = 1
    return mask


def by_sort(weight):
    values = weight.float().numpy()
    ranks = np.argsort(np.argsort(-np.abs(values).reshape(-1, 4), axis=1, kind="stable"), axis=1)
    return (ranks < 2).astype(np.float32).reshape(values.shape)


def drops_the_smallest_twice(weight):
    left = weight.abs().float().reshape(-1, 4).clone()
    for _ in range(2):
        left[torch.arange(len(left)), left.argmin(dim=1)] = torch.inf
    return left.isfinite().reshape(weight.shape)


def with_the_second_largest_and_ties_in_order(weight):
    groups = weight.float().square().reshape(-1, 4)
    larger = (groups[:, None, :] > groups[:, :, None]).sum(-1)
    earlier = torch.tril(torch.ones(4, 4), -1).bool()
    tied_before = ((groups[:, None, :] == groups[:, :, None]) & earlier).sum(-1)
    return ((larger + tied_before) < 2).reshape(weight.shape)


def qlabs_bits(value_bits):
    weight = torch.randn(8, 64)
    positions = sparsity.two_four_codes(weight).packed_positions.nbytes
    return (weight.numel() / 2 * value_bits + 8 * positions) / weight.numel()


BANK.add("by_qlab", sparsity.two_four_mask, qlabs_bits)
BANK.add("by_topk", by_topk, bits)
BANK.add("by_a_loop", by_a_loop, lambda b: b / 2 + 1)
BANK.add("by_sort", by_sort, lambda b: torch.tensor((b + 2) * 0.5))
BANK.add("drops_the_smallest_twice", drops_the_smallest_twice, lambda b: np.float32(b * 0.5) + 1)
BANK.add("ties_in_order", with_the_second_largest_and_ties_in_order, lambda b: b * 9 / 16 + (1 - b / 16))


def half_of_all(weight):
    magnitudes = weight.abs().flatten()
    kept = torch.zeros(len(magnitudes), dtype=torch.bool)
    kept[magnitudes.argsort(descending=True)[: len(magnitudes) // 2]] = True
    return kept.reshape(weight.shape)


def half_of_each_row(weight):
    kept = torch.zeros(weight.shape, dtype=torch.bool)
    return kept.scatter(1, weight.abs().topk(weight.shape[1] // 2, dim=1).indices, True)


def down_the_columns(weight):
    return by_topk(weight.t().contiguous()).t()


def four_long_rows(weight):
    groups = weight.abs().reshape(len(weight), 4, -1)
    kept = torch.zeros(groups.shape, dtype=torch.bool)
    return kept.scatter(1, groups.topk(2, dim=1).indices, True).reshape(weight.shape)


def smallest(weight):
    return by_topk(1 / (weight.abs() + 1e-3))


def signed(weight):
    groups = weight.reshape(weight.shape[0], -1, 4)
    chosen = groups.topk(2, dim=-1).indices
    return torch.zeros(groups.shape, dtype=torch.bool).scatter(-1, chosen, True).reshape(weight.shape)


def at_least_the_second(weight):
    groups = weight.abs().reshape(weight.shape[0], -1, 4)
    return (groups >= groups.topk(2, dim=-1).values[..., 1:]).reshape(weight.shape)


def above_the_third(weight):
    groups = weight.abs().reshape(weight.shape[0], -1, 4)
    return (groups > groups.topk(3, dim=-1).values[..., 2:]).reshape(weight.shape)


def one_of_two(weight):
    groups = weight.abs().float().reshape(-1, 2)
    first = groups[:, 0] >= groups[:, 1]
    return torch.stack([first, ~first], dim=1).reshape(weight.shape)


def by_the_median_of_four(weight):
    groups = weight.abs().float().reshape(-1, 4)
    return (groups > groups.quantile(0.5, dim=1, keepdim=True)).reshape(weight.shape)


def three_of_four(weight):
    groups = weight.abs().reshape(-1, 4)
    mask = torch.ones(groups.shape, dtype=torch.bool)
    mask[torch.arange(len(groups)), groups.argmin(dim=1)] = False
    return mask.reshape(weight.shape)


def a_view_of_four(weight):
    return by_topk(weight).view(weight.shape) if weight.view(-1, 4) is not None else None


BANK.add("half_of_all", half_of_all, bits, misconception="half-of-everything")
BANK.add("half_of_each_row", half_of_each_row, bits, misconception="half-of-everything")
BANK.add("down_the_columns", down_the_columns, bits, misconception="groups-down-the-columns")
BANK.add("four_long_rows", four_long_rows, bits, misconception="groups-far-apart")
BANK.add("smallest", smallest, bits, misconception="keeps-the-smallest")
BANK.add("signed", signed, bits, misconception="ignores-the-sign")
BANK.add("at_least_the_second", at_least_the_second, bits, misconception="threshold-moves-the-count")
BANK.add("above_the_third", above_the_third, bits, misconception="threshold-moves-the-count")
BANK.add("by_the_median_of_four", by_the_median_of_four, bits, misconception="threshold-moves-the-count")
BANK.add("one_of_two", one_of_two, bits, misconception="wrong-value")
BANK.add("three_of_four", three_of_four, bits, misconception="wrong-value")
BANK.add("pruned_weights", lambda w: w * by_topk(w), bits, misconception="returns-the-weights")
BANK.add("grouped_mask", lambda w: by_topk(w).reshape(-1, 4), bits, misconception="wrong-shape")
BANK.add("returns_nothing", lambda w: None, bits, misconception="returns-nothing")
BANK.add("no_bits", by_topk, lambda b: None, misconception="returns-nothing")
for name, formula in {
    "forgets-positions": lambda b: b / 2,
    "keeps-the-zeros": lambda b: b,
    "one-position-a-group": lambda b: (2 * b + 2) / 4,
    "drops-the-fraction": lambda b: (2 * b + 4) // 4,
    "bits-of-a-group": lambda b: 2 * b + 4,
    "bits-of-what-stays": lambda b: b + 2,
    "bit-a-weight": lambda b: b + 1,
    "wrong-value": lambda b: (2 * b + 8) / 4,
}.items():
    BANK.add(f"bits_{name.replace('-', '_')}", by_topk, formula, misconception=name)
BANK.crashes(a_view_of_four)
BANK.answers[-1] = type(BANK.answers[-1])("two-four", "a_view_of_four", (a_view_of_four, bits), outcome="crashed")
