"""Answers to `model_state_bytes`."""

import math
from fractions import Fraction

import numpy as np
import torch

from qlab import memory
from tests.answers.bank import Bank

BANK = Bank("model-state-bytes")
EACH = {"fp32-adam": 16, "sgd-momentum": 12, "mixed-adam": 16, "adam-8bit": 8 + 2 * (1 + 4 / 256), "lora": 2}
EACH["qlora"] = (4 + 8 / 64 + 32 / 64 / 256) / 8


@BANK.right
def by_a_table(parameters, recipe, adapters):
    return parameters * EACH[recipe] + 16 * adapters


@BANK.right
def by_qlab(parameters, recipe, adapters):
    return memory.model_state_bytes(parameters, memory.named_recipe(recipe), adapters=adapters).total


@BANK.right
def by_fractions(parameters, recipe, adapters):
    bits = {"lora": Fraction(16), "qlora": 4 + Fraction(8, 64) + Fraction(32, 64 * 256)}
    if recipe in bits:
        return float(bits[recipe] * parameters / 8 + adapters * 16)
    state = {"adam-8bit": 2 * (1 + Fraction(4, 256)), "sgd-momentum": Fraction(4)}.get(recipe, Fraction(8))
    wide = recipe in ("fp32-adam", "sgd-momentum")
    return float(parameters * ((8 if wide else 2 + 2 + 4) + state))


@BANK.right
def in_fp32_tensors(parameters, recipe, adapters):
    n, a = torch.tensor(float(parameters)), torch.tensor([float(adapters)])
    return n * EACH[recipe] + a * 16


@BANK.right
def in_whole_blocks(parameters, recipe, adapters):
    if recipe == "adam-8bit":
        return np.float64(8 * parameters + 2 * (parameters + 4 * math.ceil(parameters / 256)))
    if recipe == "qlora":
        blocks = math.ceil(parameters / 64)
        return math.ceil(parameters / 2) + blocks + 4 * math.ceil(blocks / 256) + 16 * adapters
    return np.int64(by_a_table(parameters, recipe, adapters))


@BANK.right
def part_by_part(parameters, recipe, adapters):
    parts = {
        "fp32-adam": [4, 4, 4, 4],
        "sgd-momentum": [4, 4, 4],
        "mixed-adam": [2, 2, 4, 4, 4],
        "adam-8bit": [2, 2, 4, 1, 1, 4 / 256, 4 / 256],
        "lora": [2],
        "qlora": [1 / 2, 1 / 64, 4 / 64 / 256],
    }
    of_adapters = by_a_table(adapters, "fp32-adam", 0) if recipe.endswith("lora") else 0
    return [sum(each * parameters for each in parts[recipe]) + of_adapters]


def but(changed):
    """Return an answer whose table differs in the recipes named."""
    return lambda parameters, recipe, adapters: parameters * (EACH | changed)[recipe] + 16 * adapters


