"""What a learner's `QuantizedLinear` does, told as it happens: its outputs, what it keeps, a state that is loaded."""

import copy
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qlab.checks.beside import reporting
from qlab.checks.learner import Crashed, LearnerFunction
from qlab.checks.report import Refused, require

Plain = tuple[Tensor, Tensor | None]


class Held(NamedTuple):
    """A tensor or array that something holds: of its values it is told whether all are whole."""

    address: int
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    is_whole: bool


def plain_of(linear: nn.Linear) -> Plain:
    """Return weight and bias."""
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def linear_of(plain: Plain) -> nn.Linear:
    """Return a layer with copies of this weight and bias."""
    weight, bias = plain
    linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


@reporting
def called(quantized_linear: LearnerFunction, plain: Plain, inputs: Sequence[Tensor]) -> Iterator[Any]:
    """Tell the output for each input."""
    yield from _outputs(_made(quantized_linear, plain), inputs)


@reporting
def saved(quantized_linear: LearnerFunction, plain: Plain, inputs: Sequence[Tensor]) -> Iterator[Any]:
    """Tell the outputs, then what the state_dict holds."""
    layer = _made(quantized_linear, plain)
    yield from _outputs(layer, inputs)
    yield _told(LearnerFunction(layer.state_dict)().values())


@reporting
def carried(
    quantized_linear: LearnerFunction, plains: Sequence[Plain], inputs: Sequence[Sequence[Tensor]]
) -> Iterator[Any]:
    """Tell the outputs of two layers, then those of both once the first one's state, from a file, is in the second."""
    source, other = (_made(quantized_linear, plain) for plain in plains)
    yield from _outputs(source, inputs[0])
    yield from _outputs(other, inputs[1])
    file = io.BytesIO()
    LearnerFunction(lambda: torch.save(source.state_dict(), file))()
    LearnerFunction(lambda: other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True)))()
    yield from _outputs(source, inputs[2])
    yield from _outputs(other, inputs[2])


@reporting
def held_before_and_after(quantized_linear: LearnerFunction, plain: Plain, inputs: Sequence[Tensor]) -> Iterator[Any]:
    """Tell what a new layer holds, its outputs, and what it holds then."""
    layer = _made(quantized_linear, plain)
    yield _told(_held(layer))
    yield from _outputs(layer, inputs)
    yield _told(_held(layer))


def _outputs(layer: nn.Module, inputs: Sequence[Tensor]) -> Iterator[Any]:
    for x in inputs:
        yield LearnerFunction(layer)(x)


def _made(quantized_linear: LearnerFunction, plain: Plain) -> nn.Module:
    layer = quantized_linear(linear_of(plain))
    require(
        isinstance(layer, nn.Module),
        f"`QuantizedLinear(linear)` gave a {type(layer).__name__}",
        misconception="returns-nothing" if layer is None else "not-a-module",
        thought="`class QuantizedLinear(nn.Module):`, with `super().__init__()` first.",
    )
    return layer


def _held(layer: nn.Module) -> list[Any]:
    """Return every tensor and array that the layer holds under whatever name: a deep copy's memo lists what it met."""
    memo: dict[Any, Any] = {}
    try:
        LearnerFunction(lambda: copy.deepcopy(layer, memo))()
    except Crashed as crash:
        if "deepcopy protocol" not in str(crash):
            raise
        raise Refused(
            f"the layer cannot be copied: {crash}",
            misconception="keeps-the-graph",
            thought="What is computed from the weight holds on to it for the backward pass: `linear.weight.detach()`.",
        ) from None
    return list(memo.values())


def _told(values: Iterable[Any]) -> list[Held]:
    return [
        Held(_address(value), _bytes(value), tuple(value.shape), str(value.dtype), _is_whole(value))
        for value in values
        if isinstance(value, Tensor | np.ndarray)
    ]


def _address(value: Any) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else value.ctypes.data


def _bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, Tensor) else value.nbytes


def _is_whole(value: Any) -> bool:
    try:
        values = torch.as_tensor(value).detach().double()
    except (TypeError, RuntimeError):  # text, or a quantized tensor
        return False
    return bool((values == values.round()).all())
