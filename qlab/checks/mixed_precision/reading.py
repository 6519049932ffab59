"""What the checks of topic 06 share: the topic, gradients that pass through FP16, and reading truth values."""

from typing import Any

import torch
from torch import Tensor

from qlab.checks.expect import as_number
from qlab.checks.report import require

TOPIC = "06_mixed_precision"


def as_truth(value: Any, *, call: str) -> bool:
    """Read a truth value from a bool, a number 0 or 1, or a tensor or array of one.

    Errors:  Refused, with the misconception `returns-nothing` or `returns-wrong-type`.
    """
    number = as_number(value, call=call)
    require(
        number in (0.0, 1.0),
        f"`{call}` returned {number:g}, expected True or False",
        misconception="returns-wrong-type",
        thought="Return a bool, as the signature says.",
    )
    return bool(number)


class GradientThroughFP16(torch.autograd.Function):
    """Return 1 as a loss, whose gradient to the parameter is the given one, as the FP16 grid holds it when scaled."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return torch.ones(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return (upstream * ctx.gradient).half().float(), None
