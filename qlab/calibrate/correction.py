"""Repairs that need no training: take a bias off, and share out the ranges between two layers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qlab.quantize import value_range


@torch.no_grad()
def bias_correction(
    weight: Float[Tensor, "out in"], quantized_weight: Float[Tensor, "out in"], mean_input: Float[Tensor, " in"]
) -> Float[Tensor, " out"]:
    """Return what to add to a layer's bias so that quantizing its weight leaves its mean output where it was.

    Errors:  ValueError if one of the three is empty or holds NaN or infinity.
    Source:  Nagel et al. 2019, section 4.2, arXiv:1906.04721.
    """
    for x in (weight, quantized_weight, mean_input):
        value_range(x)
    return (weight - quantized_weight) @ mean_input


@torch.no_grad()
def equalize(first: nn.Linear, second: nn.Linear) -> Float[Tensor, " channels"]:
    """Scale each channel between two layers so that its row in `first` and its column in `second` have one range.

    In place; what the pair computes is unchanged where only sums, ReLU or a product with something else lie between.
    Shapes:  `first` is (channels, in), `second` is (out, channels); returns by how much each channel was divided.
    Errors:  ValueError if the two layers do not share their channels, or a weight holds NaN or infinity.
    Source:  Nagel et al. 2019, equation 11, arXiv:1906.04721.
    """
    if first.out_features != second.in_features:
        raise ValueError(f"the layers must share channels, got {first.out_features} and {second.in_features}")
    for layer in (first, second):
        value_range(layer.weight)
    rows, columns = first.weight.abs().amax(1), second.weight.abs().amax(0)
    both = (rows > 0) & (columns > 0)
    divisor = torch.where(both, rows.sqrt() / columns.where(both, 1.0).sqrt(), 1.0)
    first.weight /= divisor[:, None]
    if first.bias is not None:
        first.bias /= divisor
    second.weight *= divisor
    return divisor
