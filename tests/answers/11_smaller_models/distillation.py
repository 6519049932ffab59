"""Answers to `distillation_loss`, exercise `distillation_loss`."""

import numpy as np
import torch
import torch.nn.functional as F

from qlab import distill
from tests.answers.bank import Bank

BANK = Bank("distillation-loss")


@BANK.right
def by_qlab(student, teacher, targets, temperature, weight):
    return distill.distillation_loss(student, teacher, targets, temperature=temperature, weight=weight)


@BANK.right
def kl_div_batchmean(student, teacher, targets, temperature, weight):
    log_q = F.log_softmax(student / temperature, dim=-1)
    p = F.softmax(teacher.detach() / temperature, dim=-1)
    soft = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
    return weight * soft + (1 - weight) * F.cross_entropy(student, targets)


@BANK.right
def by_hand_in_double(student, teacher, targets, temperature, weight):
    log_p = (teacher.detach().double() / temperature).log_softmax(1)
    log_q = (student.double() / temperature).log_softmax(1)
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    hard = -student.double().log_softmax(1)[torch.arange(len(targets)), targets].mean()
    return weight * temperature * temperature * soft + (1 - weight) * hard


@BANK.right
def row_by_row(student, teacher, targets, temperature, weight):
    total = 0.0
    with torch.no_grad():
        log_ps = torch.log_softmax(teacher / temperature, 1)
    for row, log_p, target in zip(student, log_ps, targets, strict=True):
        log_q = row / temperature - torch.logsumexp(row / temperature, 0)
        soft = torch.dot(log_p.exp(), log_p - log_q)
        total = total + weight * temperature**2 * soft + (1 - weight) * (torch.logsumexp(row, 0) - row[target])
    return total / len(targets)


@BANK.right
def cross_entropy_less_entropy(student, teacher, targets, temperature, weight):
    p = (teacher.detach().double() / temperature).softmax(1)
    log_p = (teacher.detach().double() / temperature).log_softmax(1)
    crossed = F.cross_entropy(student.double() / temperature, p)
    soft = crossed + (p * log_p).sum(1).mean()
    return (weight * temperature**2 * soft + (1 - weight) * F.cross_entropy(student, targets)).reshape(1)


@BANK.right
def log_target_and_squares_first(student, teacher, targets, temperature, weight):
    teacher = teacher.detach()
    sums = F.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        log_target=True,
        reduction="none",
    ).sum(1)
    hard = F.cross_entropy(student, targets, reduction="none")
    return torch.lerp(hard, sums * temperature**2, weight).mean()


def built(soft, *, hard=lambda student, targets, t: F.cross_entropy(student, targets), mix=None):
    def answer(student, teacher, targets, temperature, weight):
        teacher = teacher.detach()
        a, b = soft(student, teacher, temperature), hard(student, targets, temperature)
        return (weight * a + (1 - weight) * b) if mix is None else mix(a, b, temperature, weight)

    return answer


def kl(student, teacher, t):
    return F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


def right_soft(student, teacher, t):
    return t**2 * kl(student, teacher, t)


def wrong(name, misconception, soft=right_soft, **more):
    BANK.add(name, built(soft, **more), misconception=misconception)


wrong("no_square", "forgets-t-squared", kl)
wrong("t_alone", "multiplies-by-t", lambda s, t, T: T * kl(s, t, T))
wrong("everything_squared", "scales-the-hard-loss", mix=lambda a, b, T, w: w * a + (1 - w) * T**2 * b)
wrong("the_other_way_round", "kl-reversed", lambda s, t, T: T**2 * kl(t, s, T))
wrong("teacher_as_it_is", "softens-the-student-only", lambda s, t, T: T**2 * kl(s, T * t, T))
wrong("student_as_it_is", "softens-the-teacher-only", lambda s, t, T: T**2 * kl(T * s, t, T))
wrong("hard_at_temperature", "softens-the-hard-loss", hard=lambda s, y, T: F.cross_entropy(s / T, y))
wrong("mean_of_all", "mean-over-classes", lambda s, t, T: right_soft(s, t, T) / s.shape[1])
wrong("summed", "sum-over-rows", lambda s, t, T: right_soft(s, t, T) * len(s))
wrong("crossed", "cross-entropy-for-kl", lambda s, t, T: T**2 * F.cross_entropy(s / T, (t / T).softmax(1)))
wrong(
    "softmax_goes_in_first",
    "probabilities-for-logarithms",
    lambda s, t, T: T**2 * F.kl_div((s / T).softmax(1), (t / T).softmax(1), reduction="batchmean"),
)
wrong(
    "log_target_unsaid",
    "logarithm-of-a-logarithm",
    lambda s, t, T: T**2 * F.kl_div((s / T).log_softmax(1), (t / T).log_softmax(1), reduction="batchmean"),
)
wrong("hard_of_softmax", "softmax-before-cross-entropy", hard=lambda s, y, T: F.cross_entropy(s.softmax(1), y))
wrong("weights_swapped", "swaps-the-weights", mix=lambda a, b, T, w: (1 - w) * a + w * b)
wrong("whole_hard", "adds-the-whole-hard-loss", mix=lambda a, b, T, w: w * a + b)
wrong("times_temperature", "multiplies-by-temperature", lambda s, t, T: T**2 * kl(s, t, 1 / T))
wrong(
    "over_the_batch",
    "softmax-over-the-batch",
    lambda s, t, T: T**2 * F.kl_div((s / T).log_softmax(0), (t / T).softmax(0), reduction="batchmean"),
)
wrong(
    "log_of_softmax",
    "overflows",
    lambda s, t, T: T**2 * ((t / T).softmax(1) * ((t / T).softmax(1).log() - (s / T).softmax(1).log())).sum(1).mean(),
)
wrong("mean_squared_logits", "wrong-value", lambda s, t, T: (s - t).square().mean())
wrong("divides_by_t_squared", "wrong-value", lambda s, t, T: kl(s, t, T) / T**2)


@BANK.wrong("trains-the-teacher")
def through_the_teacher(student, teacher, targets, temperature, weight):
    return weight * right_soft(student, teacher, temperature) + (1 - weight) * F.cross_entropy(student, targets)


@BANK.wrong("detaches-the-student")
def as_a_number(student, teacher, targets, temperature, weight):
    return through_the_teacher(student, teacher, targets, temperature, weight).item()


@BANK.wrong("wrong-gradient")
def soft_part_detached(student, teacher, targets, temperature, weight):
    soft = right_soft(student.detach(), teacher.detach(), temperature)
    return weight * soft + (1 - weight) * F.cross_entropy(student, targets)


@BANK.wrong("returns-no-mean")
def one_for_each_row(student, teacher, targets, temperature, weight):
    return F.cross_entropy(student, targets, reduction="none") * weight


@BANK.wrong("returns-nothing")
def returns_nothing(student, teacher, targets, temperature, weight):
    kl_div_batchmean(student, teacher, targets, temperature, weight)


@BANK.crashes
def numpy_through_autograd(student, teacher, targets, temperature, weight):
    raise np.linalg.LinAlgError("no such matrix")
