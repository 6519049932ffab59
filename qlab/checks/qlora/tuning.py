"""Check of `fine_tune`: a new task learned within a byte budget, the rank taken from the budget."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qlab import lora
from qlab.checks import probe
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.held import bytes_of, held_by
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import Refused, check, part, require

STEPS = 30
# of the error at the start: rates from 0.01 to 0.06 leave 0.03 to 0.27, a rate of 0.001 leaves 0.8; the rank is counted
ENOUGH = 0.5
BYTES_A_WEIGHT, BYTES_A_PARAMETER = 0.5625, 16  # codes of 4 bits and a constant a block; itself, gradient, two moments
PEAK_A_WEIGHT = 8  # bytes: gradient and moments of every weight take 12, a copy of the model and an adapter 5
CALL = "fine_tune(model, x, y, budget_bytes, steps)"


@dataclass(frozen=True)
class Task:
    """A model, what it is to learn, and how many bytes it may take."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    held_out: Tensor
    targets: Tensor
    budget: int
    weights: int
    room: int
    sides: int

    def error(self, outputs: Tensor) -> float:
        """Return the mean squared error on the held-out examples."""
        return (outputs.double() - self.targets.double()).square().mean().item()


@check(TOPIC, "fine-tune-budget", lora.inject, lora.QLoRALinear, lora.trainable, points=3)
def check_fine_tune(fine_tune: LearnerFunction, draw: torch.Generator) -> None:
    """Check `fine_tune(model, x, y, budget_bytes, steps)`."""
    with part("a budget for rank 5: at most half of the error left"):
        task = _task(draw, (48, 72, 40), rank=3, room=5)
        _require_learned(fine_tune, task)
    with part("another model, a budget for rank 2 and a few steps"):
        task, steps = _task(draw, (40, 64, 48), rank=1, room=2), drawn(2, 4, draw)
        _require_adapted(task, *_trained(fine_tune, task, steps), steps)
    with part("while it trains: at most 8 bytes alive for each weight"):
        _require_low_peak(fine_tune, _task(draw, (160,) * 5, rank=1, room=3, examples=4))


def _task(draw: torch.Generator, widths: tuple[int, ...], *, rank: int, room: int, examples: int = 192) -> Task:
    """Draw a model and a second one, whose weights differ from its own by matrices of `rank`; the budget has `room`."""
    layers, other = list[nn.Module](), list[Tensor]()
    for inputs, out in pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, inputs, out, bias=False)  # leaves the global random numbers alone
        weight = torch.randn(out, inputs, generator=draw) / inputs**0.5
        update = torch.randn(out, rank, generator=draw) @ torch.randn(rank, inputs, generator=draw)
        other.append(weight + 0.7 * update / (rank * inputs) ** 0.5)
        with torch.no_grad():
            linear.weight.copy_(weight)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(2 * examples, widths[0], generator=draw)
    y = x
    for number, weight in enumerate(other):
        y = (y.tanh() if number else y) @ weight.T
    sides = sum(inputs + out for inputs, out in pairwise(widths))
    weights = sum(weight.numel() for weight in other)
    spare = 0.1 * drawn(7, 8, draw)  # of a rank: for codebooks and counters; half a byte a weight makes it a rank more
    budget = BYTES_A_WEIGHT * weights + BYTES_A_PARAMETER * sides * (room + spare)
    return Task(model, x[:examples], y[:examples], x[examples:], y[examples:], int(budget), weights, room, sides)


def _trained(fine_tune: LearnerFunction, task: Task, steps: int = STEPS) -> tuple[nn.Module, Optimizer]:
    result = fine_tune(task.model, task.x, task.y, task.budget, steps)
    model, optimizer = unpacked(result, ("model", "optimizer"), call=CALL)
    require(
        isinstance(model, nn.Module) and isinstance(optimizer, Optimizer),
        f"`{CALL}` returned a {type(model).__name__} and a {type(optimizer).__name__}",
        misconception="returns-wrong-type",
        thought="Return the model, an nn.Module, and its torch optimizer as it is after the last step.",
    )
    return model, optimizer


