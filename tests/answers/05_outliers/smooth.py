"""Answers to `smoothing_scales` and `smooth`."""

import numpy as np
import torch

from qlab import outliers
from tests.answers.bank import Answer, Bank

BANK = Bank("smooth")
SMALLEST = 1e-5


def scales(activation_absmax, weights, alpha):
    weight_absmax = torch.cat(list(weights)).abs().amax(0).clamp(min=SMALLEST)
    return activation_absmax.clamp(min=SMALLEST) ** alpha / weight_absmax ** (1 - alpha)


def smooth(gain, weights, activation_absmax, alpha):
    s = scales(activation_absmax, weights, alpha)
    return gain / s, [weight * s for weight in weights]


def smoothed_with(make_scales):
    """Return `smooth` built on other scales."""

    def smooth_with_them(gain, weights, activation_absmax, alpha):
        s = make_scales(activation_absmax, weights, alpha)
        return gain / s, [weight * s for weight in weights]

    return smooth_with_them


BANK.add("as_the_task_says", scales, smooth)


def scales_by_qlab(activation_absmax, weights, alpha):
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    return outliers.smoothing_scales(activation_absmax, largest, alpha=alpha)


def folded_by_qlab(gain, weights, activation_absmax, alpha):
    norm = torch.nn.RMSNorm(len(gain))
    readers = [
        torch.nn.utils.skip_init(torch.nn.Linear, weight.shape[1], len(weight), bias=False) for weight in weights
    ]
    with torch.no_grad():
        norm.weight.copy_(gain)
        for reader, weight in zip(readers, weights, strict=True):
            reader.weight.copy_(weight)
    place = outliers.NormWithReaders("norm", norm, tuple(readers))
    outliers.divide_channels(place, scales_by_qlab(activation_absmax, weights, alpha))
    return norm.weight, [reader.weight for reader in readers]


BANK.add("by_qlab", scales_by_qlab, folded_by_qlab)


def scales_by_logarithms(activation_absmax, weights, alpha):
    largest = torch.stack([weight.abs().max(dim=0).values for weight in weights]).max(dim=0).values
    return torch.exp(alpha * torch.log(activation_absmax + 1e-12) - (1 - alpha) * torch.log(largest + 1e-12))


BANK.add("by_logarithms", scales_by_logarithms, smoothed_with(scales_by_logarithms))


def scales_in_numpy(activation_absmax, weights, alpha):
    largest = np.abs(np.concatenate([weight.numpy() for weight in weights])).max(axis=0).astype(np.float64)
    a = activation_absmax.numpy().astype(np.float64)
    s = np.ones_like(a)
    used = (a > 0) & (largest > 0)
    s[used] = a[used] ** alpha / largest[used] ** (1 - alpha)
    return s


def folded_in_numpy(gain, weights, activation_absmax, alpha):
    s = scales_in_numpy(activation_absmax, weights, alpha)
    return (gain.numpy() / s).tolist(), tuple((weight.numpy() * s).tolist() for weight in weights)


BANK.add("in_numpy_as_lists", scales_in_numpy, folded_in_numpy)


def in_place(gain, weights, activation_absmax, alpha):
    s = scales(activation_absmax, weights, alpha)
    gain /= s
    for weight in weights:
        weight.mul_(s)
    return [gain, weights]


def channel_by_channel(activation_absmax, weights, alpha):
    s = []
    for j in range(len(activation_absmax)):
        largest = max(weight[:, j].abs().max().item() for weight in weights)
        s.append(max(activation_absmax[j].item(), 1e-5) ** alpha / max(largest, 1e-5) ** (1 - alpha))
    return s


BANK.add("channel_by_channel_and_in_place", channel_by_channel, in_place)


def by_the_inverse(gain, weights, activation_absmax, alpha):
    inverse = 1 / scales(activation_absmax, weights, alpha)
    return gain * inverse, [weight @ torch.diag(1 / inverse) for weight in weights]


BANK.add("by_the_inverse", scales, by_the_inverse)


def not_folded_gain(gain, weights, activation_absmax, alpha):
    return gain, smooth(gain, weights, activation_absmax, alpha)[1]


BANK.add("weights_only", scales, not_folded_gain, misconception="not-folded")


def not_folded_weights(gain, weights, activation_absmax, alpha):
    return smooth(gain, weights, activation_absmax, alpha)[0], weights


BANK.add("gain_only", scales, not_folded_weights, misconception="not-folded")
BANK.add("nothing_at_all", scales, lambda gain, weights, *_: (gain, weights), misconception="smooths-nothing")


def reversed_scales(activation_absmax, weights, alpha):
    return scales(activation_absmax, weights, 1 - alpha)


