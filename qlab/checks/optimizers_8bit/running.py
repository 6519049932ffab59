"""Making a learner's optimizer and taking steps with it."""

from typing import Any

import torch
from torch import Tensor, nn

from qlab.checks.learner import LearnerFunction
from qlab.checks.optimizers_8bit.regression import Regression
from qlab.checks.optimizers_8bit.rules import Settings
from qlab.checks.report import require

BYTES_A_VALUE, MAPS_BYTES = 2.1, 4_096  # two codes and 8 / 256 for absmaxes make 2.03; two maps in FP64 are 4 KiB
FP32_COPY = 4.9  # bytes a value: less than one FP32 moment beside a code of the other


def made(adam8bit: LearnerFunction, params: Any, settings: Settings) -> Any:
    optimizer = adam8bit(params, settings.lr, settings.betas, settings.eps)
    require(
        isinstance(optimizer, torch.optim.Optimizer),
        f"`Adam8bit(params, …)` gave a {type(optimizer).__name__}",
        misconception="returns-nothing" if optimizer is None else "not-an-optimizer",
        thought="`class Adam8bit(torch.optim.Optimizer):`, with `super().__init__(params, defaults)`.",
    )
    return optimizer


def walked(optimizer: Any, weights: nn.ParameterList, problem: Regression, steps: range) -> None:
    step = LearnerFunction(optimizer.step)
    for i in steps:
        for group in optimizer.param_groups:
            group["lr"] = problem.rates[i]
        gradients = problem.gradients(*(weight.detach() for weight in weights), problem.batches[i])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        step()


def row(weights: nn.ParameterList) -> Tensor:
    return torch.cat([weight.detach().double().flatten() for weight in weights])


def require_moved(weights: nn.ParameterList) -> None:
    require(
        all(weight.detach().any() for weight in weights),
        "`step()` left the parameters as they were",
        misconception="never-moves",
        thought="The parameters must be changed in place: `p.sub_(…)`, or `adam_update(p, …)`.",
    )


def budget(values: int) -> float:
    return BYTES_A_VALUE * values + MAPS_BYTES


def zero_weights(draw: torch.Generator, values: int) -> nn.ParameterList:
    weights = nn.ParameterList([nn.Parameter(torch.zeros(values // 3 * share)) for share in (1, 2)])
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=draw)
    return weights


def after_two_steps(adam8bit: LearnerFunction, weights: nn.ParameterList) -> Any:
    optimizer = made(adam8bit, weights.parameters(), Settings(0.01, (0.9, 0.999), 1e-8))
    for _ in range(2):
        LearnerFunction(optimizer.step)()
    return optimizer


def two_steps_taken(adam8bit: LearnerFunction, draw: torch.Generator, values: int) -> tuple[Any, nn.ParameterList]:
    weights = zero_weights(draw, values)
    return after_two_steps(adam8bit, weights), weights


def copied(weights: nn.ParameterList) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(weight.detach().clone()) for weight in weights])
