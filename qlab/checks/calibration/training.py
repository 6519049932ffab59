"""Check of `train_3_bits`: what training through the rounding wins back of what rounding alone loses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlab import calibrate, qat
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import Refused, check, part, require

LARGEST = 3  # of the codes of three bits
STEPS = 140
# Of what rounding loses. Over 100 seeds fixed and falling rates end at 0.04 to 0.36, and one in 700 at 0.41; rounding
# to the best clip, with no rounding in the training, at 0.45 to 1.3.
ENOUGH = 0.45
SENSIBLE = 20.0  # times what rounding loses: the part about the grid asks for no more; zeros lose 36 times as much
ON_GRID = 1e-3  # of a step: x + (q − x) in FP32 is 1e-7 of the largest value off the grid
SWALLOWED = 0.984  # of the codes: what is swallowed moves up to 1.4 % in its first step, five real steps at least 1.9 %
SAME = 0.95  # of the codes: an answer that learned nothing ends a rounding error of its scale away from where it began


@dataclass(frozen=True)
class Problem:
    """A linear layer to be learned from its own outputs: `exact` gives the targets without error."""

    weight: Tensor
    inputs: Tensor
    exact: Tensor
    held_out: Tensor
    learning_rate: float

    @property
    def targets(self) -> Tensor:
        return self.inputs @ self.exact.T

    def lost(self, weight: Tensor) -> float:
        """Return the mean squared error on the held-out inputs, in units of what rounding `exact` loses."""
        by_rounding = self.held_out.double() @ (rounded(self.exact) - self.exact).double().T
        error = self.held_out.double() @ (weight.double() - self.exact.double()).T
        return (error.square().mean() / by_rounding.square().mean()).item()

    def gradient(self, weight: Tensor) -> Tensor:
        """Return the gradient of the mean squared error on the inputs that are trained on."""
        error = self.inputs @ weight.T - self.targets
        return 2 / error.numel() * error.T @ self.inputs

    def rates(self, *, falls: bool) -> list[float]:
        """Return the rate of each step: always the same, or falling to zero."""
        return [self.learning_rate * (1 - falls * step / STEPS) for step in range(STEPS)]

    def solved_by(self, train: LearnerFunction) -> Tensor:
        result = train(self.weight, self.inputs, self.targets, STEPS, self.learning_rate)
        return as_tensor(result, tuple(self.weight.shape), call="train_3_bits(…)").float()


@check(
    TOPIC,
    "train-3-bits",
    calibrate.fake_quantize,
    qat.train,
    points=3,
    forbids=("qlab.calibrate.FakeQuantize",),
)
def check_train_3_bits(train_3_bits: LearnerFunction, draw: torch.Generator) -> None:
    """Check `train_3_bits(weight, inputs, targets, steps, learning_rate)`."""
    with part("the result lies on one 3-bit grid: −3 to 3 times one scale"):
        _require_grid(*_solved(train_3_bits, _problem(draw, out=16)), most=SENSIBLE)
    with part("from an untrained weight: at most 0.45 of what rounding the solution loses"):
        problem = _problem(draw)
        start = 0.7 * problem.exact + 0.3 * _even(problem.exact.shape, draw)
        _require_learned(*_solved(train_3_bits, replace(problem, weight=start)), train_3_bits)
    with part("from a trained weight: at most 0.45 of what rounding it loses"):
        _require_learned(*_solved(train_3_bits, _problem(draw)), train_3_bits)


def _problem(draw: torch.Generator, *, out: int = 32) -> Problem:
    """Draw correlated inputs, four directions and a little noise, so that errors of many weights can cancel out.

    The rate is a small share of the largest that plain gradient descent bears, 2 / curvature.
    """
    exact = _even((out, 96), draw)
    directions = torch.randn(4, 96, generator=draw)
    inputs, held_out = (
        torch.randn(200, 4, generator=draw) @ directions + 0.1 * torch.randn(200, 96, generator=draw) for _ in range(2)
    )
    curvature = 2 * torch.linalg.matrix_norm(inputs, 2).item() ** 2 / len(inputs) / out
    return Problem(exact, inputs, exact, held_out, 0.08 / curvature)


def _even(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return uniform(-1.0, 1.0, shape, draw) / shape[-1] ** 0.5


def _solved(train: LearnerFunction, problem: Problem) -> tuple[Problem, Tensor]:
    return problem, problem.solved_by(train)


def codes_of(weight: Tensor) -> Tensor:
    """Return the codes of a weight that lies on a 3-bit grid, and the nearest ones of any other."""
    for largest in (3, 2, 1):
        steps = _steps(weight, largest)
        if (steps - steps.round()).abs().max() <= ON_GRID:
            return steps.round()
    return _steps(weight, LARGEST).round()


def rounded(weight: Tensor) -> Tensor:
    """Return a weight on the grid of its largest magnitude."""
    return _steps(weight, LARGEST).round() * weight.abs().max() / LARGEST


def _steps(weight: Tensor, largest: int) -> Tensor:
    return weight / weight.abs().max().clamp(min=torch.finfo(torch.float32).tiny) * largest


def _on_grid(weight: Tensor, largest: int = LARGEST) -> bool:
    return any(
        ((steps := _steps(weight, last)) - steps.round()).abs().max() <= ON_GRID for last in range(1, largest + 1)
    )


def _require_grid(problem: Problem, got: Tensor, *, most: float) -> None:
    """Refuse what is not on one grid, and what is far from the solution: zeros lie on every grid."""
    require(
        got.isfinite().all(),
        "the weight you returned has NaN or infinite values",
        misconception="diverges",
        thought="Each step made it worse: is the gradient *subtracted*, and is it that of the mean squared error?",
    )
    if not _on_grid(got):
        misconception, thought = next((name, thought) for name, thought, fits in _off_grid() if fits(problem, got))
        raise Refused(
            f"{len(got.unique())} different values from {got.min():.4g} to {got.max():.4g}, expected at most 7,"
            " whole multiples of one scale",
            misconception=misconception,
            thought=thought,
        )
    lost = problem.lost(got)
    if lost > most and _agreement(got, problem.weight) < SAME:  # the right codes whose scale drifted are on a grid
        told = f"the loss on held-out inputs is {lost:.2f} times that of rounding the solution, expected at most {most}"
        misconception = _no_weight(problem, got) or _far_off(problem, got)
        raise Refused(told, misconception=misconception, thought=THOUGHTS[misconception])


def _off_grid() -> Iterator[tuple[str, str, Callable[[Problem, Tensor], bool]]]:
    rows = "Here one scale serves the whole weight: the largest magnitude of all of it / 3."
    yield "a-scale-for-each-row", rows, lambda _, got: all(map(_on_grid, got))
    levels = "Three bits hold the codes −3 to 3: seven values."
    yield "wrong-number-of-codes", levels, lambda _, got: any(_on_grid(got, n) for n in (4, 7, 8))
    never = "This weight was trained, but nothing rounds it: round in every step, and once more at the end."
    yield "never-rounds", never, lambda problem, got: problem.lost(got) < 0.01
    latent = "That is the weight the optimizer moves; deployed is its rounding: return that."
    yield "returns-the-latent-weight", latent, lambda problem, got: problem.lost(rounded(got)) <= ENOUGH
    yield "not-on-the-grid", "Round what you return: S · codes, with one S.", lambda _, got: True


def _no_weight(problem: Problem, got: Tensor) -> str:
    """Name zeros, and codes without their scale."""
    if not got.any():
        return "returns-zeros"
    if torch.equal(got, got.round()):
        outputs = problem.inputs @ got.T
        scale = (outputs * problem.targets).sum() / outputs.square().sum()
        if problem.lost(scale * got) <= SENSIBLE:
            return "returns-codes"
    return ""


def _far_off(problem: Problem, got: Tensor) -> str:
    return "moves-away" if problem.lost(got) > 2 * problem.lost(rounded(problem.weight)) else "too-much-lost"


def _require_learned(problem: Problem, got: Tensor, train: LearnerFunction) -> None:
    lost = problem.lost(got) if got.isfinite().all() else torch.inf
    if _on_grid(got) and lost > ENOUGH:
        start = problem.lost(rounded(problem.weight))
        found = _no_weight(problem, got) or _why_nothing_is_won(problem, got, train)
        misconception = found or _far_off(problem, got)
        raise Refused(
            f"on held-out inputs your weight loses {lost:.2f} times what rounding the solution loses, expected at most"
            f" {ENOUGH}; the start, rounded, loses {start:.2f}",
            misconception=misconception,
            thought=THOUGHTS[misconception],
        )
    _require_grid(problem, got, most=ENOUGH)


def _why_nothing_is_won(problem: Problem, got: Tensor, train: LearnerFunction) -> str:
    """Name what ends where it began, or where training ends that rounding had no part in; empty if it is neither."""
    if torch.equal(problem.weight, problem.exact):
        return "no-better-than-rounding" if _agreement(got, problem.weight) >= SAME else ""
    began = _agreement(got, problem.weight)
    found = {"rounds-at-the-end": _trained_in_float, "no-straight-through": _trained_in_scale_alone}
    reached = {name: max(_agreement(got, w) for w in ends(problem)) for name, ends in found.items()}
    nearest = max(reached, key=reached.__getitem__)
    if reached[nearest] >= SAME and reached[nearest] > began:
        return nearest
    unscaled = codes_of(got) * problem.weight.abs().max() / LARGEST  # a weight that is kept rounded drifts in scale
    if began < SWALLOWED or problem.lost(unscaled) < 0.7 * problem.lost(rounded(problem.weight)):
        return ""
    faster = replace(problem, learning_rate=40 * problem.learning_rate).solved_by(train)
    return "no-straight-through" if _agreement(faster, got) == 1 else "updates-swallowed"


def _agreement(got: Tensor, weight: Tensor) -> float:
    """Return the share of the codes of `got` that are those of `weight`, rounded."""
    if not got.isfinite().all():
        return 0.0
    return (codes_of(got) == codes_of(weight)).float().mean().item()


def _trained_in_float(problem: Problem) -> Iterator[Tensor]:
    """Yield the weights that gradient descent reaches when nothing is rounded, at a fixed and at a falling rate."""
    for falls in (False, True):
        weight = problem.weight
        for rate in problem.rates(falls=falls):
            weight = weight - rate * problem.gradient(weight)
        yield weight


def _trained_in_scale_alone(problem: Problem) -> Iterator[Tensor]:
    """Yield those that it reaches when the rounding has no gradient, and the scale, a largest magnitude / 3, has."""
    for falls in (False, True):
        weight = problem.weight.clone()
        for rate in problem.rates(falls=falls):
            place = weight.abs().argmax()
            largest = weight.flatten()[place]
            of_scale = (problem.gradient(rounded(weight)) * _steps(weight, LARGEST).round()).sum()
            weight.view(-1)[place] = largest - rate * of_scale / LARGEST * largest.sign()
        yield weight


THOUGHTS = {
    "returns-zeros": "All zeros lie on every grid and solve nothing.",
    "returns-codes": "These are the codes: times the scale they are the weight.",
    "moves-away": "Training made it worse than it was: subtract the gradient of the mean squared error, as it is.",
    "too-much-lost": "Print the loss of the *rounded* weight every ten steps: does it fall?",
    "no-better-than-rounding": "These are the codes of the weight you were given: training has not moved one of them."
    " Compute the loss with the rounded weight, and let its gradient move one that keeps its fractions.",
    "no-straight-through": "Nothing moves, at any rate: rounding has no gradient. Pass it straight through.",
    "updates-swallowed": "Small steps do nothing and large ones do: a step is smaller than half a code, and rounding"
    " the weight you keep undoes it. Keep one in FP32, and round a copy in every step.",
    "rounds-at-the-end": "These are the codes of a weight that was trained in float: the loss must be computed with"
    " the rounded weight, in every step.",
}
