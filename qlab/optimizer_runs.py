"""The same training run with different optimizers: the loss of each step, and the bytes of state left behind."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from qlab.codebooks import dynamic_map, linear_map
from qlab.optimizers import Adam8bit, MappedAdam, state_bytes
from qlab.optimizers.mapped import MomentMaps
from qlab.recipes import TextRecipe
from qlab.scoring import bits_per_token

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
LINEAR_MAPS = MomentMaps(linear_map(signed=True), linear_map(signed=False))
LINEAR_SECOND_MAP = MomentMaps(dynamic_map(signed=True), linear_map(signed=False))
WHOLE_TENSORS = MomentMaps(dynamic_map(signed=True), dynamic_map(signed=False), block_size=None)


@dataclass
class OptimizerRun:
    """What a run left: the loss of each step in bits per byte, and the bytes that the optimizer keeps.

    `failed_at` is the first step whose loss was NaN or infinite, where the run ended.
    """

    losses: list[float] = field(default_factory=list)
    state_bytes: int = 0
    parameters: int = 0
    failed_at: int | None = None

    def final_loss(self, last: int = 20) -> float:
        """Return the mean loss of the last steps; NaN if the run was lost."""
        end = self.losses[-last:]
        return math.nan if self.failed_at is not None else sum(end) / len(end)

    @property
    def bytes_per_parameter(self) -> float:
        """State bytes for each trained number."""
        return self.state_bytes / self.parameters


def run(model: nn.Module, text: UInt8[Tensor, " n"], make_optimizer: MakeOptimizer, recipe: TextRecipe) -> OptimizerRun:
    """Train `model` on windows drawn from `text`, at a rate that falls to zero; stop if the loss is lost.

    `make_optimizer(parameters, learning_rate)` is any torch optimizer. The same recipe draws the same text for each.
    Errors:  ValueError if `text` is too short for one window.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, recipe.learning_rate)
    told = OptimizerRun(parameters=sum(parameter.numel() for parameter in parameters))
    for step, windows in enumerate(recipe.batches(text.to(parameters[0].device))):
        loss = bits_per_token(model(windows[:, :-1]), windows[:, 1:]).mean()
        told.losses.append(loss.item())
        if not math.isfinite(told.losses[-1]):
            told.failed_at = step
            break
        (loss * math.log(2)).backward()
        nn.utils.clip_grad_norm_(parameters, recipe.max_norm, foreach=False)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.step()
        optimizer.zero_grad()
    told.state_bytes = state_bytes(optimizer)
    return told


def adam_32bit(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Make torch's Adam, with FP32 moments."""
    return torch.optim.Adam(parameters, lr=learning_rate, foreach=False)


def adam_8bit(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Make qlab's `Adam8bit`."""
    return Adam8bit(parameters, lr=learning_rate)


def adam_8bit_of_bitsandbytes(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Make bitsandbytes' `Adam8bit`."""
    import bitsandbytes  # noqa: PLC0415 - takes seconds to import, and only this optimizer needs it

    return bitsandbytes.optim.Adam8bit(parameters, lr=learning_rate)


def adam_on(maps: MomentMaps) -> MakeOptimizer:
    """Return what makes Adam on moments coded with `maps`."""

    def make(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        return MappedAdam(parameters, lr=learning_rate, maps=maps)

    return make


WAYS: dict[str, MakeOptimizer] = {
    "FP32 Adam": adam_32bit,
    "8-bit Adam": adam_8bit,
    "8-bit Adam of bitsandbytes": adam_8bit_of_bitsandbytes,
    "one absmax a tensor": adam_on(WHOLE_TENSORS),
    "linear map for the second moment": adam_on(LINEAR_SECOND_MAP),
    "linear maps": adam_on(LINEAR_MAPS),
}
