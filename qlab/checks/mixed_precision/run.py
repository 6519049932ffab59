"""Check of `train_fp16`: a run whose tensors are all FP16 wins what the same run in FP32 wins."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qlab import loss_scaling
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.descent_runs import STEPS, trained_on
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import Refused, check, part, require

SPARE = 60  # more calls of the loss, for answers that repeat a step which overflowed
# Of what FP32 wins. Over 300 problems FP16 with a scale and masters wins 0.99 or more, with a search that starts at
# 2²⁴ too; without a scale, or without masters, less than 0.3 where the part asks for them.
ENOUGH = 0.95
MOST = 2.0  # of what FP32 wins: only longer steps than asked for win more, where FP32 has not yet arrived
UNMOVED = 0.5  # of what FP32 wins: below it the run stood still, most of the time or for most of its weights
CALL = "train_fp16(loss_of, weights, steps, learning_rate)"


class Rounded(torch.autograd.Function):
    """Round a tensor to the FP16 grid, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.half().float()


@dataclass
class Problem:
    """Two layers that learn from two others; `unit` is the size of what they predict, and sets that of gradients."""

    inputs: Tensor
    targets: Tensor
    start: list[Tensor]
    unit: float
    learning_rate: float
    calls: int = field(default=0)
    moved: list[Tensor] = field(default_factory=list)

    def narrow_loss(self, row: Tensor, scale: float) -> tuple[float, Tensor]:
        """Return the loss as FP16 has it, and its gradient scaled; count the call, and keep the first weights moved.

        Errors:  ValueError if `row` is not all weights one after another, in FP32.
        """
        weights = self._weights(row)
        self.calls += 1
        if not self.moved and not all(map(_rounds_to, weights, self.start)):
            self.moved = [w.double() for w in weights]
        return self._narrow(weights, scale)

    def narrow_gradient(self, row: Tensor, scale: float) -> Tensor:
        """Return the gradient, in a row, as FP16 has it of the scaled loss.

        Errors:  as `narrow_loss`.
        """
        return self._narrow(self._weights(row), scale)[1]

    def _narrow(self, weights: list[Tensor], scale: float) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaves = [w.clone().requires_grad_() for w in weights]
            loss = self._rounded(leaves)
            gradients = torch.autograd.grad(loss, leaves, torch.full_like(loss, scale))
        return loss.item(), torch.cat([g.flatten() for g in gradients])

    def _weights(self, row: Tensor) -> list[Tensor]:
        sizes = [w.numel() for w in self.start]
        if not isinstance(row, Tensor) or row.dtype != torch.float32 or row.shape != (sum(sizes),):
            raise ValueError(f"the loss is one of {sum(sizes)} FP32 weights in a row")
        return [piece.view_as(w) for piece, w in zip(row.detach().split(sizes), self.start, strict=True)]

    def _rounded(self, weights: Sequence[Tensor]) -> Tensor:
        """Round every tensor, forward and backward."""
        rounded = Rounded.apply
        first, second = (rounded(w.float()) for w in weights)
        hidden = rounded(rounded(rounded(self.inputs) @ first).tanh())
        return ((rounded(hidden @ second) * self.unit - self.targets) ** 2).mean()

    def exact(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss without any rounding, in the dtype of the weights."""
        first, second = weights
        out = (self.inputs.to(first) @ first).tanh() @ second
        return ((out * self.unit - self.targets.to(first)) ** 2).mean()

    def first_step(self) -> float:
        """Return the length of the first move along plain descent, as a share of what was asked."""
        start = [w.double().requires_grad_() for w in self.start]
        gradients = torch.autograd.grad(self.exact(start), start)
        moves = [new - old.detach() for new, old in zip(self.moved or start, start, strict=True)]
        along = sum((-move * g).sum().item() for move, g in zip(moves, gradients, strict=True))
        return along / self.learning_rate / sum(g.square().sum().item() for g in gradients)

    def loss(self, weights: Sequence[Tensor]) -> float:
        return self.exact([w.double() for w in weights]).item()

    def in_fp32(self) -> list[Tensor]:
        """Return the weights that plain FP32 descent reaches."""
        weights = [w.clone().requires_grad_() for w in self.start]
        for _ in range(STEPS):
            gradients = torch.autograd.grad(self.exact(weights), weights)
            with torch.no_grad():
                torch._foreach_add_(weights, gradients, alpha=-self.learning_rate)
        return [w.detach() for w in weights]


def _rounds_to(weight: Tensor, other: Tensor) -> bool:
    return torch.equal(weight.detach().half(), other.half())


@check(TOPIC, "train-fp16", loss_scaling.training_step, loss_scaling.MasterWeights, points=3)
def check_train_fp16(train_fp16: LearnerFunction, draw: torch.Generator) -> None:
    """Check `train_fp16(loss_of, weights, steps, learning_rate)`."""
    with part(f"gradients near 1e-9, zero in FP16: at least {ENOUGH:.0%} of what FP32 wins"):
        _require_won(train_fp16, _problem(draw, unit=1e-4, rate=0.5), _why_small)
    with part("gradients of hundreds, infinite at a scale of 65 536"):
        _require_won(train_fp16, _problem(draw, unit=300.0, rate=0.5), _why_large)
    with part("a rate so low that FP16 weights swallow the updates"):
        _require_wide(_require_won(train_fp16, _problem(draw, unit=1e-2, rate=4e-5), _why_slow))


def _problem(draw: torch.Generator, *, unit: float, rate: float) -> Problem:
    def layers(size: float) -> list[Tensor]:
        shapes = (6, 12), (12, 3)
        return [size * torch.randn(shape, generator=draw) / shape[0] ** 0.5 for shape in shapes]

    inputs, teacher = torch.randn(48, 6, generator=draw), layers(1.0)
    targets = (inputs @ teacher[0]).tanh() @ teacher[1] * unit
    start = [w.half().float() for w in layers(0.5)]  # what is made into FP16 first starts from the same
    return Problem(inputs, targets, start, unit, rate / unit**2)


Why = Callable[[Problem, list[Tensor], float], tuple[str, str]]


def _require_won(train_fp16: LearnerFunction, problem: Problem, why: Why) -> list[Tensor]:
    """Refuse a run that wins less of the loss than FP32 does in as many steps; return its weights."""
    got = _trained(train_fp16, problem)
    start, best = problem.loss(problem.start), problem.loss(problem.in_fp32())
    loss = problem.loss(got)
    won = (start - loss) / (start - best)
    if ENOUGH <= won <= MOST:
        return got
    misconception, thought = why(problem, got, won)
    raise Refused(
        f"the loss was {start:.5g}, FP32 brings it to {best:.5g} in {STEPS} steps, your run to {loss:.5g}:"
        f" that is {won:.1%} of what FP32 wins, expected at least {ENOUGH:.0%}",
        misconception=misconception,
        thought=thought,
    )


def _trained(train_fp16: LearnerFunction, problem: Problem) -> list[Tensor]:
    narrow = problem.narrow_loss, problem.narrow_gradient
    returned = train_fp16.beside(trained_on, *narrow, problem.start, problem.learning_rate)
    weights = unpacked(returned, ("first", "second"), call=CALL)
    require(
        problem.calls <= STEPS + SPARE,
        f"`loss_of` was called {problem.calls} times in {STEPS} steps",
        misconception="too-many-steps",
        thought="One step calls the loss once, or once more for each time that it must be repeated.",
    )
    require(
        problem.calls,
        "`loss_of` was never called",
        misconception="never-trains",
        thought="In each step: the loss of the weights, times the scale, and its gradients.",
    )
    return [
        as_tensor(w, tuple(s.shape), call=f"{CALL}[{i}]").float()
        for i, (w, s) in enumerate(zip(weights, problem.start, strict=True))
    ]


def _on_the_grid(got: list[Tensor]) -> bool:
    return all(torch.equal(w, w.half().float()) for w in got)


def _require_wide(got: list[Tensor]) -> None:
    """Refuse rounded weights: after steps in FP32, more than a hundred of them are not all FP16 numbers by chance."""
    require(
        not _on_the_grid(got),
        "all weights you return are FP16 numbers",
        misconception="updates-the-fp16-copy",
        thought="Return the FP32 weights, which hold the small updates, and not their last rounding.",
    )


def _not_finite(got: list[Tensor]) -> bool:
    return not all(bool(w.isfinite().all()) for w in got)


BAD = "The weights hold NaN or infinities: a step with such a gradient is skipped, and the scale halved."
BELOW = (
    "Print how many gradients are zero, before and after you divide by the scale: multiply the loss before `backward`,"
    " and divide in FP32."
)


def _why_far(problem: Problem) -> tuple[str, str]:
    """Tell by the first step why the weights went where plain descent does not go."""
    length = problem.first_step()
    if length < 0:
        return "climbs", "The first step goes up: a step subtracts the gradient, w − learning_rate · gradient."
    # a scale is mostly a power of two, and FP16 gradients err by less than 1% together
    if length > 1.5 and abs(math.log2(length) - round(math.log2(length))) < 0.015:
        return "forgets-to-unscale", "The first step is as many times too long as the scale says: divide by it."
    return "other-steps", "Each step is w − learning_rate · gradient, with that step's own gradient and no more."


def _why_small(problem: Problem, got: list[Tensor], won: float) -> tuple[str, str]:
    if _not_finite(got) or won < -0.01:
        return _why_far(problem)
    return ("gradients-underflow", BELOW) if won < UNMOVED else ("too-much-lost", "Where do the steps get lost?")


def _why_large(problem: Problem, got: list[Tensor], won: float) -> tuple[str, str]:
    if _not_finite(got):
        return "steps-on-inf", BAD
    if won < -0.01:
        return _why_far(problem)
    stands = all(torch.equal(w, s) or torch.equal(w, s.half().float()) for w, s in zip(got, problem.start, strict=True))
    still = "Every step was skipped: halve the scale each time, and start each step from cleared gradients."
    return ("never-shrinks", still) if stands else ("too-much-lost", "How many steps were skipped, and why?")


def _why_slow(problem: Problem, got: list[Tensor], won: float) -> tuple[str, str]:
    if _not_finite(got):
        return "steps-on-inf", BAD
    if won < -0.01 or won > MOST:
        return _why_far(problem)
    masters = "All weights you return are FP16 numbers, and updates under half a step of them are lost: keep and update"
    if _on_the_grid(got):
        return "updates-the-fp16-copy", f"{masters} FP32 weights, and round a copy in each step."
    return "too-much-lost", "Compare the sum of your updates with the change of the weights."