def _require_learned(fine_tune: LearnerFunction, task: Task) -> None:
    with torch.no_grad():
        before = task.error(task.model(task.held_out))
    model, optimizer = _trained(fine_tune, task)
    _require_adapted(task, model, optimizer, STEPS)
    with torch.no_grad():
        outputs = LearnerFunction(model)(task.held_out)
    outputs = as_tensor(outputs, tuple(task.targets.shape), call="model(x)")
    left = task.error(outputs) / before
    require(
        left <= ENOUGH,
        f"{left:.0%} of the error on held-out examples is left, expected at most {ENOUGH:.0%}",
        misconception="nothing-learned" if left > 0.95 else "too-little-learned",
        thought="Adam at a rate near 0.03 downhill on the mean squared error, every step on all examples.",
    )


def _require_adapted(task: Task, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    """Require a bill within the budget, the rank that the budget holds, and the steps that were asked for."""
    _require_bill(task, model, optimizer)
    parameters = sum(p.numel() for p in _learning(model, optimizer))
    require(
        parameters >= task.room * task.sides,
        f"{parameters:,} parameters learn, the budget holds rank {task.room}: {task.room * task.sides:,}",
        misconception="rank-too-small",
        thought="Take the largest rank that the budget holds, for all layers: what the codes leave, over 16 bytes.",
    )
    require(
        not isinstance(optimizer, torch.optim.SGD),
        "the optimizer is SGD, expected Adam",
        misconception="other-optimizer",
        thought="`torch.optim.Adam(trainable(model), lr=0.03)`: the bill counts its two moments.",
    )
    require(
        any(optimizer.state.values()),
        "the optimizer has taken no step",
        misconception="never-steps",
        thought="`optimizer.step()` after every `backward()`, and return the optimizer that took the steps.",
    )
    taken = {int(state["step"]) for state in optimizer.state.values() if "step" in state} or {steps}
    require(
        taken == {steps},
        f"the optimizer has taken {max(taken)} steps, asked for were {steps}",
        misconception="other-number-of-steps",
        thought="`steps` steps, each on all rows.",
    )


def _learning(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Return what asks for gradients in the model, and what the optimizer holds."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    learning = [p for p in model.parameters() if p.requires_grad]
    return list({id(p): p for p in learning + held}.values())


def _require_bill(task: Task, model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse more bytes than the budget: of all the model holds, a gradient for what learns, the optimizer's state."""
    held = held_by(model)
    learning = _learning(model, optimizer)
    gradients = sum(p.nbytes for p in learning)
    state = sum(map(bytes_of, _distinct(held_by(list(optimizer.state.values())))))
    stored = sum(map(bytes_of, _distinct(held)))
    bill = stored + gradients + state
    if bill <= task.budget:
        return
    message = (
        f"model {stored:,}, gradients {gradients:,} and optimizer {state:,} bytes: {bill:,}, the budget is"
        f" {task.budget:,}"
    )
    parameters = sum(p.numel() for p in learning)
    if parameters >= task.weights:
        misconception, thought = "trains-all-weights", "Freeze the base: only A and B may ask for gradients."
    elif stored - 4 * parameters >= 1.9 * task.weights:
        misconception, thought = "keeps-a-float-base", "The frozen weights must be 4-bit codes: 0.56 bytes each."
    else:
        misconception = "rank-too-large"
        thought = (
            "Take the rank from the budget: what the codes leave, over 16 bytes for each of in + out, rounded down."
        )
    raise Refused(message, misconception=misconception, thought=thought)


def _distinct(tensors: Iterable[Any]) -> list[Any]:
    return list({t.untyped_storage().data_ptr(): t for t in tensors if t.untyped_storage().nbytes()}.values())


def _require_low_peak(fine_tune: LearnerFunction, task: Task) -> None:
    trained = list[tuple[nn.Module, Optimizer]]()
    peak = probe.peak_bytes(lambda: trained.append(_trained(fine_tune, task, steps=1)))
    _require_adapted(task, *trained[0], 1)
    require(
        peak <= PEAK_A_WEIGHT * task.weights,
        f"beyond the model you were given, {peak:,} bytes were alive at one time: {peak / task.weights:.1f} a weight,"
        f" allowed are {PEAK_A_WEIGHT}",
        misconception="trains-more-than-adapters",
        thought="No gradient, moment or copy for every weight, not even for a while: only A and B learn.",
    )
