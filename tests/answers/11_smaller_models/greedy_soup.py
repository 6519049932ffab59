"""Answers to `greedy_soup`, exercise `greedy_soup`."""

import torch

from qlab import soups
from tests.answers.bank import Bank

BANK = Bank("greedy-soup")


def mean(states):
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


@BANK.right
def by_qlab(states, held_out, test):
    soup, _ = soups.greedy_soup(states, held_out)
    return soup, test(soup)


@BANK.right
def list_of_ingredients(states, held_out, test):
    ranked = sorted(states, key=held_out, reverse=True)
    chosen = [ranked[0]]
    for state in ranked[1:]:
        if held_out(mean([*chosen, state])) >= held_out(mean(chosen)):
            chosen.append(state)
    soup = mean(chosen)
    return soup, test(soup)


@BANK.right
def running_mean_in_double(states, held_out, test):
    scores = [held_out(state) for state in states]
    order = sorted(range(len(states)), key=lambda i: -scores[i])
    soup, count, best = {k: v.double() for k, v in states[order[0]].items()}, 1, scores[order[0]]
    for i in order[1:]:
        trial = {k: (v * count + states[i][k].double()) / (count + 1) for k, v in soup.items()}
        if (score := held_out(trial)) >= best:
            soup, count, best = trial, count + 1, score
    return [{k: v.float() for k, v in soup.items()}, torch.tensor(test(soup))]


@BANK.right
def sums_kept(states, held_out, test):
    left = list(states)
    left.sort(key=lambda state: -held_out(state))
    first = left.pop(0)
    total, count = {name: tensor.clone() for name, tensor in first.items()}, 1
    while left:
        state = left.pop(0)
        trial = {name: (total[name] + state[name]) / (count + 1) for name in total}
        now = {name: total[name] / count for name in total}
        if not held_out(trial) < held_out(now):
            total, count = {name: total[name] + state[name] for name in total}, count + 1
    soup = {name: total[name] / count for name in total}
    return soup, test(soup)


@BANK.right
def by_recursion(states, held_out, test):
    def cook(chosen, left):
        if not left:
            return mean(chosen)
        with_it = [*chosen, left[0]]
        return cook(with_it if held_out(mean(with_it)) >= held_out(mean(chosen)) else chosen, left[1:])

    ranked = sorted(states, key=held_out)[::-1]
    soup = cook(ranked[:1], ranked[1:])
    return soup, float(test(soup))


def built(*, order=None, keep=None, score=None, report=None):
    """Make an answer: what it orders by, when it keeps a state, and what it reports."""

    def answer(states, held_out, test):
        by = held_out if score is None else score(held_out, test)
        ranked = sorted(states, key=by if order is None else order(held_out, test, states), reverse=True)
        chosen = ranked[:1]
        for state in ranked[1:]:
            a, b = by(mean([*chosen, state])), by(mean(chosen))
            if (a >= b) if keep is None else keep(a, b, by(state), by(ranked[0])):
                chosen.append(state)
        soup = mean(chosen)
        return soup, test(soup) if report is None else report(held_out, test, soup)

    return answer


def place_in(states):
    places = {id(state): -number for number, state in enumerate(states)}
    return lambda state: places[id(state)]


def wrong(name, misconception, **pieces):
    BANK.add(name, built(**pieces), misconception=misconception)


