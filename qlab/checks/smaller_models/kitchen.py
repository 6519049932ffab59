"""States to make a soup of, two scores that disagree, and the soups of those who go about it in a wrong way."""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from qlab.checks.handed import handed_named
from qlab.checks.smaller_models.reading import State

WIDTH, STATES = 3, 6
APART = 0.01  # soups differ if they do by more than this share of their largest value
Row = tuple[float, ...]
Score = Callable[[Row], float]
THOUGHTS = {
    "selects-on-the-test-set": "Choose with held-out data: what chose the soup can no longer say how good it is.",
    "does-not-sort": "Try the states from the best held-out score down: the order decides what the soup has room for.",
    "worst-first": "Try the states from the best held-out score down: yours begins with the worst.",
    "halves-again-and-again": "(soup + state) / 2 weighs the last state most: a soup is the mean of its ingredients.",
    "keeps-everything": "A state stays out if it lowers the held-out score: compare the candidate with the soup.",
    "takes-the-best-alone": "The best state is where you begin: try the others.",
    "compares-with-the-last-candidate": "Compare with the soup as it is, not with the last try, which may be gone.",
    "compares-with-the-best-alone": "Compare with the soup as it is: it is better than the first state by now.",
    "refuses-equals": "At an equal score the state goes in: the paper's rule is ≥.",
    "stops-at-the-first-refusal": "A state that spoils the soup is left out, and the next one is tried.",
    "takes-the-best-prefix": "Leave out single states that lower the score: you only choose where to stop.",
    "lower-is-better": "A higher score is better here.",
}


class Counted:
    """A score of a state dict, higher is better: how near its weights are to a hidden optimum.

    It notes how often it was called, and the first state that was scored.
    """

    def __init__(self, optimum: Row):
        self.optimum = optimum
        self.calls, self.first = 0, Row()

    def of(self, row: Row) -> float:
        return -sum((value - best) ** 2 for value, best in zip(row, self.optimum, strict=True))

    def __call__(self, state: State) -> float:
        weight = handed_named(state, {"weight": (len(self.optimum),)}, what="the state")["weight"]
        row = tuple(weight.double().tolist())
        self.calls += 1
        self.first = self.first or row
        return self.of(row)


class Kitchen:
    """States of one weight each, and two scores: of held-out data and of test data, whose optima differ."""

    def __init__(self, rows: Tensor, held_out: Tensor, test: Tensor):
        self.rows: list[Row] = [tuple(row) for row in rows.float().tolist()]
        self.states: list[State] = [{"weight": torch.tensor(row)} for row in self.rows]
        self.held_out, self.test = Counted(tuple(held_out.tolist())), Counted(tuple(test.tolist()))

    @property
    def right(self) -> Row:
        return greedy(self.rows, self.held_out.of)


def drawn_kitchen(draw: torch.Generator) -> Kitchen:
    """Draw states around an optimum, one of them far away."""
    held_out = 2 * torch.randn(WIDTH, generator=draw)
    test = held_out + 1.5 * torch.randn(WIDTH, generator=draw)
    spread = 0.3 + torch.rand(STATES, 1, generator=draw)
    spread[0] = 3.0
    rows = held_out + spread * torch.randn(STATES, WIDTH, generator=draw)
    return Kitchen(rows[torch.randperm(STATES, generator=draw)], held_out, test)


def telling_kitchens(draw: torch.Generator) -> list[Kitchen]:
    """Draw kitchens until any two ways to cook that differ in name differ in one of their soups."""
    kitchens, alike = list[Kitchen](), None
    while alike is None or alike:
        kitchen = drawn_kitchen(draw)
        soups = [("right", kitchen.right), *wrong_soups(kitchen)]
        found = {(i, j) for i, j in combinations(range(len(soups)), 2) if not _apart(soups[i], soups[j])}
        if alike is None or alike - found:
            kitchens.append(kitchen)
            alike = found if alike is None else alike & found
    return kitchens


def kitchen_of_a_mixed_soup(draw: torch.Generator) -> Kitchen:
    """Draw a kitchen whose soup has ingredients, so that an answer which tests on the way tests more than once."""
    while True:
        kitchen = drawn_kitchen(draw)
        if _apart(("right", kitchen.right), ("first", max(kitchen.rows, key=kitchen.held_out.of))):
            return kitchen


