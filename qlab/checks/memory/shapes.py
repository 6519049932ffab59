"""Check of `count_parameters`: small random shapes, each built as a real decoder whose tensors are counted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import torch

from qlab import config
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part
from qlab.config import ModelConfig
from qlab.model import Decoder


@dataclass(frozen=True)
class Slip:
    """A way to miscount: the right count of a changed shape, with some parts left out and `more` added."""

    misconception: str
    thought: str
    change: Callable[[ModelConfig], ModelConfig] = lambda shape: shape
    without: tuple[str, ...] = ()
    more: Callable[[ModelConfig], int] = lambda shape: 0


LLAMA_LIKE = {"norm": "rmsnorm", "positions": "rotary", "gated": True, "biases": False}
GPT_LIKE = {"norm": "layernorm", "positions": "learned", "gated": False, "biases": True}


@check(
    TOPIC,
    "count-parameters",
    config.parameter_parts,
    config.ParameterCount,
    points=4,
    forbids=("qlab.config.count_parameters", "qlab.model.Decoder"),
)
def check_count_parameters(count_parameters: LearnerFunction, draw: torch.Generator) -> None:
    """Check `count_parameters(config)` against decoders that are really built."""
    with part("matrices, norms, embeddings and a head of its own, as in Llama"):
        _compare(count_parameters, [_shape(draw, **LLAMA_LIKE, tied_embeddings=False) for _ in range(3)])
    with part("a head that shares the embeddings counts once"):
        _compare(count_parameters, [_shape(draw, **LLAMA_LIKE, tied_embeddings=tied) for tied in (True, False, True)])
    with part("as in GPT-2: biases, learned positions, LayerNorm (and once RMSNorm)"):
        # an RMSNorm among them: the biases of attention are as many as the numbers of a layer's two LayerNorms
        families = (GPT_LIKE, GPT_LIKE | {"norm": "rmsnorm"}, GPT_LIKE)
        _compare(count_parameters, [_shape(draw, **family, tied_embeddings=True) for family in families])
    with part("fewer key and value heads, and any combination of the rest"):
        _compare(count_parameters, _all_kinds(draw))


def _shape(draw: torch.Generator, *, queries_per_key: int = 1, **family: object) -> ModelConfig:
    kv_heads = drawn(2, 4, draw)
    heads = kv_heads * queries_per_key
    width = heads * 2 * drawn(2, 5, draw)
    return ModelConfig(
        name="drawn",
        layers=drawn(2, 4, draw),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        ffn_width=width + drawn(5, 40, draw),
        vocabulary=drawn(60, 150, draw),
        sequence=drawn(20, 55, draw),
        **family,
    )


def _all_kinds(draw: torch.Generator) -> list[ModelConfig]:
    """Draw six shapes in which any two of the five flags meet in all four combinations.

    Source:  Kleitman and Spencer 1973, "Families of k-independent sets": triples out of five, and a row of zeros.
    """
    triples = list(combinations(range(1, 6), 3))
    chosen = [triples[i] for i in torch.randperm(len(triples), generator=draw)[:5].tolist()]
    turned = [bool(drawn(0, 1, draw)) for _ in chosen]
    return [_any_shape(draw, [(row in c) != t for c, t in zip(chosen, turned, strict=True)]) for row in range(6)]


def _any_shape(draw: torch.Generator, flags: Sequence[bool]) -> ModelConfig:
    return _shape(
        draw,
        queries_per_key=drawn(2, 3, draw),
        norm="layernorm" if flags[0] else "rmsnorm",
        positions="learned" if flags[1] else "rotary",
        gated=flags[2],
        biases=flags[3],
        tied_embeddings=flags[4],
    )


def _compare(count_parameters: LearnerFunction, shapes: Sequence[ModelConfig]) -> None:
    require_numbers(
        [count_parameters(shape) for shape in shapes],
        [sum(tensor.numel() for tensor in Decoder(shape).parameters()) for shape in shapes],
        calls=[f"count_parameters({_told(shape)})" for shape in shapes],
        suspects=lambda: _suspects(shapes),
    )


def _told(shape: ModelConfig) -> str:
    """Name the fields that matter, in the order of the task."""
    names = ("layers", "width", "heads", "kv_heads", "ffn_width", "vocabulary", "sequence")
    sizes = ", ".join(f"{name}={getattr(shape, name)}" for name in names)
    flags = f"gated={shape.gated}, biases={shape.biases}, tied_embeddings={shape.tied_embeddings}"
    return f"{sizes}, {shape.norm}, {shape.positions}, {flags}"


def _suspects(shapes: Sequence[ModelConfig]) -> Iterator[Suspect]:
    for count in (1, 2):
        for slips in combinations(SLIPS, count):
            values = [_miscounted(shape, slips) for shape in shapes]
            yield Suspect(slips[0].misconception, slips[0].thought, doubles(values))
    for flag, other in permutations(FLAGS, 2):
        values = [config.count_parameters(_taking(shape, flag, other)) for shape in shapes]
        thought = (
            f"`{flag}` and `{other}` are told apart: a decoder may be like Llama in one and like GPT-2 in the other."
        )
        yield Suspect("one-flag-for-another", thought, doubles(values))
    thought = "12 · layers · width² is a rule of thumb for one family: count what this shape really has."
    for extra in (0, 1, 2):
        values = [12 * s.layers * s.width**2 + extra * s.vocabulary * s.width for s in shapes]
        yield Suspect("rule-of-thumb", thought, doubles(values))


def _taking(shape: ModelConfig, flag: str, other: str) -> ModelConfig:
    """Set `flag` as in the family that `other` is from."""
    return replace(shape, **{flag: FLAGS[flag][FLAGS[other].index(getattr(shape, other))]})


def _miscounted(shape: ModelConfig, slips: Sequence[Slip]) -> int:
    for slip in slips:
        shape = slip.change(shape)
    left_out = {name: 0 for slip in slips for name in slip.without}
    return replace(config.parameter_parts(shape), **left_out).total + sum(slip.more(shape) for slip in slips)


def _norm(shape: ModelConfig) -> int:
    return shape.width * (2 if shape.norm == "layernorm" else 1)


FLAGS = {  # as in Llama, as in GPT-2
    "norm": ("rmsnorm", "layernorm"),
    "positions": ("rotary", "learned"),
    "gated": (True, False),
    "biases": (False, True),
    "tied_embeddings": (False, True),
}
SLIPS = (
    Slip(
        "counts-tied-embeddings-twice",
        "With `tied_embeddings` the head is the embedding matrix: one tensor, counted once.",
        change=lambda shape: replace(shape, tied_embeddings=False),
    ),
    Slip(
        "forgets-the-head",
        "Without `tied_embeddings` the head is a matrix of its own: vocabulary × width.",
        change=lambda shape: replace(shape, tied_embeddings=True),
    ),
    Slip(
        "forgets-norms",
        "Every layer has two norms, and one more stands before the head: each has a weight per channel.",
        without=("norms_per_layer", "final_norm"),
    ),
    Slip("forgets-norms", "Every layer has two norms of its own.", without=("norms_per_layer",)),
    Slip(
        "forgets-the-final-norm", "One more norm stands between the last layer and the head.", without=("final_norm",)
    ),
    Slip(
        "forgets-biases",
        "With `biases` each of a layer's matrices has a bias as long as its output.",
        change=lambda shape: replace(shape, biases=False),
    ),
    Slip(
        "forgets-norm-biases",
        "A LayerNorm has a weight and a bias per channel; only an RMSNorm has a weight alone.",
        change=lambda shape: replace(shape, norm="rmsnorm"),
    ),
    Slip(
        "forgets-positions",
        "Learned positions are an embedding of their own: sequence × width.",
        change=lambda shape: replace(shape, positions="rotary"),
    ),
    Slip(
        "ignores-kv-heads",
        "Keys and values have `kv_heads` heads: their matrices are width × kv_width.",
        change=lambda shape: replace(shape, kv_heads=shape.heads),
    ),
    Slip(
        "ignores-the-gate",
        "A gated feed-forward has three matrices, not two: gate, up and down.",
        change=lambda shape: replace(shape, gated=False),
    ),
    Slip(
        "one-norm-a-layer",
        "A layer has two norms: one in front of attention, one in front of the feed-forward.",
        more=lambda shape: -shape.layers * _norm(shape),
    ),
    Slip(
        "counts-what-is-not-there",
        "Without `gated` the feed-forward has two matrices, up and down.",
        change=lambda shape: replace(shape, gated=True),
    ),
    Slip(
        "counts-what-is-not-there",
        "An RMSNorm has a weight per channel and no bias.",
        change=lambda shape: replace(shape, norm="layernorm"),
    ),
    Slip(
        "counts-what-is-not-there",
        "Rotary positions are computed, not learned: they add no parameters.",
        change=lambda shape: replace(shape, positions="learned"),
    ),
    Slip(
        "counts-what-is-not-there",
        "Without `biases` the matrices have none.",
        change=lambda shape: replace(shape, biases=True),
    ),
    Slip(
        "a-bias-for-the-head",
        "The head has no bias, whatever `biases` says.",
        more=lambda shape: shape.vocabulary * (shape.biases and not shape.tied_embeddings),
    ),
    Slip(
        "forgets-some-biases",
        "Query, key, value and output have biases too: width, kv_width, kv_width and width.",
        more=lambda shape: -shape.layers * shape.biases * 2 * (shape.width + shape.kv_width),
    ),
    Slip(
        "forgets-some-biases",
        "The matrices of the feed-forward have biases too: ffn_width for up and for a gate, width for down.",
        more=lambda shape: -shape.layers * shape.biases * ((1 + shape.gated) * shape.ffn_width + shape.width),
    ),
    Slip(
        "forgets-some-biases",
        "A gate is a matrix like `up`, and has a bias like it.",
        more=lambda shape: -shape.layers * shape.biases * shape.gated * shape.ffn_width,
    ),
    Slip(
        "biases-of-the-wrong-length",
        "A bias is as long as its matrix's output: kv_width for key and value.",
        more=lambda shape: shape.layers * shape.biases * 2 * (shape.width - shape.kv_width),
    ),
    Slip(
        "biases-of-the-wrong-length",
        "A bias is as long as its matrix's output, not as its input.",
        more=lambda shape: (
            shape.layers
            * shape.biases
            * (2 * (shape.width - shape.kv_width) + shape.gated * (shape.width - shape.ffn_width))
        ),
    ),
    Slip("one-layer-only", "All layers have parameters of their own.", change=lambda shape: replace(shape, layers=1)),
)
