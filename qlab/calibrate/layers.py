"""Linear layers with quantized inputs: constants fixed by calibration, or found anew for each token."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from qlab.calibrate.observers import MinMax
from qlab.quantize import (
    PER_ROW,
    PER_TENSOR,
    Grid,
    Quantized,
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
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    @property
    def quantized_weight(self) -> Quantized:
        return Quantized(self.codes, Grid(self.scale, None, 8, PER_ROW))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Quantize `x`, multiply in int8, scale back, in the type of `x`; no gradient passes.

        Errors:  ValueError if `x` is empty or holds NaN or infinity.
        """
        tokens = self.quantize_input(x.detach().reshape(-1, x.shape[-1]))
        y = int8_matmul(tokens, self.quantized_weight)
        return (y if self.bias is None else y + self.bias).to(x.dtype).view(*x.shape[:-1], -1)

    def quantize_input(self, tokens: Float[Tensor, "tokens in"]) -> Quantized:
        """Return the codes of the input, each token with a scale of its own."""
        return quantize_symmetric(tokens, bits=8, tile=PER_ROW)


class StaticLinear(DynamicLinear):
    """An int8 linear layer whose input's scale and zero point were fixed beforehand: they never change again.

    Errors:  ValueError if `input_grid` is symmetric, or has more than one scale.
    """

    def __init__(self, linear: nn.Linear, input_grid: Grid) -> None:
        super().__init__(linear)
        if input_grid.zero_point is None or input_grid.scale.numel() != 1:
            kind, scales = "symmetric" if input_grid.zero_point is None else "affine", input_grid.scale.numel()
            raise ValueError(f"the input's grid must be affine with 1 scale, got {kind} with {scales}")
        device = linear.weight.device
        self.register_buffer("input_scale", input_grid.scale.to(device, copy=True))
        self.register_buffer("input_zero_point", input_grid.zero_point.to(device, copy=True))
        self.bits = input_grid.bits

    def quantize_input(self, tokens: Float[Tensor, "tokens in"]) -> Quantized:
        """Return the codes of the input on the fixed grid; what lies beyond it is clamped."""
        return quantize_with(tokens, Grid(self.input_scale, self.input_zero_point, self.bits, PER_TENSOR))


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
def watched_inputs(model: nn.Module, see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Call `see(name, x)` with the input of every linear layer that runs inside; what it returns changes nothing."""

    def show(name: str, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        see(name, inputs[0] if inputs else named["input"])

    hooks = [
        layer.register_forward_pre_hook(partial(show, name), with_kwargs=True)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_disjoint(calibration: Integer[Tensor, "m sequence"], evaluation: Integer[Tensor, "n sequence"]) -> None:
    """Refuse an evaluation in which a sequence of the calibration set turns up: its ranges would be known beforehand.

    Whole sequences are compared: one that is only shifted is not found.
    Errors:  ValueError, naming the first such sequence, or both lengths if they differ.
    """
    if calibration.shape[1] != evaluation.shape[1]:
        lengths = f"{calibration.shape[1]} and {evaluation.shape[1]}"
        raise ValueError(f"sequences must be of one length to be compared, got {lengths}")
    seen = {row.numpy().tobytes() for row in calibration.cpu().long()}
    for place, row in enumerate(evaluation.cpu().long()):
        if row.numpy().tobytes() in seen:
            raise ValueError(f"evaluation sequence {place} is in the calibration set too: keep the two apart")
