"""Answers to `kmeans_codebook`."""

from itertools import pairwise

import numpy as np
import torch

from qlab import codebooks
from tests.answers.bank import Bank

BANK = Bank("kmeans-codebook")


def nearest(x, centroids):
    return (x[:, None] - centroids).abs().argmin(1)


def from_the_range(x, levels):
    return torch.linspace(x.min().item(), x.max().item(), levels)


def from_the_quantiles(x, levels):
    return torch.quantile(x, (torch.arange(levels) + 0.5) / levels)


def lloyd(x, centroids, *, rounds=100, average=torch.mean):
    """Move each centroid to the average of its values; one without values stays."""
    for _ in range(rounds):
        chosen = nearest(x, centroids)
        members = [x[chosen == level] for level in range(len(centroids))]
        moved = torch.stack([average(m) if len(m) else c for m, c in zip(members, centroids, strict=True)])
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


@BANK.right
def by_qlab(x, bits):
    return codebooks.kmeans_codebook(x, bits=bits)


@BANK.right
def from_the_range_with_a_loop(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_range(x, levels))


@BANK.right
def from_values_at_random_in_any_order(x, bits):
    levels = 2**bits
    return lloyd(x, x[torch.randperm(len(x))[:levels]])


@BANK.right
def from_distant_values_in_turn(x, bits):
    levels = 2**bits
    centroids = x[:1]
    for _ in range(levels - 1):
        centroids = torch.cat([centroids, x[(x[:, None] - centroids).abs().amin(1).argmax()][None]])
    return lloyd(x, centroids)


@BANK.right
def from_values_that_are_likely_far_apart(x, bits):
    centroids = x[:1]
    for _ in range(2**bits - 1):
        distance = (x[:, None] - centroids).square().amin(1)
        centroids = torch.cat([centroids, x[torch.multinomial(distance + 1e-12, 1)]])
    return lloyd(x, centroids)


@BANK.right
def with_sums_and_counts(x, bits):
    levels = 2**bits
    centroids = from_the_quantiles(x, levels)
    for _ in range(100):
        chosen = nearest(x, centroids)
        sums = torch.zeros(levels).index_add(0, chosen, x)
        counts = torch.bincount(chosen, minlength=levels)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids.flip(0)


@BANK.right
def with_sums_of_sorted_values(x, bits):
    """Cells of sorted values are stretches of it: a mean is a difference of running sums."""
    levels = 2**bits
    values = np.sort(x.double().numpy())
    sums = np.concatenate([[0.0], values.cumsum()])
    centroids = np.quantile(values, (np.arange(levels) + 0.5) / levels)
    for _ in range(200):
        edges = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(values)]])
        counts = np.diff(edges)
        means = (sums[edges[1:]] - sums[edges[:-1]]) / np.maximum(counts, 1)
        centroids = np.where(counts > 0, means, centroids)
    return centroids


@BANK.right_but_slow
def empty_ones_move_to_the_farthest_value(x, bits):
    levels = 2**bits
    centroids = from_the_range(x, levels)
    for _ in range(100):
        chosen = nearest(x, centroids)
        for level in range(levels):
            members = x[chosen == level]
            farthest = x[(x - centroids[chosen]).abs().argmax()]
            centroids[level] = members.mean() if len(members) else farthest
            chosen = nearest(x, centroids)
    return centroids.tolist()


@BANK.right
def empty_ones_move_to_zero(x, bits):
    levels = 2**bits
    centroids = from_the_quantiles(x, levels)
    for _ in range(100):
        chosen = torch.nn.functional.one_hot(nearest(x, centroids), levels).float()
        centroids = (chosen.T @ x) / chosen.sum(0).clamp(min=1)
    return centroids


