"""Quantization-aware training: a few hundred steps with rounded weights in sight, then the rounding made permanent."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qlab.recipes import TextRecipe
from qlab.scoring import bits_per_token

Rounding = Callable[[Tensor], nn.Module]


@dataclass(frozen=True, kw_only=True)
class QatRecipe(TextRecipe):
    """How long, on how much text at a time, and how fast."""

    steps: int = 300
    sequence: int = 256


def prepare(model: nn.Module, rounding: Rounding, *, keep: tuple[nn.Module, ...] = ()) -> nn.Module:
    """Let every linear layer of `model` compute with its weight as `rounding(weight)` rounds it; returns `model`.

    The weights themselves stay as they are, and are what an optimizer gets. Layers in `keep` are left alone:
    the head, where its weight is the embedding's, which would be rounded with it for good by `convert`.
    Errors:  ValueError if a layer is prepared already.
    """
    chosen = [m for m in model.modules() if isinstance(m, nn.Linear) and not any(m is kept for kept in keep)]
    if prepared := sum(parametrize.is_parametrized(layer, "weight") for layer in chosen):
        raise ValueError(f"a layer is prepared once, and {prepared} of {len(chosen)} are already: convert them first")
    for layer in chosen:
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
    Errors:  ValueError if `text` is too short for one window, or a loss is NaN or infinite.
    """
    batches = recipe.batches(text.to(next(model.parameters()).device))
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    optimizer.zero_grad()
    losses = []
    for step, windows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        loss = bits_per_token(model(windows[:, :-1]), windows[:, 1:]).mean()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss must stay finite, got {losses[-1]} at step {step}: lower the learning rate")
        (loss * math.log(2)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses
