"""Loss scaling: a static scale, and the state machine that finds one and keeps it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class StaticScaler:
    """Multiply the loss by one number for the whole run.

    Source:  Micikevicius et al. 2018, section 3.2, arXiv:1710.03740.
    Errors:  ValueError if `scale` is not above 0 and finite, rounded to FP32 as it multiplies the loss.
    """

    scale: float

    def __post_init__(self) -> None:
        _require_scale(self.scale)
        self.scale = float(self.scale)

    def scaled(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return `loss` times the scale, in FP32, to call `backward` on.

        Errors:  ValueError if `loss` is NaN or infinite already: no scale mends that.
        """
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} before it is scaled, so the forward pass or the data made it:"
                " a smaller loss scale cannot help"
            )
        return loss.float() * self.scale

    def unscale(self, parameters: Iterable[Tensor]) -> bool:
        """Divide every gradient by the scale, in place; return whether any of them holds a NaN or an infinity.

        A parameter without a gradient is passed over.
        Errors:  ValueError if no parameter has a gradient, or one is FP16, where dividing would undo the scaling.
        """
        return unscale_gradients(parameters, self.scale)

    def update(self, found_inf: bool) -> None:
        """Leave the scale as it is, whatever the last step found."""


@dataclass
class LossScaler(StaticScaler):
    """Double the scale after `growth_interval` good steps in a row, halve it when gradients overflow.

    `good_steps` counts the good steps since the scale last changed or a step was skipped. The sequence of both is that
    of `torch.amp.GradScaler`, which also keeps its scale in FP32 and does not let it grow to infinity.
    Errors:  ValueError if `scale` is not above 0 and finite, `growth_factor` not above 1, `backoff_factor` not
             between 0 and 1, `growth_interval` below 1, or `good_steps` not below it.
    """

    scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    good_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.growth_factor < math.inf:
            raise ValueError(f"growth_factor must be above 1 and finite, got {self.growth_factor}")
        if not 0 < self.backoff_factor < 1:
            raise ValueError(f"backoff_factor must be between 0 and 1, got {self.backoff_factor}")
        if self.growth_interval < 1:
            raise ValueError(f"growth_interval must be at least 1, got {self.growth_interval}")
        self._require_good_steps(self.good_steps)
        self.scale = in_fp32(self.scale)

    def update(self, found_inf: bool) -> None:
        """Change the scale after a step that was taken, or that was skipped because `found_inf`.

        Errors:  ValueError if the scale would fall to zero: then no scale makes the gradients finite.
        """
        if found_inf:
            self.good_steps = 0
            self.scale = self._shrunk()
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            grown = in_fp32(self.scale * self.growth_factor)
            self.scale = grown if math.isfinite(grown) else self.scale
            self.good_steps = 0

    def state_dict(self) -> dict[str, float | int]:
        """Return what a checkpoint must hold to go on with the same sequence."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Take up the sequence that `state_dict` left.

        Errors:  ValueError if a key is missing or a value out of range; nothing is changed then.
        """
        if missing := {"scale", "good_steps"} - set(state):
            raise ValueError(f"the scaler's state must hold scale and good_steps, {sorted(missing)} is missing")
        scale, good_steps = float(state["scale"]), int(state["good_steps"])
        _require_scale(scale)
        self._require_good_steps(good_steps)
        self.scale, self.good_steps = in_fp32(scale), good_steps

    def _require_good_steps(self, good_steps: int) -> None:
        if not 0 <= good_steps < self.growth_interval:
            raise ValueError(f"good_steps must be 0 to {self.growth_interval - 1}, got {good_steps}")

    def _shrunk(self) -> float:
        shrunk = in_fp32(self.scale * self.backoff_factor)
        if not shrunk:
            raise ValueError(
                f"gradients are not finite at a loss scale of {self.scale} either:"
                " something other than the scale makes them NaN or infinite"
            )
        return shrunk


def unscale_gradients(parameters: Iterable[Tensor], scale: int | float) -> bool:
    """Divide every gradient by `scale`, in place; return whether any of them holds a NaN or an infinity.

    Sparse gradients are divided where they have values. On CUDA the answer costs one wait for the device.
    Errors:  as `StaticScaler.unscale`.
    """
    gradients = [_stored_gradient(p) for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError("no parameter has a gradient: call `backward` on the scaled loss before unscaling")
    if any(gradient.dtype == torch.float16 for gradient in gradients):
        raise ValueError(
            "a gradient is float16: divided there it would lose what the loss scale saved; copy it to FP32 first"
        )
    for gradient in gradients:
        gradient.mul_(1 / scale)
    return not all(torch.stack([gradient.isfinite().all().cpu() for gradient in gradients]).tolist())


def in_fp32(value: int | float) -> float:
    """Round a Python number to FP32."""
    return torch.tensor(value, dtype=torch.float64).float().item()


def _require_scale(scale: int | float) -> None:
    if not 0 < in_fp32(scale) < math.inf:
        raise ValueError(f"scale must be above 0 and finite in FP32, got {scale}")


def _stored_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient's dense values; in a sparse gradient, values of one place are added up first."""
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad.values()
