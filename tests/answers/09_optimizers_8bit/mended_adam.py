"""Answers to `mended_adam`, exercise `adam_as_printed`."""
# ruff: noqa: PLR0913, PLR0917 - the arguments of the printed loop

import math

import numpy as np
import torch

from qlab.optimizers import adam_update
from tests.answers.bank import Bank

BANK = Bank("adam-as-printed")


@BANK.right
def as_printed_and_mended(gradient_of, x, steps, lr, betas, eps):
    m = v = torch.zeros_like(x)
    path = []
    for t in range(1, steps + 1):
        g = gradient_of(x)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        x = x - lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        path.append(x)
    return torch.stack(path)


@BANK.right
def by_qlab(gradient_of, x, steps, lr, betas, eps):
    m, v, path = torch.zeros_like(x), torch.zeros_like(x), []
    for step in range(1, steps + 1):
        adam_update(x, gradient_of(x), m, v, step=step, lr=lr, betas=betas, eps=eps)
        path.append(x.clone())
    return path


@BANK.right
def by_torchs_optimizer(gradient_of, x, steps, lr, betas, eps):
    x = torch.nn.Parameter(x)
    optimizer = torch.optim.Adam([x], lr=lr, betas=betas, eps=eps)
    path = torch.empty(steps, len(x), dtype=torch.float64)
    for row in path:
        x.grad = gradient_of(x)
        optimizer.step()
        row.copy_(x.detach())
    return path


@BANK.right
def in_fp32(gradient_of, x, steps, lr, betas, eps):
    return as_printed_and_mended(lambda x: gradient_of(x).float(), x.float(), steps, lr, betas, eps)


@BANK.right
def in_numpy(gradient_of, x, steps, lr, betas, eps):
    x, m, v, path = x.numpy(), 0, 0, np.empty((steps, len(x)))
    for t in range(steps):
        g = gradient_of(torch.from_numpy(x)).numpy()
        m, v = m + (1 - betas[0]) * (g - m), v + (1 - betas[1]) * (g * g - v)
        first, second = 1 - betas[0] ** (t + 1), 1 - betas[1] ** (t + 1)
        x = path[t] = x - lr * m / first / (np.sqrt(v / second) + eps)
    return path


@BANK.right
def with_corrections_that_are_carried_along(gradient_of, x, steps, lr, betas, eps):
    """1 − βᵗ is the average of ones: average these beside the gradients."""
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    first = second = 0.0
    path = [x]
    while len(path) <= steps:
        g = gradient_of(path[-1])
        m.lerp_(g, 1 - betas[0])
        v.lerp_(g.square(), 1 - betas[1])
        first, second = betas[0] * first + 1 - betas[0], betas[1] * second + 1 - betas[1]
        path.append(path[-1] - lr / first * m / ((v / second).sqrt() + eps))
    return torch.stack(path[1:])


@BANK.right
def with_epsilon_scaled_instead(gradient_of, x, steps, lr, betas, eps):
    m, v, path = torch.zeros_like(x), torch.zeros_like(x), []
    for t in range(1, steps + 1):
        g = gradient_of(x)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        root = math.sqrt(1 - betas[1] ** t)
        x = x - lr * root / (1 - betas[0] ** t) * m / (v.sqrt() + eps * root)
        path.append(x)
    return [row.tolist() for row in path]


def made(correct=lambda b, t: 1 - b**t, root=lambda v, eps: v.sqrt() + eps, sign=-1, start=1, keep=lambda x: x):
    """Make an answer of the printed loop's shape, so that each slip is one line."""

    def answer(gradient_of, x, steps, lr, betas, eps):
        m = v = torch.zeros_like(x)
        path = []
        for t in range(start, steps + start):
            g = gradient_of(x)
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            x = x + sign * lr * (m / correct(betas[0], t)) / root(v / correct(betas[1], t), eps)
            path.append(keep(x))
        return torch.stack(path)

    return answer


