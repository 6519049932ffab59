"""Answers to `adam_step`, exercise `adam_step`."""
# ruff: noqa: PLR0913, PLR0917 - the arguments of Algorithm 1

import math

import numpy as np
import torch

from qlab.optimizers import adam_update
from tests.answers.bank import Bank

BANK = Bank("adam-step")


@BANK.right
def by_qlab(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    adam_update(parameter, gradient, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=max(eps, 2.0**-100))
    return parameter, exp_avg, exp_avg_sq


@BANK.right
def as_in_the_paper(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    m = betas[0] * exp_avg + (1 - betas[0]) * gradient
    v = betas[1] * exp_avg_sq + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


@BANK.right
def by_torchs_optimizer(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    parameter = torch.nn.Parameter(parameter)
    parameter.grad = gradient
    optimizer = torch.optim.Adam([parameter], lr=lr, betas=betas, eps=eps)
    optimizer.state[parameter] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": exp_avg,
        "exp_avg_sq": exp_avg_sq,
    }
    optimizer.step()
    return parameter, exp_avg, exp_avg_sq


@BANK.right
def element_by_element(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    rows = zip(parameter.tolist(), gradient.tolist(), exp_avg.tolist(), exp_avg_sq.tolist(), strict=True)
    out = []
    for p, g, old_m, old_v in rows:
        m, v = old_m + (1 - betas[0]) * (g - old_m), old_v + (1 - betas[1]) * (g * g - old_v)
        change = lr * m / (1 - betas[0] ** step) / (math.sqrt(v / (1 - betas[1] ** step)) + eps)
        out.append((p - change, m, v))
    return list(map(list, zip(*out, strict=True)))


@BANK.right
def in_numpy_and_fp64(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    p, g, m, v = (t.numpy().astype(np.float64) for t in (parameter, gradient, exp_avg, exp_avg_sq))
    m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * np.square(g)
    return [p - lr * m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + eps), m, v]


@BANK.right
def in_place_and_from_the_end_of_section_two(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    root = math.sqrt(1 - betas[1] ** step)
    parameter -= lr * root / (1 - betas[0] ** step) * exp_avg / (exp_avg_sq.sqrt() + eps * root)
    return parameter, exp_avg, exp_avg_sq


@BANK.right
def with_the_step_as_a_tensor(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    step = torch.tensor(step, dtype=torch.float32)
    m = exp_avg * betas[0] + gradient * (1 - betas[0])
    v = exp_avg_sq * betas[1] + gradient.pow(2) * (1 - betas[1])
    first, second = 1 - torch.pow(betas[0], step), 1 - torch.pow(betas[1], step)
    return torch.sub(parameter, lr * (m / first) / (torch.sqrt(v / second) + eps)), m, v


def made(
    first=lambda b, m, g: b * m + (1 - b) * g,
    second=lambda b, v, g: b * v + (1 - b) * g * g,
    correct=lambda b, t: 1 - b**t,
    change=lambda m, v, eps: m / (v.sqrt() + eps),
    end=lambda p, change, lr: p - lr * change,
    hand_back=lambda p, m, v, *hats: (p, m, v),
):
    """Make an answer from its parts, so that each slip is one line."""

    def answer(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
        m, v = first(betas[0], exp_avg, gradient), second(betas[1], exp_avg_sq, gradient)
        hats = m / correct(betas[0], step), v / correct(betas[1], step)
        return hand_back(end(parameter, change(*hats, eps), lr), m, v, *hats)

    return answer


def wrong(name, misconception, **parts):
    BANK.add(name, made(**parts), misconception=misconception)


def no_correction(b, t):
    return 1


def inside(m, v, eps):
    return m / (v + eps).sqrt()


wrong("without_bias_correction", "no-bias-correction", correct=no_correction)
wrong("epsilon_in_the_root", "epsilon-inside-root", change=inside)
wrong("both_slips", "no-bias-correction", correct=no_correction, change=inside)
wrong("without_epsilon", "ignores-epsilon", change=lambda m, v, eps: m / v.sqrt())
wrong("its_own_epsilon", "ignores-epsilon", change=lambda m, v, eps: m / (v.sqrt() + 1e-8))
wrong("clamps_the_root", "clamps-to-epsilon", change=lambda m, v, eps: m / v.sqrt().clamp(min=eps))
wrong("no_root", "forgets-the-root", change=lambda m, v, eps: m / (v + eps))
wrong("multiplies", "multiplies-by-the-root", change=lambda m, v, eps: m * (v.sqrt() + eps))
wrong("momentum_only", "no-second-moment", change=lambda m, v, eps: m)
wrong("adds_the_update", "climbs", end=lambda p, change, lr: p + lr * change)
wrong("stays_where_it_is", "never-moves", end=lambda p, change, lr: p)
wrong("no_rate", "ignores-lr", end=lambda p, change, lr: p - change)
wrong("its_own_rate", "ignores-lr", end=lambda p, change, lr: p - 1e-3 * change)
wrong("counts_from_two", "counts-from-the-wrong-step", correct=lambda b, t: 1 - b ** (t + 1))
wrong("corrects_for_one_step", "corrects-as-in-the-first-step", correct=lambda b, t: 1 - b)
wrong("multiplies_beta_by_the_step", "corrects-by-a-product", correct=lambda b, t: 1 - b * t)
wrong("multiplies_by_the_correction", "multiplies-by-the-correction", correct=lambda b, t: 1 / (1 - b**t))
wrong("betas_for_the_new", "swaps-beta", first=lambda b, m, g: (1 - b) * m + b * g)
wrong("sums_gradients", "sums-instead-of-averages", first=lambda b, m, g: b * m + g)
wrong("sums_squares", "sums-instead-of-averages", second=lambda b, v, g: v + g * g)
wrong("absolute_gradients", "does-not-square", second=lambda b, v, g: b * v + (1 - b) * g.abs())
wrong("the_norm_squared", "one-square-for-all", second=lambda b, v, g: b * v + (1 - b) * (g @ g))
wrong(
    "the_usual_betas",
    "ignores-the-betas",
    first=lambda b, m, g: 0.9 * m + 0.1 * g,
    second=lambda b, v, g: 0.999 * v + 0.001 * g * g,
    correct=lambda b, t: 1 - (0.9 if b < 0.9 else 0.999) ** t,
)
wrong(
    "hands_back_the_corrected",
    "keeps-the-corrected-moments",
    hand_back=lambda p, m, v, m_hat, v_hat: (p, m_hat, v_hat),
)
wrong("one_percent_too_far", "wrong-value", end=lambda p, change, lr: p - 1.01 * lr * change)
wrong("the_parameter_alone", "returns-wrong-type", hand_back=lambda p, *rest: p)
wrong("in_another_order", "wrong-value", hand_back=lambda p, m, v, *hats: (m, v, p))


@BANK.wrong("corrects-one-moment")
def corrects_the_first_only(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    m, v = exp_avg.lerp(gradient, 1 - betas[0]), exp_avg_sq.lerp(gradient**2, 1 - betas[1])
    return parameter - lr * m / (1 - betas[0] ** step) / (v.sqrt() + eps), m, v


@BANK.wrong("epsilon-before-correction")
def the_short_form_with_the_same_epsilon(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    m, v = exp_avg.lerp(gradient, 1 - betas[0]), exp_avg_sq.lerp(gradient**2, 1 - betas[1])
    rate = lr * math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    return parameter - rate * m / (v.sqrt() + eps), m, v


@BANK.wrong("uses-the-gradient")
def rmsprop_with_correction(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    m, v = exp_avg.lerp(gradient, 1 - betas[0]), exp_avg_sq.lerp(gradient**2, 1 - betas[1])
    return parameter - lr * gradient / ((v / (1 - betas[1] ** step)).sqrt() + eps), m, v


@BANK.wrong("never-moves")
def moves_before_it_averages(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    m, v = exp_avg.lerp(gradient, 1 - betas[0]), exp_avg_sq.lerp(gradient**2, 1 - betas[1])
    first, second = (1 - beta**step for beta in betas)
    return parameter - lr * (exp_avg / first) / ((exp_avg_sq / second).sqrt() + eps), m, v


@BANK.wrong("returns-nothing")
def returns_nothing(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    adam_update(parameter, gradient, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=max(eps, 2.0**-100))


@BANK.crashes
def unpacks_one_beta(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps):
    beta1, beta2, eps = betas
    return parameter * beta1, exp_avg * beta2, exp_avg_sq * eps
