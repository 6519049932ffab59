"""Check of `remove_units`: two linear layers that are really smaller, and compute what the kept units computed."""

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlab import sparsity as reference
from qlab.checks.beside import require_right_too
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require
from qlab.checks.smaller_models.topic import TOPIC
from qlab.checks.smaller_models.unit_layers import Plain, linear_of, plain_of, removed, removed_and_left, tensors_of
from qlab.checks.smaller_models.unit_places import holds_rows_of, refuse_what_is_proved

# of the largest output: FP32 sums of at most 24 terms in another order differ by some 1e-7 of it; the weakest unit
# that could be taken for another one contributes more than a hundredth
CLOSE = 1e-5
HIDDEN = 10
THOUGHTS = {
    "keeps-the-weakest": "The strongest units stay.",
    "counts-what-goes-in": "Large weights into a unit that is almost unread: multiply by the norm of its column.",
    "counts-what-comes-out": "A unit that is read strongly may be almost silent: multiply by the norm of its row.",
    "adds-the-norms": "A unit's share of the output is a product of its row and its column: multiply the norms.",
    "keeps-the-first": "You keep the first units: order them by strength.",
    "sums-the-magnitudes": "The norm is the Euclidean one, the root of the sum of squares: `weight.norm(dim=…)`.",
    "counts-the-bias": "The task's strength is of the weights alone: a bias is the same for every input.",
}


