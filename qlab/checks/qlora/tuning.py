"""Check of `fine_tune`: a new task learned within a byte budget, the rank taken from the budget."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qlab import lora
from qlab.checks.beside import reports, require_right_too
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.qlora.tuning_runs import Trained, model_of, trained_and_called, trained_with_peak
from qlab.checks.report import Refused, check, part, require

STEPS = 30
# of the error at the start: rates from 0.01 to 0.06 leave 0.03 to 0.27, a rate of 0.001 leaves 0.8; the rank is counted
ENOUGH = 0.5
BYTES_A_WEIGHT, BYTES_A_PARAMETER = 0.5625, 16  # codes of 4 bits and a constant a block; itself, gradient, two moments
PEAK_A_WEIGHT = 8  # bytes: gradient and moments of every weight take 12, a copy of the model and an adapter 5


@dataclass(frozen=True)
class Task:
    """A model, what it is to learn, and how many bytes it may take."""

    layers: tuple[Tensor, ...]
    x: Tensor
    y: Tensor
    held_out: Tensor
    targets: Tensor
    budget: int
    weights: int
    room: int
    sides: int

    @property
    def given(self) -> tuple[tuple[Tensor, ...], Tensor, Tensor, int]:
        """What the answer may see."""
        return self.layers, self.x, self.y, self.budget

    def error(self, outputs: Tensor) -> float:
        """Return the mean squared error on the held-out examples."""
        return (outputs.double() - self.targets.double()).square().mean().item()


@check(
    TOPIC,
    "fine-tune-budget",
    lora.inject,
    lora.QLoRALinear,
    lora.trainable,
    points=3,
    allows=("qlab.lora.inject", "qlab.lora.QLoRALinear", "qlab.lora.trainable"),
)
def check_fine_tune(fine_tune: LearnerFunction, draw: torch.Generator) -> None:
    """Check `fine_tune(model, x, y, budget_bytes, steps)`."""
    has_learned = False
    with part("a budget for rank 5: at most half of the error left"):
        task = _task(draw, (48, 72, 40), rank=3, room=5)
        _require_learned(fine_tune, task)
        has_learned = True
    with part("another model, a budget for rank 2 and a few steps"):
        task, steps = _task(draw, (40, 64, 48), rank=1, room=2), drawn(2, 4, draw)
        _, found, outputs = fine_tune.beside(trained_with_peak, *task.given, steps, task.held_out)
        _require_adapted(task, found, steps)
        _require_moved(task, outputs)
        require_right_too(has_learned)
    with part("while it trains: at most 8 bytes alive for each weight"):
        _require_low_peak(fine_tune, _task(draw, (160,) * 5, rank=1, room=3, examples=4))
        require_right_too(has_learned)


def _task(draw: torch.Generator, widths: tuple[int, ...], *, rank: int, room: int, examples: int = 192) -> Task:
    """Draw a model and a second one, whose weights differ from its own by matrices of `rank`; the budget has `room`."""
    layers, other = list[Tensor](), list[Tensor]()
    for inputs, out in pairwise(widths):
        weight = torch.randn(out, inputs, generator=draw) / inputs**0.5
        update = torch.randn(out, rank, generator=draw) @ torch.randn(rank, inputs, generator=draw)
        other.append(weight + 0.7 * update / (rank * inputs) ** 0.5)
        layers.append(weight)
    x = torch.randn(2 * examples, widths[0], generator=draw)
    y = x
    for number, weight in enumerate(other):
        y = (y.tanh() if number else y) @ weight.T
    sides = sum(inputs + out for inputs, out in pairwise(widths))
    weights = sum(weight.numel() for weight in other)
    spare = 0.1 * drawn(7, 8, draw)  # of a rank: for codebooks and counters; half a byte a weight makes it a rank more
    budget = BYTES_A_WEIGHT * weights + BYTES_A_PARAMETER * sides * (room + spare)
    return Task(
        tuple(layers), x[:examples], y[:examples], x[examples:], y[examples:], int(budget), weights, room, sides
    )


def _require_learned(fine_tune: LearnerFunction, task: Task) -> None:
    with torch.no_grad():
        before = task.error(model_of(task.layers)(task.held_out))
    found = reports(fine_tune, trained_and_called, *task.given, STEPS, task.held_out)
    _require_adapted(task, next(found), STEPS)
    outputs = as_tensor(next(found), tuple(task.targets.shape), call="model(x)")
    left = task.error(outputs) / before
    require(
        left <= ENOUGH,
        f"{left:.0%} of the error on held-out examples is left, expected at most {ENOUGH:.0%}",
        misconception="nothing-learned" if left > 0.95 else "too-little-learned",
        thought="Adam at a rate near 0.03 downhill on the mean squared error, every step on all examples.",
    )


def _require_moved(task: Task, outputs: Any) -> None:
    """Refuse outputs that are the frozen model's, and such as no model gives that was trained for some steps."""
    before = model_of(task.layers)(task.held_out).detach()
    got = as_tensor(outputs, tuple(before.shape), call="model(x)")
    require_right_too(bool((got != before).any()) and task.error(got) <= 2 * task.error(before))


def _require_adapted(task: Task, found: Trained, steps: int) -> None:
    """Require a bill within the budget, the rank that the budget holds, and the steps that were asked for."""
    _require_bill(task, found)
    parameters = found.parameters
    require(
        parameters >= task.room * task.sides,
        f"{parameters:,} parameters learn, the budget holds rank {task.room}: {task.room * task.sides:,}",
        misconception="rank-too-small",
        thought="Take the largest rank that the budget holds, for all layers: what the codes leave, over 16 bytes.",
    )
    require(
        not found.is_sgd,
        "the optimizer is SGD, expected Adam",
        misconception="other-optimizer",
        thought="`torch.optim.Adam(trainable(model), lr=0.03)`: the bill counts its two moments.",
    )
    require(
        found.has_stepped,
        "the optimizer has taken no step",
        misconception="never-steps",
        thought="`optimizer.step()` after every `backward()`, and return the optimizer that took the steps.",
    )
    taken = set(found.steps) or {steps}
    require(
        taken == {steps},
        f"the optimizer has taken {max(taken)} steps, asked for were {steps}",
        misconception="other-number-of-steps",
        thought="`steps` steps, each on all rows.",
    )


def _require_bill(task: Task, found: Trained) -> None:
    """Refuse more bytes than the budget: of all the model holds, a gradient for what learns, the optimizer's state."""
    stored, gradients, state, parameters = found.stored, found.gradients, found.state, found.parameters
    bill = stored + gradients + state
    if bill <= task.budget:
        return
    message = (
        f"model {stored:,}, gradients {gradients:,} and optimizer {state:,} bytes: {bill:,}, the budget is"
        f" {task.budget:,}"
    )
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


def _require_low_peak(fine_tune: LearnerFunction, task: Task) -> None:
    peak, found, outputs = fine_tune.beside(trained_with_peak, *task.given, 1, task.held_out)
    _require_adapted(task, found, 1)
    _require_moved(task, outputs)
    require(
        peak <= PEAK_A_WEIGHT * task.weights,
        f"beyond the model you were given, {peak:,} bytes were alive at one time: {peak / task.weights:.1f} a weight,"
        f" allowed are {PEAK_A_WEIGHT}",
        misconception="trains-more-than-adapters",
        thought="No gradient, moment or copy for every weight, not even for a while: only A and B learn.",
    )
