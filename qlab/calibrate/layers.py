"""Linear layers with quantized inputs: constants fixed by calibration, or found anew for each token."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qlab.calibrate.observers import MinMax
from qlab.quantize import (
    PER_ROW,
    PER_TENSOR,
    Grid,
    Quantized,
    int8_linear,
    int8_matmul,
    quantize_symmetric,
    quantize_with,
)


class DynamicLinear(nn.Module):
    """An int8 linear layer that finds the scale of its input at each call, token by token."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = quantize_symmetric(linear.weight.detach(), bits=8, tile=PER_ROW)
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.bias = linear.bias

    @property
    def quantized_weight(self) -> Quantized:
        return Quantized(self.codes, Grid(self.scale, None, 8, PER_ROW))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Quantize `x`, multiply in int8, scale back."""
        return int8_linear(x, self.quantized_weight, self.bias)


class StaticLinear(DynamicLinear):
    """An int8 linear layer whose input's scale and zero point were fixed beforehand: they never change again."""

    def __init__(self, linear: nn.Linear, input_grid: Grid) -> None:
        super().__init__(linear)
        if input_grid.zero_point is None or input_grid.tile != PER_TENSOR:
            raise ValueError(f"the input's grid must be affine with one scale, got {input_grid.tile}")
        self.register_buffer("input_scale", input_grid.scale)
        self.register_buffer("input_zero_point", input_grid.zero_point)
        self.bits = input_grid.bits

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Quantize `x` with the fixed constants, multiply in int8, scale back."""
        grid = Grid(self.input_scale, self.input_zero_point, self.bits, PER_TENSOR)
        y = int8_matmul(quantize_with(x.flatten(0, -2), grid), self.quantized_weight)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Tensor], *, observer: Callable[[], MinMax] = MinMax
) -> dict[str, MinMax]:
    """Run `model` on the calibration batches, and let an observer of its own see the input of each linear layer.

    Errors:  ValueError if there is no batch, or an input is not finite.
    """
    observers = {name: observer() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    batch = None
    with watched_inputs(model, lambda name, x: observers[name].observe(x)):
        for batch in batches:
            model(batch)
    if batch is None:
        raise ValueError("calibration needs at least one batch, got 0")
    return observers


@contextmanager
def watched_inputs(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(name, x)` with the input of every linear layer that runs inside."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_disjoint(calibration: Int[Tensor, "m sequence"], evaluation: Int[Tensor, "n sequence"]) -> None:
    """Refuse an evaluation in which a sequence of the calibration set turns up: its ranges would be known beforehand.

    Errors:  ValueError, naming the first such sequence.
    """
    seen = {row.numpy().tobytes() for row in calibration.cpu().long()}
    for place, row in enumerate(evaluation.cpu().long()):
        if row.numpy().tobytes() in seen:
            raise ValueError(f"evaluation sequence {place} is in the calibration set too: keep the two apart")
