"""What every clip costs on one tensor: the numbers behind the drawing of clips."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.calibrate import ClipErrors, clip_errors, mse_clip
from qlab.quantize import value_range

SHARES = 100  # clips measured, from 1 % to 100 % of the largest magnitude
KEPT_WHOLE = 2**11  # so many of the largest magnitudes are always counted one by one
SAMPLED = 2**11


@dataclass(frozen=True)
class ClipCurves:
    """What every clip costs on one tensor at one number of bits.

    Units:   `errors` in squared units of the values; `power` is their mean square.
    """

    magnitudes: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    bits: int
    errors: ClipErrors
    best: float
    count: int

    @cached_property
    def largest(self) -> float:
        return self.magnitudes.max().item()

    @cached_property
    def power(self) -> float:
        return ((self.magnitudes.square() * self.weights).sum() / self.weights.sum()).item()

    @cached_property
    def least(self) -> float:
        """The error at the best clip."""
        return self.at(self.best).total.item()

    def at(self, clip: float) -> ClipErrors:
        """Return the errors at one clip."""
        return clip_errors(self.magnitudes, torch.tensor([clip]), bits=self.bits, weights=self.weights)

    def with_bits(self, bits: int) -> "ClipCurves":
        """Measure the same values at another number of bits."""
        return _measured(self.magnitudes, self.weights, bits=bits, count=self.count)

    def beyond(self, clip: float) -> float:
        """Return the share of the values that are larger than `clip`."""
        return (self.weights[self.magnitudes > clip].sum() / self.weights.sum()).item()


def clip_curves(x: Float[Tensor, "*shape"], *, bits: int) -> ClipCurves:
    """Measure a hundred clips of `x`: its 2,048 largest magnitudes one by one, of the rest about as many, by rank.

    Errors:  ValueError if `bits` is not 2 to 8, or `x` is empty, all zero, or holds NaN or infinity.
    """
    value_range(x)
    if not x.any():
        raise ValueError(f"x must hold a value that is not zero, got {x.numel()} zeros")
    return _measured(*thinned(x.detach().float().abs().flatten()), bits=bits, count=x.numel())


def thinned(magnitudes: Float[Tensor, " n"]) -> tuple[Float[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Keep the largest values, and of the rest every k-th by rank with a weight of how many it stands for."""
    if len(magnitudes) <= KEPT_WHOLE + SAMPLED:
        return magnitudes, torch.ones_like(magnitudes)
    ordered = magnitudes.sort(descending=True).values
    largest, rest = ordered[:KEPT_WHOLE], ordered[KEPT_WHOLE:]
    every = -(-len(rest) // SAMPLED)
    sample = rest[every // 2 :: every]
    weights = torch.ones(KEPT_WHOLE + len(sample))
    weights[KEPT_WHOLE:] = len(rest) / len(sample)
    return torch.cat([largest, sample]), weights


def _measured(magnitudes: Tensor, weights: Tensor, *, bits: int, count: int) -> ClipCurves:
    clips = magnitudes.max() * torch.arange(1, SHARES + 1) / SHARES
    errors = clip_errors(magnitudes, clips, bits=bits, weights=weights)
    return ClipCurves(magnitudes, weights, bits, errors, mse_clip(magnitudes, bits=bits, weights=weights), count)
