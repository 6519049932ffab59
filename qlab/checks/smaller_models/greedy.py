"""Check of `greedy_soup`: from the best state down, kept if the held-out score agrees, the test set read once."""

from typing import Any

import torch

from qlab import soups as reference
from qlab.checks import probe
from qlab.checks.beside import require_right_too
from qlab.checks.expect import as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import Refused, check, part, require
from qlab.checks.smaller_models.kitchen import (
    THOUGHTS,
    Kitchen,
    Row,
    balanced_kitchen,
    kitchen_of_a_mixed_soup,
    kitchen_of_one,
    soup_that_refuses_equals,
    telling_kitchens,
    wrong_soups,
)
from qlab.checks.smaller_models.reading import as_state, copied
from qlab.checks.smaller_models.topic import TOPIC

CALL = "greedy_soup(states, held_out, test)"
CLOSE = 1e-5  # of the largest value: FP32 means of at most six rows that partly cancel; see kitchen.APART
SCORE_CLOSE = 1e-3  # of a score: a square of a difference of such values


@check(TOPIC, "greedy-soup", reference.greedy_soup, points=5)
def check_greedy_soup(greedy_soup: LearnerFunction, draw: torch.Generator) -> None:
    """Check `greedy_soup(states, held_out, test)`, which returns the soup and its test score."""
    with part("mixed from the best down, by the held-out score"):
        _require_soups(greedy_soup, telling_kitchens(draw))
    with part("the test set is read once, for the soup alone"):
        _require_one_reading(greedy_soup, kitchen_of_a_mixed_soup(draw))
    with part("an ingredient that leaves the score as it is stays in"):
        _require_soups(greedy_soup, [balanced_kitchen(draw)])
    with part("one state alone is its own soup"):
        _require_soups(greedy_soup, [kitchen_of_one(draw)])
    with part("the states you were given stay as they are"):
        kitchen = kitchen_of_a_mixed_soup(draw)
        given = [copied(state) for state in kitchen.states]
        returned, left = probe.with_what_is_left(greedy_soup, given, kitchen.held_out, kitchen.test)
        require_right_too(_near(_read(returned, kitchen)[0], kitchen.right))
        require(
            all(torch.equal(g["weight"], s["weight"]) for g, s in zip(left, kitchen.states, strict=True)),
            "a state that went in has changed",
            misconception="changes-the-given-states",
            thought="Average into new tensors: the ingredients are tried again and again.",
        )


def _cooked(greedy_soup: LearnerFunction, kitchen: Kitchen) -> tuple[Row, float]:
    """Let the answer cook, and return its soup and the test score it reports."""
    return _read(greedy_soup([copied(state) for state in kitchen.states], kitchen.held_out, kitchen.test), kitchen)


def _read(returned: Any, kitchen: Kitchen) -> tuple[Row, float]:
    require(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"`{CALL}` returned {type(returned).__name__}, expected (soup, test score)",
        misconception="returns-nothing" if returned is None else "returns-wrong-type",
        thought="Return the state dict of the soup and its score on the test set.",
    )
    soup = as_state(returned[0], kitchen.states[0], call=CALL)["weight"]
    return tuple(soup.double().tolist()), as_number(returned[1], call=CALL)


def _require_soups(greedy_soup: LearnerFunction, kitchens: list[Kitchen]) -> None:
    """Refuse wrong soups; a misconception is named if it cooks the same soup in every kitchen."""
    soups = [_cooked(greedy_soup, kitchen)[0] for kitchen in kitchens]
    wrong = [i for i, kitchen in enumerate(kitchens) if not _near(soups[i], kitchen.right)]
    if not wrong:
        return
    kitchen, score = kitchens[wrong[0]], kitchens[wrong[0]].held_out.of
    message = (
        f"the held-out score of your soup is {score(soups[wrong[0]]):.4g}, expected {score(kitchen.right):.4g}"
        f" (another soup in {len(wrong)} of {len(kitchens)} kitchens)"
    )
    ways = [[("refuses-equals", soup_that_refuses_equals(kitchen)), *wrong_soups(kitchen)] for kitchen in kitchens]
    for way in zip(*ways, strict=True):
        misconception = way[0][0]
        if all(_near(soup, slip) for soup, (_, slip) in zip(soups, way, strict=True)):
            raise Refused(message, misconception=misconception, thought=THOUGHTS[misconception])
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Print after each state tried: its own score, the candidate's, the soup's.",
    )


def _near(got: Row, want: Row) -> bool:
    size = max(map(abs, want))
    return all(abs(a - b) <= CLOSE * size for a, b in zip(got, want, strict=True))


def _require_one_reading(greedy_soup: LearnerFunction, kitchen: Kitchen) -> None:
    soup, reported = _cooked(greedy_soup, kitchen)
    readings = kitchen.test.calls
    require(
        readings <= 1,
        f"`test` was called {readings} times",
        misconception="reads-the-test-set",
        thought="Each look at the test set is a chance to choose by it: score the finished soup, once.",
    )
    want, held_out = kitchen.test.of(soup), kitchen.held_out.of(soup)
    require(
        abs(reported - want) <= SCORE_CLOSE * abs(want),
        f"you report {reported:.6g}, the soup's test score is {want:.6g}",
        misconception=(
            "reports-the-held-out-score"
            if abs(reported - held_out) <= SCORE_CLOSE * abs(held_out)
            else "reports-another-score"
        ),
        thought="The held-out score has chosen the soup, so it flatters it: report `test(soup)`.",
    )
    require(
        readings == 1 and _near(kitchen.test.first, soup),
        "`test` was not called with the soup you return",
        misconception="reports-another-score",
        thought="Score the finished soup with `test`, and return that number.",
    )
