"""A model and the plainest optimizer for a learner's training loop, and one call of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab.checks.learner import LearnerFunction

RATE = 0.5
MicroBatch = tuple[Tensor, Tensor]


class Scorer(nn.Module):
    """Two layers in FP64 that score what follows each position."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(second.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return torch.tanh(x @ self.first) @ self.second


class Descent:
    """The plainest optimizer; it counts its steps."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.steps = parameters, 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Go down by the rate times the gradient."""
        self.steps += 1
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.sub_(RATE * parameter.grad)


def stepped(
    step: LearnerFunction, weights: Sequence[Tensor], batches: list[MicroBatch], earlier: Tensor | None
) -> tuple[list[Tensor], int, Any]:
    """Call with a model and an optimizer made here; return the weights after it, the steps, and what was returned."""
    model = Scorer(*weights)
    parameters = list(model.parameters())
    optimizer = Descent(parameters)
    if earlier is not None:
        for parameter, piece in zip(parameters, earlier.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
    told = step(model, optimizer, batches)
    return [parameter.detach() for parameter in parameters], optimizer.steps, told
