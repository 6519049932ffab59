"""Answers to `simulate_schedule`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from qlab.checkpointing import Action, simulate
from tests.answers.bank import Bank

BANK = Bank("simulate-schedule")


@BANK.right
def by_qlab(schedule, boundary, inside):
    timeline = simulate(tuple(Action(*step) for step in schedule), boundary=boundary, inside=inside)
    return timeline.peak_units, timeline.forwards - timeline.layers


@BANK.right
def with_two_sets(schedule, boundary, inside):
    boundaries, insides, peak, runs = set(), set(), 0, 0
    for kind, layer, keep in schedule:
        if kind == "backward":
            boundaries.discard(layer)
            insides.discard(layer)
            continue
        runs += 1
        if keep or kind == "record":
            boundaries.add(layer)
        if kind == "record":
            insides.add(layer)
        peak = max(peak, len(boundaries) * boundary + len(insides) * inside)
    return peak, runs - len({layer for _, layer, _ in schedule})


@BANK.right
def with_a_dictionary_of_bytes(schedule, boundary, inside):
    held, peak, runs = {}, 0, Counter()
    for kind, layer, keep in schedule:
        if kind == "record":
            held[layer] = boundary + inside
        elif kind == "run" and keep:
            held.setdefault(layer, boundary)
        elif kind == "backward":
            del held[layer]
        runs[layer] += kind != "backward"
        peak = max(peak, sum(held.values()))
    return [peak, sum(count - 1 for count in runs.values())]


@BANK.right
def in_numpy(schedule, boundary, inside):
    layers = 1 + max(layer for _, layer, _ in schedule)
    live = np.zeros((layers, 2), dtype=bool)
    peaks, runs = [], np.zeros(layers, dtype=int)
    for kind, layer, keep in schedule:
        if kind == "backward":
            live[layer] = False
        else:
            live[layer] |= [keep or kind == "record", kind == "record"]
            runs[layer] += 1
        peaks.append((live * [boundary, inside]).sum())
    return np.max(peaks), (runs - 1).sum()


@BANK.right
def by_differences(schedule, boundary, inside):
    known, steps, runs = set(), [], 0
    for kind, layer, keep in schedule:
        change = 0
        if kind == "backward":
            known.discard(layer)
            change = -boundary - inside
        else:
            runs += 1
            if (keep or kind == "record") and layer not in known:
                known.add(layer)
                change += boundary
            if kind == "record":
                change += inside
        steps.append(change)
    layers = sum(kind == "backward" for kind, _, _ in schedule)
    return torch.tensor(max(accumulate(steps))), float(runs - layers)


def repeated(schedule):
    return sum(kind != "backward" for kind, _, _ in schedule) - len({layer for _, layer, _ in schedule})


@dataclass(frozen=True)
class Rules:
    """What an answer does at each step; each slip changes one of these."""

    input_kept: Callable = lambda kind, keep: keep or kind == "record"
    inside_kept: Callable = lambda kind: kind == "record"
    frees: tuple = (True, True)
    looks: Callable = lambda kind: True
    of: Callable = max
    count: Callable = repeated
    collection: type = set


def played(**changed):
    """Make an answer whose rules are given."""
    rules = Rules(**changed)

    def answer(schedule, boundary, inside):
        boundaries, insides, sizes = rules.collection(), rules.collection(), [0]
        for kind, layer, keep in schedule:
            if kind == "backward":
                boundaries = without(boundaries, layer) if rules.frees[0] else boundaries
                insides = without(insides, layer) if rules.frees[1] else insides
            else:
                boundaries = grown(boundaries, layer) if rules.input_kept(kind, keep) else boundaries
                insides = grown(insides, layer) if rules.inside_kept(kind) else insides
            if rules.looks(kind):
                sizes.append(len(boundaries) * boundary + len(insides) * inside)
        return rules.of(sizes), rules.count(schedule)

    return answer


def grown(held, layer):
    return held | {layer} if isinstance(held, set) else [*held, layer]


def without(held, layer):
    return type(held)(one for one in held if one != layer)


def wrong(name, misconception, **rules):
    BANK.add(name, played(**rules), misconception=misconception)


def runs(schedule):
    return sum(kind != "backward" for kind, _, _ in schedule)


wrong("in_lists", "counts-the-boundary-twice", collection=list)
wrong("frees_nothing", "never-frees", frees=(False, False))
wrong("frees_insides_only", "never-frees-boundaries", frees=(False, True))
wrong("frees_inputs_only", "never-frees-insides", frees=(True, False))
wrong("keeps_every_input", "keeps-what-passes", input_kept=lambda kind, keep: True)
wrong("keeps_every_inside", "keeps-what-passes", inside_kept=lambda kind: True)
wrong("inputs_only_with_keep", "forgets-the-input-of-a-record", input_kept=lambda kind, keep: keep)
wrong("inputs_only_of_records", "forgets-kept-boundaries", input_kept=lambda kind, keep: kind == "record")
wrong("no_boundaries", "forgets-all-boundaries", input_kept=lambda kind, keep: False)
wrong("boundaries_only", "forgets-the-insides", inside_kept=lambda kind: False)
wrong("looks_at_backward_steps", "looks-after-freeing", looks=lambda kind: kind == "backward")
wrong("the_last_size", "end-not-peak", of=lambda sizes: sizes[-1])
wrong("all_sizes_together", "sum-not-peak", of=sum)
wrong("all_runs", "counts-first-runs", count=runs)
BANK.add("every_layer_is_recorded_once", played(count=lambda s: sum(kind == "run" for kind, _, _ in s)))
wrong(
    "no_less_than_no_run",
    "forgets-records",
    count=lambda s: max(0, sum(k == "run" for k, _, _ in s) - max(i for _, i, _ in s) - 1),
)
wrong("records_are_repeats", "counts-records-only", count=lambda s: sum(kind == "record" for kind, _, _ in s))
wrong("every_step_but_the_layers", "counts-first-runs", count=lambda s: len(s) - len({i for _, i, _ in s}))
wrong("every_step", "counts-backwards", count=len)
wrong("the_highest_number_for_the_count", "one-too-many", count=lambda s: runs(s) - max(i for _, i, _ in s))


@BANK.wrong("counts-layers-not-runs")
def which_layers_ran_twice(schedule, boundary, inside):
    seen, again = set(), set()
    for kind, layer, _ in schedule:
        if kind != "backward":
            (again if layer in seen else seen).add(layer)
    return with_two_sets(schedule, boundary, inside)[0], len(again)


@BANK.wrong("wrong-value")
def adds_two_peaks(schedule, boundary, inside):
    one, two = played()(schedule, boundary, 0)[0], played()(schedule, 0, inside)[0]
    return one + two + 1, with_two_sets(schedule, boundary, inside)[1]


@BANK.wrong("wrong-value")
def swaps_the_sizes(schedule, boundary, inside):
    return with_two_sets(schedule, inside, boundary)


@BANK.wrong("returns-wrong-type")
def returns_the_peak_alone(schedule, boundary, inside):
    return with_two_sets(schedule, boundary, inside)[0]


@BANK.wrong("returns-nothing")
def returns_nothing(schedule, boundary, inside):
    with_two_sets(schedule, boundary, inside)


@BANK.crashes
def pops_what_is_not_there(schedule, boundary, inside):
    held = {}
    for kind, layer, keep in schedule:
        if keep:
            held[layer] = boundary
        elif kind == "backward":
            held.pop(layer)
    return 0, 0


def peak_of(schedule, boundary, inside, *, frees_when_run=False):
    kept, insides, peak = set(), set(), 0
    for kind, layer, keep in schedule:
        if kind == "backward" or (frees_when_run and kind == "run" and not keep):
            kept.discard(layer)
            insides.discard(layer)
        elif kind == "record" or keep:
            kept.add(layer)
        if kind == "record":
            insides.add(layer)
        peak = max(peak, len(kept) * boundary + len(insides) * inside)
    return peak


def runs_again(schedule):
    return sum(kind != "backward" for kind, _, _ in schedule) - len({layer for _, layer, _ in schedule})


@BANK.wrong("adds-two-peaks")
def with_a_peak_for_each_kind(schedule, boundary, inside):
    return peak_of(schedule, boundary, 0) + peak_of(schedule, 0, inside), runs_again(schedule)


@BANK.wrong("wrong-value")
def a_run_without_keep_frees(schedule, boundary, inside):
    return peak_of(schedule, boundary, inside, frees_when_run=True), runs_again(schedule)