wrong("chosen_by_test", "selects-on-the-test-set", score=lambda h, t: t)
wrong("sorted_by_test", "selects-on-the-test-set", order=lambda h, t, s: t)
wrong("kept_by_test", "selects-on-the-test-set", score=lambda h, t: t, order=lambda h, t, s: h)
wrong("in_the_given_order", "does-not-sort", order=lambda h, t, s: place_in(s))
wrong("worst_first", "worst-first", order=lambda h, t, s: lambda state: -h(state))
wrong("keeps_everything", "keeps-everything", keep=lambda a, b, one, best: True)
wrong("keeps_nothing", "takes-the-best-alone", keep=lambda a, b, one, best: False)
wrong("against_the_first", "compares-with-the-best-alone", keep=lambda a, b, one, best: a >= best)
wrong("against_the_ingredient", "keeps-everything", keep=lambda a, b, one, best: a >= one)
wrong("strictly_better", "refuses-equals", keep=lambda a, b, one, best: a > b)
wrong("as_if_a_loss", "lower-is-better", score=lambda h, t: lambda state: -h(state))
wrong("looks_twice", "reads-the-test-set", report=lambda h, t, soup: (t(soup) + t(soup)) / 2)
wrong("reports_held_out", "reports-the-held-out-score", report=lambda h, t, soup: t(soup) * 0 + h(soup))
wrong("never_tests", "reports-the-held-out-score", report=lambda h, t, soup: h(soup))
wrong("reports_minus", "reports-another-score", report=lambda h, t, soup: -t(soup))


@BANK.wrong("halves-again-and-again")
def halves(states, held_out, test):
    ranked = sorted(states, key=held_out, reverse=True)
    soup = ranked[0]
    for state in ranked[1:]:
        trial = {name: (soup[name] + state[name]) / 2 for name in soup}
        if held_out(trial) >= held_out(soup):
            soup = trial
    return soup, test(soup)


@BANK.wrong("compares-with-the-last-candidate")
def against_the_last_try(states, held_out, test):
    ranked = sorted(states, key=held_out, reverse=True)
    chosen, last = ranked[:1], held_out(ranked[0])
    for state in ranked[1:]:
        score = held_out(mean([*chosen, state]))
        if score >= last:
            chosen.append(state)
        last = score
    soup = mean(chosen)
    return soup, test(soup)


@BANK.wrong("stops-at-the-first-refusal")
def stops(states, held_out, test):
    ranked = sorted(states, key=held_out, reverse=True)
    chosen = ranked[:1]
    for state in ranked[1:]:
        if held_out(mean([*chosen, state])) < held_out(mean(chosen)):
            break
        chosen.append(state)
    soup = mean(chosen)
    return soup, test(soup)


@BANK.wrong("takes-the-best-prefix")
def the_best_prefix(states, held_out, test):
    ranked = sorted(states, key=held_out, reverse=True)
    soup = max((mean(ranked[:held]) for held in range(1, len(ranked) + 1)), key=held_out)
    return soup, test(soup)


@BANK.wrong("reads-the-test-set")
def tests_each_soup_on_the_way(states, held_out, test):
    ranked = sorted(states, key=held_out, reverse=True)
    chosen, scores = ranked[:1], [test(ranked[0])]
    for state in ranked[1:]:
        if held_out(mean([*chosen, state])) >= held_out(mean(chosen)):
            chosen.append(state)
            scores.append(test(mean(chosen)))
    return mean(chosen), scores[-1]


@BANK.wrong("reports-another-score")
def tests_the_best_state(states, held_out, test):
    soup, _ = list_of_ingredients(states, held_out, lambda state: 0.0)
    return soup, test(max(states, key=held_out))


@BANK.wrong("reads-the-test-set")
def watches_the_test_score(states, held_out, test):
    for state in states:
        test(state)
    return list_of_ingredients(states, held_out, test)


@BANK.wrong("changes-the-given-states")
def mixes_into_the_first(states, held_out, test):
    soup, score = list_of_ingredients(states, held_out, test)
    states[0]["weight"].copy_(soup["weight"])
    return soup, score


@BANK.wrong("returns-wrong-type")
def the_soup_alone(states, held_out, test):
    return list_of_ingredients(states, held_out, test)[0]


@BANK.wrong("returns-nothing")
def returns_nothing(states, held_out, test):
    list_of_ingredients(states, held_out, test)


@BANK.crashes
def sorts_dicts(states, held_out, test):
    return sorted(states), 0.0 if len(states) > 1 else sorted([*states, *states])
