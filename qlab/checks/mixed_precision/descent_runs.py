"""A loss in FP16 as `train_fp16` meets it: its value and its gradients are asked for, and not known here."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab.checks.learner import LearnerFunction

STEPS = 100

LossOf = Callable[[Tensor, float], tuple[float, Tensor]]
GradientOf = Callable[[Tensor, float], Tensor]


class Asked:
    """What is asked for: of all weights in a row, in FP32, since one tensor in a message takes less time than two.

    With the loss comes its gradient for the last scale, which mostly is the next one, too: that saves a question.
    """

    def __init__(self, loss_of: LossOf, gradient_of: GradientOf) -> None:
        self._loss_of, self._gradient_of, self._scale = loss_of, gradient_of, 1.0

    def loss(self, row: Tensor) -> tuple[float, float, Tensor]:
        """Return the loss, a scale, and the gradient of the scaled loss."""
        loss, gradient = self._loss_of(row, self._scale)
        return loss, self._scale, gradient

    def gradient(self, row: Tensor, scale: float) -> Tensor:
        """Return the gradient of the scaled loss."""
        self._scale = scale
        return self._gradient_of(row, scale)


class Loss(torch.autograd.Function):
    """A loss of weights whose value and gradients are asked for."""

    @staticmethod
    def forward(ctx: Any, asked: Asked, *weights: Tensor) -> Tensor:
        row = torch.cat([w.float().flatten() for w in weights])  # a copy: an answer may move them before `backward`
        loss, scale, gradient = asked.loss(row)
        ctx.asked, ctx.scale = asked, scale
        ctx.shapes, ctx.dtypes = [w.shape for w in weights], [w.dtype for w in weights]
        ctx.save_for_backward(row, gradient)
        return torch.tensor(loss)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        row, gradient = ctx.saved_tensors
        scale = upstream.item()
        gradient = gradient if scale == ctx.scale else ctx.asked.gradient(row, scale)
        pieces = gradient.split([shape.numel() for shape in ctx.shapes])
        shaped = zip(pieces, ctx.shapes, ctx.dtypes, strict=True)
        return None, *(piece.view(shape).to(dtype, copy=True) for piece, shape, dtype in shaped)


def trained_on(
    train_fp16: LearnerFunction,
    narrow_loss: LossOf,
    narrow_gradient: GradientOf,
    start: Sequence[Tensor],
    learning_rate: float,
) -> Any:
    """Let the answer train, and return what it returns."""
    expected, asked = [tuple(w.shape) for w in start], Asked(narrow_loss, narrow_gradient)

    def loss_of(weights: Any) -> Tensor:
        weights = list(weights)
        got = [tuple(w.shape) for w in weights]
        if got != expected or not all(w.is_floating_point() for w in weights):
            told = ", ".join(f"{shape} in {w.dtype}" for shape, w in zip(got, weights, strict=True))
            raise ValueError(f"`loss_of` takes weights of shapes {expected} in floating point, got {told[:200]}")
        return Loss.apply(asked, *weights)

    returned = train_fp16(loss_of, start, STEPS, learning_rate)
    return list(returned) if isinstance(returned, nn.ParameterList) else returned
