"""Structured pruning: whole hidden units are removed, and what is left is a smaller dense network."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qlab.model import Decoder


def unit_scores(inward: Sequence[nn.Linear], outward: nn.Linear) -> Float[Tensor, " units"]:
    """Return what each hidden unit weighs: the product of the norms of all its rows and of its column.

    The layers `inward` (one, or gate and up) each have a row for a unit, and `outward` has a column for it.
    Errors:  ValueError if there is no layer inward, or the layers do not have the same units.
    """
    _refuse_unequal(inward, outward)
    score = outward.weight.detach().norm(dim=0)
    for layer in inward:
        score = score * layer.weight.detach().norm(dim=1)
    return score


def remove_units(
    inward: nn.Linear | Sequence[nn.Linear], outward: nn.Linear, keep: Bool[Tensor, " units"] | Int[Tensor, " kept"]
) -> tuple[nn.Linear, ...]:
    """Return new, smaller layers with only the hidden units `keep`: those inward, then the one outward.

    A unit's row and bias go from each layer inward and its column from `outward`, whose own bias stays. Nothing is
    shared with the layers given. `keep` is a mask over the units, or the numbers of those that stay, in their order.
    Errors:  ValueError if there is no layer inward, the layers do not have the same units, or `keep` names none of
             them, or one that does not exist or is named twice.
    """
    inward = (inward,) if isinstance(inward, nn.Linear) else tuple(inward)
    units = _refuse_unequal(inward, outward)
    kept = _numbers(keep, units).to(outward.weight.device)
    smaller = [_linear(layer, layer.weight[kept], None if layer.bias is None else layer.bias[kept]) for layer in inward]
    return (*smaller, _linear(outward, outward.weight[:, kept], outward.bias))


def remove_ffn_units(model: Decoder, keep: Sequence[Bool[Tensor, " units"] | Int[Tensor, " kept"]]) -> Decoder:
    """Remove feed-forward units of each layer of a decoder, in place, and change its config; returns `model`.

    Errors:  ValueError if there is not one `keep` for each layer, or they leave layers of different widths.
    """
    if len(keep) != len(model.layers):
        raise ValueError(f"there must be one keep for each of {len(model.layers)} layers, got {len(keep)}")
    kept = [_numbers(one, model.config.ffn_width) for one in keep]
    if len(widths := {len(one) for one in kept}) > 1:
        raise ValueError(f"all layers must keep as many units, since a config holds one width, got {sorted(widths)}")
    for layer, numbers in zip(model.layers, kept, strict=True):
        ffn = layer.ffn
        if ffn.gate is None:
            ffn.up, ffn.down = remove_units(ffn.up, ffn.down, numbers)
        else:
            ffn.gate, ffn.up, ffn.down = remove_units((ffn.gate, ffn.up), ffn.down, numbers)
    model.config = replace(model.config, name=f"{model.config.name}-pruned", ffn_width=len(kept[0]))
    return model


def largest_units(scores: Float[Tensor, " units"], *, count: int) -> Int[Tensor, " count"]:
    """Return the numbers of the `count` units with the highest scores, in rising order; of equal ones the first.

    Errors:  ValueError if `count` is not 1 to the number of units.
    """
    if not 1 <= count <= len(scores):
        raise ValueError(f"count must be 1 to {len(scores)}, got {count}")
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _numbers(keep: Tensor, units: int) -> Tensor:
    if keep.dtype == torch.bool:
        if keep.shape != (units,):
            raise ValueError(f"a mask must have one value for each of {units} units, got shape {tuple(keep.shape)}")
        keep = keep.nonzero().flatten()
    numbers = keep.detach().cpu().long()
    if not len(numbers):
        raise ValueError(f"at least one of {units} units must stay, got none")
    if numbers.min() < 0 or numbers.max() >= units:
        raise ValueError(f"units must be 0 to {units - 1}, got {numbers.min()} to {numbers.max()}")
    if len(numbers.unique()) < len(numbers):
        raise ValueError(f"a unit can stay once, got {len(numbers)} numbers of {len(numbers.unique())} units")
    return numbers


def _linear(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer with copies of `weight` and `bias`; no number is drawn for weights that are replaced at once."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=like.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=like.bias.requires_grad)
    return made.train(like.training)


def _refuse_unequal(inward: Sequence[nn.Linear], outward: nn.Linear) -> int:
    units = [layer.out_features for layer in inward]
    if not units:
        raise ValueError("units are read from at least one layer, got 0")
    if set(units) != {outward.in_features}:
        raise ValueError(f"the layers must have the same units, got {units} rows and {outward.in_features} columns")
    return outward.in_features
