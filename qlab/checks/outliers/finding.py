"""Check of `find_outliers`: the three conditions of the published rule, each with its limit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import outliers
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.outliers.reading import TOPIC, as_mask
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part

CALL = "find_outliers(layers, magnitude, layer_share, token_share)"
TOKENS, LAYERS = 32, 8  # shares of them are exact in every float type
ALWAYS = ((-2.0, 8, 32), (1.0, 1, 1))


@dataclass(frozen=True)
class Case:
    """One call: each layer's input and its weight, and the three limits."""

    layers: list[tuple[Tensor, Tensor]]
    magnitude: float
    layer_share: float
    token_share: float

    @property
    def width(self) -> int:
        return self.layers[0][0].shape[1]

    @property
    def inputs(self) -> Tensor:
        """The inputs of all layers, (layers, tokens, width)."""
        return torch.stack([x for x, _ in self.layers])

    @property
    def outliers(self) -> Tensor:
        return _by_rule(self.inputs.abs() >= self.magnitude, self)


Rule = Callable[[Case], Tensor]


@check(TOPIC, "find-outliers", outliers.find_outliers, points=4)
def check_find_outliers(find_outliers: LearnerFunction, draw: torch.Generator) -> None:
    """Check `find_outliers(layers, magnitude, layer_share, token_share)`."""
    with part("magnitude: large values of either sign, in the activations"):
        plants = ((1.0, 6, 16), (-1.0, 5, 18), (0.0, 8, 32), (-1.0, 8, 20))
        _compare(find_outliers, [_case(draw, plants), _case(draw, plants), _case(draw, ())])
    with part("layers: in enough of them, however many tokens one holds"):
        plants = ((1.0, 1, 32), (-1.0, 1, 28), (1.0, 6, 12), (-1.0, 3, 18), (1.0, 5, 2))
        _compare(find_outliers, [_case(draw, plants), _case(draw, plants)])
    with part("tokens: for enough of all of them, however many layers one is large in"):
        plants = ((1.0, 8, 2), (-1.0, 7, 2), (-1.0, 4, 20), (1.0, 5, 10), (1.0, 3, 16), (-1.0, 1, 30))
        _compare(find_outliers, [_case(draw, plants), _case(draw, plants)])
    with part("the three limits themselves count"):
        exact = ((1.0, 2, 8), (-1.0, 2, 7), (2.0, 2, 16), (-2.0, 4, 4))
        plants = (*exact, (1.0, 1, 20), (2.0, 2, 3), (1.0, 6, 18), (2.0, 8, 1))
        _compare(find_outliers, [_case(draw, plants, at_limits=True), _case(draw, plants, at_limits=True)])


def _by_rule(large: Tensor, case: Case) -> Tensor:
    """Apply the shares to a (layers, tokens, width) mask of large values."""
    layers, tokens = large.any(1).double().mean(0), large.double().mean((0, 1))
    return (layers >= case.layer_share) & (tokens >= case.token_share)


def _case(draw: torch.Generator, plants: tuple[tuple[float, int, int], ...], *, at_limits: bool = False) -> Case:
    """Plant dimensions (size, layers, tokens of each): a size of 1 or 2 is a large value, by its sign.

    Beside them one dimension is large everywhere and one in a single value, and a column of weights is large. Size 0
    plants values just below the magnitude. At the limits a size of 1 is the magnitude itself and 2
    lies above, 2 of 8 layers are the share of layers and 16 of 256 tokens that of tokens.
    """
    width, out = drawn(12, 16, draw), drawn(20, 24, draw)
    magnitude = drawn(8, 40, draw) / 4
    x = magnitude * uniform(-0.6, 0.6, (LAYERS, TOKENS, width), draw)
    weight = magnitude * uniform(-0.3, 0.3, (LAYERS, out, width), draw)
    dimensions = torch.randperm(width, generator=draw).tolist()
    for dimension, (size, layers, tokens) in zip(dimensions, (*plants, *ALWAYS), strict=False):
        here = torch.randperm(LAYERS, generator=draw)[:layers].tolist()
        for layer in here:
            places = torch.randperm(TOKENS, generator=draw)[:tokens]
            if at_limits:
                sizes = 1.0 if abs(size) == 1 else uniform(1.2, 3.0, (tokens,), draw)
            else:
                sizes = uniform(1.2, 9.0, (tokens,), draw) if size else 0.95
            x[layer, places, dimension] = magnitude * sizes * (-1.0 if size < 0 else 1.0)
    weight[:, :, dimensions[-1]] *= 40.0  # a column of large weights, which is no outlier
    layer_share, token_share = (0.25, 1 / 16) if at_limits else (0.3, 0.1)
    return Case(list(zip(x, weight, strict=True)), magnitude, layer_share, token_share)


