"""What each remedy is worth: a decoder whose norms are read in int8, to be scored against the one it was."""

import copy
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qlab.calibrate import mse_clip
from qlab.model import Decoder
from qlab.outliers.readers import NormWithReaders, norms_with_readers
from qlab.outliers.remedies import hadamard_transform, mixed_decomposition_matmul, smooth
from qlab.quantize import PER_ROW, PER_TENSOR, Tile, per_group, quantize_symmetric, quantize_with, symmetric_grid_of

BITS, BLOCK_SIZE = 8, 64
SAMPLE = 2**16  # values of each norm that a clip is fitted to, drawn: a stride would always see the same dimensions
Hidden = Mapping[str, Float[Tensor, "tokens width"]]
Change = Callable[[Tensor], Tensor]
Remedy = Callable[[Decoder, Hidden], Decoder]


class RoundedLinear(nn.Module):
    """A linear layer that rounds its input and its weight and multiplies what comes back.

    Its output is that of the int8 product, but for FP32 rounding: made to measure quality, not speed.
    """

    def __init__(self, linear: nn.Linear, *, round_input: Change, round_weight: Change) -> None:
        super().__init__()
        self.register_buffer("weight", round_weight(linear.weight.detach()))
        self.bias, self.round_input = linear.bias, round_input

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Multiply rounded input and rounded weight."""
        return nn.functional.linear(self.round_input(x), self.weight, self.bias)


class DecomposedLinear(nn.Module):
    """A linear layer that multiplies outlier columns of its input as they are, and the rest in int8."""

    def __init__(self, linear: nn.Linear, *, threshold: float) -> None:
        super().__init__()
        self.weight, self.bias, self.threshold = linear.weight, linear.bias, threshold

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Decompose `x`, multiply, add up."""
        y = mixed_decomposition_matmul(x.flatten(0, -2), self.weight, threshold=self.threshold).output
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


def apply_remedy(model: Decoder, remedy: Remedy, hidden: Hidden) -> Decoder:
    """Return a copy of `model` in which every layer that reads a norm is in int8, helped by `remedy`.

    `hidden` is what the norms put out on calibration text (`norm_outputs`); some remedies look at it.
    """
    return remedy(copy.deepcopy(model), hidden)


def on_grid(tile: Tile) -> Change:
    """Return the round trip through int8 codes with a scale for each tile."""
    return lambda x: quantize_symmetric(x, bits=BITS, tile=tile).dequantize()


def rounded(*, input_tile: Tile = PER_TENSOR, weight_tile: Tile = PER_TENSOR) -> Remedy:
    """Round inputs and weights with a scale for each tile; the defaults are naive int8, no remedy at all."""
    round_input, round_weight = on_grid(input_tile), on_grid(weight_tile)
    return lambda model, _: _with_readers(
        model, lambda _, linear: RoundedLinear(linear, round_input=round_input, round_weight=round_weight)
    )


def clipped(find_clip: Callable[[Tensor], float]) -> Remedy:
    """Cut each input to the clip that `find_clip` finds for a sample of the calibration text's values."""

    def remedy(model: Decoder, hidden: Hidden) -> Decoder:
        clips = {name: find_clip(_sample(values)) for name, values in hidden.items()}
        grids = {name: symmetric_grid_of(torch.full((1, 1), clip), bits=BITS) for name, clip in clips.items()}

        def make(place: NormWithReaders, linear: nn.Linear) -> nn.Module:
            grid = grids[place.name]
            cut = lambda x: quantize_with(x, grid).dequantize()  # noqa: E731
            return RoundedLinear(linear, round_input=cut, round_weight=on_grid(PER_ROW))

        return _with_readers(model, make)

    return remedy


def decomposed(*, threshold: float) -> Remedy:
    """Multiply columns with a magnitude of at least `threshold` as they are."""
    return lambda model, _: _with_readers(model, lambda _, linear: DecomposedLinear(linear, threshold=threshold))


def smoothed(*, alpha: float = 0.5) -> Remedy:
    """Move the outliers into the weights first; then int8 with one scale for each tensor will do."""

    def remedy(model: Decoder, hidden: Hidden) -> Decoder:
        absmax = {name: values.abs().amax(0) for name, values in hidden.items()}
        return rounded()(smooth(model, absmax, alpha=alpha), hidden)

    return remedy


def rotated() -> Remedy:
    """Spread each outlier over all channels by a Hadamard transform of inputs and weights."""
    by_row = on_grid(PER_ROW)
    change = lambda x: by_row(hadamard_transform(x))  # noqa: E731
    return lambda model, _: _with_readers(
        model, lambda _, linear: RoundedLinear(linear, round_input=change, round_weight=change)
    )


REMEDIES: dict[str, Remedy] = {
    "none: one scale a tensor": rounded(),
    "clipping at the least squared error": clipped(lambda values: mse_clip(values, bits=BITS)),
    "clipping at 97 % of the magnitudes": clipped(lambda values: values.abs().quantile(0.97).item()),
    "a scale a token and a row": rounded(input_tile=PER_ROW, weight_tile=PER_ROW),
    "blocks of 64": rounded(input_tile=per_group(BLOCK_SIZE), weight_tile=per_group(BLOCK_SIZE)),
    "decomposition at 6": decomposed(threshold=6.0),
    "decomposition at 20": decomposed(threshold=20.0),
    "SmoothQuant": smoothed(),
    "Hadamard rotation": rotated(),
}


def _sample(values: Tensor) -> Tensor:
    chosen = torch.randint(values.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0))
    return values.flatten()[chosen.to(values.device)]


def _with_readers(model: Decoder, make: Callable[[NormWithReaders, nn.Linear], nn.Module]) -> Decoder:
    names = {module: name for name, module in model.named_modules()}
    for place in norms_with_readers(model):
        for reader in place.readers:
            model.set_submodule(names[reader], make(place, reader))
    return model
