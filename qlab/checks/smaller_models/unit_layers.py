"""Handing two linear layers to a learner's function, as weights and biases, and reading the two it returns."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from qlab.checks.learner import LearnerFunction
from qlab.checks.report import require

CALL = "remove_units(first, second, keep)"
Plain = tuple[Tensor, Tensor | None]


def plain_of(layer: nn.Linear) -> Plain:
    """Return weight and bias."""
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def linear_of(plain: Plain) -> nn.Linear:
    """Return a layer with copies of this weight and bias."""
    weight, bias = plain
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())
    return layer


def tensors_of(layers: Iterable[nn.Linear]) -> list[Tensor]:
    """Return all weights and biases."""
    return [tensor.detach() for tensor in nn.ModuleList(layers).state_dict().values()]


def removed(remove_units: LearnerFunction, plain: Sequence[Plain], keep: int) -> tuple[list[Plain], list[int]]:
    """Return the two layers that come out, and the bytes under each one's weight."""
    return removed_and_left(remove_units, plain, keep)[0]


def removed_and_left(
    remove_units: LearnerFunction, plain: Sequence[Plain], keep: int
) -> tuple[tuple[list[Plain], list[int]], list[Tensor]]:
    """Return besides what the layers that went in are after the call."""
    layers = [linear_of(layer) for layer in plain]
    returned = remove_units(*layers, keep)
    require(
        returned is not None,
        f"`{CALL}` returned None",
        misconception="returns-nothing",
        thought="Your function computes something but does not hand it back: does it end in `return`?",
    )
    smaller = list(returned) if isinstance(returned, list | tuple | nn.Sequential) else []
    smaller = [layer for layer in smaller if not isinstance(layer, nn.ReLU)]
    require(
        len(smaller) == 2 and all(isinstance(layer, nn.Linear) for layer in smaller),
        f"`{CALL}` returned {_named(returned)}, expected two nn.Linear",
        misconception="returns-wrong-type",
        thought="Return the two new layers: `return smaller_first, smaller_second`.",
    )
    held = [layer.weight.untyped_storage().nbytes() for layer in smaller]
    return ([plain_of(layer) for layer in smaller], held), tensors_of(layers)


def _named(returned: Any) -> str:
    return (
        f"({', '.join(type(v).__name__ for v in returned)})"
        if isinstance(returned, tuple | list)
        else type(returned).__name__
    )
