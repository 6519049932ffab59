"""Check of `plant_outliers`: larger channels after the norm, and the same products in every layer that reads it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import outliers
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.outliers.reading import TOPIC, as_gain_and_weights, flat, where_in
from qlab.checks.quantization.codes import uniform
from qlab.checks.quantization.products import require_within
from qlab.checks.report import Refused, check, part

CALL = "plant_outliers(gain, weights, dimensions, strength)"
ROUNDING = 2.0**-22  # a power of 2 rounds nothing; another strength, its inverse and a product round to 2⁻²⁴ each


@dataclass(frozen=True)
class Case:
    """One call."""

    gain: Tensor
    weights: list[Tensor]
    dimensions: Tensor
    strength: float

    @property
    def factor(self) -> Tensor:
        """What each channel of the norm's output is multiplied by."""
        return torch.ones(len(self.gain), dtype=torch.float64).index_fill(0, self.dimensions, self.strength)

    @property
    def told(self) -> str:
        """What was given, in words."""
        return f"{len(self.weights)} readers, dimensions {self.dimensions.tolist()}, strength {self.strength:g}"


@check(TOPIC, "plant-outliers", outliers.plant_outliers, outliers.divide_channels, points=4)
def check_plant_outliers(plant: LearnerFunction, draw: torch.Generator) -> None:
    """Check `plant_outliers(gain, weights, dimensions, strength) -> (gain, weights)`."""
    with part("one dimension, one reader: the channel is larger, and no product changes by a bit"):
        _require_planted(plant, _case(draw, readers=1, dimensions=1))
    with part("several dimensions of one reader"):
        _require_planted(plant, _case(draw, readers=1, dimensions=drawn(3, 5, draw)))
    with part("every reader of the norm"):
        _require_planted(plant, _case(draw, readers=3, dimensions=drawn(3, 5, draw)))
    with part("a strength that is no power of two, to FP32 rounding"):
        case = _case(draw, readers=2, dimensions=drawn(3, 5, draw))
        strength = uniform(20.0, 30.0, (), draw).item()
        _require_planted(plant, Case(case.gain, case.weights, case.dimensions, strength), ROUNDING)


def _case(draw: torch.Generator, *, readers: int, dimensions: int) -> Case:
    """Draw a norm and readers of at least as many rows as columns: a slip of rows is a wrong value, not a crash.

    The second of several readers is square: there a slip of broadcasting shows.
    """
    width = drawn(10, 16, draw)
    return Case(
        uniform(0.5, 2.0, (width,), draw),
        [torch.randn(width + extra, width, generator=draw) for extra in (drawn(1, 6, draw), 0, 3)[:readers]],
        torch.randperm(width, generator=draw)[:dimensions],
        2.0 ** drawn(4, 8, draw),
    )


def _require_planted(plant: LearnerFunction, case: Case, rounding: float = 0.0) -> None:
    returned = plant(case.gain, case.weights, case.dimensions, case.strength)
    gain, weights = as_gain_and_weights(returned, case.gain, case.weights, call=CALL)
    expected = flat(case.gain * case.factor, [w / case.factor for w in case.weights])
    try:
        require_within(
            flat(gain, weights),
            expected,
            rounding * expected.abs(),
            given=lambda i: f"{case.told}, at {where_in(i, case.gain, case.weights)}",
            suspects=lambda: _suspects(case),
        )
    except Refused as refusal:
        if refusal.misconception == "wrong-value":
            _name_a_change_of_the_function(case, gain, weights)
        raise


def _name_a_change_of_the_function(case: Case, gain: Tensor, weights: list[Tensor]) -> None:
    """Refuse by the property itself: what the norm puts out is multiplied by gain · column, for each reader."""
    for number, (new, old) in enumerate(zip(weights, case.weights, strict=True)):
        before, after = case.gain.double() * old.double(), gain * new
        change = ((after - before).abs() / before.abs()).amax(0)
        if change.max() > 1e-6:  # FP32 rounds gain, column and their inverse to 6e-8 each
            column = int(change.argmax())
            raise Refused(
                f"given {case.told}, gain · column {column} of weights[{number}] became "
                f"{(after[:, column] / before[:, column]).median():.6g} times what it was, expected 1",
                misconception="changes-the-function",
                thought="What the gain multiplies by, the matching column of every reader must divide by.",
            )


def _suspects(case: Case) -> Iterator[Suspect]:
    gain, weights, factor, chosen = case.gain.double(), case.weights, case.factor, case.dimensions
    planted, divided = gain * factor, [w / factor for w in weights]

    def suspect(misconception: str, thought: str, new_gain: Tensor, new_weights: list[Tensor]) -> Suspect:
        return Suspect(misconception, thought, flat(new_gain, new_weights))

    yield suspect("plants-nothing", "Gain and weights came back as they were.", gain, weights)
    only = "The output changes if only one side does: the weights must take back what the gain adds."
    yield suspect("changes-the-gain-only", only, planted, weights)
    yield suspect("changes-the-weights-only", "The gain stayed: it is what makes the channel larger.", gain, divided)
    every = "Every linear layer that reads the norm must divide its columns: queries, keys and values all read one."
    for forgotten in (slice(1, None), slice(0, -1), slice(0, 1), slice(-1, None)):
        kept = list(divided)
        kept[forgotten] = weights[forgotten]
        yield suspect("forgets-a-reader", every, planted, kept)
    rows = "A channel that comes in meets a *column* of the (out, in) weight: `weight[:, dimensions]`."
    by_rows = [w.double().index_copy(0, chosen, w[chosen].double() / case.strength) for w in weights]
    yield suspect("rows-instead-of-columns", rows, planted, by_rows)
    yield suspect("divides-both", "The gain grows, the columns shrink.", gain / factor, divided)
    yield suspect("multiplies-both", "The gain grows, the columns shrink.", planted, [w * factor for w in weights])
    inverse = "This is the inverse: the function stays, but the channels get *smaller*. Multiply the gain."
    yield suspect("plants-the-inverse", inverse, gain / factor, [w * factor for w in weights])
    all_of_them = "Only the chosen dimensions grow."
    everywhere = gain * case.strength, [w.double() / case.strength for w in weights]
    yield suspect("plants-every-dimension", all_of_them, *everywhere)
    many = "The gain is shared by all readers: multiply it once, outside of the loop."
    yield suspect("multiplies-the-gain-for-each-reader", many, gain * factor ** len(weights), divided)
    set_to = "Multiply the gain by the strength: it has a value of its own already."
    yield suspect("replaces-the-gain", set_to, torch.where(factor > 1, factor, gain), divided)
    adds = "Multiply the gain by the strength, do not add it."
    yield suspect("adds-the-strength", adds, torch.where(factor > 1, gain + factor, gain), divided)
    first = torch.ones_like(factor).index_fill(0, chosen[:1], case.strength)
    one = "All of `dimensions` are planted, not only the first."
    yield suspect("plants-the-first-only", one, gain * first, [w / first for w in weights])
