"""Answers to `plant_outliers`."""

import numpy as np
import torch

from qlab import outliers
from tests.answers.bank import Bank

BANK = Bank("plant-outliers")


def factor_of(gain, dimensions, strength):
    factor = torch.ones_like(gain)
    factor[dimensions] = strength
    return factor


@BANK.right
def with_a_factor_for_each_channel(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain * factor, [weight / factor for weight in weights]


@BANK.right
def in_place(gain, weights, dimensions, strength):
    gain[dimensions] *= strength
    for weight in weights:
        weight[:, dimensions] /= strength
    return gain, weights


@BANK.right
def one_dimension_after_another(gain, weights, dimensions, strength):
    gain, weights = gain.clone(), [weight.clone() for weight in weights]
    for j in dimensions.tolist():
        gain[j] = gain[j] * strength
        for weight in weights:
            weight[:, j] = weight[:, j] * (1 / strength)
    return [gain, tuple(weights)]


@BANK.right
def by_qlab(gain, weights, dimensions, strength):
    norm = torch.nn.RMSNorm(len(gain))
    readers = [
        torch.nn.utils.skip_init(torch.nn.Linear, weight.shape[1], len(weight), bias=False) for weight in weights
    ]
    with torch.no_grad():
        norm.weight.copy_(gain)
        for reader, weight in zip(readers, weights, strict=True):
            reader.weight.copy_(weight)
    place = outliers.NormWithReaders("norm", norm, tuple(readers))
    outliers.divide_channels(place, 1 / factor_of(gain, dimensions, strength))
    return norm.weight, [reader.weight for reader in readers]


@BANK.right
def in_numpy(gain, weights, dimensions, strength):
    factor = np.ones(len(gain))
    factor[dimensions.numpy()] = strength
    return gain.numpy() * factor, [weight.numpy() / factor for weight in weights]


@BANK.right
def as_plain_lists(gain, weights, dimensions, strength):
    factor = factor_of(gain.double(), dimensions, strength)
    return (gain * factor).tolist(), [(weight / factor).tolist() for weight in weights]


@BANK.right
def by_a_diagonal_matrix(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return torch.diag(factor) @ gain, [weight @ torch.diag(1 / factor) for weight in weights]


@BANK.right
def transposed_views(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain * factor, tuple((weight.T / factor[:, None]).T for weight in weights)


@BANK.wrong("changes-the-gain-only")
def the_gain_alone(gain, weights, dimensions, strength):
    return gain * factor_of(gain, dimensions, strength), weights


@BANK.wrong("changes-the-weights-only")
def the_weights_alone(gain, weights, dimensions, strength):
    return gain, [weight / factor_of(gain, dimensions, strength) for weight in weights]


@BANK.wrong("forgets-a-reader")
def the_first_reader(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain * factor, [weights[0] / factor, *weights[1:]]


@BANK.wrong("forgets-a-reader")
def all_but_the_last_of_several(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    count = max(1, len(weights) - 1)
    return gain * factor, [weight / factor for weight in weights[:count]] + weights[count:]


@BANK.wrong("rows-instead-of-columns")
def rows(gain, weights, dimensions, strength):
    for weight in weights:
        weight[dimensions] /= strength
    return gain * factor_of(gain, dimensions, strength), weights


@BANK.wrong("divides-both")
def both_divided(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain / factor, [weight / factor for weight in weights]


@BANK.wrong("multiplies-both")
def both_multiplied(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain * factor, [weight * factor for weight in weights]


@BANK.wrong("plants-the-inverse")
def the_other_way_round(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain / factor, [weight * factor for weight in weights]


@BANK.wrong("plants-every-dimension")
def all_channels(gain, weights, dimensions, strength):
    return gain * strength, [weight / strength for weight in weights]


@BANK.wrong("multiplies-the-gain-for-each-reader")
def the_gain_inside_the_loop(gain, weights, dimensions, strength):
    for weight in weights:
        gain[dimensions] *= strength
        weight[:, dimensions] /= strength
    return gain, weights


@BANK.wrong("replaces-the-gain")
def the_gain_set(gain, weights, dimensions, strength):
    divided = [weight / factor_of(gain, dimensions, strength) for weight in weights]
    gain[dimensions] = strength
    return gain, divided


@BANK.wrong("plants-the-first-only")
def the_first_dimension(gain, weights, dimensions, strength):
    return with_a_factor_for_each_channel(gain, weights, dimensions[:1], strength)


@BANK.wrong("plants-nothing")
def unchanged(gain, weights, dimensions, strength):
    return gain, weights


@BANK.wrong("changes-the-function")
def the_root_of_the_strength(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain * factor, [weight / factor.sqrt() for weight in weights]


@BANK.wrong("changes-the-function")
def weights_in_bfloat16(gain, weights, dimensions, strength):
    factor = factor_of(gain, dimensions, strength)
    return gain * factor, [(weight / factor).bfloat16() for weight in weights]


@BANK.wrong("wrong-value")
def twice_as_strong_in_both(gain, weights, dimensions, strength):
    return with_a_factor_for_each_channel(gain, weights, dimensions, 2 * strength)


@BANK.wrong("returns-wrong-type")
def the_weights_without_the_gain(gain, weights, dimensions, strength):
    return [weight / factor_of(gain, dimensions, strength) for weight in weights]


@BANK.wrong("wrong-shape")
def only_the_planted_channels(gain, weights, dimensions, strength):
    return gain[dimensions] * strength, [weight[:, dimensions] / strength for weight in weights]


@BANK.wrong("returns-nothing")
def forgets_to_return(gain, weights, dimensions, strength):
    gain[dimensions] *= strength


@BANK.crashes
def divides_the_list(gain, weights, dimensions, strength):
    return gain, weights / strength
