"""What wrong 8-bit optimizers come to: after one step, and at the end of a path."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qlab.checks.optimizers_8bit import regression as trial
from qlab.checks.optimizers_8bit.regression import Keep
from qlab.checks.optimizers_8bit.rules import AVERAGES, RIGHT, Moments, Rule, Settings, slips

Given = tuple[Tensor, Tensor, Settings]  # a parameter, its gradient, and what its group holds
ROUNDED = "Step with the new moments as they are, and round only what is kept: a square rounded to 0 makes a huge step."
GROUPS = "Each group has settings of its own: read `group['lr']`, `group['betas']` and `group['eps']`."


def first_step_slips(given: Sequence[Given]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield what a first step should give, without a name, and then what slips make of it."""

    def all_by(rule: Rule, own: Sequence[Settings] | None = None) -> Tensor:
        settings = own or [s for _, _, s in given]
        return torch.cat([_by(rule, *case[:2], s).parameter for case, s in zip(given, settings, strict=True)])

    yield "", "", all_by(RIGHT)
    common = given[0][2]
    for own in ([common] * len(given), *_shared(given)):
        yield "ignores-the-groups", GROUPS, all_by(RIGHT, own)
    for which in ((0, 1), (0,), (1,)):
        yield "steps-with-the-rounded-moments", ROUNDED, torch.cat([_rounded(*case, which) for case in given])
    for misconception, thought, rule in slips():
        yield misconception, thought, all_by(rule)


def _by(rule: Rule, parameter: Tensor, gradient: Tensor, settings: Settings) -> Moments:
    return rule(Moments(parameter, *(torch.zeros_like(parameter),) * 2), gradient, 1, settings)


def _shared(given: Sequence[Given]) -> Iterator[list[Settings]]:
    """Yield the settings with one of them taken from the first group for all."""
    common = given[0][2]
    yield [Settings(common.lr, s.betas, s.eps) for _, _, s in given]
    yield [Settings(s.lr, s.betas, common.eps) for _, _, s in given]
    yield [Settings(common.lr, s.betas, 1e-8) for _, _, s in given]
    yield [Settings(s.lr, s.betas, 1e-8) for _, _, s in given]


def _rounded(parameter: Tensor, gradient: Tensor, settings: Settings, which: tuple[int, ...]) -> Tensor:
    """Step with one of the moments, or both, rounded to codes first."""
    new = _by(RIGHT, parameter, gradient, settings)
    exact = (new.exp_avg, new.exp_avg_sq)
    coded = trial.in_codes(*(moment.float() for moment in exact))
    kept = (coded[i] if i in which else exact[i] for i in range(2))
    frozen = Rule(first=lambda b, m, g: m, second=lambda b, v, g: v)
    return frozen(Moments(parameter, *kept), gradient, 1, settings).parameter


EVEN = "Evenly spaced levels make 0 of most squares: take the dynamic maps."
TENSOR = "One absmax for a whole tensor makes 0 of the squares of its small rows: keep one for each block."
KEEPS = "Every step starts from moments of zero: put the codes of the new ones into the state."
EndSlip = tuple[str, str, Rule, Keep | None, bool]
END_SLIPS: tuple[EndSlip, ...] = (
    ("steps-with-the-rounded-moments", ROUNDED, RIGHT, trial.in_codes, True),
    ("absmax-per-tensor", TENSOR, RIGHT, trial.in_one_block, False),
    ("linear-map", EVEN, RIGHT, trial.in_even_steps, False),
    ("linear-map", EVEN, RIGHT, trial.squares_in_even_steps, False),
    ("never-keeps-the-new-moments", KEEPS, RIGHT, trial.as_zeros, False),
    *((misconception, thought, rule, trial.in_codes, False) for misconception, thought, rule in list(slips())[:31]),
    *((misconception, thought, rule, trial.in_codes, False) for misconception, thought, rule in AVERAGES),
)
