"""Which linear layers read which norm: the places where a channel can be scaled without changing the function."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qlab.model import Decoder


@dataclass(frozen=True)
class NormWithReaders:
    """A norm, and every linear layer that reads its output: nothing else may."""

    name: str
    norm: nn.Module
    readers: tuple[nn.Linear, ...]


def norms_with_readers(model: Decoder) -> list[NormWithReaders]:
    """List the norms of a decoder's layers; the last is left out: its reader may share the embedding's weight."""
    found = []
    for place, layer in enumerate(model.layers):
        attention, ffn = layer.attention, layer.ffn
        inward = (ffn.up,) if ffn.gate is None else (ffn.gate, ffn.up)
        projections = (attention.query, attention.key, attention.value)
        found.append(NormWithReaders(f"layers.{place}.attention_norm", layer.attention_norm, projections))
        found.append(NormWithReaders(f"layers.{place}.ffn_norm", layer.ffn_norm, inward))
    return found


@torch.no_grad()
def divide_channels(place: NormWithReaders, divisor: Float[Tensor, " width"]) -> None:
    """Divide a norm's channels by `divisor` and multiply the columns that read them by it: what is computed stays.

    In place. A LayerNorm's bias is divided like its weight: it is added after the weight and read by the same columns.
    The readers' own biases stay: they are added to the product. A norm must multiply by `weight`, not by 1 + `weight`.
    Errors:  ValueError if `divisor` has another length than the norm, or holds a value that is not above 0 and finite.
    """
    width = place.norm.weight.numel()
    if divisor.shape != (width,):
        raise ValueError(f"divisor must hold {width} values, one for each channel, got shape {tuple(divisor.shape)}")
    if not (divisor.min() > 0 and divisor.max() < torch.inf):
        raise ValueError(f"divisors must be above 0 and finite, got {divisor.min():.6g} to {divisor.max():.6g}")
    place.norm.weight /= divisor
    if getattr(place.norm, "bias", None) is not None:
        place.norm.bias /= divisor
    for reader in place.readers:
        reader.weight *= divisor


@torch.no_grad()
def norm_outputs(model: Decoder, batches: Iterable[Int[Tensor, "_ _"]]) -> dict[str, Float[Tensor, "n width"]]:
    """Run `model` on `batches` and return what each norm with readers put out, one row for each token.

    Shapes:  each batch is (batch, sequence), of any length.
    Errors:  ValueError if there is no batch.
    """
    kept: dict[str, list[Tensor]] = {place.name: [] for place in norms_with_readers(model)}
    with _watched(model, kept):
        for tokens in batches:
            model(tokens)
    if not all(kept.values()):
        raise ValueError("outliers are found in activations: at least one batch is needed, got 0")
    return {name: torch.cat(outputs) for name, outputs in kept.items()}


@contextmanager
def _watched(model: Decoder, kept: dict[str, list[Tensor]]) -> Iterator[None]:
    hooks = [
        place.norm.register_forward_hook(lambda _, __, y, name=place.name: kept[name].append(y.flatten(0, -2)))
        for place in norms_with_readers(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