def balanced_kitchen(draw: torch.Generator) -> Kitchen:
    """Return states of whole numbers: the second best moves the soup to the other side, exactly as far away."""
    held_out = torch.randint(-8, 9, (WIDTH,), generator=draw).float()
    offsets = torch.zeros(3, WIDTH)
    offsets[:, 0] = torch.tensor([1.0, -3.0, 90.0])
    order = torch.randperm(3, generator=draw)
    return Kitchen((held_out + offsets)[order], held_out, held_out + torch.randn(WIDTH, generator=draw))


def kitchen_of_one(draw: torch.Generator) -> Kitchen:
    """Return a single state."""
    rows = torch.randn(3, WIDTH, generator=draw)
    return Kitchen(rows[:1], rows[1], rows[2])


def _apart(one: tuple[str, Row], other: tuple[str, Row]) -> bool:
    size = APART * max(map(abs, one[1]))
    same_name = one[0] == other[0]
    return same_name or max(abs(x - y) for x, y in zip(one[1], other[1], strict=True)) > size


def mean(rows: Sequence[Row]) -> Row:
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def greedy(
    rows: Sequence[Row], score: Score, *, order: Score | None = None, accepts: Callable[..., bool] | None = None
) -> Row:
    """Cook as the paper does; `order` and `accepts(candidate, soup)` let it be done otherwise."""
    accepts = accepts or (lambda candidate, soup: score(candidate) >= score(soup))
    ranked = sorted(rows, key=order or score, reverse=True)
    chosen = ranked[:1]
    for row in ranked[1:]:
        if accepts(mean([*chosen, row]), mean(chosen)):
            chosen.append(row)
    return mean(chosen)


def wrong_soups(kitchen: Kitchen) -> list[tuple[str, Row]]:
    """Return the soup of each misconception that has a name."""
    rows, held_out, test = kitchen.rows, kitchen.held_out.of, kitchen.test.of
    best = max(map(held_out, rows))
    return [
        ("selects-on-the-test-set", greedy(rows, test)),
        ("selects-on-the-test-set", greedy(rows, held_out, order=test)),
        ("selects-on-the-test-set", greedy(rows, test, order=held_out)),
        ("does-not-sort", greedy(rows, held_out, order=lambda row: -rows.index(row))),
        ("worst-first", greedy(rows, held_out, order=lambda row: -held_out(row))),
        ("halves-again-and-again", _halving(rows, held_out)),
        ("keeps-everything", mean(rows)),
        ("takes-the-best-alone", max(rows, key=held_out)),
        ("compares-with-the-last-candidate", _against_the_last(rows, held_out)),
        ("compares-with-the-best-alone", greedy(rows, held_out, accepts=lambda c, _: held_out(c) >= best)),
        ("stops-at-the-first-refusal", _stopping(rows, held_out)),
        ("takes-the-best-prefix", _best_prefix(rows, held_out)),
        ("lower-is-better", greedy(rows, lambda row: -held_out(row))),
    ]


def soup_that_refuses_equals(kitchen: Kitchen) -> Row:
    """Return the soup of those who ask for a better score; it is the right one where no two scores are equal."""
    score = kitchen.held_out.of
    return greedy(kitchen.rows, score, accepts=lambda candidate, soup: score(candidate) > score(soup))


def _halving(rows: Sequence[Row], score: Score) -> Row:
    soup, *others = sorted(rows, key=score, reverse=True)
    for row in others:
        if score(half := mean([soup, row])) >= score(soup):
            soup = half
    return soup


def _stopping(rows: Sequence[Row], score: Score) -> Row:
    ranked = sorted(rows, key=score, reverse=True)
    held = 1
    while held < len(ranked) and score(mean(ranked[: held + 1])) >= score(mean(ranked[:held])):
        held += 1
    return mean(ranked[:held])


def _best_prefix(rows: Sequence[Row], score: Score) -> Row:
    ranked = sorted(rows, key=score, reverse=True)
    return max((mean(ranked[:held]) for held in range(1, len(ranked) + 1)), key=score)


def _against_the_last(rows: Sequence[Row], score: Score) -> Row:
    ranked = sorted(rows, key=score, reverse=True)
    chosen, last = ranked[:1], score(ranked[0])
    for row in ranked[1:]:
        candidate = score(mean([*chosen, row]))
        if candidate >= last:
            chosen.append(row)
        last = candidate
    return mean(chosen)
