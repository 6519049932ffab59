"""Answers to `largest_batch`."""

import math
from bisect import bisect_right
from itertools import count, takewhile

import numpy as np
import torch

from tests.answers.bank import Bank

BANK = Bank("largest-batch")


def peak(batch, lasting, gradients, sequence, layer):
    return lasting + max(batch * sequence, gradients + batch * layer)


@BANK.right
def by_division(budget, lasting, gradients, sequence, layer):
    return max(0, min((budget - lasting) // sequence, (budget - lasting - gradients) // layer))


@BANK.right
def by_trying(budget, lasting, gradients, sequence, layer):
    batch = 0
    while peak(batch + 1, lasting, gradients, sequence, layer) <= budget:
        batch += 1
    return batch


@BANK.right
def by_bisection(budget, lasting, gradients, sequence, layer):
    peaks = range(1, 1 + max(1, budget // sequence))
    return bisect_right(peaks, budget, key=lambda batch: peak(batch, lasting, gradients, sequence, layer))


@BANK.right
def from_a_numpy_table(budget, lasting, gradients, sequence, layer):
    batches = np.arange(1, 1000)
    return (lasting + np.maximum(batches * sequence, gradients + batches * layer) <= budget).sum()


@BANK.right
def with_floats(budget, lasting, gradients, sequence, layer):
    at_start, at_end = (budget - lasting) / sequence, (budget - lasting - gradients) / layer
    return torch.tensor(max(math.floor(min(at_start, at_end)), 0))


@BANK.right
def by_recursion(budget, lasting, gradients, sequence, layer):
    def from_here(batch):
        fits = peak(batch, lasting, gradients, sequence, layer) <= budget
        return from_here(batch + 1) if fits else batch - 1

    return from_here(1)


@BANK.right
def by_counting_what_fits(budget, lasting, gradients, sequence, layer):
    fits = takewhile(lambda batch: peak(batch, lasting, gradients, sequence, layer) <= budget, count(1))
    return [sum(1 for _ in fits)]


@BANK.wrong("adds-what-never-meets")
def gradients_beside_all_activations(budget, lasting, gradients, sequence, layer):
    return max(0, (budget - lasting - gradients) // sequence)


@BANK.wrong("adds-what-never-meets")
def everything_at_once(budget, lasting, gradients, sequence, layer):
    return max(0, (budget - lasting - gradients) // (sequence + layer))


@BANK.wrong("forgets-the-gradients")
def only_the_start(budget, lasting, gradients, sequence, layer):
    return max(0, (budget - lasting) // sequence)


@BANK.wrong("forgets-the-activations")
def only_the_end(budget, lasting, gradients, sequence, layer):
    return max(0, (budget - lasting - gradients) // layer)


@BANK.wrong("forgets-the-states")
def no_states(budget, lasting, gradients, sequence, layer):
    return by_division(budget, 0, gradients, sequence, layer)


@BANK.wrong("forgets-the-activations")
def the_larger_of_two(budget, lasting, gradients, sequence, layer):
    return max(0, (budget - lasting) // sequence, (budget - lasting - gradients) // layer)


@BANK.wrong("one-too-many")
def rounded_up(budget, lasting, gradients, sequence, layer):
    return max(0, math.ceil(min((budget - lasting) / sequence, (budget - lasting - gradients) / layer)))


@BANK.wrong("one-too-many")
def the_first_that_does_not_fit(budget, lasting, gradients, sequence, layer):
    return next(b for b in count(1) if peak(b, lasting, gradients, sequence, layer) > budget)


@BANK.wrong("refuses-an-exact-fit")
def strictly_below(budget, lasting, gradients, sequence, layer):
    batch = 0
    while peak(batch + 1, lasting, gradients, sequence, layer) < budget:
        batch += 1
    return batch


@BANK.wrong("one-too-few")
def one_less(budget, lasting, gradients, sequence, layer):
    return max(0, by_division(budget, lasting, gradients, sequence, layer) - 1)


@BANK.wrong("negative-batch")
def may_be_negative(budget, lasting, gradients, sequence, layer):
    return min((budget - lasting) // sequence, (budget - lasting - gradients) // layer)


@BANK.wrong("negative-batch")
def minus_one_where_nothing_fits(budget, lasting, gradients, sequence, layer):
    return by_division(budget, lasting, gradients, sequence, layer) or -1


@BANK.wrong("negative-batch")
def cut_toward_zero(budget, lasting, gradients, sequence, layer):
    return int(min((budget - lasting) / sequence, (budget - lasting - gradients) / layer))


@BANK.wrong("at-least-one")
def at_least_one(budget, lasting, gradients, sequence, layer):
    return max(1, by_division(budget, lasting, gradients, sequence, layer))


@BANK.wrong("only-powers-of-two")
def doubles_until_it_is_full(budget, lasting, gradients, sequence, layer):
    batch = 1
    while peak(2 * batch, lasting, gradients, sequence, layer) <= budget:
        batch *= 2
    return batch if peak(batch, lasting, gradients, sequence, layer) <= budget else 0


@BANK.wrong("returns-a-fraction")
def not_rounded(budget, lasting, gradients, sequence, layer):
    return max(0.0, min((budget - lasting) / sequence, (budget - lasting - gradients) / layer))


@BANK.wrong("wrong-value")
def at_most_eight(budget, lasting, gradients, sequence, layer):
    return min(8, by_division(budget, lasting, gradients, sequence, layer))


@BANK.wrong("wrong-value")
def at_most_a_hundred(budget, lasting, gradients, sequence, layer):
    return min(100, by_division(budget, lasting, gradients, sequence, layer))


@BANK.wrong("forgets-the-gradients")
def gradients_and_one_layer_of_one_sequence(budget, lasting, gradients, sequence, layer):
    return max(0, (budget - lasting) // sequence) if lasting + gradients + layer <= budget else 0


@BANK.wrong("wrong-value")
def always_zero(budget, lasting, gradients, sequence, layer):
    return 0


@BANK.wrong("returns-nothing")
def none_where_nothing_fits(budget, lasting, gradients, sequence, layer):
    return by_division(budget, lasting, gradients, sequence, layer) or None


@BANK.crashes
def refuses_small_budgets(budget, lasting, gradients, sequence, layer):
    assert budget > peak(1, lasting, gradients, sequence, layer)
    return by_division(budget, lasting, gradients, sequence, layer)
