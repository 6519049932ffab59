"""Check of `count_parameters`: small random shapes, each built as a real decoder whose tensors are counted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from qlab import config
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.numbers import TOPIC, doubles, drawn, require_numbers
from qlab.checks.report import check, part
from qlab.config import ModelConfig
from qlab.model import Decoder


@dataclass(frozen=True)
class Slip:
    """A way to miscount: the right count of a changed shape, with some parts left out."""

    misconception: str
    thought: str
    change: Callable[[ModelConfig], ModelConfig] = lambda shape: shape
    without: tuple[str, ...] = ()


LLAMA_LIKE = {"norm": "rmsnorm", "positions": "rotary", "gated": True, "biases": False}
GPT_LIKE = {"norm": "layernorm", "positions": "learned", "gated": False, "biases": True}


@check(TOPIC, "count-parameters", config.parameter_parts, config.ParameterCount, points=4)
def check_count_parameters(count_parameters: LearnerFunction, draw: torch.Generator) -> None:
    """Check `count_parameters(config)` against decoders that are really built."""
    with part("matrices, norms, embeddings and a head of its own, as in Llama"):
        _compare(count_parameters, [_shape(draw, **LLAMA_LIKE, tied_embeddings=False) for _ in range(3)])
    with part("a head that shares the embeddings counts once"):
        _compare(count_parameters, [_shape(draw, **LLAMA_LIKE, tied_embeddings=tied) for tied in (True, False, True)])
    with part("biases, LayerNorm and learned positions, as in GPT-2"):
        _compare(count_parameters, [_shape(draw, **GPT_LIKE, tied_embeddings=True) for _ in range(3)])
    with part("fewer key and value heads, and any combination of the rest"):
        _compare(count_parameters, [_any_shape(draw) for _ in range(6)])


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


def _any_shape(draw: torch.Generator) -> ModelConfig:
    flips = [bool(drawn(0, 1, draw)) for _ in range(5)]
    return _shape(
        draw,
        queries_per_key=drawn(2, 3, draw),
        norm="layernorm" if flips[0] else "rmsnorm",
        positions="learned" if flips[1] else "rotary",
        gated=flips[2],
        biases=flips[3],
        tied_embeddings=flips[4],
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
    thought = "12 · layers · width² is a rule of thumb for one family: count what this shape really has."
    for extra in (0, 1, 2):
        values = [12 * s.layers * s.width**2 + extra * s.vocabulary * s.width for s in shapes]
        yield Suspect("rule-of-thumb", thought, doubles(values))


def _miscounted(shape: ModelConfig, slips: Sequence[Slip]) -> int:
    for slip in slips:
        shape = slip.change(shape)
    left_out = {name: 0 for slip in slips for name in slip.without}
    return replace(config.parameter_parts(shape), **left_out).total


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
    Slip("one-layer-only", "All layers have parameters of their own.", change=lambda shape: replace(shape, layers=1)),
)