BANK.add("alpha_reversed", reversed_scales, smoothed_with(reversed_scales), misconception="alpha-reversed")
BANK.add("alpha_reversed_in_the_fold_only", scales, smoothed_with(reversed_scales), misconception="alpha-reversed")


def own_scales(gain, weights, activation_absmax, alpha):
    own = [scales(activation_absmax, [weight], alpha) for weight in weights]
    return gain / own[0], [weight * s for weight, s in zip(weights, own, strict=True)]


BANK.add("a_scale_for_each_reader", scales, own_scales, misconception="a-scale-for-each-reader")


def own_scales_one_after_another(gain, weights, activation_absmax, alpha):
    for i, weight in enumerate(weights):
        s = scales(activation_absmax, [weight], alpha)
        gain, weights[i] = gain / s, weight * s
    return gain, weights


BANK.add("the_gain_divided_for_each", scales, own_scales_one_after_another, misconception="a-scale-for-each-reader")


def first_reader(activation_absmax, weights, alpha):
    return scales(activation_absmax, weights[:1], alpha)


BANK.add("the_first_readers_maximum", first_reader, smoothed_with(first_reader), misconception="max-of-one-reader")


def mean_of_scales(activation_absmax, weights, alpha):
    return torch.stack([scales(activation_absmax, [weight], alpha) for weight in weights]).mean(0)


BANK.add("mean_of_scales", mean_of_scales, smoothed_with(mean_of_scales), misconception="joins-scales-of-readers")


def across(activation_absmax, weights, alpha):
    largest = torch.stack([weight.abs().amax(1) for weight in weights]).amax(0).clamp(min=SMALLEST)
    return activation_absmax.clamp(min=SMALLEST) ** alpha / largest ** (1 - alpha)


BANK.add("rows_maximum", across, smoothed_with(across), misconception="max-over-the-wrong-axis")


def signed(activation_absmax, weights, alpha):
    return activation_absmax**alpha / torch.cat(weights).amax(0) ** (1 - alpha)


BANK.add("without_magnitudes", signed, smoothed_with(signed), misconception="forgets-the-sign")


def divides_the_weights(gain, weights, activation_absmax, alpha):
    s = scales(activation_absmax, weights, alpha)
    return gain * s, [weight / s for weight in weights]


BANK.add("the_wrong_way_round", scales, divides_the_weights, misconception="smooths-the-wrong-way")


def divides_everything(gain, weights, activation_absmax, alpha):
    s = scales(activation_absmax, weights, alpha)
    return gain / s, [weight / s for weight in weights]


BANK.add("both_divided", scales, divides_everything, misconception="divides-both")


def rows_scaled(gain, weights, activation_absmax, alpha):
    s = scales(activation_absmax, weights, alpha)
    return gain / s, [weight * s[:, None] for weight in weights]


BANK.add("rows_scaled", scales, rows_scaled, misconception="rows-instead-of-columns")


def first_reader_only(gain, weights, activation_absmax, alpha):
    s = scales(activation_absmax, weights, alpha)
    return gain / s, [weights[0] * s, *weights[1:]]


BANK.add("only_one_reader_scaled", scales, first_reader_only, misconception="forgets-a-reader")


def without_a_clamp(activation_absmax, weights, alpha):
    return activation_absmax**alpha / torch.cat(weights).abs().amax(0) ** (1 - alpha)


BANK.add("no_clamp", without_a_clamp, smoothed_with(without_a_clamp), misconception="divides-by-zero")


def half(activation_absmax, weights, alpha):
    return scales(activation_absmax, weights, 0.5)


BANK.add("always_one_half", half, smoothed_with(half), misconception="ignores-alpha")


def upside_down(activation_absmax, weights, alpha):
    return 1 / scales(activation_absmax, weights, alpha)


BANK.add("upside_down", upside_down, smoothed_with(upside_down), misconception="inverse-scales")


def one_power(activation_absmax, weights, alpha):
    return (activation_absmax / torch.cat(weights).abs().amax(0).clamp(min=SMALLEST)) ** alpha


BANK.add("one_power_for_both", one_power, smoothed_with(one_power), misconception="same-power-twice")


def large_epsilon(activation_absmax, weights, alpha):
    return scales(activation_absmax + 0.01, weights, alpha)


BANK.add("an_epsilon_of_a_hundredth", large_epsilon, smoothed_with(large_epsilon), misconception="wrong-value")
BANK.add("returns_nothing", lambda *_: None, lambda *_: None, misconception="returns-nothing")
BANK.add("returns_the_scales", scales, lambda g, w, a, alpha: scales(a, w, alpha), misconception="returns-wrong-type")


def multiplies_a_list(gain, weights, activation_absmax, alpha):
    return gain, weights * scales(activation_absmax, weights, alpha)


BANK.answers.append(Answer("smooth", "multiplies_a_list", (scales, multiplies_a_list), outcome="crashed"))