def _compare(find_outliers: LearnerFunction, cases: list[Case]) -> None:
    returned = [find_outliers(c.layers, c.magnitude, c.layer_share, c.token_share) for c in cases]
    got = [as_mask(r, c.width, call=CALL) for r, c in zip(returned, cases, strict=True)]
    places = [(case, dimension) for case in cases for dimension in range(case.width)]

    def told(i: int) -> str:
        case, dimension = places[i]
        large = case.inputs[:, :, dimension].abs() >= case.magnitude
        held = f"at least {case.magnitude:g} in {int(large.any(1).sum())} of {LAYERS} layers"
        limits = f"shares {case.layer_share:g} and {case.token_share:g}"
        return (
            f"dimension {dimension}, {held}, for {int(large.sum())} of {large.numel()} tokens, {limits} (an outlier?)"
        )

    def suspects() -> Iterator[Suspect]:
        for misconception, thought, rule in SLIPS:
            yield Suspect(misconception, thought, torch.cat([rule(c) for c in cases]).double())

    require_values(
        torch.cat(got).double(), torch.cat([c.outliers for c in cases]).double(), given=told, suspects=suspects
    )


def _of_weights(case: Case) -> Tensor:
    return _by_rule(torch.stack([w for _, w in case.layers]).abs() >= case.magnitude, case)


def _large(case: Case) -> Tensor:
    return case.inputs.abs() >= case.magnitude


def _layers(case: Case) -> Tensor:
    return _large(case).any(1).double().mean(0)


def _tokens(case: Case) -> Tensor:
    return _large(case).double().mean((0, 1))


def _within_layers(case: Case) -> Tensor:
    return (_large(case).double().mean(1) >= case.token_share).double().mean(0) >= case.layer_share


def _means(case: Case) -> Tensor:
    return (case.inputs.abs().mean(1) >= case.magnitude).double().mean(0) >= case.layer_share


def _papers_numbers(case: Case) -> Tensor:
    return _by_rule(case.inputs.abs() >= 6, Case(case.layers, 6, 0.25, 0.06))


SIGNED = "An outlier may be negative: compare magnitudes, `x.abs()`."
ONE_LAYER = "One layer is not enough: in how many of the layers does the dimension reach the magnitude?"
ONE_TOKEN = "One token is not enough: what share of all tokens of all layers reaches the magnitude there?"
STRICT = "A share, or a magnitude, that is the limit itself counts: use `>=`."
WEIGHTS = "Weights of transformers are tame: outliers are found in the activations, the first of each pair."
POOLED = "The share of tokens is one number for all layers together."
SLIPS: tuple[tuple[str, str, Rule], ...] = (
    ("finds-nothing", "Some dimensions meet all three conditions.", lambda c: torch.zeros(c.width, dtype=torch.bool)),
    ("looks-at-weights", WEIGHTS, _of_weights),
    ("looks-at-weights", WEIGHTS, lambda c: (torch.stack([w for _, w in c.layers]).abs() >= c.magnitude).any(0).any(0)),
    ("looks-at-signed-values", SIGNED, lambda c: _by_rule(c.inputs >= c.magnitude, c)),
    ("looks-at-signed-values", SIGNED, lambda c: _by_rule(c.inputs > c.magnitude, c)),
    ("one-layer-decides", ONE_LAYER, lambda c: _tokens(c) >= c.token_share),
    ("one-layer-decides", ONE_LAYER, lambda c: (_large(c).double().mean(1) >= c.token_share).any(0)),
    ("one-token-decides", ONE_TOKEN, lambda c: _layers(c) >= c.layer_share),
    ("one-value-decides", "Two shares follow, of layers and of tokens.", lambda c: _large(c).any(0).any(0)),
    (
        "either-share-decides",
        "Both shares must be reached: `&`.",
        lambda c: (_layers(c) >= c.layer_share) | (_tokens(c) >= c.token_share),
    ),
    ("excludes-the-limits", STRICT, lambda c: _by_rule(c.inputs.abs() > c.magnitude, c)),
    ("excludes-the-limits", STRICT, lambda c: (_layers(c) > c.layer_share) & (_tokens(c) >= c.token_share)),
    ("excludes-the-limits", STRICT, lambda c: (_layers(c) >= c.layer_share) & (_tokens(c) > c.token_share)),
    ("excludes-the-limits", STRICT, lambda c: (_layers(c) > c.layer_share) & (_tokens(c) > c.token_share)),
    (
        "excludes-the-limits",
        STRICT,
        lambda c: (
            (_strict(c).any(1).double().mean(0) > c.layer_share) & (_strict(c).double().mean((0, 1)) > c.token_share)
        ),
    ),
    ("mean-magnitude", "A mean hides what a few tokens hold: compare each value.", _means),
    (
        "mean-magnitude",
        "A mean hides what a few tokens hold: compare each value.",
        lambda c: c.inputs.abs().mean((0, 1)) >= c.magnitude,
    ),
    ("needs-every-layer", ONE_LAYER, lambda c: _large(c).any(1).all(0)),
    ("needs-every-layer", ONE_LAYER, lambda c: _large(c).any(1).all(0) & (_tokens(c) >= c.token_share)),
    ("shares-within-a-layer", POOLED, _within_layers),
    (
        "counts-positions",
        "Tokens of different layers are counted apart, not joined by `any`.",
        lambda c: (_layers(c) >= c.layer_share) & (_large(c).any(0).double().mean(0) >= c.token_share),
    ),
    ("ignores-the-arguments", "6, 25 % and 6 % are the paper's: here the limits are arguments.", _papers_numbers),
    ("names-the-others", "These are the dimensions that are *not* outliers.", lambda c: ~c.outliers),
)


def _strict(case: Case) -> Tensor:
    return case.inputs.abs() > case.magnitude
