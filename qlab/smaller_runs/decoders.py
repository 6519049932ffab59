"""Short runs of a decoder: what pruning costs and a few steps win back, and students with and without a teacher."""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor, nn

from qlab.config import COURSE_MODEL, ModelConfig
from qlab.distill import distillation_loss
from qlab.model import Decoder
from qlab.recipes import TextRecipe
from qlab.sparsity import (
    Masks,
    apply_masks,
    global_masks,
    largest_units,
    masks_kept,
    per_layer_masks,
    prunable_weights,
    random_masks,
    remove_ffn_units,
    two_four_mask,
    unit_scores,
)

STUDENT = replace(COURSE_MODEL, name="student", layers=2, width=128, heads=2, kv_heads=2, ffn_width=352)
TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of tokens, logits and targets, in nats
Pruning = Callable[[Decoder], Masks]


@dataclass(frozen=True, kw_only=True)
class DecoderRecipe(TextRecipe):
    """How long, on how much text at a time, and how fast; the arithmetic is BF16 under autocast, the weights FP32."""

    steps: int = 100
    batch: int = 8
    sequence: int = 256


def next_byte(_: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the next byte."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def from_teacher(teacher: nn.Module, *, temperature: float, weight: float) -> TokenLoss:
    """Return the loss of a student that learns from the text and from what `teacher` says to it."""

    def loss(tokens: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            said = teacher(tokens)
        return distillation_loss(logits, said, targets, temperature=temperature, weight=weight)

    return loss


def without_square(teacher: nn.Module, *, temperature: float, weight: float) -> TokenLoss:
    """Return the loss that forgets the factor T²: its soft part is too small by as much."""
    soft = from_teacher(teacher, temperature=temperature, weight=1.0)

    def loss(tokens: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        part = soft(tokens, logits, targets) / temperature**2
        return weight * part + (1 - weight) * next_byte(tokens, logits, targets)

    return loss


def train_decoder(
    model: nn.Module,
    text: UInt8[Tensor, " n"],
    recipe: DecoderRecipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    loss: TokenLoss = next_byte,
) -> list[float]:
    """Train `model` in place with Adam and a learning rate that falls to zero; what `masks` prune stays zero.

    Returns the loss of each step in nats.
    Errors:  ValueError if `text` is too short for one window, or a loss is NaN or infinite.
    """
    batches = recipe.batches(text)
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    losses = []
    with masks_kept(optimizer, model, masks) if masks else nullcontext():
        for step, windows in enumerate(batch.to(device) for batch in batches):
            optimizer.param_groups[0]["lr"] = recipe.rate(step)
            with torch.autocast(device.type, torch.bfloat16):
                cost = loss(windows[:, :-1], model(windows[:, :-1]), windows[:, 1:])
            losses.append(cost.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss must stay finite, got {losses[-1]} at step {step}")
            cost.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def globally(sparsity: float) -> Pruning:
    """Prune the smallest magnitudes of all layers together."""
    return lambda model: global_masks(prunable_weights(model), sparsity)


def layer_by_layer(sparsity: float) -> Pruning:
    """Prune the smallest magnitudes of each layer."""
    return lambda model: per_layer_masks(prunable_weights(model), sparsity)


def at_random(sparsity: float, *, seed: int) -> Pruning:
    """Prune as many weights of each layer, wherever they are."""
    generator = torch.Generator().manual_seed(seed)
    return lambda model: random_masks(layer_by_layer(sparsity)(model), generator=generator)


def two_of_four(model: Decoder) -> Masks:
    """Prune two of each four neighbors."""
    return {name: two_four_mask(weight) for name, weight in prunable_weights(model).items()}


def pruned(model: Decoder, pruning: Pruning) -> tuple[Decoder, Masks]:
    """Return a copy of `model` with `pruning` applied, and the masks."""
    masks = pruning(model)
    return apply_masks(copy.deepcopy(model), masks), masks


def narrowed(model: Decoder, *, units: int) -> Decoder:
    """Return a copy of `model` in which each layer keeps its `units` heaviest feed-forward units, and no others."""
    kept = []
    for layer in model.layers:
        inward = [linear for linear in (layer.ffn.gate, layer.ffn.up) if linear is not None]
        kept.append(largest_units(unit_scores(inward, layer.ffn.down), count=units))
    return remove_ffn_units(copy.deepcopy(model), kept)


def new_student(config: ModelConfig = STUDENT, *, seed: int) -> Decoder:
    """Return a decoder with weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(config)
