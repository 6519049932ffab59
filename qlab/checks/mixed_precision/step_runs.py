"""Training with a learner's step, beside it: drawn gradients, an optimizer, a scaler, and what they came to."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qlab import loss_scaling
from qlab.checks.beside import reporting
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import GradientThroughFP16, as_truth
from qlab.checks.mixed_precision.step_slips import RATE, Case

SHAPES = ((7, 5), (9,), (4, 6))
SILENT = (3, 2)  # of the parameter that no gradient reaches: it stands among the others


class Recorded(loss_scaling.LossScaler):
    """A real scaler that reads what its `update` is told as a task's promise: a truth value."""

    def update(self, found_inf: Any) -> None:
        super().update(as_truth(found_inf, call="the argument of scaler.update"))


@reporting
def trained_by_step(training_step: LearnerFunction, case: Case) -> Iterator[tuple[Tensor, bool, bool, float]]:
    """Tell after each step the weights, whether a silent one moved, what was returned, and the scale.

    A ParameterList, unlike a list, reaches the answer as it is and not as copies.
    """
    parameters, reached = _made(case)
    optimizer = torch.optim.SGD(parameters.parameters(), lr=RATE)
    scaler = Recorded(case.scale, growth_interval=case.growth_interval)
    for gradients in case.steps:
        loss = _loss(reached, gradients)
        returned = training_step(loss, parameters, optimizer, scaler, case.max_norm)
        stepped = as_truth(returned, call="training_step(…)")
        silent = len(reached) != len(parameters) and bool(parameters[1].any())
        yield _row(reached), silent, stepped, scaler.scale


@reporting
def trained_by_clipped_step(clipped_step: LearnerFunction, case: Case) -> Iterator[tuple[Tensor, float]]:
    """Tell the weights and the scale of torch's own scaler after each step."""
    parameters, reached = _made(case)
    optimizer = torch.optim.SGD(parameters.parameters(), lr=RATE)
    scaler = torch.amp.GradScaler("cpu", case.scale, growth_interval=case.growth_interval)
    scaler.scale(torch.zeros(()))  # makes the tensor of the scale
    for gradients in case.steps:
        clipped_step(_loss(reached, gradients), parameters, optimizer, scaler, case.max_norm)
        yield _row(reached), scaler.get_scale()


def _made(case: Case) -> tuple[nn.ParameterList, list[nn.Parameter]]:
    """Return weights of zero, and those of them that a gradient reaches."""
    reached = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    silent = [nn.Parameter(torch.zeros(SILENT))] if case.silent else []
    return nn.ParameterList([reached[0], *silent, *reached[1:]]), reached


def _loss(reached: list[nn.Parameter], gradients: tuple[Tensor, ...]) -> Tensor:
    return sum(GradientThroughFP16.apply(p, g) for p, g in zip(reached, gradients, strict=True))


def _row(reached: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in reached])
