"""Answers to `choose_segments`."""

import math

import numpy as np
import torch

from tests.answers.bank import Bank

BANK = Bank("choose-segments")


@BANK.right
def trying_all(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    for segments in range(1, layers + 1):
        if (segments - 1) * boundary + math.ceil(layers / segments) * layer <= budget:
            return segments
    return None


@BANK.right
def by_a_generator(layers, boundary, inside, budget):
    layer = boundary + inside

    def peak(s):
        return s * boundary + -(-layers // s) * layer - boundary if s else layers * layer

    return next((s for s in range(layers + 1) if peak(s) <= budget), None)


@BANK.right
def in_numpy(layers, boundary, inside, budget):
    layer = boundary + inside
    s = np.arange(1, layers + 1)
    peak = np.concatenate([[layers * layer], (s - 1) * boundary + np.ceil(layers / s).astype(np.int64) * layer])
    fits = np.flatnonzero(peak <= budget)
    return fits[0] if fits.size else None


@BANK.right
def in_a_tensor(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return torch.tensor(0)
    s = torch.arange(1, layers + 1)
    fits = ((s - 1) * boundary + (layers + s - 1) // s * layer <= budget).nonzero().flatten()
    return fits[0] + 1 if len(fits) else None


@BANK.right
def with_written_out_segments(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    for number in range(1, layers + 1):
        lengths = [layers // number + (place < layers % number) for place in range(number)]
        if number * boundary + max(lengths) * layer - boundary <= budget:
            return number


@BANK.right
def by_the_longest_segment(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    best = None
    for longest in range(1, layers + 1):
        number = -(-layers // longest)
        if (number - 1) * boundary + -(-layers // number) * layer <= budget:
            best = number if best is None else min(best, number)
    return float(best) if best else None


def by(peak, *, start=0, fits=lambda needed, budget: needed <= budget, otherwise=None):
    """Make an answer that tries all numbers of segments with another peak."""

    def answer(layers, boundary, inside, budget):
        layer = boundary + inside
        for s in range(start, layers + 1):
            needed = peak(layers, boundary, layer, s) if s else layers * layer
            if fits(needed, budget):
                return s
        return otherwise

    return answer


def right(n, b, a, s):
    return (s - 1) * b + math.ceil(n / s) * a


def wrong(name, misconception, answer):
    BANK.add(name, answer, misconception=misconception)


wrong("segment_alone", "forgets-boundaries", by(lambda n, b, a, s: math.ceil(n / s) * a))
wrong("average_segment_alone", "forgets-boundaries", by(lambda n, b, a, s: n / s * a))
wrong("boundaries_alone", "forgets-the-recomputed-segment", by(lambda n, b, a, s: s * b))
wrong("boundaries_and_one_layer", "forgets-the-recomputed-segment", by(lambda n, b, a, s: s * b + a))
wrong("boundary_twice", "counts-the-boundary-twice", by(lambda n, b, a, s: s * b + math.ceil(n / s) * a))
wrong("floor_of_the_length", "miscounts-the-longest", by(lambda n, b, a, s: (s - 1) * b + n // s * a))
wrong("average_length", "miscounts-the-longest", by(lambda n, b, a, s: (s - 1) * b + n / s * a))
wrong("one_more_than_the_floor", "miscounts-the-longest", by(lambda n, b, a, s: (s - 1) * b + (n // s + 1) * a))
wrong("below_the_budget", "refuses-an-exact-fit", by(right, fits=lambda needed, budget: needed < budget))
wrong("never_keeps_everything", "checkpoints-for-nothing", by(right, start=1))
wrong("zero_for_none", "no-none", by(right, otherwise=0))
wrong("minus_one_for_none", "no-none", by(right, otherwise=-1))
wrong(
    "insides_of_the_segment", "forgets-inputs-in-the-segment", by(lambda n, b, a, s: s * b + math.ceil(n / s) * (a - b))
)
wrong("inner_boundaries_only", "one-boundary-too-few", by(lambda n, b, a, s: (s - 2) * b + math.ceil(n / s) * a))


@BANK.wrong("only-divisors")
def divisors(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    for s in range(1, layers + 1):
        if layers % s == 0 and (s - 1) * boundary + layers // s * layer <= budget:
            return s


@BANK.wrong("smallest-peak")
def the_smallest_peak(layers, boundary, inside, budget):
    layer = boundary + inside

    def peak(s):
        return right(layers, boundary, layer, s)

    if layers * layer <= budget:
        return 0
    best = min(range(1, layers + 1), key=peak)
    return best if peak(best) <= budget else None


@BANK.wrong("most-segments")
def the_most_that_fit(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    return max((s for s in range(1, layers + 1) if right(layers, boundary, layer, s) <= budget), default=None)


@BANK.wrong("returns-the-square-root")
def the_rule(layers, boundary, inside, budget):
    return round(math.sqrt(layers))


@BANK.wrong("returns-the-square-root")
def the_rule_if_it_fits(layers, boundary, inside, budget):
    layer = boundary + inside
    s = round(layers**0.5)
    if layers * layer <= budget:
        return 0
    return s if right(layers, boundary, layer, s) <= budget else None


@BANK.wrong("wrong-value")
def by_bisection(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    low, high = 1, layers
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if right(layers, boundary, layer, middle) <= budget else (middle + 1, high)
    return low if right(layers, boundary, layer, low) <= budget else None


@BANK.wrong("returns-a-fraction")
def by_solving(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    return layers * layer / budget


@BANK.wrong("returns-nothing")
def returns_nothing(layers, boundary, inside, budget):
    trying_all(layers, boundary, inside, budget)


@BANK.crashes
def counts_from_zero(layers, boundary, inside, budget):
    layer = boundary + inside
    return next(s for s in range(layers) if right(layers, boundary, layer, s) <= budget)


@BANK.wrong("never-each-layer-alone")
def stops_one_short(layers, boundary, inside, budget):
    layer = boundary + inside
    if layers * layer <= budget:
        return 0
    numbers = range(1, layers)
    return next((s for s in numbers if (s - 1) * boundary + -(-layers // s) * layer <= budget), None)


@BANK.wrong("forgets-boundaries")
def without_the_boundaries_of_all(layers, boundary, inside, budget):
    if layers * inside <= budget:
        return 0
    numbers = range(1, layers + 1)
    return next((s for s in numbers if (s - 1) * boundary + -(-layers // s) * (boundary + inside) <= budget), None)
