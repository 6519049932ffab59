"""One update of SGD, momentum and Adam: each in place, in the order of operations of `torch.optim`."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_EPS = 2.0**-126  # FP32's smallest normal number: 0 / 0 would make parameters NaN


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """The rates of one Adam update; `decoupled` decay shrinks the parameter itself, as in AdamW, not by the gradient.

    Errors:  ValueError if `lr` or `weight_decay` is negative or not finite, a beta is outside 0 to 1 (1 excluded), or
             `eps` is below 2^-126 or not finite.
    Source:  Kingma and Ba 2015, arXiv:1412.6980; decoupled decay: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas}")
        if not SMALLEST_EPS <= self.eps < math.inf:
            raise ValueError(f"eps must be at least 2^-126 and finite, got {self.eps}")


def sgd_update(parameter: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], *, lr: float) -> None:
    """Step against the gradient: no state, and one learning rate for every parameter."""
    parameter.add_(gradient, alpha=-lr)


def momentum_update(
    parameter: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    buffer: Float[Tensor, "*shape"],
    *,
    lr: float,
    momentum: float = 0.9,
) -> None:
    """Step along a sum of all gradients that forgets the share 1 - `momentum` of itself each time.

    Source:  Sutskever et al. 2013, section 2, with the learning rate outside the sum, as in `torch.optim.SGD`.
    """
    buffer.mul_(momentum).add_(gradient)
    parameter.add_(buffer, alpha=-lr)


def adam_update(  # noqa: PLR0913 - the arguments of Algorithm 1
    parameter: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"],
    exp_avg_sq: Float[Tensor, "*shape"],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """Update two running means and step by the first over the root of the second, both corrected for their start at 0.

    `step` counts from 1. The parameter moves by lr · m̂ / (√v̂ + eps), with m̂ = m / (1 - β₁^step) and v̂ likewise.
    Errors:  ValueError if `step` is below 1, or a rate is out of the range that `AdamSettings` tells.
    Source:  Kingma and Ba 2015, Algorithm 1, arXiv:1412.6980.
    """
    settings = AdamSettings(lr=lr, betas=betas, eps=eps)
    apply_adam(parameter, gradient, (exp_avg, exp_avg_sq), corrected(settings, step))


@dataclass(frozen=True)
class CorrectedRates:
    """The settings of a step and what the bias corrections of that step make of them."""

    settings: AdamSettings
    step_size: float
    root_correction: float

    @property
    def kept(self) -> float:
        """The share of a parameter that decoupled decay leaves."""
        return 1 - self.settings.lr * self.settings.weight_decay


def corrected(settings: AdamSettings, step: int) -> CorrectedRates:
    """Return the rates of step number `step`: lr / (1 - β₁^step), and √(1 - β₂^step) to divide the root by.

    Errors:  ValueError if `step` is below 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    first, second = settings.betas
    return CorrectedRates(settings, settings.lr / (1 - first**step), math.sqrt(1 - second**step))


def apply_adam(
    parameter: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    moments: tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]],
    rates: CorrectedRates,
    scratch: Float[Tensor, "*shape"] | None = None,
) -> None:
    """Apply one Adam update in place; `scratch` is room for one value a parameter, where the caller has some."""
    settings, (exp_avg, exp_avg_sq) = rates.settings, moments
    room = torch.empty_like(exp_avg) if scratch is None else scratch
    if settings.weight_decay and settings.decoupled:
        parameter.mul_(rates.kept)
    elif settings.weight_decay:
        gradient = gradient.add(parameter, alpha=settings.weight_decay)
    exp_avg.lerp_(gradient, 1 - settings.betas[0])
    exp_avg_sq.mul_(settings.betas[1]).addcmul_(gradient, gradient, value=1 - settings.betas[1])
    torch.sqrt(exp_avg_sq, out=room).div_(rates.root_correction).add_(settings.eps)
    parameter.addcdiv_(exp_avg, room, value=-rates.step_size)
