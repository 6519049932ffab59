"""Answers to `correct_bias` and `equalize`."""

import copy

import numpy as np
import torch
from torch import nn

from qlab import calibrate
from tests.answers.bank import Answer, Bank

BANK = Bank("repairs")


def correct_bias(weight, rounded_weight, bias, inputs):
    return bias + (weight - rounded_weight) @ inputs.mean(0)


def ranges(first, second):
    return first.abs().amax(1), second.abs().amax(0)


def divisor_of(first, second):
    rows, columns = ranges(first, second)
    return torch.where((rows > 0) & (columns > 0), (rows / columns).sqrt(), 1.0)


def by(divisor):
    """Equalize by what `divisor(first, second)` gives for each channel."""

    def equalize(first, second):
        d = divisor(first, second)
        return first / d[:, None], second * d

    return equalize


equalize = by(divisor_of)
BANK.add("as_in_the_lab", correct_bias, equalize)


def by_two_means(weight, rounded_weight, bias, inputs):
    exact = nn.functional.linear(inputs, weight, bias).mean(0)
    return bias + exact - nn.functional.linear(inputs, rounded_weight, bias).mean(0)


def to_one_range(first, second):
    rows, columns = ranges(first, second)
    both = (rows * columns).sqrt()
    return first * (both / rows.clamp(min=1e-12))[:, None], second * (both / columns.clamp(min=1e-12))


def bias_by_loop(weight, rounded_weight, bias, inputs):
    result = []
    for w, q, b in zip(weight, rounded_weight, bias, strict=True):
        result.append(b.item() + sum(((w - q) * x).sum().item() for x in inputs) / len(inputs))
    return result


def by_loop(first, second):
    first, second = first.clone(), second.clone()
    for channel in range(len(first)):
        row, column = first[channel].abs().max().item(), second[:, channel].abs().max().item()
        if row and column:
            first[channel] /= (row / column) ** 0.5
            second[:, channel] *= (row / column) ** 0.5
    return [first, second]


def bias_in_numpy(weight, rounded_weight, bias, inputs):
    return bias.numpy() + np.einsum("oi,i->o", (weight - rounded_weight).numpy(), inputs.numpy().mean(axis=0))


def in_numpy(first, second):
    first, second = first.numpy(), second.numpy()
    rows, columns = np.abs(first).max(1) + 1e-12, np.abs(second).max(0) + 1e-12
    return first * np.sqrt(columns / rows)[:, None], second * np.sqrt(rows / columns)


def bias_in_double(weight, rounded_weight, bias, inputs):
    return correct_bias(weight.double(), rounded_weight.double(), bias.double(), inputs.double())


def with_diagonal_matrices(first, second):
    d = divisor_of(first.double(), second.double())
    return torch.diag(1 / d) @ first.double(), second.double() @ torch.diag(d)


def bias_in_place(weight, rounded_weight, bias, inputs):
    return bias.add_(weight.sub_(rounded_weight).mv(inputs.mean(dim=0)))


def in_place(first, second):
    d = divisor_of(first, second)
    first.div_(d.unsqueeze(1))
    second.mul_(d)
    return first, second


def bias_of_qlab(weight, rounded_weight, bias, inputs):
    return bias + calibrate.bias_correction(weight, rounded_weight, inputs.mean(0))


def of_qlab(first, second):
    layers = [nn.utils.skip_init(nn.Linear, w.shape[1], w.shape[0], bias=False) for w in (first, second)]
    for layer, weight in zip(layers, (first, second), strict=True):
        layer.weight.data.copy_(weight)
    calibrate.equalize(*layers)
    return layers[0].weight, layers[1].weight


def many_small_steps(first, second):
    for _ in range(60):
        d = divisor_of(first, second) ** 0.5
        first, second = first / d[:, None], second * d
    return first, second


BANK.add("by_two_means", by_two_means, to_one_range)
BANK.add("by_loop", bias_by_loop, by_loop)
BANK.add("in_numpy", bias_in_numpy, in_numpy)
BANK.add("in_double", bias_in_double, with_diagonal_matrices)
BANK.add("in_place", bias_in_place, in_place)
BANK.add("of_qlab", bias_of_qlab, of_qlab)
BANK.add("many_small_steps", correct_bias, many_small_steps)


def wrong_bias(misconception, name, function):
    BANK.add(name, function, equalize, misconception=misconception)


def wrong_equalize(misconception, name, function):
    BANK.add(name, correct_bias, function, misconception=misconception)