class Pair(NamedTuple):
    """Two linear layers with a ReLU between them."""

    first: nn.Linear
    second: nn.Linear

    @property
    def plain(self) -> tuple[Plain, Plain]:
        """Weight and bias of each layer."""
        return plain_of(self.first), plain_of(self.second)

    def output(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        hidden = functional.relu(self.first(x))
        return self.second(hidden if kept is None else hidden * kept)


@check(TOPIC, "remove-units", reference.unit_scores, reference.largest_units, reference.remove_units, points=5)
def check_remove_units(remove_units: LearnerFunction, draw: torch.Generator) -> None:
    """Check `remove_units(first, second, keep)`, which returns two new, smaller linear layers."""
    keep = drawn(3, 4, draw)
    with part("the layers are smaller: shapes, and bytes held"):
        pair = _drawn_pair(keep, draw)
        smaller, held = _removed(remove_units, pair, keep)
        require_right_too(holds_rows_of(smaller, pair))
        _require_held_bytes(smaller, held)
    with part("the strongest units stay, and compute what they did"):
        _require_function(remove_units, _drawn_pair(keep, draw), keep, draw)
    with part("strength counts what goes in and what comes out"):
        _require_function(remove_units, _drawn_pair(keep, draw, uneven=True), keep, draw)
    with part("biases: the kept units' own, and all of the second layer's"):
        _require_function(remove_units, _drawn_pair(keep, draw, uneven=True, bias=True), keep, draw)
    with part("the layers you were given stay as they are"):
        pair = _drawn_pair(keep, draw, bias=True)
        (layers, _), after = remove_units.beside(removed_and_left, pair.plain, keep)
        before = tensors_of(pair)
        require_right_too(holds_rows_of(Pair(*map(linear_of, layers)), pair))
        require(
            len(before) == len(after) and all(map(torch.equal, before, after)),
            "the layers that went in have changed",
            misconception="changes-the-given-layers",
            thought="Make two new `nn.Linear` and fill them: the large network may still be needed.",
        )


def _drawn_pair(keep: int, draw: torch.Generator, *, uneven: bool = False, bias: bool = False) -> Pair:
    """Draw two layers with ten hidden units, no two of which are nearly as strong.

    The order of strength is not that of the places, nor its reverse, so that nobody mixes them up unseen.
    Uneven: every other way to choose units that has a name below chooses others.
    """
    while True:
        pair = _any_pair(draw, uneven=uneven, bias=bias)
        chosen = [_kept(scores, keep) for scores in (_strengths(pair), *_other_scores(pair).values())]
        if _in_order_of_places(pair, keep):
            continue
        if not uneven or all(not torch.equal(a, b) for a, b in combinations(chosen, 2)):
            return pair


def _in_order_of_places(pair: Pair, keep: int) -> bool:
    places = _strengths(pair).topk(keep).indices.tolist()
    return sorted(places) in (places, places[::-1])


def _any_pair(draw: torch.Generator, *, uneven: bool, bias: bool) -> Pair:
    inside, outside = drawn(5, 8, draw), drawn(4, 7, draw)
    first, second = nn.Linear(inside, HIDDEN, bias=bias), nn.Linear(HIDDEN, outside, bias=bias)
    strengths = 1.5 ** torch.randperm(HIDDEN, generator=draw).float()
    tilt = 2.0 ** torch.randint(-3, 4, (HIDDEN,), generator=draw) if uneven else torch.ones(HIDDEN)
    # the fifth power leaves one large weight of a few: two norms that agree on the others disagree on such units
    power = 1 + 4 * torch.randint(0, 2, (HIDDEN, 1), generator=draw) if uneven else torch.ones(HIDDEN, 1)
    with torch.no_grad():
        rows = functional.normalize(torch.randn(HIDDEN, inside, generator=draw) ** power, dim=1)
        columns = functional.normalize(torch.randn(outside, HIDDEN, generator=draw) ** power.t(), dim=0)
        first.weight.copy_(rows * (strengths.sqrt() * tilt)[:, None])
        second.weight.copy_(columns * (strengths.sqrt() / tilt))
        if bias:  # large where a unit is weak, so that counting it changes the order; positive, so that none is dead
            first.bias.copy_(torch.randn(HIDDEN, generator=draw).abs() * tilt * strengths.max() / strengths.sqrt())
            second.bias.copy_(torch.randn(outside, generator=draw))
    return Pair(first, second)


def _other_scores(pair: Pair) -> dict[str, Tensor]:
    """Return the strengths of units as those see them who hold one of the named misconceptions."""
    rows, columns = pair.first.weight.detach().norm(dim=1), pair.second.weight.detach().norm(dim=0)
    found = {
        "keeps-the-weakest": -rows * columns,
        "counts-what-goes-in": rows,
        "counts-what-comes-out": columns,
        "adds-the-norms": rows + columns,
        "sums-the-magnitudes": pair.first.weight.detach().abs().sum(1) * pair.second.weight.detach().abs().sum(0),
        "keeps-the-first": -torch.arange(HIDDEN).float(),
    }
    if pair.first.bias is not None:
        with_bias = torch.cat([pair.first.weight.detach(), pair.first.bias.detach()[:, None]], dim=1)
        found["counts-the-bias"] = with_bias.norm(dim=1) * columns
    return found


def _strengths(pair: Pair) -> Tensor:
    return (pair.first.weight.norm(dim=1) * pair.second.weight.norm(dim=0)).detach()


def _removed(remove_units: LearnerFunction, pair: Pair, keep: int) -> tuple[Pair, list[int]]:
    """Return the smaller pair, and the bytes that its weights hold where they were made."""
    layers, held = remove_units.beside(removed, pair.plain, keep)
    smaller = Pair(*map(linear_of, layers))
    _require_shapes(smaller, pair, keep)
    return smaller, held


def _require_shapes(smaller: Pair, pair: Pair, keep: int) -> None:
    got = [tuple(layer.weight.shape) for layer in smaller]
    want = [(keep, pair.first.in_features), (pair.second.out_features, keep)]
    if got == want:
        return
    message = f"the weights are {got[0]} and {got[1]}, expected {want[0]} and {want[1]}"
    if got == [tuple(layer.weight.shape) for layer in pair]:
        raise Refused(
            message,
            misconception="masks-only",
            thought="Zeros take as many bytes and as much time as any number: build layers that have no such rows.",
        )
    if got[0][0] == pair.first.out_features - keep:
        raise Refused(message, misconception="keeps-the-others", thought="`keep` is how many units stay.")
    raise Refused(
        message,
        misconception="wrong-shape",
        thought="A unit is a row of the first weight and a column of the second: both go.",
    )


def _require_held_bytes(smaller: Pair, all_held: list[int]) -> None:
    for layer, held in zip(smaller, all_held, strict=True):
        require(
            held <= layer.weight.nbytes,
            f"a weight of {layer.weight.nbytes} bytes holds a storage of {held}",
            misconception="holds-the-large-storage",
            thought="A slice is a view: it keeps the whole tensor alive. Copy the rows into a new one.",
        )


def _require_function(remove_units: LearnerFunction, pair: Pair, keep: int, draw: torch.Generator) -> None:
    smaller, _ = _removed(remove_units, pair, keep)
    x = torch.randn(32, pair.first.in_features, generator=draw)
    with torch.no_grad():
        got = smaller.output(x).double()
        want = pair.output(x, _kept(_strengths(pair), keep)).double()
        if _near(got, want):
            return
        off = ((got - want).abs().max() / want.abs().max()).item()
        message = f"keeping {keep} of 10 units, outputs differ by up to {off:.3g} of the largest, expected 0"
        for misconception, thought, output in _slips(pair, keep, x):
            if _near(got, output.double()):
                raise Refused(message, misconception=misconception, thought=thought)
        refuse_what_is_proved(smaller, pair, message, right=lambda repaired: _near(repaired(x).double(), want))
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Multiply the hidden layer of the large pair by a mask of the kept units: the outputs must agree.",
    )


def _kept(strengths: Tensor, keep: int) -> Tensor:
    return torch.zeros_like(strengths).scatter_(0, strengths.topk(keep).indices, 1.0)


def _near(got: Tensor, want: Tensor) -> bool:
    return bool(((got - want).abs() <= CLOSE * want.abs().max()).all())


def _slips(pair: Pair, keep: int, x: Tensor) -> list[tuple[str, str, Tensor]]:
    right = _kept(_strengths(pair), keep)

    def without(*, first_bias: bool, second_bias: bool) -> Tensor:
        first = functional.linear(x, pair.first.weight, pair.first.bias if first_bias else None)
        hidden = functional.relu(first) * right
        return functional.linear(hidden, pair.second.weight, pair.second.bias if second_bias else None)

    others = _other_scores(pair).items()
    found = [(name, THOUGHTS[name], pair.output(x, _kept(scores, keep))) for name, scores in others]
    if pair.first.bias is not None:
        lost = "A new `nn.Linear` needs the kept units' own biases, and the second layer's bias as it was."
        for first, second in ((False, False), (True, False), (False, True)):
            found.append(("loses-the-bias", lost, without(first_bias=first, second_bias=second)))
    return found
