"""Adam and AdamW with both moments in 8-bit codes: optimizers of torch, with some 2 bytes of state a parameter."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from qlab.optimizers.adam import AdamSettings, CorrectedRates, apply_adam, corrected
from qlab.optimizers.borders import (
    require_fitting_state,
    require_gradients,
    require_parameters,
    require_place,
    wanted_tensors,
)
from qlab.optimizers.coded_update import CodedMoment, coded_adam_update
from qlab.optimizers.fused import can_fuse, fused_update
from qlab.optimizers.moments import BLOCK_SIZE

MIN_8BIT_SIZE = 4096


class Adam8bit(torch.optim.Optimizer):
    """Adam whose moments are 8-bit codes of the dynamic maps with an FP32 absmax for each block of `block_size` values.

    Parameters under `min_8bit_size` values keep FP32 moments, and are then updated as by `torch.optim.Adam`. Parameters
    are FP32, FP16 or BF16 and computed on in FP32. `weight_decay` joins the gradient, as in `torch.optim.Adam`.
    Errors:  ValueError, before anything is overwritten, for a rate out of the range that `AdamSettings` tells, a size
             below 1, another type of parameter, a gradient that is sparse, not finite or above 2^63, a parameter that
             left its state's device, or a state dict that does not fit.
    Source:  Dettmers et al. 2022, arXiv:2110.02861; sizes as in bitsandbytes.
    """

    decoupled = False

    def __init__(  # noqa: PLR0913 - the arguments of torch.optim.Adam and two sizes
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        block_size: int = BLOCK_SIZE,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "block_size": block_size, "min_8bit_size": min_8bit_size})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with rates of their own."""
        group = {**self.defaults, **param_group}
        settings_of(group, decoupled=self.decoupled)
        for name in ("block_size", "min_8bit_size"):
            if group[name] < 1 or group[name] != int(group[name]):
                raise ValueError(f"{name} must be a whole number of at least 1, got {group[name]}")
        given = param_group["params"]
        parameters = [given] if isinstance(given, Tensor) else list(given)
        require_parameters(one[1] if isinstance(one, tuple) else one for one in parameters)
        super().add_param_group({**param_group, "params": parameters})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = [settings_of(group, decoupled=self.decoupled) for group in self.param_groups]
        due = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        self._require(due)
        for group, settings, parameters in zip(self.param_groups, rates, due, strict=True):
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state.update(fresh_state(parameter, group))
                state["step"] += 1
                update(parameter, state, corrected(settings, state["step"]), block_size=group["block_size"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state dict of the same class and sizes: codes stay bytes, and absmaxes FP32."""
        require_fitting_state(state_dict, self.param_groups)
        super().load_state_dict(state_dict)  # it casts every tensor to the parameter's type
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, kept in state_dict["state"].get(number, {}).items():
                here = isinstance(kept, Tensor) and name != "step"
                self.state[parameter][name] = kept.detach().to(parameter.device, copy=True) if here else int(kept)

    def _require(self, due: list[list[Tensor]]) -> None:
        parameters = [parameter for group in due for parameter in group]
        require_parameters(parameters)
        require_gradients(parameters)
        for parameter in parameters:
            if self.state[parameter]:
                require_place(parameter, self.state[parameter])


class AdamW8bit(Adam8bit):
    """`Adam8bit` whose weight decay shrinks the parameters by lr · weight_decay before the update, as in AdamW.

    Source:  Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    decoupled = True

    def __init__(  # noqa: PLR0913 - the arguments of torch.optim.AdamW and two sizes
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        block_size: int = BLOCK_SIZE,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ):
        sizes = {"block_size": block_size, "min_8bit_size": min_8bit_size}
        super().__init__(params, lr, betas, eps, weight_decay, **sizes)


def settings_of(group: dict[str, Any], *, decoupled: bool) -> AdamSettings:
    """Read the rates of a parameter group, as a scheduler or a user left them."""
    lr, betas = float(group["lr"]), tuple(float(beta) for beta in group["betas"])
    return AdamSettings(lr=lr, betas=betas, eps=group["eps"], weight_decay=group["weight_decay"], decoupled=decoupled)


def fresh_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter before its first step: zeros, which as codes with absmax 0 stand for 0."""
    wanted = wanted_tensors(parameter, group)
    tensors = {
        name: torch.zeros(shape, dtype=dtype, device=parameter.device) for name, (shape, dtype) in wanted.items()
    }
    return {"step": 0, **tensors}


def update(parameter: Tensor, state: dict[str, Any], rates: CorrectedRates, *, block_size: int) -> None:
    """Update one parameter and its moments, in 8 bits or in 32 as its state is."""
    if not parameter.numel():
        return
    flat = parameter.detach().contiguous().view(-1)  # a copy if the parameter is not contiguous
    gradient = parameter.grad.contiguous().view(-1)
    first, second = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
    if first.dtype == torch.uint8:
        moments = (
            CodedMoment(first, state["exp_avg_absmax"], signed=True),
            CodedMoment(second, state["exp_avg_sq_absmax"], signed=False),
        )
        one_step = fused_update if can_fuse(flat, block_size=block_size) else coded_adam_update
        one_step(flat, gradient, moments, rates, block_size=block_size)
    else:
        wide = flat.float()
        apply_adam(wide, gradient.float(), (first, second), rates)
        flat.copy_(wide)
    if not parameter.is_contiguous():
        parameter.copy_(flat.view(parameter.shape))
