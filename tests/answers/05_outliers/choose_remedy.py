"""Answers to `choose_remedy`."""

import math

import numpy as np

from tests.answers.bank import Bank

BANK = Bank("choose-remedy")


def affordable(measured, budget_bits, budget_ms):
    return [m for m in measured if m[1] + m[2] <= budget_bits and m[3] <= budget_ms]


def cheapest(rows):
    return min(rows, key=lambda m: (m[1] + m[2], m[3]))[0]


@BANK.right
def in_four_steps(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    if not fitting:
        return None
    best = min(fitting, key=lambda m: m[4])
    good = [m for m in fitting if m[4] - best[4] <= 2 * math.sqrt(m[5] ** 2 + best[5] ** 2)]
    return cheapest(good)


@BANK.right
def by_sorting(measured, budget_bits, budget_ms):
    rows = sorted((code + other, ms, loss, error, name) for name, code, other, ms, loss, error in measured)
    rows = [row for row in rows if row[0] <= budget_bits and row[1] <= budget_ms]
    for _, _, loss, error, name in rows:
        _, _, least, its_error, _ = min(rows, key=lambda row: row[2])
        if loss - least <= 2 * math.hypot(error, its_error):
            return name
    return None


@BANK.right
def in_numpy(measured, budget_bits, budget_ms):
    names = np.array([m[0] for m in measured])
    code, other, ms, loss, error = np.array([m[1:] for m in measured], dtype=float).T
    bits = code + other
    fits = (bits <= budget_bits) & (ms <= budget_ms)
    if not fits.any():
        return None
    best = np.where(fits, loss, np.inf).argmin()
    good = fits & (loss - loss[best] <= 2 * np.sqrt(error**2 + error[best] ** 2))
    order = np.lexsort((ms, bits))
    return names[order][good[order]][0]


@BANK.right
def by_a_loop(measured, budget_bits, budget_ms):
    best = None
    for m in measured:
        if m[1] + m[2] > budget_bits or m[3] > budget_ms:
            continue
        if best is None or m[4] < best[4]:
            best = m
    chosen = best
    for m in measured:
        if m[1] + m[2] > budget_bits or m[3] > budget_ms:
            continue
        near = (m[4] - best[4]) ** 2 <= 4 * (m[5] ** 2 + best[5] ** 2)
        if near and (m[1] + m[2], m[3]) < (chosen[1] + chosen[2], chosen[3]):
            chosen = m
    return chosen and chosen[0]


def choose(fitting, near):
    if not fitting:
        return None
    best = min(fitting, key=lambda m: m[4])
    return cheapest([m for m in fitting if near(m, best)])


def close(m, best):
    return m[4] - best[4] <= 2 * math.hypot(m[5], best[5])


@BANK.wrong("ignores-the-bits")
def without_budgets(measured, budget_bits, budget_ms):
    return choose(measured, close)


@BANK.wrong("counts-codes-only")
def codes_only(measured, budget_bits, budget_ms):
    return choose([m for m in measured if m[1] <= budget_bits and m[3] <= budget_ms], close)


@BANK.wrong("ignores-extra-work")
def bits_only(measured, budget_bits, budget_ms):
    return choose([m for m in measured if m[1] + m[2] <= budget_bits], close)


@BANK.wrong("ignores-the-bits")
def work_only(measured, budget_bits, budget_ms):
    return choose([m for m in measured if m[3] <= budget_ms], close)


@BANK.wrong("smallest-loss-within-noise")
def smallest_loss(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return min(fitting, key=lambda m: m[4])[0] if fitting else None


@BANK.wrong("cheapest-of-all")
def the_cheapest(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return cheapest(fitting) if fitting else None


@BANK.wrong("best-is-not-affordable")
def compared_with_the_best_of_all(measured, budget_bits, budget_ms):
    best = min(measured, key=lambda m: m[4])
    good = [m for m in affordable(measured, budget_bits, budget_ms) if close(m, best)]
    return cheapest(good) if good else None


@BANK.wrong("adds-standard-errors")
def errors_added(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return choose(fitting, lambda m, best: m[4] - best[4] <= 2 * (m[5] + best[5]))


@BANK.wrong("one-standard-error")
def one_standard_error(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return choose(fitting, lambda m, best: m[4] - best[4] <= math.hypot(m[5], best[5]))


@BANK.wrong("one-error-only")
def the_bests_error(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return choose(fitting, lambda m, best: m[4] - best[4] <= 2 * best[5])


@BANK.wrong("excludes-a-full-budget")
def strictly_below(measured, budget_bits, budget_ms):
    return choose([m for m in measured if m[1] + m[2] < budget_bits and m[3] < budget_ms], close)


@BANK.wrong("ties-by-order")
def the_first_of_equal_bits(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    if not fitting:
        return None
    best = min(fitting, key=lambda m: m[4])
    return min((m for m in fitting if close(m, best)), key=lambda m: m[1] + m[2])[0]


@BANK.wrong("work-before-bits")
def least_work(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    if not fitting:
        return None
    best = min(fitting, key=lambda m: m[4])
    return min((m for m in fitting if close(m, best)), key=lambda m: (m[3], m[1] + m[2]))[0]


@BANK.wrong("wrong-value")
def the_first_that_fits(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return fitting[0][0] if fitting else None


@BANK.wrong("returns-wrong-type")
def the_whole_row(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    return min(fitting, key=lambda m: m[4]) if fitting else None


@BANK.wrong("not-a-name")
def a_word_where_nothing_fits(measured, budget_bits, budget_ms):
    return in_four_steps(measured, budget_bits, budget_ms) or "no remedy"


@BANK.wrong("returns-nothing")
def forgets_to_return(measured, budget_bits, budget_ms):
    in_four_steps(measured, budget_bits, budget_ms)


@BANK.crashes
def minimum_of_nothing(measured, budget_bits, budget_ms):
    fitting = affordable(measured, budget_bits, budget_ms)
    best = min(fitting, key=lambda m: m[4])
    return cheapest([m for m in fitting if close(m, best)])
