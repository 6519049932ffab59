"""What a learner's `LossScaler` does, told as it happens: walks, steps, and a restart from a saved state."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from qlab.checks.beside import reporting
from qlab.checks.expect import as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import as_truth
from qlab.checks.report import require

State = tuple[float, float]


class Settings(NamedTuple):
    """What a scaler is made with."""

    scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 4

    @property
    def told(self) -> str:
        names = self._asdict().items()
        return f"LossScaler({', '.join(f'{name}={value:g}' for name, value in names)})"


@reporting
def walked(loss_scaler: LearnerFunction, settings: Settings, overflows: Sequence[bool]) -> Iterator[Any]:
    """Tell scale and good steps of a new scaler, then a list of both after each update."""
    scaler = _made(loss_scaler, settings)
    yield _state(scaler)
    yield _updated(scaler, overflows)


@reporting
def stepped_where_told(loss_scaler: LearnerFunction, settings: Settings, overflows: Sequence[bool]) -> Iterator[Any]:
    """Step a weight whose gradient is -1; tell each time the state, the way it went, the answer, and the state.

    The states after as many updates come last.
    """
    scaler = _made(loss_scaler, settings)
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    step = LearnerFunction(lambda found_inf: scaler.step(optimizer, found_inf))
    for found_inf in overflows:
        before = weight.item()
        yield _state(scaler)
        weight.grad = torch.tensor(-1.0)
        returned = step(found_inf)
        yield weight.item() - before
        yield as_truth(returned, call=f"scaler.step(optimizer, {found_inf})")
        yield _state(scaler)
    yield _updated(scaler, overflows)


@reporting
def restarted(loss_scaler: LearnerFunction, settings: Settings, overflows: Sequence[bool], place: int) -> Iterator[Any]:
    """Save a scaler after `place` updates and load it into another: tell both walks, and what became of the state."""
    first = _made(loss_scaler, settings)
    yield _updated(first, overflows[:place])
    saved = LearnerFunction(first.state_dict)()
    yield "dict" if isinstance(saved, dict) else type(saved).__name__
    kept = copy.deepcopy(saved)
    yield _updated(first, overflows[place:])
    yield bool(saved == kept)
    other = _made(loss_scaler, settings._replace(scale=3.0))  # a scale that no state has
    LearnerFunction(lambda: other.load_state_dict(saved))()
    yield _state(other)
    yield _updated(other, overflows[place:])


def _made(loss_scaler: LearnerFunction, settings: Settings) -> Any:
    scaler = loss_scaler(*settings)
    require(
        scaler is not None,
        f"`{settings.told}` gave None",
        misconception="returns-nothing",
        thought="`LossScaler` is a class: calling it makes a scaler.",
    )
    return scaler


def _state(scaler: Any) -> State:
    return _read(LearnerFunction(lambda: (scaler.scale, scaler.good_steps))())


def _read(state: tuple[Any, Any]) -> State:
    return as_number(state[0], call="scaler.scale"), as_number(state[1], call="scaler.good_steps")


def _updated(scaler: Any, overflows: Sequence[bool]) -> list[State]:
    """Return scale and good steps after each update: one guard for many small calls."""

    def walk() -> list[tuple[Any, Any]]:
        states = []
        for overflow in overflows:
            scaler.update(overflow)
            states.append((_copied(scaler.scale), _copied(scaler.good_steps)))
        return states

    return [_read(state) for state in LearnerFunction(walk)()]


def _copied(value: Any) -> Any:
    """Return a copy of a tensor or array, which the next update may change in place."""
    return value if isinstance(value, int | float) else copy.deepcopy(value)
