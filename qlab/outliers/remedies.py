"""Remedies: keep outliers apart, move them into the weights, or spread them over all channels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qlab.model import Decoder
from qlab.outliers.readers import divide_channels, norms_with_readers
from qlab.quantize import PER_ROW, Quantized, int8_linear, int8_matmul, quantize_symmetric

SMALLEST = 1e-5  # of a channel's largest magnitude: a channel that is never used is scaled as if it held this


@dataclass(frozen=True)
class Decomposed:
    """A product in two parts, and which columns of the input went through the exact one."""

    output: Float[Tensor, "tokens out"]
    outlier_columns: Bool[Tensor, " width"]


def mixed_decomposition_matmul(
    x: Float[Tensor, "tokens width"], weight: Float[Tensor, "out width"], *, threshold: float = 6.0
) -> Decomposed:
    """Multiply `x` by the transpose of `weight`: columns of `x` that hold an outlier as they are, the rest in int8.

    A column is an outlier if any token's magnitude there is at least `threshold`. The int8 part has a scale for each
    token and for each row of `weight`, found without the outliers. The result has the type of `x`; no gradient passes.
    Errors:  ValueError if `threshold` is not above 0, or an input is empty or holds NaN or infinity.
    Source:  Dettmers et al. 2022, section 3.2 and equation 8, arXiv:2208.07339.
    """
    x, weight = x.detach(), weight.detach()
    outliers = _outlier_columns(x, threshold)
    _finite_absmax(weight, "weight")
    exact = x[:, outliers] @ weight[:, outliers].T
    if outliers.all():
        return Decomposed(exact, outliers)
    rest = int8_matmul(_by_rows(x[:, ~outliers]), _by_rows(weight[:, ~outliers]))
    return Decomposed((exact + rest).to(x.dtype), outliers)


def decomposed_int8_linear(
    x: Float[Tensor, "tokens width"], weight: Quantized, *, threshold: float = 6.0
) -> Float[Tensor, "tokens out"]:
    """Decompose against a weight that is kept in int8 only: its outlier columns are dequantized when they are needed.

    What a library does to save memory: no second copy, nothing quantized at a call but `x`, and less precision where
    a row's scale is coarse for its outlier columns. The result has the type of `x`; no gradient passes.
    Errors:  ValueError if `threshold` is not above 0, `weight` is not symmetric with one scale for each row, or `x` is
             empty or holds NaN or infinity.
    """
    if weight.grid.tile != PER_ROW or weight.zero_point is not None:
        kind = "symmetric" if weight.zero_point is None else "affine"
        raise ValueError(f"weight must be symmetric with one scale for each row, got {kind} with {weight.grid.tile}")
    x = x.detach()
    outliers = _outlier_columns(x, threshold)
    rest = int8_linear(x.masked_fill(outliers, 0), weight)
    columns = (weight.codes[:, outliers] * weight.scale).to(x.dtype)  # scales in FP32: they would be subnormal in FP16
    return rest + x[:, outliers] @ columns.T


def smoothing_scales(
    activation_absmax: Float[Tensor, " width"], weight_absmax: Float[Tensor, " width"], *, alpha: float = 0.5
) -> Float[Tensor, " width"]:
    """Return max |X_j|^alpha / max |W_j|^(1 - alpha): what to divide each channel of the activations by.

    With alpha 1 all of the difficulty goes into the weights, with 0 all of it into the activations.
    Errors:  ValueError if `alpha` is not 0 to 1.
    Source:  Xiao et al. 2023, equation 4, arXiv:2211.10438.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be 0 to 1, got {alpha}")
    activations, weights = activation_absmax.clamp(min=SMALLEST), weight_absmax.clamp(min=SMALLEST)
    return activations**alpha / weights ** (1 - alpha)


@torch.no_grad()
def smooth(model: Decoder, activation_absmax: Mapping[str, Float[Tensor, " width"]], *, alpha: float = 0.5) -> Decoder:
    """Divide each norm's channels by their smoothing scales and fold those into the readers' weights; in place.

    All readers of a norm share its scales, which are made with the largest weight of any of them.
    Errors:  ValueError if a norm has no calibrated magnitudes, or `alpha` is not 0 to 1.
    """
    for place in norms_with_readers(model):
        if place.name not in activation_absmax:
            raise ValueError(f"{place.name} has no calibrated magnitudes, only {sorted(activation_absmax)}")
        weights = torch.cat([reader.weight for reader in place.readers]).abs().amax(0)
        divide_channels(place, smoothing_scales(activation_absmax[place.name].to(weights), weights, alpha=alpha))
    return model


def hadamard_transform(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Multiply the last axis by the orthogonal Hadamard matrix: sums and differences, in log2(width) rounds.

    The transform is its own inverse, and spreads one large value evenly over all channels.
    Units:   width · log2(width) additions for each row.
    Errors:  ValueError if the width is not a power of two.
    Source:  Ashkboos et al. 2024 (QuaRot), arXiv:2404.00456.
    """
    width = x.shape[-1]
    if width & (width - 1) or not width:
        raise ValueError(f"width must be a power of two, got {width}")
    half, y = 1, x if x.dtype == torch.float64 else x.float()  # sums overflow FP16 and lose digits in BF16
    while half < width:
        pairs = y.reshape(*x.shape[:-1], width // (2 * half), 2, half)
        first, second = pairs.unbind(-2)
        y = torch.stack([first + second, first - second], dim=-2)
        half *= 2
    return (y.reshape(x.shape) / math.sqrt(width)).to(x.dtype)


def _by_rows(x: Tensor) -> Quantized:
    return quantize_symmetric(x, bits=8, tile=PER_ROW)


def _outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Return which columns of `x` hold a magnitude of at least `threshold`."""
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    return _finite_absmax(x, "x") >= threshold


def _finite_absmax(x: Tensor, name: str) -> Tensor:
    """Return the largest magnitude of each column, of values that are there and finite."""
    if not x.numel():
        raise ValueError(f"{name} must hold at least one value, got shape {tuple(x.shape)}")
    absmax = x.abs().amax(0)
    if not absmax.isfinite().all():
        raise ValueError(f"{name} must be finite, and holds {int((~x.isfinite()).sum())} NaN or infinite values")
    return absmax
