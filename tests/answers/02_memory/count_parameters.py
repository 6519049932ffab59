"""Answers to `count_parameters`."""

from dataclasses import replace

import numpy as np
import torch

from qlab import config as qlab_config
from qlab.memory import layer_matrices
from qlab.model import Decoder
from tests.answers.bank import Bank

BANK = Bank("count-parameters")
BANK.add("by_qlab", qlab_config.count_parameters)


@BANK.right
def by_building_it(config):
    return sum(parameter.numel() for parameter in Decoder(config).parameters())


@BANK.right
def by_building_it_on_no_device(config):
    with torch.device("meta"):
        decoder = Decoder(config)
    return torch.tensor(sum(parameter.numel() for parameter in decoder.parameters()))


@BANK.right
def by_a_list_of_matrices(config):
    total = 0
    for _ in range(config.layers):
        for inward, outward in layer_matrices(config):
            total += (inward + config.biases) * outward
        total += 2 * config.width * (1 + (config.norm == "layernorm"))
    rows = config.vocabulary * (2 - config.tied_embeddings) + config.sequence * (config.positions == "learned")
    return np.int64(total + (1 + rows + (config.norm == "layernorm")) * config.width)


@BANK.right
def by_a_sum(config):
    out = [config.width, config.kv_width, config.kv_width, config.width, *[config.ffn_width] * (1 + config.gated)]
    layer = sum((config.width + config.biases) * o for o in out) + (config.ffn_width + config.biases) * config.width
    norm = config.width * {"layernorm": 2, "rmsnorm": 1}[config.norm]
    tables = [config.vocabulary] * (2 - config.tied_embeddings) + [config.sequence] * (config.positions == "learned")
    return sum([layer + 2 * norm] * config.layers) + norm + sum(rows * config.width for rows in tables)


@BANK.right
def as_an_array(config):
    return np.array([by_a_sum(config)], dtype=np.uint32)


@BANK.right
def as_a_float(config):
    return float(qlab_config.count_parameters(config))


@BANK.wrong("counts-tied-embeddings-twice")
def always_a_head(config):
    return qlab_config.count_parameters(replace(config, tied_embeddings=False))


@BANK.wrong("counts-tied-embeddings-twice")
def state_dict_of_the_model(config):
    return sum(tensor.numel() for name, tensor in Decoder(config).state_dict().items() if "table" not in name)


@BANK.wrong("forgets-the-head")
def never_a_head(config):
    return qlab_config.count_parameters(replace(config, tied_embeddings=True))


@BANK.wrong("forgets-norms")
def no_norms(config):
    parts = replace(qlab_config.parameter_parts(config), norms_per_layer=0, final_norm=0)
    return parts.total


@BANK.wrong("forgets-norms")
def only_the_final_norm(config):
    return replace(qlab_config.parameter_parts(config), norms_per_layer=0).total


@BANK.wrong("forgets-the-final-norm")
def no_final_norm(config):
    return replace(qlab_config.parameter_parts(config), final_norm=0).total


@BANK.wrong("forgets-biases")
def no_biases(config):
    return qlab_config.count_parameters(replace(config, biases=False))


@BANK.wrong("forgets-norm-biases")
def every_norm_is_an_rms_norm(config):
    return qlab_config.count_parameters(replace(config, norm="rmsnorm"))


@BANK.wrong("forgets-norms")
def no_norms_and_no_biases(config):
    return no_norms(replace(config, biases=False))


@BANK.wrong("forgets-biases")
def no_biases_of_any_kind(config):
    return qlab_config.count_parameters(replace(config, biases=False, norm="rmsnorm"))


@BANK.wrong("forgets-positions")
def no_positions(config):
    return qlab_config.count_parameters(replace(config, positions="rotary"))


@BANK.wrong("ignores-kv-heads")
def four_square_matrices(config):
    return qlab_config.count_parameters(replace(config, kv_heads=config.heads))


@BANK.wrong("ignores-the-gate")
def two_matrices_in_the_feed_forward(config):
    return qlab_config.count_parameters(replace(config, gated=False))


@BANK.wrong("one-layer-only")
def one_layer(config):
    return qlab_config.count_parameters(replace(config, layers=1))


@BANK.wrong("rule-of-thumb")
def twelve_width_squared(config):
    return 12 * config.layers * config.width**2 + config.vocabulary * config.width


@BANK.wrong("wrong-value")
def the_feed_forward_is_four_times_as_wide(config):
    return qlab_config.count_parameters(replace(config, ffn_width=4 * config.width))


@BANK.wrong("wrong-value")
def a_bias_for_the_head(config):
    return qlab_config.count_parameters(config) + config.vocabulary


@BANK.wrong("one-norm-a-layer")
def one_norm_a_layer(config):
    parts = qlab_config.parameter_parts(config)
    return replace(parts, norms_per_layer=parts.norms_per_layer // 2).total


@BANK.wrong("counts-what-is-not-there")
def always_a_gate(config):
    return qlab_config.count_parameters(replace(config, gated=True))


@BANK.wrong("counts-what-is-not-there")
def always_biases(config):
    return qlab_config.count_parameters(replace(config, biases=True))


@BANK.wrong("counts-what-is-not-there")
def every_norm_is_a_layer_norm(config):
    return qlab_config.count_parameters(replace(config, norm="layernorm"))


@BANK.wrong("counts-what-is-not-there")
def always_positions(config):
    return qlab_config.count_parameters(replace(config, positions="learned"))


@BANK.wrong("a-bias-for-the-head")
def a_bias_for_a_head_of_its_own(config):
    return a_bias_for_the_head(config) if config.biases and not config.tied_embeddings else by_a_sum(config)


@BANK.wrong("forgets-some-biases")
def no_bias_for_the_gate(config):
    return by_a_sum(config) - config.layers * config.biases * config.gated * config.ffn_width


@BANK.wrong("forgets-some-biases")
def biases_in_the_feed_forward_alone(config):
    return by_a_sum(config) - config.layers * config.biases * 2 * (config.width + config.kv_width)


@BANK.wrong("forgets-some-biases")
def biases_in_attention_alone(config):
    return by_a_sum(config) - config.layers * config.biases * ((1 + config.gated) * config.ffn_width + config.width)


@BANK.wrong("biases-of-the-wrong-length")
def key_biases_as_long_as_the_width(config):
    return by_a_sum(config) + config.layers * config.biases * 2 * (config.width - config.kv_width)


@BANK.wrong("one-flag-for-another")
def a_gate_where_there_are_no_biases(config):
    return by_a_sum(replace(config, gated=not config.biases))


@BANK.wrong("one-flag-for-another")
def biases_where_there_is_a_layer_norm(config):
    return by_a_sum(replace(config, biases=config.norm == "layernorm"))


@BANK.wrong("wrong-value")
def learned_positions_mean_tied(config):
    return by_a_sum(replace(config, tied_embeddings=config.tied_embeddings or config.positions == "learned"))


@BANK.wrong("wrong-value")
def off_by_one(config):
    return qlab_config.count_parameters(config) + 1


@BANK.wrong("returns-nothing")
def forgets_to_return(config):
    qlab_config.count_parameters(config)


@BANK.wrong("returns-wrong-type")
def as_text(config):
    return f"{qlab_config.count_parameters(config):,}"


@BANK.crashes
def reads_a_field_that_is_not_there(config):
    return config.hidden_size