@BANK.right
def the_best_of_all_by_dynamic_programming(x, bits):
    """Give the smallest squared error there is: in one dimension a cell is a stretch of the sorted values."""
    levels = 2**bits
    values = np.sort(x.double().numpy())
    n = len(values)
    sums = np.concatenate([[0.0], (values - values.mean()).cumsum()])
    squares = np.concatenate([[0.0], np.square(values - values.mean()).cumsum()])
    starts, ends = np.arange(n + 1)[:, None], np.arange(n + 1)[None]
    count = np.maximum(ends - starts, 1)
    cost = np.where(ends >= starts, squares[ends] - squares[starts] - (sums[ends] - sums[starts]) ** 2 / count, np.inf)
    best, cuts = cost[0], []
    for _ in range(levels - 1):
        total = best[:, None] + cost
        cuts.append(total.argmin(0))
        best = total.min(0)
    edges = [n]
    for cut in reversed(cuts):
        edges.append(cut[edges[-1]])
    edges = [0, *reversed(edges[1:]), n]
    means = [values[a:b].mean() if b > a else values[min(a, n - 1)] for a, b in pairwise(edges)]
    return torch.tensor(means)


@BANK.right_but_slow
def in_plain_python(x, bits):
    levels = 2**bits
    x = x.tolist()
    centroids = [min(x) + (max(x) - min(x)) * (level + 0.5) / levels for level in range(levels)]
    for _ in range(60):
        members = [[] for _ in centroids]
        for value in x:
            members[min(range(levels), key=lambda level: abs(value - centroids[level]))].append(value)
        centroids = [sum(m) / len(m) if m else c for m, c in zip(members, centroids, strict=True)]
    return centroids


@BANK.wrong("never-moves-the-centroids")
def the_uniform_grid(x, bits):
    levels = 2**bits
    return from_the_range(x, levels)


@BANK.wrong("never-moves-the-centroids")
def the_middles_of_equal_cells(x, bits):
    levels = 2**bits
    return x.min() + (torch.arange(levels) + 0.5) / levels * (x.max() - x.min())


@BANK.wrong("never-moves-the-centroids")
def the_quantiles(x, bits):
    levels = 2**bits
    return from_the_quantiles(x, levels)


@BANK.wrong("never-moves-the-centroids")
def values_at_random(x, bits):
    levels = 2**bits
    return x[torch.randperm(len(x))[:levels]]


@BANK.wrong("never-moves-the-centroids")
def a_loop_that_drops_what_it_finds(x, bits):
    levels = 2**bits
    centroids = from_the_range(x, levels)
    for _ in range(20):
        lloyd(x, centroids, rounds=1)
    return centroids


@BANK.wrong("stops-after-one-round")
def one_round_from_the_range(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_range(x, levels), rounds=1)


@BANK.wrong("stops-after-one-round")
def one_round_from_the_quantiles(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_quantiles(x, levels), rounds=1)


@BANK.wrong("stops-after-one-round")
def returns_inside_the_loop(x, bits):
    levels = 2**bits
    centroids = from_the_quantiles(x, levels)
    for _ in range(100):
        centroids = lloyd(x, centroids, rounds=1)
        return centroids


@BANK.wrong("not-the-means")
def three_rounds(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_quantiles(x, levels), rounds=3)


@BANK.wrong("not-the-means")
def one_round_from_values_at_random(x, bits):
    levels = 2**bits
    return lloyd(x, x[torch.randperm(len(x))[:levels]], rounds=1)


@BANK.wrong("stops-after-one-round")
def assigns_only_once(x, bits):
    levels = 2**bits
    centroids = from_the_range(x, levels)
    chosen = nearest(x, centroids)
    for _ in range(50):
        for level in range(levels):
            if (chosen == level).any():
                centroids[level] = 0.5 * centroids[level] + 0.5 * x[chosen == level].mean()
    return centroids


@BANK.wrong("averages-indices")
def means_of_the_chosen_levels(x, bits):
    levels = 2**bits
    chosen = nearest(x, from_the_range(x, levels)).float()
    return torch.stack([chosen[chosen == level].mean().nan_to_num(level) for level in range(levels)])


@BANK.wrong("leaves-the-range")
def means_of_the_places(x, bits):
    levels = 2**bits
    chosen = nearest(x, lloyd(x, from_the_quantiles(x, levels)))
    return torch.stack([(chosen == level).nonzero().float().mean().nan_to_num() for level in range(levels)])


