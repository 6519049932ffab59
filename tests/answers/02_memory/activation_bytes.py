"""Answers to `activation_bytes`."""

import numpy as np
import torch

from qlab import activations, measure
from qlab.config import count_parameters
from qlab.memory import rule_of_thumb_activation_bytes
from qlab.model import Decoder
from qlab.scoring import bits_per_token
from tests.answers.bank import Bank

BANK = Bank("activation-bytes")


def values(c, *, norm=3, attention=4, inside=4, readers=0, last=3):  # noqa: PLR0913
    """Add up the values of one token, in the layers and around them."""
    layer = (2 * norm + attention + readers) * c.width + inside * c.ffn_width
    return c.layers * layer + last * c.width + c.vocabulary


@BANK.right
def by_the_formula(config, batch, sequence):
    return 4 * batch * sequence * values(config)


@BANK.right
def by_qlab(config, batch, sequence):
    return activations.activation_bytes(config, activations.Run(batch=batch, sequence=sequence)).total


@BANK.right
def by_measuring(config, batch, sequence):
    decoder, tokens = Decoder(config), torch.ones(batch, sequence + 1, dtype=torch.long)
    return measure.saved_bytes(lambda: bits_per_token(decoder(tokens[:, 1:]), tokens[:, 1:]).mean())


@BANK.right
def by_a_loop_over_shapes(config, batch, sequence):
    wide, inner = (batch, sequence, config.width), (batch, sequence, config.ffn_width)
    layer = [wide] * 10 + [inner] * 4
    shapes = layer * config.layers + [wide] * 3 + [(batch, sequence, config.vocabulary)]
    return np.float32(sum(np.prod(shape) for shape in shapes) * 4)


@BANK.right
def with_the_log_sum_exp(config, batch, sequence):
    return torch.tensor([4.0 * batch * sequence * (values(config) + config.layers * (config.heads + 2))])


@BANK.wrong("counts-weights")
def weights_too(config, batch, sequence):
    return by_the_formula(config, batch, sequence) + 4 * count_parameters(config)


@BANK.wrong("counts-weights")
def measured_with_the_weights(config, batch, sequence):
    decoder = Decoder(config)
    return by_qlab(config, batch, sequence) + sum(parameter.nbytes for parameter in decoder.parameters())


@BANK.wrong("counts-a-storage-twice")
def a_norms_output_for_each_reader(config, batch, sequence):
    return 4 * batch * sequence * values(config, readers=3)


@BANK.wrong("counts-a-storage-twice")
def every_reader_keeps_its_own(config, batch, sequence):
    return 4 * batch * sequence * values(config, readers=4, inside=5)


@BANK.wrong("counts-a-storage-twice")
def the_product_twice(config, batch, sequence):
    return 4 * batch * sequence * values(config, inside=5)


@BANK.wrong("counts-scores")
def scores_too(config, batch, sequence):
    scores = 4 * config.layers * config.heads * batch * sequence**2
    return by_the_formula(config, batch, sequence) + scores


@BANK.wrong("two-bytes-a-value")
def sixteen_bits(config, batch, sequence):
    return 2 * batch * sequence * values(config)


@BANK.wrong("counts-values")
def not_bytes(config, batch, sequence):
    return batch * sequence * values(config)


@BANK.wrong("forgets-the-batch")
def one_sequence(config, batch, sequence):
    return 4 * sequence * values(config)


@BANK.wrong("one-layer-only")
def one_layer(config, batch, sequence):
    return 4 * batch * sequence * (13 * config.width + 4 * config.ffn_width + config.vocabulary)


@BANK.wrong("forgets-the-loss")
def no_log_probabilities(config, batch, sequence):
    return 4 * batch * sequence * (values(config) - config.vocabulary)


@BANK.wrong("forgets-the-loss")
def only_the_layers(config, batch, sequence):
    return 4 * batch * sequence * (values(config) - config.vocabulary - 3 * config.width)


@BANK.wrong("counts-logits-too")
def logits_too(config, batch, sequence):
    return 4 * batch * sequence * (values(config) + config.vocabulary)


@BANK.wrong("forgets-norms")
def no_norms(config, batch, sequence):
    return 4 * batch * sequence * values(config, norm=0)


@BANK.wrong("forgets-the-feed-forward")
def no_feed_forward(config, batch, sequence):
    return 4 * batch * sequence * values(config, inside=0)


@BANK.wrong("forgets-the-gate")
def no_gate(config, batch, sequence):
    return 4 * batch * sequence * values(config, inside=2)


@BANK.wrong("rule-of-thumb")
def twelve_values_a_channel(config, batch, sequence):
    return 2 * rule_of_thumb_activation_bytes(config, batch=batch, sequence=sequence)


@BANK.wrong("misses-tensors-of-a-layer")
def norms_keep_only_their_input(config, batch, sequence):
    return 4 * batch * sequence * values(config, norm=1)


@BANK.wrong("misses-tensors-of-a-layer")
def no_output_of_attention(config, batch, sequence):
    return 4 * batch * sequence * values(config, attention=3)


@BANK.wrong("norms-keep-three")
def every_norm_keeps_two(config, batch, sequence):
    return 4 * batch * sequence * values(config, norm=2, last=2)


@BANK.wrong("miscounts-the-last-norm")
def no_last_norm(config, batch, sequence):
    return 4 * batch * sequence * values(config, last=0)


@BANK.wrong("miscounts-the-last-norm")
def the_last_norm_keeps_two(config, batch, sequence):
    return 4 * batch * sequence * values(config, last=2)


@BANK.wrong("miscounts-the-last-norm")
def the_last_norm_keeps_four(config, batch, sequence):
    return 4 * batch * sequence * values(config, last=4)


@BANK.wrong("miscounts-the-feed-forward")
def no_silu(config, batch, sequence):
    return 4 * batch * sequence * values(config, inside=3)


@BANK.wrong("counts-scores")
def scores_beside_everything_that_is_kept(config, batch, sequence):
    return by_qlab(config, batch, sequence) + 4 * config.layers * config.heads * batch * sequence**2


@BANK.wrong("wrong-value")
def four_percent_more(config, batch, sequence):
    return 1.04 * by_the_formula(config, batch, sequence)


@BANK.wrong("wrong-value")
def two_percent_less(config, batch, sequence):
    return 0.98 * by_the_formula(config, batch, sequence)


@BANK.wrong("wrong-value")
def in_fp16(config, batch, sequence):
    return torch.tensor(by_the_formula(config, batch, sequence), dtype=torch.float16)  # infinite


@BANK.wrong("wrong-value")
def a_tenth_more_in_odd_batches(config, batch, sequence):
    return by_qlab(config, batch, sequence) * (1.1 if batch % 2 else 1.0)


@BANK.wrong("wrong-value")
def a_constant(config, batch, sequence):
    return 10**6


@BANK.wrong("returns-nothing")
def forgets_to_return(config, batch, sequence):
    values(config)


@BANK.crashes
def wants_more_arguments(config, batch, sequence, precision):
    return precision * by_the_formula(config, batch, sequence)
