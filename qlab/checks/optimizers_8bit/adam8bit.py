"""Check of `Adam8bit`: torch's optimizer, near Adam's path, in two bytes a parameter, saved and loaded."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from qlab import optimizers
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.optimizers_8bit import regression as trial
from qlab.checks.optimizers_8bit.adam8bit_slips import END_SLIPS, first_step_slips
from qlab.checks.optimizers_8bit.regression import Regression, regression
from qlab.checks.optimizers_8bit.rules import Settings, explains
from qlab.checks.optimizers_8bit.running import (
    BYTES_A_VALUE,
    FP32_COPY,
    budget,
    drawn_gradients,
    end,
    first_step,
    kept_between_steps,
    require_moved,
    require_went_down,
)
from qlab.checks.optimizers_8bit.saved import require_restart, require_small_once_loaded
from qlab.checks.optimizers_8bit.topic import TOPIC
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import Refused, check, part, require

# of how far Adam went; with 8-bit codes 0.009 to 0.011 over 3,300 values, with the usual betas for those given 0.09
GAP = 0.05
STEPS, FIRST = 24, 4
# of an update: FP32 rounds each of its ten operations to 6e-8, and 1 − β₂ of the first step by up to 6e-5
UPDATE_ROUNDING, ROUNDING = 1e-4, 1e-6


@check(
    TOPIC,
    "adam8bit",
    optimizers.Adam8bit,
    points=5,
    forbids=("qlab.optimizers.AdamW8bit", "qlab.optimizers.MappedAdam"),
)
def check_adam8bit(adam8bit: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `Adam8bit(params, lr, betas, eps)` as its task documents it."""
    with part("the first step is Adam's: groups with their own settings, a parameter without a gradient stays"):
        _require_first_step(adam8bit, draw)
    with part(f"{STEPS} steps of a regression: within {GAP:.0%} of Adam's path"):
        _require_path(adam8bit, regression(draw, STEPS))
    with part(f"at most {BYTES_A_VALUE} bytes a value kept between steps"):
        _require_small(adam8bit, draw)
    with part("saved, and loaded into another optimizer: it goes on bit for bit"):
        require_restart(adam8bit, regression(draw, drawn(6, 8, draw)))
    with part("no more bytes after loading"):
        require_small_once_loaded(adam8bit, draw)


def _require_first_step(adam8bit: LearnerFunction, draw: torch.Generator) -> None:
    sizes = (700, drawn(30, 90, draw), 5)
    values = [torch.randn(size, generator=draw) for size in sizes]
    common, own = (Settings(uniform(0.01, 0.1, (), draw).item(), (0.9, 0.99), eps) for eps in (1e-15, 0.3))
    own = Settings(own.lr * 3, (0.8, 0.95), own.eps)
    gradients = []
    for value in values[:2]:
        signs = torch.randint(0, 2, value.shape, generator=draw) * 2 - 1
        gradients.append(signs * uniform(0.05, 1, tuple(value.shape), draw))
    weights = adam8bit.beside(first_step, values, [*gradients, None], (common, own))
    require(
        torch.equal(weights[2], values[2]),
        "a parameter whose `.grad` is None has changed",
        misconception="moves-without-a-gradient",
        thought="No gradient, no step: leave such a parameter out.",
    )
    got = torch.cat([weight.double() for weight in weights[:2]])
    slips = first_step_slips(list(zip(values[:2], gradients, (common, own), strict=True)))
    _require_values(got, torch.cat(values[:2]).double(), slips)


def _require_values(got: Tensor, before: Tensor, slips: Iterator[tuple[str, str, Tensor]]) -> None:
    _, _, want = next(slips)

    def room(values: Tensor) -> Tensor:
        return ROUNDING * before.abs() + UPDATE_ROUNDING * (values - before).abs()

    if explains(want, got, room(want)):
        return
    off = (got - want).abs() > room(want)
    first = int((off | got.isnan()).nonzero()[0])
    message = (
        f"after the first step {before[first]:.6g} became {got[first]:.6g}, expected {want[first]:.6g}"
        f" (wrong for {int(off.sum())} of {len(off)} values)"
    )
    for misconception, thought, values in slips:
        if explains(values, got, room(values)):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="From moments of zero nothing is rounded yet: m̂ is the gradient, and the step lr · g / (|g| + ε).",
    )


def _require_path(adam8bit: LearnerFunction, problem: Regression) -> None:
    got, adam = adam8bit.beside(end, problem), problem.path_end()
    apart = _apart(got, adam)
    if apart <= GAP:
        return
    first_rate = replace(problem, rates=problem.rates[:1] * STEPS)
    if _apart(got, first_rate.path_end()) <= min(GAP, apart / 2):
        misconception, thought = "keeps-the-first-rate", RATE
    else:
        misconception, thought = _named(adam8bit, problem)
    raise Refused(
        f"after {STEPS} steps your parameters are {apart:.2g} of Adam's way from where Adam is, at most {GAP}",
        misconception=misconception,
        thought=thought,
    )


RATE = "The rate is `group['lr']`, read at every step: a schedule changes it there."
PRINT = "Take one parameter, and print its moments before they become codes and after, beside Adam's own."


def _named(adam8bit: LearnerFunction, problem: Regression) -> tuple[str, str]:
    """Name the slip whose own first steps are the answer's; a path that has burst tells nothing any more."""
    one, short = (replace(problem, batches=problem.batches[:n], rates=problem.rates[:n]) for n in (1, FIRST))
    began, got = adam8bit.beside(end, one), adam8bit.beside(end, short)
    fits = [(torch.inf, "", "")]
    for misconception, thought, rule, keep, uses_kept in END_SLIPS:
        if _apart(began, one.path_end(rule, keep, uses_kept=uses_kept)) <= GAP / 2:  # most are dismissed by one step
            fits.append((_apart(got, short.path_end(rule, keep, uses_kept=uses_kept)), misconception, thought))
    nearest, misconception, thought = min(fits, key=lambda fit: fit[0])
    close = nearest <= min(GAP / 2, _apart(got, short.path_end(keep=trial.in_codes)) / 4)
    return (misconception, thought) if close else ("far-from-adam", PRINT)


def _apart(got: Tensor, end: Tensor) -> float:
    """Return how far it is from one end to the other, as a share of the way to the other; the start is 0."""
    way = end.norm()
    return ((got - end).norm() / way).nan_to_num(torch.inf).item() if way else float(got.norm() > 0)


def _require_small(adam8bit: LearnerFunction, draw: torch.Generator) -> None:
    few, gradients = drawn_gradients(draw, 300), drawn_gradients(draw, 30_000)
    kept, weights = adam8bit.beside(kept_between_steps, few, gradients)
    require_moved(weights)
    require_went_down(weights, gradients)
    _within(kept, 30_000)


COPIES = "A moment in FP32 is still held, beside the codes or instead of them: keep codes and absmaxes alone."
WIDE = "The codes are in a type of more than a byte, or a moment is kept in 16 bits: keep uint8 codes."


def _within(kept: int, values: int) -> None:
    each = kept / values
    require(
        kept <= budget(values),
        f"{each:.2f} bytes a value are kept between steps, at most {BYTES_A_VALUE}, maps left out",
        misconception="keeps-an-fp32-copy" if each >= FP32_COPY else "keeps-too-much",
        thought=COPIES if each >= FP32_COPY else WIDE,
    )
