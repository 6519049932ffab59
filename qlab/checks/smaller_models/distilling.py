"""Check of `distillation_loss`: soft targets at a temperature, put back to the scale of the hard ones."""

import math
from itertools import pairwise
from typing import NamedTuple

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
HARMLESS = 40.0  # exp(-40) is far from FP32's underflow at 1e-45: no softmax of such logits has a zero


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
        _require_loss(distillation_loss, _confident(_drawn_case(draw, temperature=2.0, weight=0.6)))


def _drawn_case(draw: torch.Generator, *, temperature: float, weight: float) -> Case:
    rows, classes = drawn(5, 9, draw), drawn(4, 7, draw)
    while True:
        student = 2 * torch.randn(rows, classes, generator=draw)
        teacher = 2 * torch.randn(rows, classes, generator=draw)
        targets = torch.randint(classes, (rows,), generator=draw)
        case = Case(student, teacher, targets, temperature, weight)
        values = sorted({round(value, 9) for _, _, value in _slips(case)} | {round(case.right(), 9)})
        apart = 0.01 * abs(case.right())
        if all(b - a > apart for a, b in pairwise(values)):
            return case


def _confident(case: Case) -> Case:
    """Return large logits; the student gives the teacher's first choice a probability that FP32 has no number for."""
    student, teacher = 60 * case.student, 80 * case.teacher
    student[0, teacher[0].argmax()] = student[0].min() - 150 * case.temperature
    return case._replace(student=student, teacher=teacher)


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
            misconception="overflows" if case.teacher.abs().max() > HARMLESS else "logarithm-of-a-logarithm",
            thought=(
                "`log(softmax(x))` meets log(0) once a class is certain: `log_softmax` does not."
                if case.teacher.abs().max() > HARMLESS
                else "NaN from harmless logits is the logarithm of a negative number: a target of log-probabilities "
                "needs `log_target=True` in `F.kl_div`."
            ),
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
    t, soft, own_hard = case.temperature, case.soft(), case.hard()
    student, teacher = case.student.double(), case.teacher.double()
    classes = student.shape[1]
    reversed_soft = case.soft(student=teacher / t, teacher=student / t)
    q = (student / t).softmax(1)
    entropy = -((teacher / t).softmax(1) * (teacher / t).log_softmax(1)).sum() / len(student)

    def mixed(soft: Tensor | float, hard: Tensor = own_hard) -> float:
        return case.mixed(soft, hard)

    found = [
        (
            "forgets-t-squared",
            "Gradients of the soft loss shrink as 1/T²: multiply it by T², so that the mix means the same at every T.",
            mixed(soft),
        ),
        ("multiplies-by-t", "Two factors of 1/T come from the logits: multiply by T².", mixed(t * soft)),
        (
            "scales-the-hard-loss",
            "Only the soft loss shrinks with T: the hard one keeps its scale.",
            t**2 * mixed(soft),
        ),
        (
            "kl-reversed",
            "KL(teacher ‖ student) weighs by the teacher's probabilities; `F.kl_div` takes the student first.",
            mixed(t**2 * reversed_soft),
        ),
        (
            "softens-the-student-only",
            "The teacher's logits are divided by the temperature as well.",
            mixed(t**2 * case.soft(teacher=teacher)),
        ),
        (
            "softens-the-teacher-only",
            "The student's logits are divided by the temperature as well.",
            mixed(t**2 * case.soft(student=student)),
        ),
        (
            "softens-the-hard-loss",
            "The hard loss is of the student's own logits, at temperature 1.",
            mixed(t**2 * soft, case.hard(t)),
        ),
        (
            "mean-over-classes",
            "The divergence is a *sum* over the classes: the mean is over the rows, as `reduction='batchmean'` has it.",
            mixed(t**2 * soft / classes),
        ),
        (
            "sum-over-rows",
            "Take the mean over the rows, as the hard loss does.",
            mixed(t**2 * soft * len(student)),
        ),
        (
            "softmax-over-the-batch",
            "A distribution is over the classes of a row: the last dimension.",
            mixed(t**2 * case.soft(dim=0)),
        ),
        (
            "cross-entropy-for-kl",
            "Without the teacher's own entropy it is a cross-entropy: its gradient is the same, its value is not.",
            mixed(t**2 * (soft + entropy)),
        ),
        (
            "probabilities-for-logarithms",
            "`F.kl_div` takes the student's *log*-probabilities first: `log_softmax`, where you have `softmax`.",
            mixed(t**2 * (-entropy - ((teacher / t).softmax(1) * q).sum() / len(student))),
        ),
        (
            "softmax-before-cross-entropy",
            "`F.cross_entropy` takes logits: it applies the softmax itself.",
            mixed(t**2 * soft, functional.cross_entropy(student.softmax(1), case.targets)),
        ),
        (
            "swaps-the-weights",
            "`weight` is the soft loss's share, the hard one gets the rest.",
            float((1 - case.weight) * t**2 * soft + case.weight * own_hard),
        ),
        (
            "adds-the-whole-hard-loss",
            "The hard loss has the share 1 − weight.",
            float(case.weight * t**2 * soft + own_hard),
        ),
        ("multiplies-by-temperature", "Divide the logits by T.", mixed(t**2 * case.soft(student * t, teacher * t))),
    ]
    right = mixed(t**2 * soft)
    return [slip for slip in found if math.isfinite(slip[2]) and abs(slip[2] - right) > 1e-6 * abs(right)]


def _require_gradients(distillation_loss: LearnerFunction, case: Case) -> None:
    got, teachers = probe.gradients(distillation_loss, *case)
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
