"""Magnitude pruning: which weights go, with one threshold for each layer or a single one for all of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Weights = Mapping[str, Float[Tensor, "..."]]
Masks = dict[str, Bool[Tensor, "..."]]


def magnitude_mask(weight: Float[Tensor, "*shape"], sparsity: int | float) -> Bool[Tensor, "*shape"]:
    """Return True where a weight stays: all but the round(sparsity · n) smallest magnitudes.

    Of equal magnitudes at the threshold the first ones go, so that the count is exact.
    Errors:  ValueError if `sparsity` is not 0 to 1, or a weight is NaN or infinite.
    """
    return global_masks({"weight": weight}, sparsity)["weight"]


def global_masks(weights: Weights, sparsity: int | float, *, within: Mapping[str, Tensor] | None = None) -> Masks:
    """Return a mask for each weight, the smallest magnitudes of *all* of them together left out.

    What the masks `within` have pruned already goes first and never comes back, also where `sparsity` asks for less:
    the zeros that it left cannot be told from weights that happen to be zero.
    Errors:  ValueError if `sparsity` is not 0 to 1, there is no weight, a weight is NaN or infinite, or a mask of
             `within` is missing or of another shape.
    """
    _refuse(weights, sparsity)
    sizes = [weight.numel() for weight in weights.values()]
    magnitudes = torch.cat([_magnitudes(name, weight, within) for name, weight in weights.items()])
    pruned = magnitudes.argsort(stable=True)[: round(sparsity * len(magnitudes))]
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    kept[pruned] = False
    kept &= magnitudes >= 0
    parts = zip(weights.items(), kept.split(sizes), strict=True)
    return {name: part.view(weight.shape).to(weight.device) for (name, weight), part in parts}


def per_layer_masks(weights: Weights, sparsity: int | float) -> Masks:
    """Return a mask for each weight, the same share of each left out: its own smallest magnitudes.

    Errors:  ValueError if `sparsity` is not 0 to 1, there is no weight, or one is NaN or infinite.
    """
    _refuse(weights, sparsity)
    return {name: magnitude_mask(weight, sparsity) for name, weight in weights.items()}


def random_masks(masks: Mapping[str, Tensor], *, generator: torch.Generator) -> Masks:
    """Return masks that keep as many weights of each layer as `masks`, at places drawn by `generator`."""
    return {name: _shuffled(mask, generator) for name, mask in masks.items()}


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Return the share of weights that `masks` leave out, over all layers.

    Errors:  ValueError if there is no mask.
    """
    if not masks:
        raise ValueError("a sparsity is that of at least one mask, got 0")
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def prunable_weights(model: nn.Module) -> dict[str, Float[Tensor, "out in"]]:
    """Return the weights of the linear layers of `model` by name, detached; one that two modules share is left out.

    A head that is tied to an embedding stays whole: its zeros would be zeros of the embedding too.
    """
    holders = Counter(id(held) for module in model.modules() for held in module.parameters(recurse=False))
    return {
        f"{name}.weight".lstrip("."): layer.weight.detach()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and holders[id(layer.weight)] == 1
    }


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> nn.Module:
    """Set the weights of `model` that `masks` leave out to zero, in place; returns `model`.

    Errors:  ValueError if `model` has no parameter of a mask's name, or one of another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"a mask is named {name}, and the model has no such parameter")
        if mask.shape != parameters[name].shape:
            shapes = f"{tuple(parameters[name].shape)}, got {tuple(mask.shape)}"
            raise ValueError(f"the mask of {name} must have the parameter's shape {shapes}")
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)
    return model


@contextmanager
def masks_kept(optimizer: torch.optim.Optimizer, model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Apply `masks` now and after each step of `optimizer`: momentum and weight decay move weights without a gradient.

    Errors:  ValueError if `model` has no parameter of a mask's name, or one of another shape.
    """
    apply_masks(model, masks)
    handle = optimizer.register_step_post_hook(lambda *_: apply_masks(model, masks))
    try:
        yield
    finally:
        handle.remove()


def _refuse(weights: Weights, sparsity: int | float) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be 0 to 1, got {sparsity}")
    if not weights:
        raise ValueError("pruning needs at least one weight, got 0")
    for name, weight in weights.items():
        if wrong := int((~weight.isfinite()).sum()):
            raise ValueError(f"{name} must be finite, and holds {wrong} NaN or infinite values")


def _magnitudes(name: str, weight: Tensor, within: Mapping[str, Tensor] | None) -> Tensor:
    magnitudes = weight.detach().abs().cpu().to(torch.promote_types(weight.dtype, torch.float32))
    if within is not None:
        if name not in within or within[name].shape != weight.shape:
            got = tuple(within[name].shape) if name in within else "none"
            raise ValueError(f"the earlier mask of {name} must have its shape {tuple(weight.shape)}, got {got}")
        magnitudes = magnitudes.masked_fill(~within[name].cpu(), -1)  # below every magnitude
    return magnitudes.flatten()


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
    return mask.flatten()[order].view(mask.shape)
