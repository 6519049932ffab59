"""Answers to `percentile_range`."""

import numpy as np
import torch

from tests.answers.bank import Bank

BANK = Bank("percentile-range")


def pooled(batches):
    return torch.cat([x.flatten() for x in batches])


def tail_of(percent):
    return (1 - percent / 100) / 2


@BANK.right
def by_quantile(batches, percent):
    x = pooled(batches)
    return torch.quantile(x, tail_of(percent)), torch.quantile(x, 1 - tail_of(percent))


@BANK.right
def both_at_once(batches, percent):
    return torch.quantile(pooled(batches).double(), torch.tensor([tail_of(percent), 1 - tail_of(percent)]).double())


def with_interpolation(method):
    def answer(batches, percent):
        tail = tail_of(percent)
        return tuple(torch.quantile(pooled(batches), torch.tensor([tail, 1 - tail]), interpolation=method))

    return answer


for method in ("lower", "higher", "nearest", "midpoint"):
    BANK.add(f"torch_{method}", with_interpolation(method))


def by_numpy(method):
    def answer(batches, percent):
        x = np.concatenate([x.numpy().ravel() for x in batches])
        cut = (100 - percent) / 2
        return np.percentile(x, [cut, 100 - cut], method=method)

    return answer


for method in (
    *("inverted_cdf", "averaged_inverted_cdf", "closest_observation", "interpolated_inverted_cdf", "hazen"),
    *("weibull", "linear", "median_unbiased", "normal_unbiased", "lower", "higher", "nearest"),
):
    BANK.add(f"numpy_{method}", by_numpy(method))


@BANK.right
def sorts_and_drops(batches, percent):
    x = pooled(batches).sort().values
    dropped = int(len(x) * (100 - percent) / 200)
    return x[dropped].item(), x[len(x) - 1 - dropped].item()


@BANK.right
def sorts_a_list(batches, percent):
    values = sorted(v for x in batches for v in x.flatten().tolist())
    last = len(values) - 1
    return [values[int(tail_of(percent) * last)], values[round((1 - tail_of(percent)) * last)]]


@BANK.right
def by_topk(batches, percent):
    x = pooled(batches)
    dropped = round(len(x) * tail_of(percent))
    return x.topk(dropped + 1, largest=False).values[-1], x.topk(dropped + 1).values[-1]


@BANK.right
def by_kthvalue(batches, percent):
    x = pooled(batches)
    k = max(1, int(tail_of(percent) * len(x)))
    return x.kthvalue(k).values, -(-x).kthvalue(k).values


@BANK.right
def by_searching_a_threshold(batches, percent):
    x, wanted = pooled(batches).double(), tail_of(percent)
    if percent == 100:
        return x.min(), x.max()
    ends = []
    for values in (x, -x):
        below, above = values.min().item(), values.max().item()
        for _ in range(60):
            middle = (below + above) / 2
            below, above = (middle, above) if (values <= middle).double().mean() < wanted else (below, middle)
        ends.append(above)
    return ends[0], -ends[1]


@BANK.wrong("keeps-everything")
def keeps_everything(batches, percent):
    return pooled(batches).min(), pooled(batches).max()


@BANK.wrong("full-share-on-each-side")
def full_share_on_each_side(batches, percent):
    x = pooled(batches)
    return torch.quantile(x, 1 - percent / 100), torch.quantile(x, percent / 100)


@BANK.wrong("cuts-one-tail")
def cuts_only_the_high_tail(batches, percent):
    return pooled(batches).min(), torch.quantile(pooled(batches), percent / 100)


@BANK.wrong("cuts-one-tail")
def cuts_only_the_low_tail(batches, percent):
    return torch.quantile(pooled(batches), tail_of(percent)), pooled(batches).max()


@BANK.wrong("cuts-one-tail")
def cuts_half_of_the_high_tail(batches, percent):
    return pooled(batches).min(), torch.quantile(pooled(batches), 1 - tail_of(percent))


@BANK.wrong("percentile-of-magnitudes")
def percentile_of_magnitudes(batches, percent):
    end = torch.quantile(pooled(batches).abs(), percent / 100)
    return -end, end


@BANK.wrong("percentile-of-magnitudes")
def percentile_of_magnitudes_one_sided(batches, percent):
    return pooled(batches).min(), torch.quantile(pooled(batches).abs(), percent / 100)


@BANK.wrong("percentile-of-magnitudes")
def percentile_of_magnitudes_from_zero(batches, percent):
    return 0.0, torch.quantile(pooled(batches).abs(), percent / 100)


@BANK.wrong("percentile-of-magnitudes")
def half_a_tail_of_magnitudes(batches, percent):
    end = torch.quantile(pooled(batches).abs(), 1 - tail_of(percent))
    return -end, end


def of_each(batches, percent):
    return [by_quantile([x], percent) for x in batches]


@BANK.wrong("averages-batches")
def averages_percentiles(batches, percent):
    lows, highs = zip(*of_each(batches, percent), strict=True)
    return sum(lows) / len(lows), sum(highs) / len(highs)


@BANK.wrong("extremes-of-batches")
def widest_percentiles(batches, percent):
    lows, highs = zip(*of_each(batches, percent), strict=True)
    return min(lows), max(highs)


@BANK.wrong("last-batch-wins")
def last_batch_wins(batches, percent):
    for x in batches:
        found = by_quantile([x], percent)
    return found


@BANK.wrong("first-batch-only")
def first_batch_only(batches, percent):
    return by_quantile(batches[:1], percent)


@BANK.wrong("ends-swapped")
def ends_swapped(batches, percent):
    return by_quantile(batches, percent)[::-1]


@BANK.wrong("widens-to-zero")
def widens_to_zero(batches, percent):
    low, high = by_quantile(batches, percent)
    return low.clamp(max=0), high.clamp(min=0)


@BANK.wrong("wrong-value")
def weights_percentiles_by_size(batches, percent):
    lows, highs = zip(*of_each(batches, percent), strict=True)
    sizes = torch.tensor([x.numel() for x in batches])
    return (torch.stack(lows) * sizes).sum() / sizes.sum(), (torch.stack(highs) * sizes).sum() / sizes.sum()


@BANK.wrong("wrong-value")
def percent_is_what_is_cut(batches, percent):
    x = pooled(batches)
    return torch.quantile(x, percent / 200), torch.quantile(x, 1 - percent / 200)


@BANK.wrong("wrong-value")
def a_share_of_the_range(batches, percent):
    low, high = pooled(batches).min(), pooled(batches).max()
    return low + tail_of(percent) * (high - low), high - tail_of(percent) * (high - low)


@BANK.wrong("wrong-value")
def cuts_three_values_too_many(batches, percent):
    x = pooled(batches).sort().values
    dropped = int(len(x) * tail_of(percent)) + 3
    return x[dropped], x[-1 - dropped]


@BANK.wrong("wrong-value")
def standard_deviations(batches, percent):
    x = pooled(batches)
    return x.mean() - 2 * x.std(), x.mean() + 2 * x.std()


@BANK.wrong("returns-nothing")
def returns_nothing(batches, percent):
    by_quantile(batches, percent)


@BANK.wrong("returns-wrong-type")
def returns_the_width(batches, percent):
    low, high = by_quantile(batches, percent)
    return high - low


@BANK.crashes
def percent_is_no_share(batches, percent):
    return by_quantile(batches, percent * 100)


def concatenates_without_flattening(batches, percent):
    return by_quantile([torch.cat(batches)], percent)


BANK.crashes(concatenates_without_flattening)