@BANK.wrong("moves-to-the-median")
def medians(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_range(x, levels), average=torch.median)


@BANK.wrong("moves-to-the-median")
def medians_between_two_values(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_quantiles(x, levels), average=lambda values: values.quantile(0.5))


@BANK.wrong("empty-cluster-becomes-nan")
def means_of_nothing(x, bits):
    levels = 2**bits
    centroids = from_the_quantiles(x, levels)
    for _ in range(100):
        chosen = nearest(x, centroids)
        sums, counts = torch.zeros(levels).index_add(0, chosen, x), torch.bincount(chosen, minlength=levels)
        centroids = sums / counts
    return centroids


@BANK.wrong("empty-cluster-becomes-nan")
def means_of_nothing_from_the_range(x, bits):
    levels = 2**bits
    centroids = from_the_range(x, levels)
    for _ in range(100):
        chosen = torch.nn.functional.one_hot(nearest(x, centroids.nan_to_num(torch.inf)), levels).float()
        centroids = (chosen.T @ x) / chosen.sum(0)
    return centroids


@BANK.wrong("leaves-the-range")
def sums(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_range(x, levels)) * len(x) / levels


@BANK.wrong("not-the-means")
def of_the_magnitudes(x, bits):
    levels = 2**bits
    return lloyd(x.abs(), from_the_quantiles(x.abs(), levels))


@BANK.wrong("not-the-means")
def rounded_to_eight_bits(x, bits):
    levels = 2**bits
    return lloyd(x, from_the_range(x, levels)).to(torch.float8_e4m3fn).float() * 1.05


@BANK.wrong("wrong-shape")
def the_values_and_not_the_codebook(x, bits):
    levels = 2**bits
    centroids = lloyd(x, from_the_range(x, levels))
    return centroids[nearest(x, centroids)]


@BANK.wrong("wrong-shape")
def leaves_the_empty_ones_out(x, bits):
    levels = 2**bits
    centroids = lloyd(x, from_the_range(x, levels))
    return centroids[torch.bincount(nearest(x, centroids), minlength=levels) > 0]


@BANK.wrong("all-centroids-equal")
def the_mean_at_every_level(x, bits):
    return x.mean().repeat(2**bits)


@BANK.wrong("all-centroids-equal")
def zeros(x, bits):
    levels = 2**bits
    return torch.zeros(levels)


@BANK.wrong("returns-nothing")
def forgets_to_return(x, bits):
    levels = 2**bits
    lloyd(x, from_the_range(x, levels))


@BANK.crashes
def averages_whole_numbers(x, bits):
    levels = 2**bits
    chosen = nearest(x, from_the_range(x, levels))
    return torch.stack([chosen[chosen == level].mean() for level in range(levels)])


@BANK.wrong("some-levels-equal")
def half_the_levels_twice(x, bits):
    return lloyd(x, from_the_quantiles(x, max(2 ** (bits - 1), 2))).repeat(2)[-(2**bits) :]


@BANK.wrong("empty-cluster-becomes-nan")
def of_values_normalized(x, bits):
    z = (x - x.mean()) / x.std()
    return lloyd(z, from_the_quantiles(z, 2**bits)) * x.std() + x.mean()


@BANK.right
def best_of_all_partitions(x, bits):
    """Return the means of the cheapest cuts of the sorted values, found from left to right."""
    values = np.sort(x.double().numpy())
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values, values**2))
    count, levels = len(values), 2**bits
    cost, cuts = np.full(count + 1, np.inf), []
    cost[0] = 0.0
    for _ in range(levels):
        spent, cut = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=int)
        for end in range(1, count + 1):
            start = np.arange(end)
            within = squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start)
            cut[end] = (cost[:end] + within).argmin()
            spent[end] = (cost[:end] + within).min()
        cost, cuts = spent, [*cuts, cut]
    means, end = [], count
    for cut in reversed(cuts):
        means.append((sums[end] - sums[cut[end]]) / (end - cut[end]))
        end = cut[end]
    return means
