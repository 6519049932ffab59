"""Training with a learner's step, beside it: an optimizer, a scaler, and what they came to.

The gradients stay with the check: only what FP16 leaves of them, scaled, is asked for.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qlab.checks.beside import reporting
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import as_truth
from qlab.loss_scaling import LossScaler

RATE = 1.0  # of plain gradient descent from weights of zero: a weight shows the sum of the steps
SHAPES = ((7, 5), (9,), (4, 6))
SILENT = (3, 2)  # of the parameter that no gradient reaches: it stands among the others

GradientsOf = Callable[[int, Tensor], list[Tensor]]


class Plan(NamedTuple):
    """How many steps are taken, and how the scaler is set."""

    steps: int
    scale: float
    max_norm: float
    growth_interval: int
    silent: bool


class AskedForGradients(torch.autograd.Function):
    """Return 1 for each parameter as a loss, whose gradients to them another function gives."""

    @staticmethod
    def forward(ctx: Any, gradients_of: Callable[[Tensor], list[Tensor]], *parameters: Tensor) -> Tensor:
        ctx.gradients_of = gradients_of
        return torch.full((), float(len(parameters)))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients_of(upstream)


class Recorded(LossScaler):
    """A real scaler that reads what its `update` is told as a task's promise: a truth value."""

    def update(self, found_inf: Any) -> None:
        super().update(as_truth(found_inf, call="the argument of scaler.update"))


@reporting
def trained_by_step(
    training_step: LearnerFunction, plan: Plan, gradients_of: GradientsOf
) -> Iterator[tuple[Tensor, bool, bool, float]]:
    """Tell after each step the weights, whether a silent one moved, what was returned, and the scale.

    A ParameterList, unlike a list, reaches the answer as it is and not as copies.
    """
    parameters, reached = _made(plan)
    optimizer = torch.optim.SGD(parameters.parameters(), lr=RATE)
    scaler = Recorded(plan.scale, growth_interval=plan.growth_interval)
    for step in range(plan.steps):
        loss = AskedForGradients.apply(partial(gradients_of, step), *reached)
        returned = training_step(loss, parameters, optimizer, scaler, plan.max_norm)
        stepped = as_truth(returned, call="training_step(…)")
        silent = len(reached) != len(parameters) and bool(parameters[1].any())
        yield _row(reached), silent, stepped, scaler.scale


@reporting
def trained_by_clipped_step(
    clipped_step: LearnerFunction, plan: Plan, gradients_of: GradientsOf
) -> Iterator[tuple[Tensor, float]]:
    """Tell the weights and the scale of torch's own scaler after each step."""
    parameters, reached = _made(plan)
    optimizer = torch.optim.SGD(parameters.parameters(), lr=RATE)
    scaler = torch.amp.GradScaler("cpu", plan.scale, growth_interval=plan.growth_interval)
    scaler.scale(torch.zeros(()))  # makes the tensor of the scale
    for step in range(plan.steps):
        loss = AskedForGradients.apply(partial(gradients_of, step), *reached)
        clipped_step(loss, parameters, optimizer, scaler, plan.max_norm)
        yield _row(reached), scaler.get_scale()


def _made(plan: Plan) -> tuple[nn.ParameterList, list[nn.Parameter]]:
    """Return weights of zero, and those of them that a gradient reaches."""
    reached = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    silent = [nn.Parameter(torch.zeros(SILENT))] if plan.silent else []
    return nn.ParameterList([reached[0], *silent, *reached[1:]]), reached


def _row(reached: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in reached])
