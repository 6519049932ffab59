"""Where to cut the tail: what clipping costs, what it saves in rounding, and the clip where both together are least."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.quantize import code_range, quantize_with, symmetric_grid_of, value_range

CANDIDATES = 100
SMALLEST_NORMAL, SMALLEST = 2.0**-126, 2.0**-149  # of FP32


@dataclass(frozen=True)
class ClipErrors:
    """Mean squared errors by clip: from values beyond the clip, and from rounding those within it."""

    clips: Float[Tensor, " clips"]
    clipping: Float[Tensor, " clips"]
    rounding: Float[Tensor, " clips"]

    @property
    def total(self) -> Float[Tensor, " clips"]:
        return self.clipping + self.rounding


def clip_errors(
    x: Float[Tensor, "*shape"],
    clips: Float[Tensor, " clips"],
    *,
    bits: int,
    weights: Float[Tensor, "*shape"] | None = None,
) -> ClipErrors:
    """Quantize `x` symmetrically to ±clip for each clip, and split the mean squared error in two.

    Units:   errors in squared units of `x`, in FP64, both parts a share of the same mean. `weights` count a value
             several times.
    Errors:  ValueError if a clip is not above 0 and finite, `bits` is not 2 to 8, `x` is empty or holds NaN or
             infinity, or `weights` are not one for each value, none negative, at least one above 0.
    """
    code_range(bits, signed=True)
    unit = max(2.0 ** (math.frexp(_largest(x))[1] - 1), SMALLEST_NORMAL)  # squares of `x` itself could leave FP32
    values = x.detach().flatten().float() / unit
    if not clips.numel() or not (clips.float().min() > 0 and clips.float().max() < torch.inf):
        raise ValueError(f"clips must be above 0 and finite, got {clips.tolist()}")
    share = _shares(values, weights)
    parts = []
    for clip in clips.to(values) / unit:
        grid = symmetric_grid_of(clip.view(1, 1), bits=bits)
        cost = (quantize_with(values, grid).dequantize() - values).square_().mul_(share)
        beyond = values.abs() > clip
        parts.append(torch.stack([torch.where(beyond, cost, 0.0).sum(), torch.where(beyond, 0.0, cost).sum()]))
    clipping, rounding = torch.stack(parts).double().T.to(clips.device) * unit**2
    return ClipErrors(clips, clipping, rounding)


def mse_clip(x: Float[Tensor, "*shape"], *, bits: int, weights: Float[Tensor, "*shape"] | None = None) -> float:
    """Return the clip at which the mean squared error of `x`, quantized symmetrically, is smallest.

    A hundred clips up to the largest magnitude are tried, then as many between the neighbors of the best.
    Errors:  ValueError if `bits` is not 2 to 8, `x` is empty or holds NaN or infinity, or for `weights` as in
             `clip_errors`.
    """
    code_range(bits, signed=True)
    largest = _largest(x)
    if not largest:
        return 0.0
    shares = torch.arange(1, CANDIDATES + 1) / CANDIDATES
    best = _best_of(x, (largest * shares).clamp(min=SMALLEST), bits, weights)
    finer = best + largest * torch.linspace(-1, 1, CANDIDATES + 1)[1:] / CANDIDATES
    return _best_of(x, finer.clamp(SMALLEST, largest), bits, weights)


def _best_of(x: Tensor, clips: Tensor, bits: int, weights: Tensor | None) -> float:
    errors = clip_errors(x, clips, bits=bits, weights=weights)
    return errors.clips[errors.total.argmin()].item()


def _largest(x: Tensor) -> float:
    """Return the largest magnitude in `x`, read in FP32."""
    low, high = value_range(x.detach().float())
    return torch.maximum(-low, high).item()


def _shares(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the share of each value in the mean."""
    if weights is None:
        return torch.full_like(values, 1 / values.numel())
    counted = weights.detach().flatten().double()
    if counted.shape != values.shape:
        raise ValueError(f"weights must be one for each of {values.numel()} values, got {counted.numel()}")
    total = counted.sum().item()
    if not (counted.min() >= 0 and 0 < total < torch.inf):
        lowest = counted.min().item()
        raise ValueError(f"weights must not be negative, with a finite sum above 0, got {lowest} and a sum of {total}")
    return (counted / total).to(values)
