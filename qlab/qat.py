"""Quantization-aware training: a few hundred steps with rounded weights in sight, then the rounding made permanent."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qlab.scoring import bits_per_token

Rounding = Callable[[Tensor], nn.Module]


@dataclass(frozen=True, kw_only=True)
class QatRecipe:
    """How long, on how much text at a time, and how fast."""

    steps: int = 300
    batch: int = 4
    sequence: int = 256
    learning_rate: float = 3e-4
    gradient_norm: float = 1.0
    seed: int = 0


def prepare(model: nn.Module, rounding: Rounding, *, keep: tuple[nn.Module, ...] = ()) -> nn.Module:
    """Let every linear layer of `model` compute with its weight as `rounding(weight)` rounds it; returns `model`.

    The weights themselves stay as they are, and are what an optimizer gets. Layers in `keep` are left alone.
    """
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear) and not any(m is kept for kept in keep)]:
        parametrize.register_parametrization(layer, "weight", rounding(layer.weight))
    return model


def convert(model: nn.Module) -> nn.Module:
    """Replace each prepared weight by its rounded values, for good; returns `model`."""
    for layer in [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


def train(model: nn.Module, text: UInt8[Tensor, " n"], recipe: QatRecipe) -> list[float]:
    """Train `model` on windows drawn from `text` with Adam and a learning rate that falls to zero.

    Returns the bits per byte of each step's batch.
    Errors:  ValueError if `text` is too short for one window.
    """
    if len(text) <= recipe.sequence:
        raise ValueError(f"a window of {recipe.sequence} needs at least {recipe.sequence + 1} bytes, got {len(text)}")
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    losses = []
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
        starts = torch.randint(len(text) - recipe.sequence, (recipe.batch,), generator=generator)
        windows = torch.stack([text[s : s + recipe.sequence + 1] for s in starts.tolist()]).long()
        loss = bits_per_token(model(windows[:, :-1]), windows[:, 1:]).mean()
        (loss * math.log(2)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
