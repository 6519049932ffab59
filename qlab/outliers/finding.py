"""Finding outliers: which hidden dimensions hold large values, in enough layers and for enough tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qlab.model import Decoder
from qlab.outliers.readers import divide_channels, norms_with_readers


@dataclass(frozen=True, kw_only=True)
class OutlierRule:
    """When a dimension counts as an outlier: large somewhere, in enough layers, and for enough of the tokens.

    Units:   `magnitude` is that of an activation; the two shares are at least this, 0 to 1.
    Source:  Dettmers et al. 2022, section 4.1, arXiv:2208.07339.
    """

    magnitude: float = 6.0
    layer_share: float = 0.25
    token_share: float = 0.06

    def __post_init__(self) -> None:
        if not self.magnitude > 0:
            raise ValueError(f"magnitude must be above 0, got {self.magnitude}")
        for name in ("layer_share", "token_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")


PAPER_RULE = OutlierRule()
COURSE_MODEL_RULE = OutlierRule(magnitude=20.0)  # the paper's 6 is not free of scale: this fits the course model's


def find_outliers(hidden: Sequence[Float[Tensor, "_ _"]], rule: OutlierRule = PAPER_RULE) -> Int[Tensor, " outliers"]:
    """Return the dimensions that `rule` calls outliers, in rising order.

    A layer counts for a dimension if it holds a value of at least `magnitude` there; the share of tokens is the one
    over all tokens of all layers.
    Shapes:  each layer is (tokens, width); the number of tokens may differ.
    Errors:  ValueError if there is no layer, their widths differ, or a value is NaN or infinite.
    """
    if not hidden:
        raise ValueError("outliers are found in the activations of at least one layer, got 0")
    if len(widths := {layer.shape[-1] for layer in hidden}) > 1:
        raise ValueError(f"layers must share one width, got {sorted(widths)}")
    for place, layer in enumerate(hidden):
        if not layer.isfinite().all():
            raise ValueError(f"layer {place} holds {int((~layer.isfinite()).sum())} NaN or infinite values")
    large = torch.stack([(layer.abs() >= rule.magnitude).sum(0) for layer in hidden])
    return outliers_by_count(large, rule, tokens=sum(len(layer) for layer in hidden))


def outliers_by_count(
    large: Int[Tensor, "layers width"], rule: OutlierRule = PAPER_RULE, *, tokens: int
) -> Int[Tensor, " outliers"]:
    """Apply `rule` to how many of a layer's tokens are large in each dimension, with `tokens` in all layers together.

    Whatever the shares, a dimension that is never large is no outlier.
    """
    layers, share = (large > 0).double().mean(0), large.sum(0).double() / tokens
    return ((layers >= rule.layer_share) & (share >= rule.token_share) & (layers > 0)).nonzero().flatten()


def plant_outliers(model: Decoder, dimensions: Int[Tensor, " outliers"], *, strength: float) -> Decoder:
    """Make `dimensions` of each norm's output `strength` times as large, and shrink what reads them as much; in place.

    With a power of two nothing is rounded, and the model's FP32 output is the same to the last bit.
    Errors:  ValueError if `strength` is not above 0 or a dimension does not exist.
    """
    width = model.config.width
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}")
    if dimensions.numel() and not (dimensions.min() >= 0 and dimensions.max() < width):
        raise ValueError(f"dimensions must be 0 to {width - 1}, got {dimensions.tolist()}")
    divisor = torch.ones(width, device=dimensions.device)
    divisor[dimensions] = 1 / strength
    for place in norms_with_readers(model):
        divide_channels(place, divisor.to(place.norm.weight))
    return model
