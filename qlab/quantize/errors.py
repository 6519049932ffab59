"""How far a quantized tensor is from what it stands for: in code steps, and in decibels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.quantize.grid import Quantized


def error_in_steps(x: Float[Tensor, "*shape"], quantized: Quantized) -> Float[Tensor, "*shape"]:
    """Return the error of each value in steps of its own tile: at most 0.5 where nothing was clipped."""
    tile = quantized.grid.tile
    error = tile.split(quantized.dequantize() - x) / quantized.scale[:, None, :, None]
    return tile.join(error, x.shape)


def sqnr_db(x: Float[Tensor, "*shape"], approximation: Float[Tensor, "*shape"]) -> float:
    """Return the signal to quantization noise ratio of `approximation`: about 6 dB for each bit.

    Units:   decibels: 10 · log10 of the mean square of `x` over that of the error; infinite without an error, minus
             infinity with an infinite one.
    Errors:  ValueError if `x` is empty or all zero: there is no signal.
    """
    signal = _length(x)
    if not signal > 0:
        raise ValueError(f"x must hold a value that is not zero, got {x.numel()} values of length {signal}")
    noise = _length(approximation.to(x.dtype) - x)
    return 20 * math.log10(signal / noise) if 0 < noise < torch.inf else torch.inf if not noise else -torch.inf


def _length(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item()
