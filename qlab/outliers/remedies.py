"""Remedies: keep outliers apart, move them into the weights, or spread them over all channels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qlab.model import Decoder
from qlab.outliers.readers import divide_channels, norms_with_readers
from qlab.quantize import PER_ROW, Quantized, int8_matmul, quantize_symmetric

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
    token and for each row of `weight`, found without the outliers.
    Errors:  ValueError if `threshold` is not above 0, or an input is empty or holds NaN or infinity.
    Source:  Dettmers et al. 2022, section 3.2 and equation 8, arXiv:2208.07339.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    outliers = (x.abs() >= threshold).any(0)
    exact = x[:, outliers] @ weight[:, outliers].T
    if outliers.all():
        return Decomposed(exact, outliers)
    rest = int8_matmul(_by_rows(x[:, ~outliers]), _by_rows(weight[:, ~outliers]))
    return Decomposed(exact + rest, outliers)


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
    Source:  Ashkboos et al. 2024, section 2, arXiv:2404.00456.
    """
    width = x.shape[-1]
    if width & (width - 1) or not width:
        raise ValueError(f"width must be a power of two, got {width}")
    half, y = 1, x
    while half < width:
        pairs = y.reshape(*x.shape[:-1], width // (2 * half), 2, half)
        first, second = pairs.unbind(-2)
        y = torch.stack([first + second, first - second], dim=-2)
        half *= 2
    return y.reshape(x.shape) / math.sqrt(width)


def _by_rows(x: Tensor) -> Quantized:
    return quantize_symmetric(x, bits=8, tile=PER_ROW)
