"""Adam on moments coded with any maps and any blocks: slow and plain, to see what each choice does."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.codebooks import BlockwiseCodes, dynamic_map, quantize_blockwise
from qlab.optimizers.adam import adam_update
from qlab.optimizers.adam8bit import MIN_8BIT_SIZE
from qlab.optimizers.moments import BLOCK_SIZE


@dataclass(frozen=True)
class MomentMaps:
    """The codebooks of the two moments and the block size; None is one absmax for the whole tensor."""

    first: Float[Tensor, " first_levels"]
    second: Float[Tensor, " second_levels"]
    block_size: int | None = BLOCK_SIZE


DYNAMIC_MAPS = MomentMaps(dynamic_map(signed=True), dynamic_map(signed=False))


class MappedAdam(torch.optim.Optimizer):
    """Adam that reads both moments from codes and writes them back with `qlab.codebooks`, whatever the maps.

    With `DYNAMIC_MAPS` it computes what `Adam8bit` computes. It is for studies: nothing is refused, and its state
    cannot be saved.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        maps: MomentMaps = DYNAMIC_MAPS,
    ):
        self.maps = maps
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rates = {name: group[name] for name in ("lr", "betas", "eps")}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, rates)
        return loss

    def _update(self, parameter: Tensor, rates: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        first, second = self._read(parameter, "first"), self._read(parameter, "second")
        adam_update(parameter, parameter.grad, first, second, step=state["step"], **rates)
        self._write(parameter, "first", first)
        self._write(parameter, "second", second)

    def _read(self, parameter: Tensor, name: str) -> Tensor:
        state, codebook = self.state[parameter], getattr(self.maps, name)
        if name not in state:
            return torch.zeros_like(parameter)
        if f"{name}_absmax" not in state:
            return state[name]
        absmax = state[f"{name}_absmax"]
        codes = BlockwiseCodes(state[name], absmax, codebook, self._block(parameter), parameter.shape)
        return codes.dequantize()

    def _write(self, parameter: Tensor, name: str, values: Tensor) -> None:
        state, codebook = self.state[parameter], getattr(self.maps, name)
        if parameter.numel() < MIN_8BIT_SIZE:
            state[name] = values
            return
        coded = quantize_blockwise(values, codebook, block_size=self._block(parameter))
        state[name], state[f"{name}_absmax"] = coded.packed, coded.absmax

    def _block(self, parameter: Tensor) -> int:
        return self.maps.block_size or parameter.numel()
