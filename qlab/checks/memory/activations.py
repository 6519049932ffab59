"""Check of `activation_bytes`: the prediction against what autograd keeps of real decoders."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from qlab import activations
from qlab.checks import probe
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part
from qlab.config import COURSE_MODEL, ModelConfig, count_parameters
from qlab.model import Decoder
from qlab.scoring import bits_per_token

PROMISED = (
    0.02  # what the task leaves out (indices, rotary tables, numbers per token) stays under 1.3 % of these shapes,
)
# and the smallest slip, a tensor of the last norm, is more than 3.3 % of the third


@dataclass(frozen=True)
class Case:
    """One call: `activation_bytes(config, batch, sequence)`."""

    config: ModelConfig
    batch: int
    sequence: int

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return self.batch * self.sequence


@check(
    TOPIC,
    "activation-bytes",
    activations.activation_bytes,
    activations.layer_bytes,
    points=4,
    forbids=("qlab.measure", "qlab.model.Decoder"),
)
def check_activation_bytes(activation_bytes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `activation_bytes(config, batch, sequence)` within 2 % of the bytes that are measured."""
    width = 16 * drawn(6, 7, draw)
    sequence = 2 * drawn(8, 11, draw) + 1  # odd, like ffn_width: scores are no multiple of the width
    with part("many layers: attention and norms"):
        _compare(activation_bytes, _case(draw, layers=4, width=width, ffn_width=width // 4 + 1, sequence=sequence))
    with part("a wide feed-forward"):
        _compare(activation_bytes, _case(draw, layers=2, width=width, ffn_width=5 * width + 1, sequence=sequence))
    with part("around the layers: the last norm and the log-probabilities"):
        sizes = {"ffn_width": width // 8 + 1, "vocabulary": 4 * width + drawn(1, 9, draw)}
        _compare(activation_bytes, _case(draw, layers=2, width=width, sequence=sequence, **sizes))
    with part("a long sequence: a fused attention keeps no scores"):
        _compare(
            activation_bytes, _case(draw, layers=2, width=width, ffn_width=2 * width + 1, sequence=4 * sequence + 1)
        )


def _case(draw: torch.Generator, *, sequence: int, **sizes: int) -> Case:
    sizes = {"vocabulary": drawn(13, 17, draw)} | sizes  # no slip of the last norm and one of the feed-forward agree
    return Case(replace(COURSE_MODEL, name="drawn", sequence=sequence, **sizes), drawn(4, 5, draw), sequence)


def measured_bytes(decoder: Decoder, case: Case) -> int:
    """Run one forward pass of `decoder` and its loss; return the bytes that autograd keeps."""
    tokens = torch.zeros(case.batch, case.sequence + 1, dtype=torch.long)
    return probe.saved_bytes(lambda: bits_per_token(decoder(tokens[:, :-1]), tokens[:, 1:]).mean())


def _compare(activation_bytes: LearnerFunction, case: Case) -> None:
    decoder, again = Decoder(case.config), replace(case, batch=case.batch + 1)
    names = ("layers", "width", "heads", "ffn_width", "vocabulary")
    told = ", ".join(f"{name}={getattr(case.config, name)}" for name in names)
    require_numbers(
        [activation_bytes(c.config, c.batch, c.sequence) for c in (case, again)],
        [measured_bytes(decoder, c) for c in (case, again)],
        calls=[f"activation_bytes(({told}), {c.batch}, {c.sequence})" for c in (case, again)],
        within=PROMISED,
        suspects=lambda: _suspects([case, again]),
    )


def _suspects(cases: list[Case]) -> Iterator[Suspect]:
    for misconception, thought, slip in SLIPS:
        for right in (_in_the_large, _in_full):
            yield Suspect(misconception, thought, doubles([slip(case, right(case)) for case in cases]))


def _in_full(case: Case) -> int:
    return activations.activation_bytes(case.config, activations.Run(batch=case.batch, sequence=case.sequence)).total


def _in_the_large(case: Case) -> int:
    """Return what the task's own list gives, without what it leaves out."""
    c = case.config
    return 4 * case.tokens * (c.layers * (10 * c.width + 4 * c.ffn_width) + 3 * c.width + c.vocabulary)


def _plus(values: Callable[[ModelConfig], float]) -> Callable[[Case, int], float]:
    """Make the slip that counts so many values more for each token, in FP32."""
    return lambda case, right: right + 4 * case.tokens * values(case.config)


TWICE = "One storage counts once, however many operations keep it: a norm's output is read by three products."
TEN = (
    "A layer keeps ten tensors of `width`: three for each of two norms; q, k, v and the output of attention."
    " The last norm keeps three more."
)
FOUR = "The feed-forward keeps four tensors of `ffn_width`: gate, its SiLU, up, and their product."
THREE = "The norm after the last layer keeps three tensors of `width`, like every norm."
WEIGHTS = "Weights are kept for the backward pass, but they are counted among the states, not here."
SLIPS: tuple[tuple[str, str, Callable[[Case, int], float]], ...] = (
    ("counts-weights", WEIGHTS, lambda case, right: right + 4 * count_parameters(case.config)),
    (
        "counts-weights",
        WEIGHTS,
        lambda case, right: right + 4 * (count_parameters(case.config) - case.config.vocabulary * case.config.width),
    ),
    *(
        ("counts-a-storage-twice", TWICE, _plus(lambda c, more=more: more * c.width * c.layers))
        for more in (1, 2, 3, 4, 5, 6)
    ),
    *(
        ("counts-a-storage-twice", TWICE, _plus(lambda c, more=more: (more * c.width + c.ffn_width) * c.layers))
        for more in (0, 1, 2, 3, 4)
    ),
    *(
        ("norms-keep-three", "Every norm, the last one too, keeps its input, that normalized, and its output.", slip)
        for slip in (_plus(lambda c, more=more: more * c.width * (2 * c.layers + 1)) for more in (-3, -2, -1, 1))
    ),
    *(
        ("misses-tensors-of-a-layer", TEN, _plus(lambda c, less=less: -less * c.width * c.layers))
        for less in (1, 2, 3, 4, 5)
    ),
    *(
        ("miscounts-the-feed-forward", FOUR, _plus(lambda c, more=more: more * c.ffn_width * c.layers))
        for more in (-3, -1, 2)
    ),
    *(("miscounts-the-last-norm", THREE, _plus(lambda c, more=more: more * c.width)) for more in (-3, -2, -1, 1, 2)),
    (
        "counts-scores",
        "A fused attention keeps queries, keys, values and its output, but no matrix of scores.",
        lambda case, right: right + 4 * case.tokens * case.config.layers * case.config.heads * case.sequence,
    ),
    ("two-bytes-a-value", "Everything here is FP32: 4 bytes a value.", lambda case, right: right / 2),
    ("counts-values", "These are values: FP32 takes 4 bytes for each.", lambda case, right: right / 4),
    (
        "forgets-the-batch",
        "Every sequence of the batch has activations of its own.",
        lambda case, right: right / case.batch,
    ),
    (
        "one-layer-only",
        "Every layer keeps activations of its own.",
        _plus(lambda c: -(c.layers - 1) * (10 * c.width + 4 * c.ffn_width)),
    ),
    (
        "forgets-the-loss",
        "The loss keeps the log-probabilities: one value for each token and each entry of the vocabulary.",
        _plus(lambda c: -c.vocabulary),
    ),
    (
        "forgets-the-loss",
        "After the layers come one more norm and the loss, and both keep something.",
        _plus(lambda c: -c.vocabulary - 3 * c.width),
    ),
    (
        "counts-logits-too",
        "The cross-entropy keeps the log-probabilities; nothing needs the logits again.",
        _plus(lambda c: c.vocabulary),
    ),
    (
        "forgets-norms",
        "Each norm keeps three tensors: input, normalized, output.",
        _plus(lambda c: -6 * c.width * c.layers),
    ),
    (
        "forgets-the-feed-forward",
        "The feed-forward keeps four tensors as wide as itself.",
        _plus(lambda c: -4 * c.ffn_width * c.layers),
    ),
    (
        "forgets-the-gate",
        "The gated feed-forward keeps gate, its SiLU, up, and their product.",
        _plus(lambda c: -2 * c.ffn_width * c.layers),
    ),
    (
        "rule-of-thumb",
        "12 values per channel is a rule of thumb for another model: add up what this one keeps.",
        lambda case, right: 4 * 12 * case.config.width * case.config.layers * case.tokens,
    ),
)
