"""What a learner's `MasterWeights` does, told as it happens: the copies it makes, gradients it takes, and steps."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab.checks.beside import reporting
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import require

CALL = "MasterWeights(weights)"


@reporting
def made(
    master_weights: LearnerFunction, values: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """Tell the copies, as they are made and after an optimizer that took them has stepped."""
    weights = _parameters(values)
    copies = _copies(_made(master_weights, weights), weights)
    yield copies
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient.clone()
    _descended(copies)
    yield copies


@reporting
def taken(
    master_weights: LearnerFunction, values: Sequence[Tensor], rounds: Sequence[Sequence[Tensor | None]]
) -> Iterator[Any]:
    """Tell the gradients of the copies after each round; then copies and weights, and the copies after a step."""
    weights = _parameters(values)
    masters = _made(master_weights, weights)
    for gradients in rounds:
        _give(weights, gradients)
        LearnerFunction(masters.take_gradients)()
        yield [copy.grad for copy in _copies(masters, weights)]
    copies = _copies(masters, weights)
    yield copies, list(weights)
    _descended(copies)
    yield copies


@reporting
def stepped(
    master_weights: LearnerFunction, values: Sequence[Tensor], gradients: Sequence[Tensor], steps: int
) -> Iterator[list[Tensor]]:
    """Take steps with the same gradients; tell the weights, then the copies."""
    parameters = _parameters(values)
    masters, weights = _made(master_weights, parameters), list(parameters)  # the model's own, whatever replaces them
    for _ in range(steps):
        _step(masters, weights, gradients)
    yield weights
    yield _copies(masters, weights)


def _parameters(values: Sequence[Tensor]) -> nn.ParameterList:
    """Return a ParameterList, which, unlike a list, reaches the answer as it is and not as copies."""
    return nn.ParameterList([nn.Parameter(value.clone()) for value in values])


def _made(master_weights: LearnerFunction, weights: nn.ParameterList) -> Any:
    masters = master_weights(weights)
    require(
        masters is not None,
        f"`{CALL}` gave None",
        misconception="returns-nothing",
        thought="`MasterWeights` is a class: calling it makes an object with `parameters`.",
    )
    _copies(masters, weights)
    return masters


def _copies(masters: Any, weights: Sequence[Tensor] | nn.ParameterList) -> list[Tensor]:
    """Return the copies themselves, once they are FP32 tensors of the right shapes."""
    held = LearnerFunction(lambda: _held(masters.parameters))()
    held = list(held) if isinstance(held, Iterator) else held
    given = isinstance(held, Sequence | nn.ParameterList) and all(isinstance(p, Tensor) for p in held)
    require(
        given and len(held) == len(weights),
        f"`masters.parameters` is a {type(held).__name__}, expected a list of {len(weights)} tensors",
        misconception="returns-nothing" if held is None else "returns-wrong-type",
        thought="Keep a list with one tensor for each weight as `self.parameters`.",
    )
    for number, (copy, weight) in enumerate(zip(held, weights, strict=True)):
        require(
            copy.dtype == torch.float32,
            f"`masters.parameters[{number}]` is {copy.dtype}, expected torch.float32",
            misconception="updates-the-fp16-copy" if copy.dtype == torch.float16 else "wrong-dtype",
            thought="The optimizer must add its updates to FP32 numbers: `.float()` gives a copy of a float16 tensor.",
        )
        as_tensor(copy, tuple(weight.shape), call=f"masters.parameters[{number}]")
        require(
            copy.is_leaf,
            f"`masters.parameters[{number}]` is the result of an operation, which no optimizer takes",
            misconception="keeps-the-graph",
            thought="`weight.float()` is recorded by autograd: `.detach()` first, and clone.",
        )
    return list(held)


def _held(parameters: Any) -> Any:
    """Call `parameters` where it is a method; a ParameterList only looks like one."""
    return parameters() if callable(parameters) and not isinstance(parameters, nn.Module) else parameters


def _descended(copies: list[Tensor]) -> None:
    """Take one step of plain descent."""
    LearnerFunction(lambda: torch.optim.SGD(copies, lr=1.0).step())()


def _give(weights: Sequence[Tensor] | nn.ParameterList, gradients: Sequence[Tensor | None]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if gradient is None else gradient.half()


def _step(masters: Any, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Take one step of plain descent, as the loop of the task does: the weights stay what they are."""
    _give(weights, gradients)
    LearnerFunction(masters.take_gradients)()
    copies = _copies(masters, weights)
    _descended(copies)
    LearnerFunction(masters.write_back)()
    for number, weight in enumerate(weights):
        require(
            weight.dtype == torch.float16,
            f"after `write_back` weights[{number}] is {weight.dtype}",
            misconception="widens-the-weights",
            thought="The model's weights stay float16: copy the rounded values into them.",
        )
        require(
            weight.requires_grad,
            f"after `write_back` weights[{number}] asks for no gradient any more",
            misconception="freezes-the-weights",
            thought="The next backward pass needs it as it was: copy under `torch.no_grad()`.",
        )
