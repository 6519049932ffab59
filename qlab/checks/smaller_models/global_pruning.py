"""Check of `global_masks`: one threshold for all layers, and exactly as many weights cut as were asked for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qlab import sparsity as reference
from qlab.checks import probe
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require
from qlab.checks.smaller_models.reading import State, as_mask, as_state, copied
from qlab.checks.smaller_models.topic import TOPIC

SHAPES = {"first": (6, 10), "second": (8, 6), "third": (4, 8)}  # 140 weights, of which fewer than half are cut
CALL = "global_masks(weights, sparsity)"


@check(TOPIC, "global-pruning", reference.global_masks, points=4, forbids=("torch.nn.utils.prune",))
def check_global_masks(global_masks: LearnerFunction, draw: torch.Generator) -> None:
    """Check `global_masks(weights, sparsity)`, where True is a weight that stays."""
    with part("layers of one scale: exactly the asked number of weights goes"):
        weights = _weights(draw, scales=(1.0, 1.0, 1.0))
        for fraction in (0.0, 0.3, 0.7):  # from 45 on, a quantile counts as `round` does: it fails on equal magnitudes
            _require_global(global_masks, weights, drawn(45, 60, draw), fraction)
    with part("layers of different scales: the smallest of all, wherever they are"):
        weights = _weights(draw, scales=(1.0, 0.2, 3.0))
        _require_global(global_masks, weights, drawn(30, 60, draw))
    with part("equal magnitudes and zeros: the number stays exact"):
        _require_global(global_masks, _tied(draw), drawn(30, 60, draw))
    with part("sparsity 0 cuts nothing, sparsity 1 everything"):
        weights = _weights(draw, scales=(1.0, 2.0, 0.5))
        weights["second"][0, :2] = 0.0
        _require_global(global_masks, weights, 0)
        _require_global(global_masks, weights, _size(weights))


def _weights(draw: torch.Generator, *, scales: tuple[float, float, float]) -> State:
    """Draw weights, no two of one magnitude, the middle one stored column by column."""
    drawn_ones = {
        name: scale * torch.randn(shape, generator=draw)
        for (name, shape), scale in zip(SHAPES.items(), scales, strict=True)
    }
    drawn_ones["second"] = drawn_ones["second"].t().contiguous().t()
    return drawn_ones


def _tied(draw: torch.Generator) -> State:
    """Draw weights of few magnitudes, as 4-bit codes have them, with zeros."""
    return {name: torch.randint(-3, 4, shape, generator=draw) / 2 for name, shape in SHAPES.items()}


def _size(weights: State) -> int:
    return sum(weight.numel() for weight in weights.values())


def _asked(weights: State, cut: int) -> float:
    """Return the sparsity that asks for `cut` weights: a product with their number rounds and truncates to it."""
    size = _size(weights)
    return next(s for s in (cut / size, (cut + 1e-9) / size) if int(s * size) == cut)


def _require_global(global_masks: LearnerFunction, weights: State, whole: int, fraction: float = 0.0) -> None:
    """Ask for a share that is `whole` weights and a `fraction` of one, which rounds to a whole number of them."""
    sparsity = (whole + fraction) / _size(weights) if fraction else _asked(weights, whole)
    cut = whole + round(fraction)
    returned, given = probe.with_what_is_left(global_masks, copied(weights), sparsity)
    returned = as_state(returned, weights, call=CALL)
    masks = {name: as_mask(returned[name], weights[name], call=CALL) for name in weights}
    require(
        all(torch.equal(given[name], weights[name]) for name in weights),
        "the weights you were given have changed",
        misconception="changes-the-weights",
        thought="Only say which weights stay: the caller applies the mask.",
    )
    magnitudes, kept = _joined(weights).abs(), _joined(masks).bool()
    gone = int((~kept).sum())
    if gone == cut and (cut in (0, len(kept)) or magnitudes[~kept].max() <= magnitudes[kept].min()):
        return
    message = f"of {len(kept)} weights {gone} go, expected {cut}"
    if gone == cut:
        message += f"; the largest that goes is {magnitudes[~kept].max():.4g}, the smallest that stays "
        message += f"{magnitudes[kept].min():.4g}"
    for misconception, thought, fits in _slips(weights, sparsity, cut):
        if fits(kept):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Sort the magnitudes of all weights together, and look which of them your masks leave out.",
    )


def _joined(tensors: State) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in SHAPES])


def _smallest_are(values: Tensor, kept: Tensor, cut: int) -> bool:
    """Tell whether the `cut` smallest of `values` go, ties in any order."""
    gone = ~kept
    return int(gone.sum()) == cut and (cut in (0, len(kept)) or bool(values[gone].max() <= values[kept].min()))


def _slips(weights: State, sparsity: float, cut: int) -> list[tuple[str, str, Callable[[Tensor], bool]]]:
    values = _joined(weights)
    sizes = [weights[name].numel() for name in SHAPES]

    def per_layer(kept: Tensor) -> bool:
        layers = list(zip(values.abs().split(sizes), kept.split(sizes), strict=True))
        shares = [abs(int((~mask).sum()) - sparsity * len(mask)) <= 1 for _, mask in layers]
        return all(shares) and all(_smallest_are(v, mask, int((~mask).sum())) for v, mask in layers)

    def other_count(kept: Tensor, *counts: int) -> bool:
        gone = int((~kept).sum())
        return gone != cut and gone in counts and _smallest_are(values.abs(), kept, gone)

    asked = sparsity * len(values)

    def threshold_cut_too_many_or_few(kept: Tensor) -> bool:
        gone = int((~kept).sum())
        return gone != cut and _smallest_are(values.abs(), kept, gone) and _ends_between_values(values.abs(), kept)

    return [
        (
            "rounds-another-way",
            "The number that goes is the nearest to sparsity · n: `round`, where `int` drops the fraction.",
            lambda kept: abs(asked - round(asked)) > 0.1 and other_count(kept, math.floor(asked), math.ceil(asked)),
        ),
        (
            "keeps-the-share",
            "Sparsity is the share that *goes*: 0.9 leaves one weight in ten.",
            lambda kept: other_count(kept, len(values) - cut),
        ),
        (
            "threshold-moves-the-count",
            "A comparison takes all equal magnitudes or none. Choose positions instead: a sort gives them.",
            threshold_cut_too_many_or_few,
        ),
        (
            "per-layer-threshold",
            "You cut the same share of every layer. Global means one threshold: put all magnitudes into one row first.",
            per_layer,
        ),
        (
            "inverted-mask",
            "True stands for a weight that stays: yours marks those that go.",
            lambda kept: _smallest_are(values.abs(), ~kept, cut),
        ),
        (
            "cuts-the-largest",
            "The weights with the smallest magnitudes go: look at the direction of your sort.",
            lambda kept: _smallest_are(-values.abs(), kept, cut),
        ),
        (
            "ignores-the-sign",
            "Your smallest weights are the most negative ones: compare magnitudes, `weight.abs()`.",
            lambda kept: _smallest_are(values, kept, cut),
        ),
    ]


def _ends_between_values(magnitudes: Tensor, kept: Tensor) -> bool:
    """Tell whether what goes is all that lies under some threshold, equal magnitudes being together."""
    gone = ~kept
    return bool(kept.all() or gone.all() or magnitudes[gone].max() < magnitudes[kept].min())
