"""What a learner's `LoRALinear` does, told as it happens: its start, what learns, its output and its gradients."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab.checks.beside import reporting
from qlab.checks.learner import LearnerFunction
from qlab.checks.quantization.layers import Plain, linear_of
from qlab.checks.report import require

NAMES = ("lora_a", "lora_b")


@reporting
def started(lora_linear: LearnerFunction, plain: Plain, rank: int, alpha: float, x: Tensor) -> Iterator[Any]:
    """Tell A and B of a new layer, and its output."""
    layer = _made(lora_linear, linear_of(plain), rank, alpha)
    yield [layer.lora_a, layer.lora_b]
    yield LearnerFunction(layer)(x)


def asking(
    lora_linear: LearnerFunction, plain: Plain, rank: int, values: Sequence[Tensor], x: Tensor
) -> tuple[list[str], list[tuple[int, ...]], Any]:
    """Return which of A and B ask for no gradient, the shapes of others that do, and the output for `values`."""
    layer = _made(lora_linear, linear_of(plain), rank, 8.0)
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    wanted = [layer.lora_a, layer.lora_b]
    missing = [name for name in NAMES if not getattr(layer, name).requires_grad]
    others = [tuple(p.shape) for p in learning if all(p is not one for one in wanted)]
    _fill(layer, values)
    return missing, others, LearnerFunction(layer)(x)


@reporting
def filled(  # noqa: PLR0913, PLR0917 - what makes a layer, what is put into it, what it is called on
    lora_linear: LearnerFunction, plain: Plain, rank: int, alpha: float, values: Sequence[Tensor], x: Tensor
) -> Iterator[Any]:
    """Put values into A and B, tell what they hold then, and the output."""
    layer = _made(lora_linear, linear_of(plain), rank, alpha)
    yield _fill(layer, values)
    yield LearnerFunction(layer)(x)


@reporting
def differentiated(  # noqa: PLR0913, PLR0917 - what makes a layer, what is put into it, what passes through it
    lora_linear: LearnerFunction,
    plain: Plain,
    rank: int,
    alpha: float,
    values: Sequence[Tensor],
    passing: tuple[Tensor, Tensor],
) -> Iterator[Any]:
    """Tell A and B; after a backward pass which of the base's parameters have gradients, and those of x, A and B."""
    given, (x, upstream) = linear_of(plain), passing
    layer = _made(lora_linear, given, rank, alpha)
    yield _fill(layer, values)
    leaf = x.clone().requires_grad_()
    LearnerFunction(lambda: (layer(leaf) * upstream).sum().backward())()
    arrived = [name for name, parameter in given.named_parameters() if parameter.grad is not None]
    yield arrived, [leaf.grad, layer.lora_a.grad, layer.lora_b.grad]


def _fill(layer: nn.Module, values: Sequence[Tensor]) -> list[Tensor]:
    """Put values into A and B, as an optimizer does, and return what they hold."""
    matrices = [layer.lora_a, layer.lora_b]
    with torch.no_grad():
        for matrix, value in zip(matrices, values, strict=True):
            matrix.copy_(value)
    return matrices


def _made(lora_linear: LearnerFunction, linear: nn.Linear, rank: int, alpha: float) -> nn.Module:
    layer = lora_linear(linear, rank, alpha)
    require(
        isinstance(layer, nn.Module),
        f"`LoRALinear(linear, {rank}, {alpha:g})` gave a {type(layer).__name__}",
        misconception="returns-nothing" if layer is None else "not-a-module",
        thought="`class LoRALinear(nn.Module):`, with `super().__init__()` first.",
    )
    shapes = {"lora_a": (rank, linear.in_features), "lora_b": (linear.out_features, rank)}
    for name, shape in shapes.items():
        matrix = getattr(layer, name, None)
        require(
            isinstance(matrix, nn.Parameter),
            f"`layer.{name}` is a {type(matrix).__name__}, expected an nn.Parameter",
            misconception="not-a-parameter",
            thought=f"`self.{name} = nn.Parameter(…)`: an optimizer finds parameters, and no plain tensors.",
        )
        require(
            tuple(matrix.shape) == shape,
            f"`layer.{name}` has shape {tuple(matrix.shape)}, expected {shape}",
            misconception="wrong-shape",
            thought="A takes the inputs down to `rank` numbers: (rank, in). B takes these up: (out, rank).",
        )
    return layer
