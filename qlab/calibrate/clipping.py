"""Where to cut the tail: what clipping costs, what it saves in rounding, and the clip where both together are least."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.quantize import quantize_with, symmetric_grid_of, value_range

CANDIDATES = 100


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

    Units:   errors in squared units of `x`, both parts a share of the same mean. `weights` count a value several times.
    Errors:  ValueError if a clip is not above 0, `bits` is not 2 to 8, or `x` is empty or holds NaN or infinity.
    """
    value_range(x)
    if not clips.numel() or not clips.min() > 0:
        raise ValueError(f"clips must be above 0, got {clips.tolist()}")
    values = x.flatten().float()
    share = (torch.ones_like(values) if weights is None else weights.flatten().float()).double()
    share = (share / share.sum()).float()
    parts = []
    for clip in clips:
        grid = symmetric_grid_of(clip.float().view(1, 1), bits=bits)
        cost = (quantize_with(values, grid).dequantize() - values).square_().mul_(share)
        beyond = torch.where(values.abs() > clip, cost, 0.0).sum()
        parts.append((beyond, cost.sum() - beyond))
    clipping, rounding = torch.tensor(parts).T
    return ClipErrors(clips, clipping, rounding)


def mse_clip(x: Float[Tensor, "*shape"], *, bits: int, weights: Float[Tensor, "*shape"] | None = None) -> float:
    """Return the clip at which the mean squared error of `x`, quantized symmetrically, is smallest.

    A hundred clips up to the largest magnitude are tried, then as many between the neighbors of the best.
    Errors:  ValueError if `bits` is not 2 to 8, or `x` is empty or holds NaN or infinity.
    """
    low, high = value_range(x)
    largest = torch.maximum(-low, high).item()
    if not largest:
        return 0.0
    step = largest / CANDIDATES
    best = _best_of(x, torch.arange(1, CANDIDATES + 1) * step, bits, weights)
    finer = best + step * torch.linspace(-1, 1, CANDIDATES + 1)[1:]
    return min(_best_of(x, finer, bits, weights), largest)


def _best_of(x: Tensor, clips: Tensor, bits: int, weights: Tensor | None) -> float:
    errors = clip_errors(x, clips[clips > 0], bits=bits, weights=weights)
    return errors.clips[errors.total.argmin()].item()
