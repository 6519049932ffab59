"""Letting a learner's `fine_tune` train, and telling what its model and optimizer hold."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qlab.checks import probe
from qlab.checks.beside import reporting
from qlab.checks.learner import LearnerFunction
from qlab.checks.qlora.held import bytes_of, held_by
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import require

CALL = "fine_tune(model, x, y, budget_bytes, steps)"


class Trained(NamedTuple):
    """Bytes of the model, of gradients and of the optimizer's state; what learns; and the steps that were taken."""

    stored: int
    gradients: int
    state: int
    parameters: int
    is_sgd: bool
    has_stepped: bool
    steps: list[int]


def model_of(weights: Sequence[Tensor]) -> nn.Sequential:
    """Return linear layers with these weights and a tanh between two."""
    layers: list[nn.Module] = []
    for weight in weights:
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            linear.weight.copy_(weight)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@reporting
def trained_and_called(fine_tune: LearnerFunction, *given: Any) -> Iterator[Any]:
    """Train; tell what came of it, then the model's outputs for the last input given."""
    *given, held_out = given
    model, optimizer = _trained(fine_tune, model_of(given[0]), *given[1:])
    yield _told(model, optimizer)
    with torch.no_grad():
        outputs = LearnerFunction(model)(held_out)
    yield outputs


def trained_with_peak(fine_tune: LearnerFunction, *given: Any) -> tuple[int, Trained, Any]:
    """Train; return the most bytes alive at one time, what came of it, and outputs for the last input given."""
    *given, held_out = given
    model, made = model_of(given[0]), list[tuple[nn.Module, Optimizer]]()
    peak = probe.measured_peak_bytes(lambda: made.append(_trained(fine_tune, model, *given[1:])))
    told = _told(*made[0])
    with torch.no_grad():
        outputs = LearnerFunction(made[0][0])(held_out)
    return peak, told, outputs


def _trained(fine_tune: LearnerFunction, *given: Any) -> tuple[nn.Module, Optimizer]:
    model, optimizer = unpacked(fine_tune(*given), ("model", "optimizer"), call=CALL)
    require(
        isinstance(model, nn.Module) and isinstance(optimizer, Optimizer),
        f"`{CALL}` returned a {type(model).__name__} and a {type(optimizer).__name__}",
        misconception="returns-wrong-type",
        thought="Return the model, an nn.Module, and its torch optimizer as it is after the last step.",
    )
    return model, optimizer


def _told(model: nn.Module, optimizer: Optimizer) -> Trained:
    held, learning = held_by(model), _learning(model, optimizer)
    states = list(optimizer.state.values())
    return Trained(
        stored=sum(map(bytes_of, _distinct(held))),
        gradients=sum(p.nbytes for p in learning),
        state=sum(map(bytes_of, _distinct(held_by(states)))),
        parameters=sum(p.numel() for p in learning),
        is_sgd=isinstance(optimizer, torch.optim.SGD),
        has_stepped=any(states),
        steps=sorted({int(state["step"]) for state in states if "step" in state}),
    )


def _learning(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Return what asks for gradients in the model, and what the optimizer holds."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    learning = [p for p in model.parameters() if p.requires_grad]
    return list({id(p): p for p in learning + held}.values())


def _distinct(tensors: Iterable[Any]) -> list[Any]:
    return list({t.untyped_storage().data_ptr(): t for t in tensors if t.untyped_storage().nbytes()}.values())
