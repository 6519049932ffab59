"""Whole chains under checkpointing: in segments, by the binomial schedule, or with what is dear to recompute kept."""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from qlab.checkpointing.replay import checkpoint
from qlab.checkpointing.schedules import best_split, even_segments

aten = torch.ops.aten
MATRIX_PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default})
FUSED_ATTENTION = frozenset(
    {
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
)
Layers = Iterable[Callable[[Tensor], Tensor]]


def checkpoint_segments(layers: Layers, x: Tensor, *, segments: int | Sequence[int]) -> Tensor:
    """Run `layers` on `x` one after the other, each segment of them checkpointed as one function.

    `segments` is how many, as even as can be, or the length of each.
    Errors:  ValueError if there are more segments than layers, or the lengths are not those of the layers.
    """
    layers = list(layers)
    for segment in grouped(layers, segments):
        x = checkpoint(run_in_turn, segment, x)
    return x


def checkpoint_binomially(layers: Layers, x: Tensor, *, slots: int) -> Tensor:
    """Run `layers` on `x` by the binomial schedule, with at most `slots` boundaries saved, that of `x` among them.

    The schedule comes about by checkpoints inside checkpoints, which the replays unfold.
    Errors:  ValueError if there are no layers, or `slots` is below 1.
    """
    layers = list(layers)
    if slots < 1 or not layers:
        raise ValueError(f"slots and the number of layers must be at least 1, got {slots} and {len(layers)}")
    while len(layers) > 1:
        middle = best_split(len(layers), slots)
        x = checkpoint(partial(checkpoint_binomially, slots=slots), layers[:middle], x)
        layers, slots = layers[middle:], max(slots - 1, 1)
    return layers[0](x)


def checkpoint_selectively(
    f: Callable[..., Any],
    *args: Any,
    keep: Collection[torch._ops.OpOverload] = MATRIX_PRODUCTS | FUSED_ATTENTION,
    preserve_rng_state: bool = True,
) -> Any:
    """Run `f(*args)` checkpointed, but keep what the operations in `keep` return: the replay does the rest.

    What is kept this way is not seen by `qlab.measure.SavedForBackward`; `PeakBytes` sees it.
    Errors:  ValueError if `keep` is empty or holds anything but operations such as `torch.ops.aten.mm.default`.
    """
    if not keep or not all(isinstance(operation, torch._ops.OpOverload) for operation in keep):
        raise ValueError(f"keep must name operations such as torch.ops.aten.mm.default, got {list(keep)}")
    contexts = partial(create_selective_checkpoint_contexts, list(keep))
    return torch_checkpoint(f, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state, context_fn=contexts)


def segmented(model: nn.Module, segments: int | Sequence[int], *, run: Callable[..., Tensor] = checkpoint) -> nn.Module:
    """Return a model with the parameters of `model` whose `layers` run in segments, each through `run`.

    `model` has `layers` and a `run_layer(layer, x)` that it runs each with, as `qlab.model.Decoder` does; it stays
    as it is, and gradients of the new one arrive in its parameters.
    Errors:  ValueError if there are more segments than layers, or the lengths are not those of the layers.
    """
    view = copy.copy(model)
    view._modules = dict(model._modules)  # its own table of children; the children are shared
    view.layers = nn.ModuleList(nn.Sequential(*segment) for segment in grouped(list(model.layers), segments))
    view.run_layer = run
    return view


def grouped(layers: list, segments: int | Sequence[int]) -> list[list]:
    """Divide a list of layers into segments: a number of them, or their lengths."""
    lengths = even_segments(len(layers), segments) if isinstance(segments, int) else tuple(segments)
    if min(lengths, default=0) < 1 or sum(lengths) != len(layers):
        raise ValueError(f"segments must be lengths of at least 1 that sum to {len(layers)} layers, got {lengths}")
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return [layers[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def run_in_turn(layers: Layers, x: Tensor) -> Tensor:
    """Run `layers` on `x`, each on what the one before it returned."""
    for layer in layers:
        x = layer(x)
    return x
