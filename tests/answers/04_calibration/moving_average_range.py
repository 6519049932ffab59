"""Answers to `moving_average_range`."""

import functools

import numpy as np
import torch

from qlab import calibrate
from tests.answers.bank import Bank

BANK = Bank("moving-average-range")


def folded(batches, momentum, low=None, high=None):
    for x in batches:
        now_low, now_high = x.min().item(), x.max().item()
        low = now_low if low is None else momentum * low + (1 - momentum) * now_low
        high = now_high if high is None else momentum * high + (1 - momentum) * now_high
    return low, high


@BANK.right
def in_a_loop(batches, momentum):
    return folded(batches, momentum)


@BANK.right
def steps_toward_the_new(batches, momentum):
    low, high = batches[0].min(), batches[0].max()
    for x in batches[1:]:
        low += (1 - momentum) * (x.min() - low)
        high += (1 - momentum) * (x.max() - high)
    return low, high


@BANK.right
def weights_all_at_once(batches, momentum):
    count = len(batches)
    weights = np.array([momentum ** (count - 1 - i) * (1 if i == 0 else 1 - momentum) for i in range(count)])
    ends = np.array([[x.min().item(), x.max().item()] for x in batches])
    return weights @ ends


@BANK.right
def as_a_tensor_of_two(batches, momentum):
    ends = [torch.stack(x.aminmax()) for x in batches]
    return functools.reduce(lambda old, new: torch.lerp(new, old, momentum), ends)


@BANK.right
def last_to_first_recursively(batches, momentum):
    *before, last = batches
    if not before:
        return [float(last.min()), float(last.max())]
    old = last_to_first_recursively(before, momentum)
    return [momentum * a + (1 - momentum) * b for a, b in zip(old, (last.min().item(), last.max().item()), strict=True)]


@BANK.right
def in_bfloat_no_in_double(batches, momentum):
    return folded([x.double() for x in batches], momentum)


@BANK.right
def by_torchs_lerp_in_place(batches, momentum):
    low, high = batches[0].min().clone(), batches[0].max().clone()
    for x in batches[1:]:
        low.lerp_(x.min(), 1 - momentum), high.lerp_(x.max(), 1 - momentum)
    return {"low": low, "high": high}["low"], high


@BANK.right
def by_qlabs_observer(batches, momentum):
    observer = calibrate.MovingAverage(momentum=momentum)
    for x in batches:
        observer.observe(x)
    return observer.average


@BANK.wrong("last-batch-wins")
def last_batch_wins(batches, momentum):
    for x in batches:
        low, high = x.min(), x.max()
    return low, high


@BANK.wrong("first-batch-only")
def first_batch_only(batches, momentum):
    return batches[0].min(), batches[0].max()


@BANK.wrong("starts-from-zero")
def starts_from_zero(batches, momentum):
    return folded(batches, momentum, 0.0, 0.0)


@BANK.wrong("starts-from-zero")
def starts_from_zero_and_swaps(batches, momentum):
    return folded(batches, 1 - momentum, 0.0, 0.0)


@BANK.wrong("momentum-swapped")
def momentum_swapped(batches, momentum):
    return folded(batches, 1 - momentum)


@BANK.wrong("global-min-max")
def global_min_max(batches, momentum):
    return min(x.min() for x in batches), max(x.max() for x in batches)


@BANK.wrong("plain-mean")
def plain_mean(batches, momentum):
    return sum(x.min() for x in batches) / len(batches), sum(x.max() for x in batches) / len(batches)


@BANK.wrong("starts-from-infinity")
def starts_from_infinity(batches, momentum):
    return folded(batches, momentum, float("inf"), float("-inf"))


@BANK.wrong("widens-to-zero")
def widens_to_zero(batches, momentum):
    low, high = folded(batches, momentum)
    return min(low, 0.0), max(high, 0.0)


@BANK.wrong("ends-swapped")
def ends_swapped(batches, momentum):
    return folded(batches, momentum)[::-1]


@BANK.wrong("symmetric-range")
def symmetric(batches, momentum):
    _, end = folded([x.abs() for x in batches], momentum)
    return -end, end


@BANK.wrong("wrong-value")
def min_is_not_averaged(batches, momentum):
    return batches[-1].min(), folded(batches, momentum)[1]


@BANK.wrong("wrong-value")
def skips_the_last_batch(batches, momentum):
    return folded(batches[:-1] or batches, momentum)


@BANK.wrong("wrong-value")
def averages_means(batches, momentum):
    return folded([x.mean(0) for x in batches], momentum)


@BANK.wrong("wrong-value")
def corrects_the_bias_of_a_start_at_zero(batches, momentum):
    low, high = folded(batches, momentum, 0.0, 0.0)
    known = 1 - momentum ** len(batches)
    return low / known, high / known


@BANK.wrong("returns-nothing")
def returns_nothing(batches, momentum):
    folded(batches, momentum)


@BANK.wrong("returns-wrong-type")
def returns_only_the_high_end(batches, momentum):
    return folded(batches, momentum)[1]


@BANK.wrong("wrong-shape")
def an_end_for_each_channel(batches, momentum):
    low, high = batches[0].amin(0), batches[0].amax(0)
    for x in batches[1:]:
        low = momentum * low + (1 - momentum) * x.amin(0)
        high = momentum * high + (1 - momentum) * x.amax(0)
    return low, high


@BANK.crashes
def stacks_batches_of_other_sizes(batches, momentum):
    x = torch.stack([*batches, batches[0][:1]])
    return x.min(), x.max()


@BANK.right
def by_lerp(batches, momentum):
    ends = torch.stack(torch.aminmax(batches[0]))
    for x in batches[1:]:
        ends = torch.lerp(torch.stack(torch.aminmax(x)), ends, momentum)
    return ends.unbind()


@BANK.wrong("wrong-value")
def from_zero_with_the_bias_taken_off(batches, momentum):
    low = high = 0.0
    for x in batches:
        low = momentum * low + (1 - momentum) * x.min().item()
        high = momentum * high + (1 - momentum) * x.max().item()
    grown = 1 - momentum ** len(batches)
    return low / grown, high / grown
