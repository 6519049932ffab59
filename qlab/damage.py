"""What rounding the weights does to a model: paired differences in bits per byte, against the bits a weight takes."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from qlab.codebooks import (
    FP4,
    NF4,
    dynamic_map,
    kmeans_codebook,
    quantile_codebook,
    quantize_blockwise,
)
from qlab.quantize import (
    PER_ROW,
    TILES,
    Tile,
    per_group,
    quantize_affine,
    quantize_symmetric,
)
from qlab.scoring import held_out_bits

RoundTrip = Callable[[Tensor], tuple[Tensor, float]]


@dataclass(frozen=True)
class Scheme:
    """A way to store a weight: `round_trip` returns what comes back, and the bits that each value took."""

    family: str
    bits: int
    round_trip: RoundTrip

    @property
    def name(self) -> str:
        return f"{self.family}, {self.bits} bits"


@dataclass(frozen=True)
class Damage:
    """What a scheme costs: the mean difference in bits per byte over the same windows, with its standard error."""

    family: str
    bits: int
    bits_per_weight: float
    bits_per_byte: float
    standard_error: float


def uniform(tile: Tile, *, bits: int, affine: bool = False) -> RoundTrip:
    """Return the round trip through a uniform grid."""
    quantize = quantize_affine if affine else quantize_symmetric

    def round_trip(weight: Tensor) -> tuple[Tensor, float]:
        quantized = quantize(weight, bits=bits, tile=tile)
        return quantized.dequantize(), quantized.bits_per_value

    return round_trip


def by_codebook(codebook: Callable[[Tensor], Tensor], *, block_size: int | None) -> RoundTrip:
    """Return the round trip through a codebook, which may be made for the weight it is used on.

    Without a `block_size` the codebook is in the units of the weight, one for all of it.
    """

    def round_trip(weight: Tensor) -> tuple[Tensor, float]:
        quantized = quantize_blockwise(weight, codebook(weight), block_size=block_size)
        return quantized.dequantize(), quantized.bits_per_value

    return round_trip


def uniform_schemes(bits: Iterable[int], families: Iterable[str] = TILES) -> list[Scheme]:
    """Return the symmetric schemes of some granularities at some widths.

    Errors:  ValueError if a family is not one of `TILES`.
    """
    families, bits = tuple(families), tuple(bits)
    if unknown := [family for family in families if family not in TILES]:
        raise ValueError(f"families must be among {', '.join(TILES)}, got {unknown[0]}")
    return [Scheme(family, b, uniform(TILES[family], bits=b)) for family in families for b in bits]


def all_schemes() -> list[Scheme]:
    """Return every scheme of the course, from 8 bits down to 2."""
    widths = range(8, 1, -1)
    schemes = uniform_schemes(widths)
    schemes += [Scheme("affine per row", b, uniform(PER_ROW, bits=b, affine=True)) for b in widths]
    schemes += [Scheme("affine groups of 64", b, uniform(per_group(64), bits=b, affine=True)) for b in widths]
    for family, made in (("k-means per tensor", kmeans_codebook), ("quantiles per tensor", quantile_codebook)):
        schemes += [Scheme(family, b, by_codebook(partial(made, bits=b), block_size=None)) for b in widths]
    for family, table, bits in (("NF4", NF4, 4), ("FP4", FP4, 4), ("dynamic", dynamic_map(signed=True), 8)):
        made = by_codebook(lambda weight, table=table: table.to(weight.device), block_size=64)
        schemes.append(Scheme(f"{family} blocks of 64", bits, made))
    return schemes


@torch.no_grad()
def rounded_copy(
    model: nn.Module, round_trip: RoundTrip, *, keep: tuple[nn.Module, ...] = ()
) -> tuple[nn.Module, float]:
    """Return a copy of `model` whose linear weights went through `round_trip`, and the mean bits of such a weight.

    Layers in `keep` keep their weight: the head, where its weight is the embedding's.
    Errors:  ValueError if no linear layer is left, or a weight holds NaN or infinity.
    """
    linears = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    chosen = [name for name, layer in linears if not any(layer is kept for kept in keep)]
    if not chosen:
        raise ValueError(f"the model must have a linear layer to round, got {len(linears)} and {len(keep)} to keep")
    rounded, bits, count = copy.deepcopy(model), 0.0, 0
    for name in chosen:
        weight = rounded.get_submodule(name).weight
        values, bits_each = round_trip(weight)
        weight.copy_(values)
        bits, count = bits + bits_each * weight.numel(), count + weight.numel()
    return rounded, bits / count


def damage(
    model: nn.Module,
    schemes: Iterable[Scheme],
    text: UInt8[Tensor, " n"],
    *,
    sequence: int = 512,
    keep: tuple[nn.Module, ...] = (),
) -> list[Damage]:
    """Score each scheme on windows of `text`, each against the same window of the model as it was.

    Errors:  ValueError if `text` is too short for two windows, since one has no standard error, or if a model's bits
             per byte are NaN or infinite.
    """
    before = _finite_bits(model, text, sequence, "the model as it was")
    if len(before) < 2:
        raise ValueError(f"a standard error needs at least 2 windows of {sequence} bytes, got {len(before)}")
    found = []
    for scheme in schemes:
        rounded, bits = rounded_copy(model, scheme.round_trip, keep=keep)
        lost = _finite_bits(rounded, text, sequence, scheme.name) - before
        error = lost.std().item() / math.sqrt(len(lost))
        found.append(Damage(scheme.family, scheme.bits, bits, lost.mean().item(), error))
    return found


def _finite_bits(model: nn.Module, text: Tensor, sequence: int, name: str) -> Tensor:
    bits = held_out_bits(model, text, sequence=sequence)
    if wrong := int((~bits.isfinite()).sum()):
        raise ValueError(f"bits per byte must be finite, and {wrong} of {len(bits)} windows are not: {name}")
    return bits


def pareto_front(found: Iterable[Damage]) -> list[Damage]:
    """Return, by bits per weight, each scheme that loses less than any that takes as few bits or fewer."""
    front: list[Damage] = []
    for one in sorted(found, key=lambda d: (d.bits_per_weight, d.bits_per_byte)):
        if not front or one.bits_per_byte < front[-1].bits_per_byte:
            front.append(one)
    return front
