"""A small model for a learner's `accumulate`, beside it, and what a call leaves in its parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qlab.checks.learner import LearnerFunction
from qlab.measure import SavedForBackward

MicroBatch = tuple[Tensor, Tensor]


class TokenLosses(nn.Module):
    """Two linear layers in FP64 and, for each token, the cross-entropy of its target."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(second.clone())
        self.longest = self.calls = 0

    @property
    def weights(self) -> list[Tensor]:
        return [self.first.detach(), self.second.detach()]

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each token."""
        self.calls, self.longest = self.calls + 1, max(self.longest, len(targets))
        logits = torch.tanh(x.clone() @ self.first.T) @ self.second.T  # a copy: what is saved is freed with the graph
        return nn.functional.cross_entropy(logits, targets.clone(), reduction="none")


class Left(NamedTuple):
    """What a call leaves: values and gradients of the parameters, the longest batch, the most bytes saved at once."""

    weights: list[Tensor]
    gradients: list[Tensor | None]
    longest: int
    peak_bytes: int


def accumulated(
    accumulate: LearnerFunction,
    weights: Sequence[Tensor],
    batches: list[MicroBatch],
    earlier: Sequence[Tensor] | None = None,
) -> Left:
    """Call on a model made here, whose parameters have `earlier` gradients, and return what it leaves."""
    model = TokenLosses(*weights)
    for parameter, piece in zip(model.parameters(), earlier or (), strict=bool(earlier)):
        parameter.grad = piece.view_as(parameter).clone()
    with SavedForBackward() as saved:
        accumulate(model, batches)
    parameters = list(model.parameters())
    return Left(
        [parameter.detach() for parameter in parameters],
        [parameter.grad for parameter in parameters],
        model.longest,
        saved.peak_bytes,
    )
