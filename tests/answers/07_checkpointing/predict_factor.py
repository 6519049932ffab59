"""Answers to `predict_factor`, exercise `measured_factor`."""

import numpy as np
import torch

from qlab.activations import Run, activation_bytes, around_bytes, layer_bytes, stream_bytes
from qlab.measure import SavedForBackward
from qlab.model import Decoder, run_checkpointed
from qlab.scoring import bits_per_token
from tests.answers.bank import Bank

BANK = Bank("measured-factor")


def table(config):
    """Return values for each token: a boundary, a layer, what is around."""
    w = config.width
    return w, 10 * w + 4 * config.ffn_width, 3 * w + config.vocabulary


@BANK.right
def by_moments(config, lengths):
    b, layer, around = table(config)
    moments = [len(lengths) * b + around]
    for place, length in enumerate(lengths):
        moments.append((place + 1) * b + length * layer - b)
    return (config.layers * layer + around) / max(moments)


@BANK.right
def in_numpy(config, lengths):
    b, layer, around = table(config)
    replays = np.arange(len(lengths)) * b + np.array(lengths) * layer
    return (sum(lengths) * layer + around) / np.maximum(replays.max(), len(lengths) * b + around)


@BANK.right
def in_a_tensor(config, lengths):
    b, layer, around = table(config)
    places = torch.arange(len(lengths), dtype=torch.float32)
    peak = torch.cat([places * b + torch.tensor(lengths) * layer, torch.tensor([len(lengths) * b + around])]).max()
    return (config.layers * layer + around) / peak


@BANK.right
def backwards_through_the_segments(config, lengths):
    b, layer, around = table(config)
    held = len(lengths) * b
    peak = held + around
    for length in reversed(lengths):
        held -= b
        peak = max(peak, held + length * layer)
    return (config.layers * layer + around) / peak


@BANK.right
def to_the_byte_by_qlab(config, lengths):
    run = Run(batch=2, sequence=32)
    stream, layer, around = stream_bytes(config, run), layer_bytes(config, run), around_bytes(config, run)
    peak = max(len(lengths) * stream + around, *(p * stream + n * layer for p, n in enumerate(lengths)))
    return activation_bytes(config, run).total / peak


def over(peak):
    """Make an answer that divides by another peak."""

    def answer(config, lengths):
        b, layer, around = table(config)
        return (config.layers * layer + around) / peak(b, layer, around, lengths)

    return answer


def wrong(name, misconception, peak):
    BANK.add(name, over(peak), misconception=misconception)


def replays(b, layer, lengths):
    return [place * b + length * layer for place, length in enumerate(lengths)]


wrong("segment_or_loss", "forgets-boundaries", lambda b, a, o, s: max(o, max(s) * a))
wrong("segment_alone", "forgets-boundaries", lambda b, a, o, s: max(s) * a)
wrong("boundaries_and_loss", "forgets-the-recomputed-segment", lambda b, a, o, s: len(s) * b + o)
wrong("boundaries_alone", "forgets-the-recomputed-segment", lambda b, a, o, s: len(s) * b)
wrong("one_layer", "one-layer-runs-again", lambda b, a, o, s: max(len(s) * b + o, (len(s) - 1) * b + a))
wrong(
    "own_boundary_again",
    "counts-the-boundary-twice",
    lambda b, a, o, s: max(len(s) * b + o, max(replays(b, a, s)) + b),
)
wrong("all_of_it_at_once", "adds-what-never-meets", lambda b, a, o, s: len(s) * b + o + max(s) * a - b)
wrong("replay_and_loss", "adds-what-never-meets", lambda b, a, o, s: max(replays(b, a, s)) + o)
wrong(
    "longest_with_all_boundaries",
    "counts-freed-boundaries",
    lambda b, a, o, s: max(len(s) * b + o, (len(s) - 1) * b + max(s) * a),
)
wrong("the_last", "last-segment-only", lambda b, a, o, s: max(len(s) * b + o, replays(b, a, s)[-1]))
wrong(
    "the_average",
    "averages-the-segments",
    lambda b, a, o, s: max(len(s) * b + o, (len(s) - 1) * b + sum(s) / len(s) * a),
)
wrong("replays_alone", "forgets-the-moment-of-the-loss", lambda b, a, o, s: max(replays(b, a, s)))


@BANK.wrong("upside-down")
def with_over_without(config, lengths):
    return 1 / by_moments(config, lengths)


@BANK.wrong("forgets-what-is-around")
def layers_alone(config, lengths):
    b, layer, _ = table(config)
    return config.layers * layer / max(replays(b, layer, lengths))


@BANK.wrong("forgets-boundaries")
def layers_over_the_longest(config, lengths):
    return config.layers / max(lengths)


@BANK.wrong("wrong-value")
def measures_layers_one_by_one(config, lengths):
    peaks = []
    for model in (Decoder(config), Decoder(config, run_layer=run_checkpointed)):
        tokens = torch.zeros(1, 17, dtype=torch.long)
        with SavedForBackward() as saved:
            bits_per_token(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
        peaks.append(saved.peak_bytes)
    return peaks[0] / peaks[1]


@BANK.wrong("wrong-value")
def another_decoders_layer(config, lengths):
    b, layer, around = config.width, 10 * config.width + 2 * config.ffn_width, 3 * config.width + config.vocabulary
    everything = config.layers * layer + around
    return everything / max(len(lengths) * b + around, *replays(b, 2 * layer, lengths))


@BANK.wrong("returns-nothing")
def returns_nothing(config, lengths):
    by_moments(config, lengths)


@BANK.crashes
def sums_a_number(config, lengths):
    return sum(config.layers) / max(lengths)


@BANK.wrong("wrong-value")
def with_three_ffn_widths(config, lengths):
    layer, around = 10 * config.width + 3 * config.ffn_width, 3 * config.width + config.vocabulary
    replays = [place * config.width + length * layer for place, length in enumerate(lengths)]
    return (config.layers * layer + around) / max(len(lengths) * config.width + around, *replays)
