"""Check of `uniform_soup`: floating tensors averaged, whole numbers left alone, no sum that overflows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qlab import soups as reference
from qlab.checks import probe
from qlab.checks.beside import require_right_too
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require
from qlab.checks.smaller_models.reading import State, as_state, copied
from qlab.checks.smaller_models.topic import TOPIC

CALL = "uniform_soup(states)"
CLOSE = 1e-6  # of the largest value: FP32 sums of at most six terms; one state too few or too many moves it by a tenth


@check(TOPIC, "uniform-soup", reference.uniform_soup, points=4)
def check_uniform_soup(uniform_soup: LearnerFunction, draw: torch.Generator) -> None:
    """Check `uniform_soup(states)`, the mean of state dicts."""
    with part("the mean of every floating tensor"):
        states = [_floats(draw) for _ in range(drawn(3, 5, draw))]
        _require_mean(_soup_of(uniform_soup, states), states)
    with part("whole numbers are the first state's, and stay whole"):
        states = [_floats(draw) | _counters(draw, i) for i in range(drawn(2, 4, draw))]
        _require_counters(_soup_of(uniform_soup, states), states)
    with part("16-bit weights: in their own type, and no sum overflows"):
        _require_half(uniform_soup, draw)
    with part("the states you were given stay as they are"):
        states = [_floats(draw) | _counters(draw, i) for i in range(3)]
        returned, left = probe.with_what_is_left(uniform_soup, [copied(state) for state in states])
        soup, rows = as_state(returned, states[0], call=CALL), torch.stack([_row(state) for state in states])
        require_right_too(_near(_row(soup), rows.mean(0)))
        untouched = all(torch.equal(g[name], s[name]) for g, s in zip(left, states, strict=True) for name in s)
        require(
            untouched,
            "a state that went in has changed",
            misconception="changes-the-given-states",
            thought="`total += …` on a tensor of the first state writes into it: start from a copy, or from zeros.",
        )


def _floats(draw: torch.Generator) -> State:
    return {"weight": torch.randn(4, 3, generator=draw), "bias": torch.randn(4, generator=draw)}


def _counters(draw: torch.Generator, number: int) -> State:
    """Return buffers as batch norm has them: no mean of these numbers is whole, or equal to the first."""
    return {"batches": torch.tensor(7 + 10 * number + number**2), "order": torch.arange(5).roll(-number)}


def _soup_of(uniform_soup: LearnerFunction, states: Sequence[State]) -> dict[str, Any]:
    returned = uniform_soup([copied(state) for state in states])
    as_state(returned, states[0], call=CALL)
    return returned


def _require_mean(soup: dict[str, Any], states: Sequence[State]) -> None:
    got, want = _row(as_state(soup, states[0], call=CALL)), torch.stack([_row(state) for state in states]).mean(0)
    if _near(got, want):
        return
    rows = torch.stack([_row(state) for state in states])
    folded = rows[0]
    for row in rows[1:]:
        folded = (folded + row) / 2
    slips = (
        ("forgets-to-divide", "Divide the sum by the number of states.", rows.sum(0)),
        ("halves-again-and-again", "(a + b) / 2 of a running mean weighs the last state most.", folded),
        ("leaves-one-out", "Every state belongs into the sum, the first and the last too.", rows[1:].mean(0)),
        ("leaves-one-out", "Every state belongs into the sum, the first and the last too.", rows[:-1].mean(0)),
        ("divides-by-one-too-many", "Divide by the number of states.", rows.sum(0) / (len(rows) + 1)),
        ("divides-by-one-too-few", "Divide by the number of states.", rows.sum(0) / (len(rows) - 1)),
        ("takes-one-state", "A soup is the mean of all states.", rows[0]),
        ("takes-one-state", "A soup is the mean of all states.", rows[-1]),
        ("median", "The median is not the mean.", rows.median(0).values),
    )
    message = f"the mean of {len(states)} states differs by up to {(got - want).abs().max():.3g}, expected 0"
    for misconception, thought, value in slips:
        if _near(got, value):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(message, misconception="wrong-value", thought="Average each tensor with those of the same name.")


def _row(state: State) -> Tensor:
    return torch.cat([state[name].double().reshape(-1) for name in ("weight", "bias")])


def _near(got: Tensor, want: Tensor) -> bool:
    return bool(((got - want).abs() <= CLOSE * want.abs().max()).all())


def _require_counters(soup: dict[str, Any], states: Sequence[State]) -> None:
    for name in ("batches", "order"):
        got = torch.as_tensor(soup[name])
        whole = not got.is_floating_point()
        if whole and torch.equal(got.long(), states[0][name]):
            continue
        message = (
            f"{name!r} is {got.tolist()} in {got.dtype}, expected {states[0][name].tolist()} as in the first state"
        )
        last = torch.equal(got.double(), states[-1][name].double())
        raise Refused(
            message,
            misconception="takes-another-states-numbers" if last else "averages-integer-buffers",
            thought="A count has no mean: average what `is_floating_point()`, take the rest from the first state.",
        )
    _require_mean(soup, states)


def _require_half(uniform_soup: LearnerFunction, draw: torch.Generator) -> None:
    states = [
        {name: (30_000 + 10_000 * torch.rand(t.shape, generator=draw)).half() for name, t in _floats(draw).items()}
        for _ in range(4)
    ]
    soup = _soup_of(uniform_soup, states)
    got, want = _row(soup), torch.stack([_row(state) for state in states]).mean(0)
    require(
        bool(got.isfinite().all()),
        f"the mean of {len(states)} FP16 states has values that are not finite",
        misconception="sums-in-half",
        thought="40,000 + 40,000 is beyond FP16's 65,504: sum in FP32, or divide before you add.",
    )
    dtypes = {torch.as_tensor(soup[name]).dtype for name in ("weight", "bias")}
    require(
        dtypes == {torch.float16},
        f"FP16 states gave a soup in {', '.join(sorted(map(str, dtypes)))}",
        misconception="changes-the-type",
        thought="The soup replaces a model of this type: return each mean in its tensor's own dtype.",
    )
    require(
        any(not torch.equal(torch.as_tensor(soup[name]), states[0][name]) for name in soup),
        "FP16 tensors are those of the first state, expected their mean",
        misconception="averages-one-type-only",
        thought="Weights of 16 bits have a mean too: ask `is_floating_point()`, not for one dtype.",
    )
    # a sum of four quarters or of running means rounds at most four times, by half a step of FP16 each
    steps = (got - want).abs() / 2.0**5  # FP16 numbers between 2^15 and 2^16 are 2^5 apart
    require(
        bool((steps <= 4).all()),
        f"the mean of FP16 states is up to {steps.max():.1f} steps of FP16 off",
        misconception="wrong-value",
        thought="Average each tensor with those of the same name.",
    )
