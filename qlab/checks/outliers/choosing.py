"""Check of `choose_remedy`: what fits both budgets, and the cheapest of what noise cannot tell apart."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from qlab import outliers
from qlab.checks.learner import LearnerFunction
from qlab.checks.outliers.reading import TOPIC
from qlab.checks.report import Refused, check, part

NAMES = ("clipping", "a scale a row", "blocks of 64", "decomposition", "SmoothQuant", "rotation", "codebook", "nothing")
FEW, MANY = 16, 50  # so many lists that every slip of budgets, of noise, chooses differently on some of them


class Measured(NamedTuple):
    """One row of what `choose_remedy` is given, which is a plain tuple there."""

    name: str
    code_bits: float
    other_bits: float
    extra_ms: float
    loss: float
    error: float

    @property
    def bits(self) -> float:
        return self.code_bits + self.other_bits


@dataclass(frozen=True)
class Case:
    """One call."""

    measured: tuple[Measured, ...]
    budget_bits: float
    budget_ms: float

    @property
    def told(self) -> str:
        """What was given, in words."""
        rows = "; ".join(
            f"{m.name}: {m.code_bits:g} + {m.other_bits:g} bits, {m.extra_ms:g} ms, loss {m.loss:g} ± {m.error:g}"
            for m in self.measured
        )
        return f"at most {self.budget_bits:g} bits and {self.budget_ms:g} ms: {rows}"


TIED = Case(
    (Measured("rotation", 4.0, 0.5, 2 / 64, 0.01, 0.004), Measured("SmoothQuant", 4.0, 0.5, 1 / 64, 0.012, 0.004)),
    budget_bits=5.0,
    budget_ms=1.0,
)
Choice = str | None
Fits = Callable[[Measured, Case], bool]
Near = Callable[[Measured, Measured], bool]


@check(TOPIC, "choose-remedy", outliers.apply_remedy, points=4)
def check_choose_remedy(choose_remedy: LearnerFunction, draw: torch.Generator) -> None:
    """Check `choose_remedy(measured, budget_bits, budget_ms)`."""
    with part("every bit counts: codes, and scales and weights kept beside them"):
        _compare(choose_remedy, [_case(draw, noise=0.0, tight_ms=False) for _ in range(FEW)])
    with part("extra work counts too"):
        _compare(choose_remedy, [_case(draw, noise=0.0) for _ in range(FEW)])
    with part("what two standard errors cannot tell apart goes to the cheaper"):
        _compare(choose_remedy, [TIED, *(_case(draw, noise=1.0) for _ in range(MANY))])
    with part("a budget filled to the last bit fits; None where nothing fits"):
        some = [_case(draw, noise=1.0) for _ in range(FEW)]
        full = [_filled(case) for case in some]
        _compare(choose_remedy, [*full, *(Case(c.measured, 0.5, c.budget_ms) for c in some[:3])])


def _case(draw: torch.Generator, *, noise: float, tight_ms: bool = True) -> Case:
    """Draw six remedies that differ in bits or work, of which no two are at the very limit of noise."""
    while True:
        case = _drawn(draw, noise, tight_ms)
        pairs = [(a, b) for a in case.measured for b in case.measured if a.name < b.name]
        limits = [abs(a.loss - b.loss) - k * math.hypot(a.error, b.error) for a, b in pairs for k in (0, 2)]
        prices = {(m.bits, m.extra_ms) for m in case.measured}
        apart = len(prices) == len(case.measured) and min(map(abs, limits)) > 1e-6
        if apart and any(_fits(m, case) for m in case.measured):
            return case


def _drawn(draw: torch.Generator, noise: float, tight_ms: bool) -> Case:
    """Draw bits that are multiples of 1/8 and times of 1/64, whose sums are exact."""
    names = torch.randperm(len(NAMES), generator=draw)[:6].tolist()
    numbers = torch.randint(10**6, (7, 5), generator=draw).tolist()
    measured = []
    for name, (a, b, c, d, e) in zip(names, numbers, strict=False):
        loss, error = (40 + a % 600 if noise else 40 + a % 60_000) / 10_000, (20 + b % 150) / 10_000 * (noise or 0.01)
        code_bits, other_bits = float((3, 4, 4, 6, 8)[c % 5]), d % 13 / 8
        measured.append(Measured(NAMES[name], code_bits, other_bits, e % 13 / 64, loss, round(error, 6)))
    at_bits = sorted(m.bits for m in measured)[2 + numbers[6][0] % 3]
    at_ms = sorted(m.extra_ms for m in measured)[2 + numbers[6][1] % 3] if tight_ms else 1.0
    return Case(tuple(measured), at_bits + 1 / 16, at_ms + 1 / 128)


def _filled(case: Case) -> Case:
    """Return the case with budgets that the remedy to be chosen, or else the cheapest, fills exactly."""
    right = _choose(case)
    one = next((m for m in case.measured if m.name == right), min(case.measured, key=lambda m: m.bits))
    return Case(case.measured, one.bits, one.extra_ms)


def _compare(choose_remedy: LearnerFunction, cases: Sequence[Case]) -> None:
    got = [_read(choose_remedy([tuple(m) for m in c.measured], c.budget_bits, c.budget_ms), c) for c in cases]
    expected = [_choose(case) for case in cases]
    wrong = [place for place, (g, e) in enumerate(zip(got, expected, strict=True)) if g != e]
    if not wrong:
        return
    first = wrong[0]
    count = f"wrong on {len(wrong)} of {len(cases)} lists"
    message = f"given {cases[first].told}: got {got[first]}, expected {expected[first]} ({count})"
    for misconception, thought, choose in _slips():
        if [choose(case) for case in cases] == got:
            raise Refused(message, misconception=misconception, thought=thought)
    if not any(got):
        nothing = "Your function computes something but does not hand it back: does it end in `return`?"
        raise Refused("it returned None every time", misconception="returns-nothing", thought=nothing)
    rules = "Four steps: what fits, the smallest loss among it, what is as good within noise, the cheapest of those."
    raise Refused(message, misconception="wrong-value", thought=rules)


def _read(returned: Any, case: Case) -> Choice:
    if returned is None:
        return None
    name = returned.item() if hasattr(returned, "item") else returned
    if not isinstance(name, str):
        raise Refused(
            f"it returned {str(returned)[:60]}, a {type(returned).__name__}",
            misconception="returns-wrong-type",
            thought="Return the name, the first entry of the tuple.",
        )
    if name not in {m.name for m in case.measured}:
        raise Refused(
            f"it returned {name[:60]!r}, which is no name in the list",
            misconception="not-a-name",
            thought="Return one of the names as it was given, or None.",
        )
    return str(name)


def _fits(m: Measured, case: Case) -> bool:
    return m.bits <= case.budget_bits and m.extra_ms <= case.budget_ms


def _near(m: Measured, best: Measured) -> bool:
    return m.loss - best.loss <= 2 * math.hypot(m.error, best.error)


def _choose(
    case: Case,
    fits: Fits = _fits,
    near: Near = _near,
    cost: Callable[[Measured], Any] = lambda m: (m.bits, m.extra_ms),
    *,
    best_of_all: bool = False,
) -> Choice:
    affordable = [m for m in case.measured if fits(m, case)]
    if not affordable:
        return None
    best = min(case.measured if best_of_all else affordable, key=lambda m: m.loss)
    good = [m for m in affordable if near(m, best)] or ([] if best_of_all else affordable)
    return min(good, key=cost).name if good else None


NOISE = "A smaller loss within noise is no better: of all within 2·√(error² + error²) of the best take the cheapest."
BUDGET = "A remedy over a budget is out, however good: filter first."


def _slips() -> Iterator[tuple[str, str, Callable[[Case], Choice]]]:
    def itself(m: Measured, best: Measured) -> bool:
        return m is best

    def everything(_: Measured, __: Any) -> bool:
        return True

    codes = "Scales and weights kept twice take bits as well: add both numbers."
    by_codes: Fits = lambda m, c: m.code_bits <= c.budget_bits and m.extra_ms <= c.budget_ms  # noqa: E731
    by_bits: Fits = lambda m, c: m.bits <= c.budget_bits  # noqa: E731
    by_ms: Fits = lambda m, c: m.extra_ms <= c.budget_ms  # noqa: E731
    strict: Fits = lambda m, c: m.bits < c.budget_bits and m.extra_ms < c.budget_ms  # noqa: E731
    by_budget = (
        ("ignores-the-bits", BUDGET, by_ms),
        ("ignores-extra-work", BUDGET, by_bits),
        ("ignores-the-budgets", BUDGET, everything),
        ("counts-codes-only", codes, by_codes),
        ("excludes-a-full-budget", "A budget may be filled: `<=`.", strict),
    )
    for misconception, thought, fits in by_budget:
        yield misconception, thought, lambda c, fits=fits: _choose(c, fits)
    yield "smallest-loss-within-noise", NOISE, lambda c: _choose(c, near=itself)
    yield (
        "cheapest-of-all",
        "The loss comes first, the price only between equals.",
        lambda c: _choose(c, near=everything),
    )
    yield "counts-codes-only", codes, lambda c: _choose(c, cost=lambda m: (m.code_bits, m.extra_ms))
    yield "best-is-not-affordable", "Compare with the best of those that fit.", lambda c: _choose(c, best_of_all=True)
    for misconception, thought, near in OTHER_NOISE:
        yield misconception, thought, lambda c, near=near: _choose(c, near=near)
    work = "Of equally good ones the fewest bits win, then the least work."
    yield "work-before-bits", work, lambda c: _choose(c, cost=lambda m: (m.extra_ms, m.bits))
    yield "ties-by-order", work, lambda c: _choose(c, cost=lambda m: m.bits)
    yield "dearest-of-the-good", work, lambda c: _choose(c, cost=lambda m: (-m.bits, -m.extra_ms))
    yield "largest-loss", "Less loss is better.", _with_the_largest_loss
    for misconception, thought, fits in by_budget:
        yield misconception, thought, lambda c, fits=fits: _choose(c, fits, itself)


def _with_the_largest_loss(case: Case) -> Choice:
    return max((m for m in case.measured if _fits(m, case)), key=lambda m: m.loss, default=Measured(*[None] * 6)).name


OTHER_NOISE: tuple[tuple[str, str, Near], ...] = (
    (
        "adds-standard-errors",
        "Errors of a difference add as squares: √(error² + error²).",
        lambda m, best: m.loss - best.loss <= 2 * (m.error + best.error),
    ),
    (
        "adds-standard-errors",
        "Bars of one error that touch say little: the gap is compared with 2·√(error² + error²).",
        lambda m, best: m.loss - best.loss <= m.error + best.error,
    ),
    (
        "one-error-only",
        "Both numbers are noisy: √(error² + error²).",
        lambda m, best: m.loss - best.loss <= 2 * m.error,
    ),
    (
        "one-error-only",
        "Both numbers are noisy: √(error² + error²).",
        lambda m, best: m.loss - best.loss <= 2 * best.error,
    ),
    (
        "one-standard-error",
        "The task asks for two standard errors of the difference.",
        lambda m, best: m.loss - best.loss <= math.hypot(m.error, best.error),
    ),
)
