"""Making a learner's optimizer and taking steps with it: drivers, which run beside it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab.checks.beside import require_right_too
from qlab.checks.learner import LearnerFunction
from qlab.checks.optimizers_8bit.held import kept_bytes
from qlab.checks.optimizers_8bit.regression import Regression, parameters
from qlab.checks.optimizers_8bit.rules import Settings
from qlab.checks.report import require

BYTES_A_VALUE, MAPS_BYTES = 2.1, 4_096  # two codes and 8 / 256 for absmaxes make 2.03; two maps in FP64 are 4 KiB
RATE = 0.01  # of the two steps that are taken from zero
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


def row(weights: Iterable[Tensor]) -> Tensor:
    return torch.cat([weight.detach().double().flatten() for weight in weights])


def require_moved(weights: Sequence[Tensor]) -> None:
    require(
        all(weight.any() for weight in weights),
        "`step()` left the parameters as they were",
        misconception="never-moves",
        thought="The parameters must be changed in place: `p.sub_(…)`, or `adam_update(p, …)`.",
    )


def require_went_down(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Require of two steps from zero that nearly all went against their gradients, by lengths that steps have."""
    w, g = row(weights), row(gradients)
    require_right_too(
        w.shape == g.shape and ((w * g < 0) & (w.abs() > RATE / 100) & (w.abs() < 10 * RATE)).sum() >= 0.8 * len(g)
    )


def budget(values: int) -> float:
    return BYTES_A_VALUE * values + MAPS_BYTES


def drawn_gradients(draw: torch.Generator, values: int) -> list[Tensor]:
    return [torch.randn(values // 3 * share, generator=draw) for share in (1, 2)]


def zero_weights(gradients: Sequence[Tensor]) -> nn.ParameterList:
    weights = nn.ParameterList([nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients])
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    return weights


def after_two_steps(adam8bit: LearnerFunction, weights: nn.ParameterList) -> Any:
    optimizer = made(adam8bit, weights.parameters(), Settings(RATE, (0.9, 0.999), 1e-8))
    for _ in range(2):
        LearnerFunction(optimizer.step)()
    return optimizer


def two_steps_taken(adam8bit: LearnerFunction, gradients: Sequence[Tensor]) -> tuple[Any, nn.ParameterList]:
    weights = zero_weights(gradients)
    return after_two_steps(adam8bit, weights), weights


def first_step(
    adam8bit: LearnerFunction,
    values: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    settings: Sequence[Settings],
) -> list[Tensor]:
    """Take a step in two groups, the second one of the middle parameter and with its own settings."""
    weights = nn.ParameterList([nn.Parameter(value.clone()) for value in values])
    common, own = settings
    groups = [
        {"params": [weights[0], weights[2]]},
        {"params": [weights[1]], "lr": own.lr, "betas": own.betas, "eps": own.eps},
    ]
    optimizer = made(adam8bit, groups, common)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient if gradient is None else gradient.clone()
    LearnerFunction(optimizer.step)()
    return [weight.detach() for weight in weights]


def end(adam8bit: LearnerFunction, problem: Regression) -> Tensor:
    """Return where the optimizer ends, as one row."""
    weights = parameters()
    optimizer = made(adam8bit, weights.parameters(), problem.settings)
    walked(optimizer, weights, problem, range(len(problem.batches)))
    return row(weights)


def kept_between_steps(
    adam8bit: LearnerFunction, few: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[int, list[Tensor]]:
    """Return the bytes that are kept after two steps, and the parameters."""
    two_steps_taken(adam8bit, few)  # what an answer makes once, for all of its optimizers, is made now
    weights = zero_weights(gradients)
    values = sum(weight.numel() for weight in weights)
    kept = kept_bytes(lambda: after_two_steps(adam8bit, weights), weights, budget(values))
    return kept, [weight.detach() for weight in weights]


def copied(weights: nn.ParameterList) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(weight.detach().clone()) for weight in weights])
