"""What a model that a learner prepared gives, told as it happens: outputs, with steps of training between them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qlab.checks.beside import reporting
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import require

ROWS = 5
Layer = tuple[Tensor, Tensor | None]


class Call(NamedTuple):
    """The model is called, and its output told."""

    x: Tensor


class Step(NamedTuple):
    """The model is trained by a step along a loss whose gradient is `change`."""

    change: Tensor


@reporting
def run(prepare_for_qat: LearnerFunction, layers: Sequence[Layer], moves: Sequence[Call | Step]) -> Iterator[Any]:
    """Let linear layers with a ReLU between two be prepared, call and train the result, and tell each output."""
    model = _prepared(prepare_for_qat, _net(layers))
    for move in moves:
        if isinstance(move, Step):
            _take_step(model, move.change)
        else:
            yield LearnerFunction(model)(move.x)


def plain_output(output: Any, rows: int) -> Tensor:
    """Read an output as plain numbers."""
    return as_tensor(output, (rows, ROWS), call="prepared(x)").double()


def _net(plain: Sequence[Layer]) -> nn.Sequential:
    """Return linear layers with these weights and biases and a ReLU between two, in training mode."""
    layers: list[nn.Module] = []
    for weight, bias in plain:
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        layers += [nn.ReLU(), linear] if layers else [linear]
    return nn.Sequential(*layers).train()


def _prepared(prepare_for_qat: LearnerFunction, net: nn.Sequential) -> nn.Module:
    model = prepare_for_qat(net)
    require(
        isinstance(model, nn.Module),
        f"`prepare_for_qat(model)` returned a {type(model).__name__}",
        misconception="returns-nothing" if model is None else "not-a-module",
        thought="`prepare_qat` returns the prepared model: hand it back.",
    )
    require(
        model.training,
        "the model came in training mode and left in evaluation mode",
        misconception="left-in-eval",
        thought="What comes next is training: return the model in training mode.",
    )
    return model


def _take_step(model: nn.Module, change: Tensor) -> None:
    """Subtract from the weight the gradient of a loss whose gradient is `change`."""
    output = LearnerFunction(model)(torch.eye(change.shape[1]))
    plain_output(output, change.shape[1])
    trained = [p for p in model.parameters() if p.requires_grad and p.numel() == change.numel()]
    require(
        trained and isinstance(output, Tensor) and output.requires_grad,
        f"{len(trained)} parameters as large as the weight are trained, and the output depends on none"
        if trained
        else "no parameter as large as the weight is there to be trained",
        misconception="no-gradient",
        thought="A converted or detached weight cannot be trained: prepare the model, and convert it *after* training.",
    )
    LearnerFunction(lambda: (output * change.T).sum().backward())()
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
                parameter.grad = None
