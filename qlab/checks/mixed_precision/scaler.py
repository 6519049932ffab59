"""Check of `LossScaler`: the same states as torch's `GradScaler`, step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlab import loss_scaling
from qlab.checks.beside import reports, require_right_too
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.mixed_precision.scaler_runs import Settings, restarted, stepped_where_told, walked
from qlab.checks.mixed_precision.scaler_slips import SLIPS, Rule, updated
from qlab.checks.numbers import doubles, drawn
from qlab.checks.report import check, part, require

LARGEST = 2.0**100  # a walk that stays far from the ends of FP32, where GradScaler stops growing


@dataclass(frozen=True)
class Walk:
    """A scaler's settings, and whether each of its steps overflows."""

    settings: Settings
    overflows: tuple[bool, ...]


@check(
    TOPIC,
    "loss-scaler",
    loss_scaling.LossScaler,
    points=5,
    forbids=("torch.amp.GradScaler", "torch.cuda.amp.GradScaler"),
)
def check_loss_scaler(loss_scaler: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `LossScaler` as its task documents it: `update`, `step`, and its `state_dict`."""
    with part("good steps: it grows after growth_interval of them, and counts anew"):
        settings = _settings(draw)
        _require_walk(loss_scaler, Walk(settings, (False,) * (3 * settings.growth_interval + 2)))
        _require_walk(loss_scaler, Walk(settings._replace(growth_interval=1), (False,) * 4))
    with part("overflow steps: it shrinks at each, and the count of good steps starts over"):
        settings = _settings(draw)
        ends = (True, True, *(False,) * (settings.growth_interval - 1))
        _require_walk(loss_scaler, Walk(settings, ends * 2 + (True, *(False,) * (settings.growth_interval + 1))))
        _require_walk(loss_scaler, Walk(settings._replace(scale=4.0), (True,) * 6))
    with part("a thousand random steps: every scale as torch.amp.GradScaler has it"):
        walk = _long_walk(draw, 1_000)
        _require_walk(loss_scaler, walk, _by_grad_scaler(walk))
    with part("`step` steps the optimizer once where all gradients are finite, and never where they are not"):
        _require_steps(loss_scaler, draw)
    with part("a scaler that loads a saved state goes on where the other was"):
        for earliest in (drawn(2, 9, draw), drawn(10, 30, draw)):
            _require_restart(loss_scaler, _long_walk(draw, 60), earliest)


def _settings(draw: torch.Generator) -> Settings:
    """Draw powers of two, of which no product rounds, none of them the usual one."""
    return Settings(2.0 ** drawn(8, 20, draw), 4.0, 2.0 ** -drawn(3, 4, draw), drawn(3, 6, draw))


def _long_walk(draw: torch.Generator, steps: int) -> Walk:
    while True:
        settings = Settings(2.0 ** drawn(8, 20, draw), 4.0, 0.125, drawn(2, 4, draw))
        share = 0.5 / settings.growth_interval
        walk = Walk(settings, tuple((torch.rand(steps, generator=draw) < share).tolist()))
        if all(1 / LARGEST < scale < LARGEST for scale, _ in _states(walk)):
            return walk


def _states(walk: Walk) -> list[tuple[float, int]]:
    """Return scale and good steps after each step."""
    return _ruled(walk, updated)


def _ruled(walk: Walk, rule: Rule) -> list[tuple[float, int]]:
    scale, good, states = walk.settings.scale, 0, []
    for overflow in walk.overflows:
        scale, good = rule(walk.settings, scale, good, overflow)
        states.append((scale, good))
    return states


def _by_grad_scaler(walk: Walk) -> list[tuple[float, int]]:
    """Ask torch: real gradients, finite or not, through `unscale_`, `step` and `update`."""
    s = walk.settings
    scaler = torch.amp.GradScaler("cpu", s.scale, s.growth_factor, s.backoff_factor, growth_interval=s.growth_interval)
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler.scale(torch.zeros(()))
    gradients, states = (torch.ones(()), torch.tensor(float("inf"))), []
    for overflow in walk.overflows:
        weight.grad = gradients[overflow].clone()
        scaler.step(optimizer)
        scaler.update()
        states.append((scaler.get_scale(), scaler.state_dict()["_growth_tracker"]))
    return states


def _require_walk(loss_scaler: LearnerFunction, walk: Walk, expected: list[tuple[float, int]] | None = None) -> None:
    found = reports(loss_scaler, walked, walk.settings, walk.overflows)
    start = next(found)
    require(
        start == (walk.settings.scale, 0),
        f"`{walk.settings.told}` starts with scale {start[0]:g} and {start[1]:g} good steps",
        misconception="wrong-start",
        thought="Before the first step the scale is the one it was made with, and no step was good.",
    )
    _compare(next(found), expected or _states(walk), walk)


def _compare(got: list[tuple[float, float]], expected: list[tuple[float, int]], walk: Walk, after: str = "") -> None:
    def told(i: int) -> str:
        step, what = divmod(i, 2)
        last = ["overflow" if overflow else "good" for overflow in walk.overflows[max(0, step - 5) : step + 1]]
        return (
            f"`{walk.settings.told}`{after}, {('scale', 'good_steps')[what]} after step {step + 1}"
            f" (the last ones: {', '.join(last)})"
        )

    require_values(_flat(got), _flat(expected), given=told, suspects=lambda: _suspects(walk))


def _flat(states: Sequence[tuple[float, float]]) -> Tensor:
    return doubles([number for state in states for number in state])


def _suspects(walk: Walk) -> Iterator[Suspect]:
    for misconception, thought, rule in SLIPS:
        yield Suspect(misconception, thought, _flat(_ruled(walk, rule)))


def _require_steps(loss_scaler: LearnerFunction, draw: torch.Generator) -> None:
    """Step a plain descent on a constant gradient: the weight counts the steps."""
    settings = _settings(draw)
    overflows = (False, True, *(torch.rand(8, generator=draw) < 0.5).tolist(), True, False)
    found = reports(loss_scaler, stepped_where_told, settings, overflows)
    for found_inf in overflows:
        state, steps = next(found), next(found)
        called = f"scaler.step(optimizer, {found_inf})"
        if found_inf:
            inf = "A gradient with inf or NaN makes the weights inf or NaN, for good: leave the step out."
            require(not steps, f"`{called}` changed the weight", misconception="steps-on-inf", thought=inf)
        else:
            _require_one_step(steps, called)
        stepped = next(found)
        require(
            stepped is not found_inf,
            f"`{called}` returned {stepped}",
            misconception="returns-the-skip",
            thought="Return whether the optimizer stepped: the opposite of `found_inf`.",
        )
        twice = "The loop calls `update` after each `step`: if both change the state, each step counts twice."
        changed = f"`{called}` changed `scale` or `good_steps`"
        require(next(found) == state, changed, misconception="step-updates-too", thought=twice)
    require_right_too(next(found) == _states(Walk(settings, overflows)))


def _require_one_step(steps: float, called: str) -> None:
    require(
        steps,
        f"`{called}` left the weight as it was",
        misconception="never-steps",
        thought="Where the gradients are finite, call `optimizer.step()`, with the parentheses.",
    )
    require(
        steps == 1,
        f"`{called}` moved the weight by {steps:g} of its gradient, expected 1",
        misconception="steps-wrongly",
        thought="One call of `optimizer.step()`: the gradients were unscaled before.",
    )


def _require_restart(loss_scaler: LearnerFunction, walk: Walk, earliest: int) -> None:
    """Save where some good steps are counted, walk on, and let a new scaler walk the same way from there."""
    states = _states(walk)
    place = next(i for i in range(earliest, len(states)) if states[i - 1][1])
    found = reports(loss_scaler, restarted, walk.settings, walk.overflows, place)
    got, saved = next(found), next(found)
    require(
        saved == "dict",
        f"`scaler.state_dict()` returned a {saved}",
        misconception="returns-nothing" if saved == "NoneType" else "returns-wrong-type",
        thought="Return a dict: a name of your own for each number that the scaler needs to go on.",
    )
    _compare(got + next(found), states, walk)
    require(
        next(found),
        f"the state_dict that was saved after {place} steps changed when the scaler went on",
        misconception="state-is-a-view",
        thought="A saved state must stay what it was: return a new dict, not `self.__dict__`.",
    )
    _require_loaded(next(found), states[place - 1])
    _compare(states[:place] + next(found), states, walk, f", loaded after {place} steps")


def _require_loaded(state: tuple[float, float], expected: tuple[float, int]) -> None:
    scale, good = state
    require(
        scale == expected[0],
        f"after loading, the scale is {scale:g}, expected {expected[0]:g}",
        misconception="loses-the-scale",
        thought="The scale that was found is worth keeping: save it, and set it when loading.",
    )
    require(
        good == expected[1],
        f"after loading, good_steps is {good:g}, expected {expected[1]:g}",
        misconception="loses-the-count",
        thought="The count of good steps is part of the state: without it the next growth comes late.",
    )