BANK.add(
    "no_master_copy",
    but({"mixed-adam": 12, "adam-8bit": EACH["adam-8bit"] - 4}),
    misconception="forgets-the-master-copy",
)
BANK.add("no_master_copy_in_mixed_only", but({"mixed-adam": 12}), misconception="forgets-the-master-copy")
BANK.add("one_state_for_adam", but({"fp32-adam": 12, "mixed-adam": 12}), misconception="one-state-for-adam")
BANK.add("two_states_for_sgd", but({"sgd-momentum": 16}), misconception="two-states-for-sgd")
BANK.add("no_absmax", but({"adam-8bit": 10}), misconception="forgets-absmax")
BANK.add("absmax_for_one_state", but({"adam-8bit": 10 + 4 / 256}), misconception="forgets-absmax")
BANK.add(
    "gradients_in_fp32", but({"mixed-adam": 18, "adam-8bit": EACH["adam-8bit"] + 2}), misconception="gradients-in-fp32"
)
BANK.add(
    "frozen_gradients_in_16_bits", but({"lora": 4, "qlora": EACH["qlora"] + 2}), misconception="charges-frozen-weights"
)
BANK.add(
    "frozen_gradients_in_fp32", but({"lora": 6, "qlora": EACH["qlora"] + 4}), misconception="charges-frozen-weights"
)
BANK.add("frozen_weights_with_adam", but({"lora": 2 + 12}), misconception="charges-frozen-weights")
BANK.add("frozen_weights_with_mixed_adam", but({"lora": 16}), misconception="charges-frozen-weights")
BANK.add("flat_four_bits", but({"qlora": 0.5}), misconception="forgets-block-constants")
BANK.add("constants_in_fp32", but({"qlora": 4.5 / 8}), misconception="constants-not-quantized")
BANK.add("no_second_constants", but({"qlora": 4.125 / 8}), misconception="forgets-second-constants")
BANK.add("a_byte_for_four_bits", but({"qlora": 1}), misconception="a-byte-for-four-bits")
BANK.add("bits_for_bytes", but({"qlora": 8 * EACH["qlora"]}), misconception="bits-for-bytes")
BANK.add("qlora_is_lora", but({"qlora": 2}), misconception="weights-in-16-bits")
BANK.add("states_in_16_bits", but({"mixed-adam": 12}), misconception="forgets-the-master-copy")
BANK.add("sgd_without_its_momentum", but({"sgd-momentum": 8}), misconception="forgets-the-momentum")
BANK.add("a_frozen_base_in_fp32", but({"lora": 4}), misconception="charges-frozen-weights")
BANK.add(
    "second_constants_by_weights",
    but({"qlora": (4 + 8 / 64 + 32 / 256) / 8}),
    misconception="second-constants-for-weights",
)
BANK.add(
    "second_constants_for_every_block", but({"qlora": (4 + 40 / 64) / 8}), misconception="second-constants-for-weights"
)
BANK.add("constants_in_whole_bytes", but({"adam-8bit": 8 + 2 * (1 + 4 // 256)}), misconception="forgets-absmax")
BANK.add("nearly_right", but({"mixed-adam": 16.01}), misconception="wrong-value")


@BANK.wrong("charges-frozen-weights")
def gradients_and_states_for_frozen_weights_alone(parameters, recipe, adapters):
    frozen = recipe in ("lora", "qlora")
    return parameters * (EACH[recipe] + 12 * frozen) + 4 * adapters


@BANK.wrong("forgets-weights-or-gradients")
def no_gradients(parameters, recipe, adapters):
    states = memory.model_state_bytes(parameters, memory.named_recipe(recipe), adapters=adapters)
    return states.total - states.gradients


@BANK.wrong("forgets-the-optimizer")
def no_optimizer(parameters, recipe, adapters):
    states = memory.model_state_bytes(parameters, memory.named_recipe(recipe), adapters=adapters)
    return states.total - states.optimizer


@BANK.wrong("forgets-weights-or-gradients")
def only_what_training_adds(parameters, recipe, adapters):
    states = memory.model_state_bytes(parameters, memory.named_recipe(recipe), adapters=adapters)
    return states.total - states.weights


@BANK.wrong("forgets-the-adapters")
def no_adapters(parameters, recipe, adapters):
    return parameters * EACH[recipe]


@BANK.wrong("forgets-weights-or-gradients")
def no_weights_of_adapters(parameters, recipe, adapters):
    return parameters * EACH[recipe] + 12 * adapters


@BANK.wrong("forgets-the-adapter-states")
def adapters_that_are_not_trained(parameters, recipe, adapters):
    return parameters * EACH[recipe] + 4 * adapters


@BANK.wrong("narrow-adapters")
def adapters_in_16_bits(parameters, recipe, adapters):
    return parameters * EACH[recipe] + (2 + 4 + 8) * adapters


@BANK.wrong("returns-gigabytes")
def in_gigabytes(parameters, recipe, adapters):
    return by_a_table(parameters, recipe, adapters) / 1e9


@BANK.wrong("returns-gigabytes")
def in_gibibytes(parameters, recipe, adapters):
    return by_a_table(parameters, recipe, adapters) / 2**30


@BANK.wrong("two-states-for-sgd")
def always_sixteen(parameters, recipe, adapters):
    return 16 * (parameters + adapters)


@BANK.wrong("wrong-value")
def always_zero(parameters, recipe, adapters):
    return 0


@BANK.wrong("wrong-value")
def in_fp16(parameters, recipe, adapters):
    return torch.tensor(by_a_table(parameters, recipe, adapters), dtype=torch.float16)  # infinite


@BANK.wrong("wrong-value")
def not_a_number(parameters, recipe, adapters):
    return math.nan


@BANK.wrong("returns-nothing")
def forgets_to_return(parameters, recipe, adapters):
    by_a_table(parameters, recipe, adapters)


@BANK.crashes
def knows_no_qlora(parameters, recipe, adapters):
    return parameters * {"fp32-adam": 16}[recipe]
