"""Check of `distillation_loss`: soft targets at a temperature, put back to the scale of the hard ones."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from qlab import distill as reference
from qlab.checks import probe
from qlab.checks.expect import as_number, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require
from qlab.checks.smaller_models.topic import TOPIC

CALL = "distillation_loss(student, teacher, targets, temperature, weight)"
# FP32 sums of a few dozen terms, and differences of logarithms: some 1e-6 of the loss. The nearest slip that is named
# moves it by more than a hundredth (inputs are drawn until it does)
CLOSE = 1e-4


class Case(NamedTuple):
    """Arguments of one call."""

    student: Tensor
    teacher: Tensor
    targets: Tensor
    temperature: float
    weight: float

    def hard(self, temperature: float = 1.0) -> Tensor:
        return functional.cross_entropy(self.student.double() / temperature, self.targets)

    def soft(self, student: Tensor | None = None, teacher: Tensor | None = None, dim: int = 1) -> Tensor:
        """Return KL(teacher ‖ student) of the softened distributions, a row's sum, the rows' mean."""
        student = self.student.double() / self.temperature if student is None else student
        teacher = self.teacher.double() / self.temperature if teacher is None else teacher
        log_p, log_q = teacher.log_softmax(dim), student.log_softmax(dim)
        return (log_p.exp() * (log_p - log_q)).sum() / len(self.student)

    def mixed(self, soft: Tensor | float, hard: Tensor | None = None) -> float:
        return float(self.weight * soft + (1 - self.weight) * (self.hard() if hard is None else hard))

    def right(self) -> float:
        return self.mixed(self.temperature**2 * self.soft())


@check(TOPIC, "distillation-loss", reference.distillation_loss, points=5)
def check_distillation_loss(distillation_loss: LearnerFunction, draw: torch.Generator) -> None:
    """Check `distillation_loss(student, teacher, targets, temperature, weight)`, a mean over the rows."""
    with part("temperature 1, soft targets alone"):
        _require_loss(distillation_loss, _drawn_case(draw, temperature=1.0, weight=1.0))
    with part("higher temperatures: the loss keeps its scale"):
        for temperature in (2.0, float(drawn(3, 6, draw))):
            _require_loss(distillation_loss, _drawn_case(draw, temperature=temperature, weight=1.0))
    with part("soft and hard targets mixed"):
        for weight in (0.7, 0.0, 0.3):
            _require_loss(distillation_loss, _drawn_case(draw, temperature=3.0, weight=weight))
    with part("gradients: the student's, and none for the teacher"):
        _require_gradients(distillation_loss, _drawn_case(draw, temperature=4.0, weight=0.5))
    with part("confident teachers and students: finite, and right"):
        case = _drawn_case(draw, temperature=2.0, weight=0.6)
        _require_loss(distillation_loss, case._replace(student=60 * case.student, teacher=80 * case.teacher))


def _drawn_case(draw: torch.Generator, *, temperature: float, weight: float) -> Case:
    rows, classes = drawn(5, 9, draw), drawn(4, 7, draw)
    while True:
        student = 2 * torch.randn(rows, classes, generator=draw)
        teacher = 2 * torch.randn(rows, classes, generator=draw)
        targets = torch.randint(classes, (rows,), generator=draw)
        case = Case(student, teacher, targets, temperature, weight)
        values = sorted({round(value, 9) for _, _, value in _slips(case)} | {round(case.right(), 9)})
        if all(b - a > 0.01 * abs(case.right()) for a, b in pairwise(values)):
            return case


def _require_loss(distillation_loss: LearnerFunction, case: Case) -> None:
    returned = distillation_loss(*case)
    shape = getattr(returned, "shape", ())
    require(
        math.prod(shape) == 1,
        f"`{CALL}` returned shape {tuple(shape)}, expected one number",
        misconception="returns-no-mean",
        thought="Sum over the classes, take the mean over the rows: one number remains.",
    )
    got, want = as_number(returned, call=CALL), case.right()
    if abs(got - want) <= CLOSE * abs(want):
        return
    message = (
        f"{len(case.student)} rows, {case.student.shape[1]} classes, temperature {case.temperature:g}, "
        f"weight {case.weight:g}: got {got:.6g}, expected {want:.6g}"
    )
    if not math.isfinite(got):
        raise Refused(
            message,
            misconception="overflows",
            thought="`log(softmax(x))` meets log(0) once a class is certain: `log_softmax` does not.",
        )
    for misconception, thought, value in _slips(case):
        if abs(got - value) <= CLOSE * abs(value):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Try two rows and two classes by hand: softmax of logits / temperature, then Σ p·(log p − log q).",
    )


def _slips(case: Case) -> list[tuple[str, str, float]]:
    """Return what the named slips would give; those that change nothing in this case are left out."""
    t, soft = case.temperature, case.soft()
    student, teacher = case.student.double(), case.teacher.double()
    classes = student.shape[1]
    reversed_soft = case.soft(student=teacher / t, teacher=student / t)
    entropy = -((teacher / t).softmax(1) * (teacher / t).log_softmax(1)).sum() / len(student)
    found = [
        (
            "forgets-t-squared",
            "Gradients of the soft loss shrink as 1/T²: multiply it by T², so that the mix means the same at every T.",
            case.mixed(soft),
        ),
        ("multiplies-by-t", "Two factors of 1/T come from the logits: multiply by T².", case.mixed(t * soft)),
        (
            "scales-the-hard-loss",
            "Only the soft loss shrinks with T: the hard one keeps its scale.",
            t**2 * case.mixed(soft),
        ),
        (
            "kl-reversed",
            "KL(teacher ‖ student) weighs by the teacher's probabilities; `F.kl_div` takes the student first.",
            case.mixed(t**2 * reversed_soft),
        ),
        (
            "softens-the-student-only",
            "The teacher's logits are divided by the temperature as well.",
            case.mixed(t**2 * case.soft(teacher=teacher)),
        ),
        (
            "softens-the-teacher-only",
            "The student's logits are divided by the temperature as well.",
            case.mixed(t**2 * case.soft(student=student)),
        ),
        (
            "softens-the-hard-loss",
            "The hard loss is of the student's own logits, at temperature 1.",
            case.mixed(t**2 * soft, case.hard(t)),
        ),
        (
            "mean-over-classes",
            "The divergence is a *sum* over the classes: the mean is over the rows, as `reduction='batchmean'` has it.",
            case.mixed(t**2 * soft / classes),
        ),
        (
            "sum-over-rows",
            "Take the mean over the rows, as the hard loss does.",
            case.mixed(t**2 * soft * len(student)),
        ),
        (
            "softmax-over-the-batch",
            "A distribution is over the classes of a row: the last dimension.",
            case.mixed(t**2 * case.soft(dim=0)),
        ),
        (
            "cross-entropy-for-kl",
            "Without the teacher's own entropy it is a cross-entropy: its gradient is the same, its value is not.",
            case.mixed(t**2 * (soft + entropy)),
        ),
        (
            "swaps-the-weights",
            "`weight` is the soft loss's share, the hard one gets the rest.",
            float((1 - case.weight) * t**2 * soft + case.weight * case.hard()),
        ),
        (
            "adds-the-whole-hard-loss",
            "The hard loss has the share 1 − weight.",
            float(case.weight * t**2 * soft + case.hard()),
        ),
        ("multiplies-by-temperature", "Divide the logits by T.", _softened_the_other_way(case)),
    ]
    return [slip for slip in found if math.isfinite(slip[2]) and abs(slip[2] - case.right()) > 1e-6 * abs(case.right())]


def _softened_the_other_way(case: Case) -> float:
    t = case.temperature
    return case.mixed(t**2 * case.soft(student=case.student.double() * t, teacher=case.teacher.double() * t))


def _require_gradients(distillation_loss: LearnerFunction, case: Case) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Any:
        return distillation_loss(student, teacher, *case[2:])

    got, teachers = probe.gradients(loss, case.student, case.teacher)
    require(
        got is not None,
        "the loss has no gradient for the student",
        misconception="detaches-the-student",
        thought="The student learns through this loss: no `detach`, `.item()` or `no_grad` around its logits.",
    )
    require(
        teachers is None or not teachers.any(),
        "the teacher's logits got a gradient",
        misconception="trains-the-teacher",
        thought="The teacher only gives targets: `teacher.detach()`.",
    )
    exact = _exact_gradient(case)
    got = as_tensor(got, tuple(exact.shape), call=CALL).double()
    off = ((got - exact).abs().max() / exact.abs().max()).item()
    require(
        off <= CLOSE,
        f"the student's gradient is off by {off:.3g} of its largest value",
        misconception="wrong-gradient",
        thought="What you return is the loss: let autograd differentiate it, with no `detach` on the student's side.",
    )


def _exact_gradient(case: Case) -> Tensor:
    """Return weight · T · (q − p) + (1 − weight) · (softmax − one-hot), over the rows."""
    student, t = case.student.double(), case.temperature
    soft = (student / t).softmax(1) - (case.teacher.double() / t).softmax(1)
    hard = student.softmax(1) - functional.one_hot(case.targets, student.shape[1])
    return (case.weight * t * soft + (1 - case.weight) * hard) / len(student)
