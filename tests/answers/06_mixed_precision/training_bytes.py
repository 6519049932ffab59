"""Answers to `training_bytes`."""

import numpy as np
import torch

from tests.answers.bank import Bank

BANK = Bank("training-bytes")
STATES = {"fp32": 16, "mixed": 16, "autocast": 18, "bf16": 8}


def total(parameters, saved_values, recipe, **changed):
    states, saved = STATES[recipe], 4 if recipe == "fp32" else 2
    return changed.get("states", states) * parameters + changed.get("saved", saved) * saved_values


@BANK.right
def by_a_table(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe)


@BANK.right
def by_cases_in_floats(parameters, saved_values, recipe):
    if recipe == "fp32":
        return 4.0 * (4 * parameters + saved_values)
    weights, gradients = (4, 4) if recipe == "autocast" else (2, 2)
    extra = {"mixed": 4, "autocast": 2, "bf16": 0}[recipe]
    adam = 2 * (2 if recipe == "bf16" else 4)
    return parameters * (weights + gradients + extra + adam) + saved_values * 2.0


@BANK.right
def by_tensors(parameters, saved_values, recipe):
    kinds = {
        "fp32": (torch.float32,) * 5,
        "mixed": (torch.half, torch.half, torch.float32, torch.float32, torch.half),
        "autocast": (torch.float32,) * 4 + (torch.half,),
        "bf16": (torch.bfloat16,) * 5,
    }[recipe]
    weight, gradient, first, second, saved = (dtype.itemsize for dtype in kinds)
    extra = 4 if recipe == "mixed" else 2 if recipe == "autocast" else 0
    return torch.tensor(parameters * (weight + gradient + first + second + extra) + saved * saved_values)


@BANK.right
def by_numpy(parameters, saved_values, recipe):
    rows = {"fp32": [16, 4], "mixed": [16, 2], "autocast": [18, 2], "bf16": [8, 2]}
    return np.dot(np.array([parameters, saved_values], dtype=np.int64), np.array(rows[recipe], dtype=np.int64))


@BANK.wrong("halves-everything")
def the_claim(parameters, saved_values, recipe):
    whole = 16 * parameters + 4 * saved_values
    return whole if recipe == "fp32" else whole / 2


@BANK.wrong("saves-in-fp32")
def saved_in_fp32_and_states_alike(parameters, saved_values, recipe):
    return 16 * parameters + 4 * saved_values


@BANK.wrong("saves-in-fp32")
def saves_in_fp32(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe, saved=4)


@BANK.wrong("forgets-the-master-copy")
def forgets_the_master(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe) - (recipe == "mixed") * 4 * parameters


@BANK.wrong("forgets-the-master-copy")
def narrow_states(parameters, saved_values, recipe):
    if recipe == "mixed":
        return total(parameters, saved_values, recipe, states=12)
    return total(parameters, saved_values, recipe)


@BANK.wrong("forgets-the-cached-copy")
def forgets_the_cache(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe) - (recipe == "autocast") * 2 * parameters


@BANK.wrong("forgets-the-cached-copy")
def autocast_as_mixed(parameters, saved_values, recipe):
    return total(parameters, saved_values, "mixed" if recipe == "autocast" else recipe)


@BANK.wrong("adam-in-fp32")
def wide_states(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe) + (recipe == "bf16") * 4 * parameters


@BANK.wrong("one-state-for-adam")
def one_state(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe) - (2 if recipe == "bf16" else 4) * parameters


@BANK.wrong("forgets-the-optimizer")
def no_optimizer(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe) - (4 if recipe == "bf16" else 8) * parameters


@BANK.wrong("forgets-the-saved-values")
def no_activations(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe, saved=0)


@BANK.wrong("forgets-the-states")
def activations_only(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe, states=0)


@BANK.wrong("bits-for-bytes")
def in_bits(parameters, saved_values, recipe):
    return 8 * total(parameters, saved_values, recipe)


@BANK.wrong("returns-gigabytes")
def in_gigabytes(parameters, saved_values, recipe):
    return total(parameters, saved_values, recipe) / 1e9


@BANK.wrong("wrong-value")
def counts_parameters_twice(parameters, saved_values, recipe):
    return 2 * total(parameters, saved_values, recipe)


@BANK.wrong("returns-nothing")
def returns_nothing(parameters, saved_values, recipe):
    total(parameters, saved_values, recipe)


@BANK.crashes
def crashes(parameters, saved_values, recipe):
    return {"fp32": 16, "fp16": 8}[recipe] * parameters