def wrong(name, misconception, **parts):
    BANK.add(name, made(**parts), misconception=misconception)


def no_correction(b, t):
    return 1


def inside(v, eps):
    return (v + eps).sqrt()


wrong("as_printed", "no-bias-correction", correct=no_correction, root=inside)
wrong("mends_epsilon_only", "no-bias-correction", correct=no_correction)
wrong("mends_the_correction_only", "epsilon-inside-root", root=inside)
wrong("counts_from_two", "counts-from-the-wrong-step", start=2)
wrong("counts_from_zero", "counts-from-the-wrong-step", start=0, correct=lambda b, t: torch.tensor(1.0 - b**t))
wrong("corrects_for_one_step", "corrects-as-in-the-first-step", correct=lambda b, t: 1 - b)
wrong("leaves_epsilon_out", "ignores-epsilon", root=lambda v, eps: v.sqrt())
wrong("its_own_epsilon", "ignores-epsilon", root=lambda v, eps: v.sqrt() + 1e-8)
wrong("climbs", "climbs", sign=1)
wrong("forgets_the_root", "forgets-the-root", root=lambda v, eps: v + eps)
wrong("a_percent_too_far", "wrong-value", sign=-1.01)
wrong("largest_of_both", "clamps-to-epsilon", root=lambda v, eps: v.sqrt().clamp(min=eps))


@BANK.wrong("corrects-one-moment")
def corrects_the_first_only(gradient_of, x, steps, lr, betas, eps):
    m = v = torch.zeros_like(x)
    path = []
    for t in range(1, steps + 1):
        g = gradient_of(x)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        x = x - lr * m / (1 - betas[0] ** t) / (v.sqrt() + eps)
        path.append(x)
    return torch.stack(path)


@BANK.wrong("epsilon-before-correction")
def the_short_form_with_the_same_epsilon(gradient_of, x, steps, lr, betas, eps):
    m = v = torch.zeros_like(x)
    path = []
    for t in range(1, steps + 1):
        g = gradient_of(x)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        x = x - lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (v.sqrt() + eps)
        path.append(x)
    return torch.stack(path)


@BANK.wrong("keeps-the-corrected-moments")
def corrects_in_place(gradient_of, x, steps, lr, betas, eps):
    m = v = torch.zeros_like(x)
    path = []
    for t in range(1, steps + 1):
        g = gradient_of(x)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        x = x - lr * m / (v.sqrt() + eps)
        path.append(x)
    return torch.stack(path)


@BANK.wrong("appends-one-tensor")
def appends_what_it_changes(gradient_of, x, steps, lr, betas, eps):
    m, v, path = torch.zeros_like(x), torch.zeros_like(x), []
    for step in range(1, steps + 1):
        adam_update(x, gradient_of(x), m, v, step=step, lr=lr, betas=betas, eps=eps)
        path.append(x)
    return torch.stack(path)


@BANK.wrong("one-gradient-for-all")
def takes_the_gradient_of_the_start(gradient_of, x, steps, lr, betas, eps):
    start = gradient_of(x)
    return as_printed_and_mended(lambda x: start, x, steps, lr, betas, eps)


@BANK.wrong("wrong-shape")
def with_the_start(gradient_of, x, steps, lr, betas, eps):
    return torch.cat([x[None], as_printed_and_mended(gradient_of, x, steps, lr, betas, eps)])


@BANK.wrong("wrong-shape")
def the_end_alone(gradient_of, x, steps, lr, betas, eps):
    return as_printed_and_mended(gradient_of, x, steps, lr, betas, eps)[-1].repeat(2)


@BANK.wrong("returns-nothing")
def returns_nothing(gradient_of, x, steps, lr, betas, eps):
    as_printed_and_mended(gradient_of, x, steps, lr, betas, eps)


@BANK.crashes
def indexes_the_gradient(gradient_of, x, steps, lr, betas, eps):
    return x - lr * gradient_of[0]