wrong_bias("wrong-sign", "bias_minus_the_shift", lambda w, q, b, x: b - (w - q) @ x.mean(0))
wrong_bias("wrong-sign", "bias_plus_what_rounding_added", lambda w, q, b, x: b + (q - w) @ x.mean(0))
wrong_bias("mean-of-magnitudes", "mean_of_magnitudes", lambda w, q, b, x: b + (w - q) @ x.abs().mean(0))
wrong_bias("mean-of-magnitudes", "root_mean_square", lambda w, q, b, x: b + (w - q) @ x.square().mean(0).sqrt())
wrong_bias("mean-of-magnitudes", "error_without_a_sign", lambda w, q, b, x: b + (w - q).abs() @ x.mean(0))
wrong_bias("forgets-the-old-bias", "correction_only", lambda w, q, b, x: (w - q) @ x.mean(0))
wrong_bias("corrects-nothing", "old_bias", lambda w, q, b, x: b)
wrong_bias("sum-over-tokens", "sum_over_tokens", lambda w, q, b, x: b + (w - q) @ x.sum(0))
wrong_bias("corrects-the-whole-output", "whole_output", lambda w, q, b, x: b + w @ x.mean(0))
wrong_bias("corrects-the-whole-output", "rounded_output_taken_off", lambda w, q, b, x: b - q @ x.mean(0))
wrong_bias("one-token", "first_token", lambda w, q, b, x: b + (w - q) @ x[0])
wrong_bias("one-shift-for-all", "one_number", lambda w, q, b, x: b + ((w - q) @ x.mean(0)).mean())
wrong_bias("wrong-value", "median_of_the_inputs", lambda w, q, b, x: b + (w - q) @ x.median(0).values)
wrong_bias("wrong-value", "half_of_it", lambda w, q, b, x: b + (w - q) @ x.mean(0) / 2)
wrong_bias("wrong-shape", "a_correction_for_each_token", lambda w, q, b, x: b + x @ (w - q).T)
wrong_bias("returns-nothing", "bias_printed", lambda w, q, b, x: None)


def rows_over_columns(first, second):
    rows, columns = ranges(first, second)
    return torch.where((rows > 0) & (columns > 0), rows / columns, 1.0)


def one_factor(first, second):
    return (first.abs().max() / second.abs().max()).sqrt().expand(len(first))


def product_of_ranges(first, second):
    rows, columns = ranges(first, second)
    return torch.where((rows > 0) & (columns > 0), rows * columns, 1.0).sqrt()


wrong_equalize("root-missing", "no_root", by(rows_over_columns))
wrong_equalize("root-missing", "root_of_the_product", by(product_of_ranges))
wrong_equalize("one-factor-for-all", "per_tensor", by(one_factor))
wrong_equalize("reversed", "reversed", by(lambda f, s: 1 / divisor_of(f, s)))
wrong_equalize("scales-one-weight-only", "first_only", lambda f, s: (f / divisor_of(f, s)[:, None], s))
wrong_equalize("scales-one-weight-only", "second_only", lambda f, s: (f, s * divisor_of(f, s)))
wrong_equalize("scales-both-alike", "divides_both", lambda f, s: (f / divisor_of(f, s)[:, None], s / divisor_of(f, s)))
wrong_equalize("leaves-both-as-they-are", "leaves_both", lambda f, s: (f, s))
wrong_equalize("leaves-both-as-they-are", "changes_a_copy", lambda f, s: (equalize(f, s), (f, s))[1])
wrong_equalize("evens-one-weight-only", "rows_to_one", by(lambda f, s: f.abs().amax(1).clamp(min=1e-12)))
wrong_equalize("forgets-the-sign", "largest_not_magnitude", by(lambda f, s: (f.amax(1) / s.amax(0)).abs().sqrt()))
wrong_equalize("not-the-range", "means", by(lambda f, s: (f.abs().mean(1) / s.abs().mean(0)).sqrt()))
wrong_equalize("not-the-range", "norms", by(lambda f, s: (f.norm(dim=1) / s.norm(dim=0)).sqrt()))
wrong_equalize("wrong-value", "three_quarters", by(lambda f, s: rows_over_columns(f, s) ** 0.75))
wrong_equalize("wrong-value", "rounds_to_a_power_of_two", by(lambda f, s: 2 ** divisor_of(f, s).log2().round()))


def zeros_divide(first, second):
    rows, columns = ranges(first, second)
    d = (rows / columns).sqrt()
    return first / d[:, None], second * d


def guards_the_column_only(first, second):
    rows, columns = ranges(first, second)
    d = torch.where(columns > 0, rows / columns, 1.0).sqrt()
    return first / d[:, None], second * d


wrong_equalize("divides-by-zero", "zeros_divide", zeros_divide)
wrong_equalize("divides-by-zero", "guards_the_column_only", guards_the_column_only)
wrong_equalize("returns-nothing", "forgets_to_return", lambda f, s: None)
wrong_equalize("returns-wrong-type", "returns_first_only", lambda f, s: equalize(f, s)[0])
wrong_equalize("wrong-shape", "swaps_the_two", lambda f, s: equalize(f, s)[::-1])


def forgets_to_broadcast(first, second):
    return first / divisor_of(first, second), second * divisor_of(first, second)


def with_modules(first, second):
    return copy.deepcopy(first).weight, second


def stub(*_):
    raise NotImplementedError("replace this line with your answer")


BANK.answers += [
    Answer(BANK.exercise, "forgets_to_broadcast", (correct_bias, forgets_to_broadcast), outcome="crashed"),
    Answer(BANK.exercise, "expects_modules", (correct_bias, with_modules), outcome="crashed"),
    Answer(BANK.exercise, "inputs_not_averaged", (lambda w, q, b, x: b + (w - q) @ x, equalize), outcome="crashed"),
    Answer(BANK.exercise, "the_stub", (stub, stub), outcome="empty"),
]
