"""Answers to `update_lost` and `largest_useful_rank`, exercise `lossless_merge`."""

import math

import numpy as np
import torch

from tests.answers.bank import Answer, Bank

BANK = Bank("lossless-merge")


def lost(base, update, quantize):
    merged = base + update
    return ((quantize(merged) - merged).norm() / update.norm()).item()


def rank(out, inputs):
    return (out * inputs - 1) // (out + inputs)


BANK.add("by_norms", lost, rank)


def in_numpy(base, update, quantize):
    merged = (base + update).clone()
    error = quantize(merged).double().numpy() - merged.double().numpy()
    return np.sqrt((error**2).sum() / (update.double().numpy() ** 2).sum())


def by_trying(out, inputs):
    found = 0
    for one in range(1, min(out, inputs) + 1):
        if one * (out + inputs) < out * inputs:
            found = one
    return found


BANK.add("in_numpy_and_by_trying", in_numpy, by_trying)


def as_a_tensor(base, update, quantize):
    error = torch.sub(quantize(base + update), base).sub_(update)
    return torch.linalg.matrix_norm(error) / torch.linalg.matrix_norm(update)


def rounded_up_less_one(out, inputs):
    return math.ceil(out * inputs / (out + inputs)) - 1


BANK.add("as_a_tensor", as_a_tensor, rounded_up_less_one)


def in_fp64(base, update, quantize):
    merged = base.double() + update.double()
    rest = quantize(merged.float()).double() - merged
    return rest.square().mean().sqrt() / update.double().square().mean().sqrt()


def downwards(out, inputs):
    one = min(out, inputs)
    while one * (out + inputs) >= out * inputs:
        one -= 1
    return torch.tensor(one)


BANK.add("in_fp64_and_downwards", in_fp64, downwards)


def row_by_row(base, update, quantize):
    merged = base + update
    error = sum(((r - m) ** 2).sum().item() for r, m in zip(quantize(merged), merged, strict=True))
    return math.sqrt(error) / math.sqrt(sum((row**2).sum().item() for row in update))


BANK.add("row_by_row", row_by_row, rank)


def wrong(name, misconception, answer):
    BANK.add(name, answer, rank, misconception=misconception)


def norm(values):
    return values.double().norm().item()


wrong("over_the_weight", "relative-to-the-weight", lambda w, u, q: norm(q(w + u) - w - u) / norm(w + u))
wrong("over_the_base", "relative-to-the-weight", lambda w, u, q: norm(q(w + u) - w - u) / norm(w))
wrong("merges_and_stops", "forgets-to-requantize", lambda w, u, q: norm((w + u) - (w + u)) / norm(u))
wrong("takes_away_what_was_added", "forgets-to-requantize", lambda w, u, q: norm(w + u - w - u) / norm(u))
wrong("codes_of_the_base_too", "quantizes-the-base-too", lambda w, u, q: norm(q(w + u) - q(w) - u) / norm(u))
wrong("says_lossless", "forgets-to-requantize", lambda w, u, q: 0.0)
wrong("from_the_base", "compares-with-the-base", lambda w, u, q: norm(q(w + u) - w) / norm(u))
wrong("update_alone", "quantizes-the-update-alone", lambda w, u, q: norm(q(u) - u) / norm(u))
wrong("squares", "forgets-the-root", lambda w, u, q: (norm(q(w + u) - w - u) / norm(u)) ** 2)
wrong("means", "mean-for-norm", lambda w, u, q: ((q(w + u) - w - u).abs().mean() / u.abs().mean()).item())
wrong("largest", "largest-for-norm", lambda w, u, q: ((q(w + u) - w - u).abs().max() / u.abs().max()).item())
wrong("in_units_of_the_weight", "not-relative", lambda w, u, q: norm(q(w + u) - w - u))
wrong("turned", "upside-down", lambda w, u, q: norm(u) / norm(q(w + u) - w - u))
wrong("one_less", "share-that-survives", lambda w, u, q: 1 - lost(w, u, q))
wrong("in_percent", "wrong-value", lambda w, u, q: 100 * lost(w, u, q))
wrong("update_taken_away", "wrong-value", lambda w, u, q: lost(w, -u, q) * 1.01)
wrong("nothing", "returns-nothing", lambda w, u, q: None)
wrong("a_matrix", "wrong-shape", lambda w, u, q: (q(w + u) - w - u) / u.norm())


def ranked(name, misconception, answer):
    BANK.add(name, lost, answer, misconception=misconception)


ranked("with_equality", "saves-nothing-at-equality", lambda out, inputs: out * inputs // (out + inputs))
ranked("smaller_side", "one-matrix-only", min)
ranked("half_of_the_smaller_side", "half-the-smaller-side", lambda out, inputs: min(out, inputs) // 2)
ranked("up", "rounds-up", lambda out, inputs: math.ceil(out * inputs / (out + inputs)))
ranked("a_fraction", "not-whole", lambda out, inputs: out * inputs / (out + inputs))
ranked("one_too_few", "one-too-few", lambda out, inputs: out * inputs // (out + inputs) - 1)
ranked("no_less_than_one", "at-least-one", lambda out, inputs: max(1, rank(out, inputs)))
ranked("first_that_does_not", "rounds-up", lambda out, inputs: rank(out, inputs) + 1)
ranked("no_rank", "returns-nothing", lambda out, inputs: None)
ranked("another_formula", "wrong-value", lambda out, inputs: out * inputs // (2 * out + inputs))


def without_a_quantizer(base, update, quantize):
    return quantize.quantize(base + update)


BANK.answers.append(Answer(BANK.exercise, "without_a_quantizer", (without_a_quantizer, rank), outcome="crashed"))
BANK.answers.append(
    Answer(BANK.exercise, "size_of_a_number", (lost, lambda out, inputs: out.size(inputs)), outcome="crashed")
)
