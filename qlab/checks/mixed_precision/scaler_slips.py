"""What slips of a loss scaler's `update` do to its scale and its count of good steps."""

from collections.abc import Callable, Iterator

from qlab.checks.mixed_precision.scaler_runs import Settings

Rule = Callable[[Settings, float, int, bool], tuple[float, int]]


def updated(s: Settings, scale: float, good: int, overflow: bool) -> tuple[float, int]:
    if overflow:
        return scale * s.backoff_factor, 0
    return (scale * s.growth_factor, 0) if good + 1 == s.growth_interval else (scale, good + 1)


def _rules() -> Iterator[tuple[str, str, Rule]]:
    grow = "After `growth_interval` good steps in a row the scale grows."
    yield "never-grows", grow, _never_grows(False)
    yield "never-grows", grow, _never_grows(True)
    both = "Good steps in a row make it grow, one overflow makes it shrink: by `backoff_factor`, at once."
    yield "never-shrinks", both, lambda s, a, g, o: updated(s, a, g, False) if not o else (a, 0)
    yield "never-shrinks", both, lambda s, a, g, o: (a, g) if o else updated(s, a, g, False)
    good = "A step that overflows is skipped, and no good step: it sets the count back to 0."
    yield "counts-overflow-steps-as-good", good, _counts_all
    yield "counts-overflow-steps-as-good", good, _counts_all_and_shrinks
    yield (
        "counts-overflow-steps-as-good",
        good,
        lambda s, a, g, o: (a * s.backoff_factor, 1) if o else updated(s, a, g, o),
    )
    after = "After a skip the scale must fall, not rise: growing needs `growth_interval` good steps in a row."
    yield "grows-after-a-skip", after, lambda s, a, g, o: (a * s.growth_factor, 0) if o else updated(s, a, g, o)
    yield "grows-after-a-skip", after, lambda s, a, g, o: (a * s.growth_factor, 0) if o else (a, g + 1)
    yield "grows-after-a-skip", after, lambda s, a, g, o: updated(s, a, g, not o)


def _rules_of_counting() -> Iterator[tuple[str, str, Rule]]:
    keeps = "The good steps must come in a row: an overflow between them sets the count back to 0."
    yield (
        "keeps-the-count-after-a-skip",
        keeps,
        lambda s, a, g, o: (a * s.backoff_factor, g) if o else updated(s, a, g, o),
    )
    anew = "After growing, count from 0 again: otherwise it grows at each step, or never again."
    yield "forgets-to-count-anew", anew, _grows_at(lambda g, n: g == n, reset=False)
    yield "forgets-to-count-anew", anew, _grows_at(lambda g, n: g >= n, reset=False)
    yield "forgets-to-count-anew", anew, _grows_at(lambda g, n: g % n == 0, reset=False)
    one = "It grows after the very step that completes `growth_interval` good ones: count first, then compare."
    yield "grows-one-step-late", one, _grows_at(lambda g, n: g > n, reset=True)
    yield "grows-one-step-early", one, _grows_at(lambda g, n: g >= n - 1, reset=True)
    yield "grows-one-step-late", one, _compares_first
    yield (
        "grows-every-step",
        "It grows after `growth_interval` good steps, not after each.",
        lambda s, a, g, o: (a * s.backoff_factor, 0) if o else (a * s.growth_factor, g + 1),
    )


def _rules_of_factors() -> Iterator[tuple[str, str, Rule]]:
    yield (
        "ignores-its-factors",
        "The two factors are what the scaler was made with.",
        lambda s, a, g, o: updated(s._replace(growth_factor=2.0, backoff_factor=0.5), a, g, o),
    )
    yield (
        "divides-by-the-growth-factor",
        "It shrinks by its own factor: scale · backoff_factor.",
        lambda s, a, g, o: updated(s._replace(backoff_factor=1 / s.growth_factor), a, g, o),
    )
    yield (
        "divides-by-the-backoff-factor",
        "`backoff_factor` is below 1: multiply by it.",
        lambda s, a, g, o: updated(s._replace(backoff_factor=1 / s.backoff_factor), a, g, o),
    )
    floor = "A scale below 1 is allowed: gradients may be too large for FP16 even unscaled."
    yield "stops-at-one", floor, lambda s, a, g, o: (max(1.0, updated(s, a, g, o)[0]), updated(s, a, g, o)[1])
    yield (
        "adds-the-growth",
        "Growing multiplies.",
        lambda s, a, g, o: (a + s.growth_factor, 0) if not o and g + 1 == s.growth_interval else updated(s, a, g, o),
    )


def _counts_all(s: Settings, scale: float, good: int, overflow: bool) -> tuple[float, int]:
    scale = scale * s.backoff_factor if overflow else scale
    return (scale * s.growth_factor, 0) if good + 1 >= s.growth_interval else (scale, good + 1)


def _counts_all_and_shrinks(s: Settings, scale: float, good: int, overflow: bool) -> tuple[float, int]:
    return (
        (scale * s.backoff_factor, good + 1)
        if overflow
        else _grows_at(lambda g, n: g >= n, reset=True)(s, scale, good, False)
    )


def _compares_first(s: Settings, scale: float, good: int, overflow: bool) -> tuple[float, int]:
    if overflow:
        return scale * s.backoff_factor, 0
    return (scale * s.growth_factor, 1) if good == s.growth_interval else (scale, good + 1)


def _never_grows(counts: bool) -> Rule:
    return lambda s, a, g, o: (a * s.backoff_factor, 0) if o else (a, g + counts)


def _grows_at(when: Callable[[int, int], bool], *, reset: bool) -> Rule:
    def rule(s: Settings, scale: float, good: int, overflow: bool) -> tuple[float, int]:
        if overflow:
            return scale * s.backoff_factor, 0
        grows = when(good + 1, s.growth_interval)
        return scale * s.growth_factor if grows else scale, 0 if grows and reset else good + 1

    return rule


SLIPS = (*_rules(), *_rules_of_counting(), *_rules_of_factors())
