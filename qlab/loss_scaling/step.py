"""One training step with a scaled loss, in the only order that is right."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qlab.loss_scaling.scaler import StaticScaler


def training_step(
    loss: Float[Tensor, ""],
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: StaticScaler,
    max_norm: int | float,
) -> bool:
    """Scale, differentiate, unscale, clip, check, step or skip, update; return whether the step was taken.

    The norm is that of the true gradients, so they are unscaled before they are clipped, and a step is skipped if one
    value in one of them is NaN or infinite. Gradients are cleared in the end.
    Errors:  ValueError if the loss is not finite, or no parameter has a gradient.
    """
    parameters = list(parameters)
    scaler.scaled(loss).backward()
    found_inf = scaler.unscale(parameters)
    if not found_inf:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    optimizer.zero_grad()
    scaler.update(found_inf)
    return not found_inf
