"""Answers to `uniform_soup`, exercise `uniform_soup`."""

import copy

import torch

from qlab import soups
from tests.answers.bank import Bank

BANK = Bank("uniform-soup")


@BANK.right
def by_qlab(states):
    return soups.uniform_soup(states)


@BANK.right
def stacked_in_double(states):
    soup = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            soup[name] = torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        else:
            soup[name] = first
    return soup


@BANK.right
def shares_added(states):
    soup = copy.deepcopy(states[0])
    for name, tensor in soup.items():
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            soup[name] = sum(state[name] / len(states) for state in states)
    return soup


@BANK.right
def running_mean(states):
    soup = {name: tensor.clone() for name, tensor in states[0].items()}
    for number, state in enumerate(states[1:], start=2):
        for name, tensor in soup.items():
            if torch.is_floating_point(tensor):
                mean = tensor.float() + (state[name].float() - tensor.float()) / number
                soup[name] = mean.to(tensor.dtype)
    return soup


@BANK.right
def value_by_value(states):
    soup = {}
    for name, first in states[0].items():
        flat = [state[name].flatten().tolist() for state in states]
        means = [sum(column) / len(states) for column in zip(*flat, strict=True)]
        whole = not first.dtype.is_floating_point
        soup[name] = first.clone() if whole else torch.tensor(means, dtype=first.dtype).reshape(first.shape)
    return soup


def mean(tensors):
    return torch.stack([tensor.double() for tensor in tensors]).mean(0)


def built(combine, *, whole=lambda tensors: tensors[0], cast=True):
    def answer(states):
        soup = {}
        for name, first in states[0].items():
            tensors = [state[name] for state in states]
            made = combine(tensors) if first.is_floating_point() else whole(tensors)
            soup[name] = made.to(first.dtype) if cast and first.is_floating_point() else made
        return soup

    return answer


def folded(tensors):
    made = tensors[0].double()
    for tensor in tensors[1:]:
        made = (made + tensor) / 2
    return made


def wrong(name, misconception, combine=mean, **more):
    BANK.add(name, built(combine, **more), misconception=misconception)


wrong("sums", "forgets-to-divide", lambda ts: mean(ts) * len(ts))
wrong("folds_by_halves", "halves-again-and-again", folded)
wrong("without_the_first", "leaves-one-out", lambda ts: mean(ts[1:]))
wrong("without_the_last", "leaves-one-out", lambda ts: mean(ts[:-1]))
wrong("one_too_many", "divides-by-one-too-many", lambda ts: mean(ts) * len(ts) / (len(ts) + 1))
wrong("one_too_few", "divides-by-one-too-few", lambda ts: mean(ts) * len(ts) / (len(ts) - 1))
wrong("fp32_only", "averages-one-type-only", lambda ts: mean(ts) if ts[0].dtype == torch.float32 else ts[0])
wrong("the_last_one", "takes-one-state", lambda ts: ts[-1])
wrong("median", "median", lambda ts: torch.stack(ts).median(0).values)
wrong("averages_counters", "averages-integer-buffers", whole=mean)
wrong("averages_counters_whole", "averages-integer-buffers", whole=lambda ts: mean(ts).to(ts[0].dtype))
wrong("averages_counters_floored", "averages-integer-buffers", whole=lambda ts: sum(ts) // len(ts))
wrong("sums_counters", "averages-integer-buffers", whole=sum)
wrong("first_counter_as_a_float", "averages-integer-buffers", whole=lambda ts: ts[0].float())
wrong("counters_of_the_last", "takes-another-states-numbers", whole=lambda ts: ts[-1])
wrong("sums_in_half", "sums-in-half", lambda ts: sum(ts) / len(ts))
wrong("stays_wide", "changes-the-type", cast=False)


@BANK.wrong("changes-the-given-states")
def adds_into_the_first(states):
    soup = states[0]
    for name, tensor in soup.items():
        if tensor.is_floating_point():
            total = mean([state[name] for state in states])
            tensor.copy_(total)
    return soup


@BANK.wrong("loses-entries")
def floats_only(states):
    return {k: v for k, v in stacked_in_double(states).items() if v.is_floating_point()}


@BANK.wrong("returns-wrong-type")
def a_list(states):
    return list(stacked_in_double(states).values())


@BANK.wrong("returns-nothing")
def returns_nothing(states):
    stacked_in_double(states)


@BANK.crashes
def means_of_whole_numbers(states):
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0] | {"none": 0}}
