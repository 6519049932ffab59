"""Check of `training_step`: scaled, unscaled, clipped, looked at, stepped or skipped, in this order."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from qlab import loss_scaling
from qlab.checks.beside import reports
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.mixed_precision.step_runs import SHAPES, trained_by_step
from qlab.checks.mixed_precision.step_slips import RIGHT, SLIPS, Case, Outcome, near, norm_of, simulated, told
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import Refused, check, part, require

INF, NAN = float("inf"), float("nan")
SPOILED = (*((place, INF) for place in range(3)), (1, -INF), *((place, NAN) for place in range(3)))


@check(TOPIC, "training-step", loss_scaling.training_step, loss_scaling.LossScaler, points=5)
def check_training_step(training_step: LearnerFunction, draw: torch.Generator) -> None:
    """Check `training_step(loss, parameters, optimizer, scaler, max_norm)`."""
    with part("small gradients survive, and the step is as long as without a scale"):
        _compare(training_step, drawn_case(draw, norms=(2e-7, 1e-4, 0.3, 0.6)))
    with part("clipped to max_norm: the norm of the true gradients, all of them together"):
        _compare(training_step, drawn_case(draw, norms=(2.5, 5e-7, 0.5, 4.0)))
    with part("the scale changes from step to step: it is updated once, when the gradients were divided by it"):
        case = drawn_case(draw, norms=(0.3, 3.0, 2e-8, 0.7))
        _compare(training_step, replace(case, growth_interval=1, scale=2.0**10))
    with part("an inf or a NaN in any tensor: no step, no weight changed, and the scaler is told"):
        _require_skips(training_step, draw)
        _compare(training_step, overflowing(draw))
    with part("a parameter that the loss does not reach has no gradient, and stays"):
        _compare(training_step, replace(drawn_case(draw, norms=(0.5, 2.0, 5e-7)), silent=True))


def drawn_case(draw: torch.Generator, *, norms: tuple[float, ...]) -> Case:
    """Draw gradients of these norms, in units of max_norm, a third of whose values FP16 would make zero.

    The norms below 1e-4 tell a forgotten division by the scale, which leaves them short, from clipping all lengths.
    """
    max_norm = uniform(1.0, 4.0, (), draw).item()
    steps = []
    for norm in norms:
        gradients = [torch.randn(shape, generator=draw) for shape in SHAPES]
        for gradient in gradients:
            gradient[torch.rand(gradient.shape, generator=draw) < 1 / 3] *= 3e-9
        factor = norm * max_norm / norm_of(gradients).item()
        steps.append(tuple(gradient * factor for gradient in gradients))
    return Case(tuple(steps), 2.0 ** drawn(9, 10, draw), max_norm)


def _spoiled(case: Case, place: int, value: float, draw: torch.Generator) -> Case:
    """Put an inf or a NaN into one parameter's gradient of the second step."""
    second = [gradient.clone() for gradient in case.steps[1]]
    second[place].view(-1)[drawn(0, second[place].numel() - 1, draw)] = value
    return replace(case, steps=(case.steps[0], tuple(second), *case.steps[2:]))


def overflowing(draw: torch.Generator) -> Case:
    """Let the scale be too large at first: one value of the last parameter rounds to infinity in FP16."""
    case = drawn_case(draw, norms=(0.1, 0.1, 0.1, 0.1))
    for gradients in case.steps:
        gradients[-1][1, 1] = 0.9
    return replace(case, scale=2.0**18, max_norm=8.0)  # finite from 2¹⁶ on, the third step: 0.9 · 2¹⁶ = 58982


def _run(training_step: LearnerFunction, case: Case) -> Outcome:
    seen, stepped, scales = [], [], []
    for row, silent, truth, scale in reports(training_step, trained_by_step, case.plan, case.narrow_gradients):
        stepped.append(truth)
        seen.append(row)
        scales.append(scale)
        unmoved = "The parameter that the loss does not reach was moved."
        require(not silent, "a parameter without a gradient moved", misconception="moves-all", thought=unmoved)
    return Outcome(torch.stack(seen), tuple(stepped), tuple(scales))


def _require_skips(training_step: LearnerFunction, draw: torch.Generator) -> None:
    """Tell from where a step was taken that must be skipped which tensors were looked at, and for what."""
    taken, outcomes = [], []
    for place, value in SPOILED:
        case = _spoiled(drawn_case(draw, norms=(0.4, 3.0, 0.6)), place, value, draw)
        case = replace(case, growth_interval=2)
        outcome = _run(training_step, case)
        outcomes.append((outcome, case))
        if not torch.equal(outcome.parameters[1], outcome.parameters[0]):
            taken.append((place, value))
    if taken:
        infinite = {place for place, value in taken if value == INF}
        misconception, thought = (
            ("steps-on-inf", "A weight that takes in an inf or a NaN is lost: leave `optimizer.step()` out.")
            if len(infinite) == len(SHAPES)
            else ("checks-one-tensor-only", "One bad value in *any* gradient spoils the step: look at all of them.")
            if infinite
            else ("misses-nan", "inf − inf is NaN, and a sum may reach −inf: ask `isfinite`, which knows all three.")
        )
        told = ", ".join(f"{value} in parameters[{place}]" for place, value in taken)
        raise Refused(f"the step was taken with {told}", misconception=misconception, thought=thought)
    for outcome, case in outcomes:
        _judge(outcome, case)


def _compare(training_step: LearnerFunction, case: Case) -> None:
    _judge(_run(training_step, case), case)


def _judge(got: Outcome, case: Case) -> None:
    expected = simulated(case, RIGHT)
    steps, count = expected.parameters.shape

    def given(i: int) -> str:
        if i < steps * count:
            return f"{told(case)} (a weight after step {i // count + 1})"
        step = (i - steps * count) % steps + 1
        what = "what step {} returned" if i < steps * (count + 1) else "the scale after step {}"
        return f"{told(case)} ({what.format(step)})"

    require_values(got.flat, near(got, expected), given=given, suspects=lambda: _suspects(got, case))


def _suspects(got: Outcome, case: Case) -> Iterator[Suspect]:
    for misconception, thought, way in SLIPS:
        yield Suspect(misconception, thought, near(got, simulated(case, way)))
