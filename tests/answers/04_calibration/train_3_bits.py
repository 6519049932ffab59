"""Answers to `train_3_bits`."""

import numpy as np
import torch
from torch import nn

from qlab.calibrate import FakeQuantize, LearnedStep
from qlab.quantize import PER_TENSOR
from tests.answers.bank import Answer, Bank

BANK = Bank("train-3-bits")


def step_of(weight):
    return weight.detach().abs().max() / 3


def on_grid(weight, step=None):
    step = step_of(weight) if step is None else step
    return torch.round(weight / step).clamp(-3, 3) * step


def straight(weight):
    return weight + (on_grid(weight) - weight).detach()


def gradient_of(seen, latent, inputs, targets):
    loss = nn.functional.mse_loss(inputs @ seen(latent).T, targets)
    return torch.autograd.grad(loss, latent)[0]


def trained(seen, *, falls=True, keep=lambda latent: latent, sign=-1):
    """A loop of plain gradient descent on a latent weight, of which the loss sees `seen`; `keep` follows each step."""

    def train(weight, inputs, targets, steps, learning_rate):
        latent = weight.clone().requires_grad_()
        for step in range(steps):
            gradient = gradient_of(seen, latent, inputs, targets)
            rate = learning_rate * (1 - step / steps) if falls else learning_rate
            latent = keep((latent + sign * rate * gradient).detach()).requires_grad_()
        return latent.detach()

    return train


def then(finish, train):
    return lambda *args: finish(train(*args))


BANK.add("falling_rate", then(on_grid, trained(straight)))
BANK.add("fixed_rate", then(on_grid, trained(straight, falls=False)))


@BANK.right
def without_autograd(weight, inputs, targets, steps, learning_rate):
    latent, count = weight.clone(), targets.numel()
    for step in range(steps):
        error = inputs @ on_grid(latent).T - targets
        latent -= learning_rate * (1 - step / steps) * 2 / count * error.T @ inputs
    return on_grid(latent)


@BANK.right
def in_numpy(weight, inputs, targets, steps, learning_rate):
    latent, x, y = (t.numpy().astype(np.float64) for t in (weight, inputs, targets))
    for _ in range(steps):
        scale = np.abs(latent).max() / 3
        error = np.einsum("ni,oi->no", x, np.rint(latent / scale) * scale) - y  # no BLAS, whose threads may collide
        latent = latent - learning_rate * 2 * np.einsum("no,ni->oi", error, x) / y.size
    scale = np.abs(latent).max() / 3
    return np.rint(latent / scale) * scale


@BANK.right
def keeps_the_best(weight, inputs, targets, steps, learning_rate):
    latent, best, least = weight.clone().requires_grad_(), None, torch.inf
    for _ in range(steps):
        seen = straight(latent)
        loss = nn.functional.mse_loss(inputs @ seen.T, targets)
        if loss.item() < least:
            least, best = loss.item(), seen.detach().clone()
        loss.backward()
        with torch.no_grad():
            latent -= learning_rate * latent.grad
            latent.grad = None
    return best


@BANK.right
def clips_and_masks(weight, inputs, targets, steps, learning_rate):
    """The scale stays what it was at the start; what leaves the grid gets no gradient."""
    latent, step = weight.clone().requires_grad_(), step_of(weight)
    for done in range(steps):
        inside = latent.clamp(-3 * step, 3 * step)
        seen = inside + (on_grid(inside, step) - inside).detach()
        (gradient,) = torch.autograd.grad((inputs @ seen.T - targets).square().mean(), latent)
        latent.data -= learning_rate * (1 - done / steps) * gradient
    return on_grid(latent.detach(), step)


@BANK.right
def returns_what_the_loss_saw(weight, inputs, targets, steps, learning_rate):
    return straight(trained(straight)(weight, inputs, targets, steps, learning_rate).requires_grad_())


@BANK.right
def the_scale_has_a_gradient_too(weight, inputs, targets, steps, learning_rate):
    def seen(latent):
        steps = latent / (latent.abs().max() / 3)
        return (steps + (steps.round() - steps).detach()) * (latent.abs().max() / 3)

    return on_grid(trained(seen)(weight, inputs, targets, steps, learning_rate))


@BANK.right
def module_of_qlab(weight, inputs, targets, steps, learning_rate):
    rounding = FakeQuantize(bits=3, tile=PER_TENSOR)
    return rounding(trained(rounding)(weight, inputs, targets, steps, learning_rate)).detach()


@BANK.right_but_slow
def stochastic_gradient_descent_of_torch(weight, inputs, targets, steps, learning_rate):
    latent = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([latent], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(inputs @ straight(latent).T, targets).backward()
        optimizer.step()
        schedule.step()
    return on_grid(latent.detach())


@BANK.right_but_slow
def adam_at_a_rate_of_its_own(weight, inputs, targets, steps, learning_rate):
    latent = nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([latent], lr=3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        nn.functional.mse_loss(inputs @ straight(latent).T, targets).backward()
        optimizer.step()
    return on_grid(latent.detach())


@BANK.right_but_slow
def learned_step(weight, inputs, targets, steps, learning_rate):
    rounding = LearnedStep(weight, bits=3, tile=PER_TENSOR)
    with torch.no_grad():
        rounding.scale.fill_(step_of(weight))
    latent = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([latent, rounding.scale], lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        nn.functional.mse_loss(inputs @ rounding(latent).T, targets).backward()
        optimizer.step()
    return rounding(latent).detach()


@BANK.right
def feeds_errors_forward(weight, inputs, targets, steps, learning_rate):
    """No training at all: solve for the weight, then round column by column, each error made good by later columns."""
    solution = torch.linalg.lstsq(inputs.double(), targets.double()).solution.T
    curvature = inputs.double().T @ inputs.double()
    left, result, step = solution.clone(), torch.zeros_like(solution), step_of(solution)
    for column in range(solution.shape[1]):
        inverse = torch.linalg.inv(curvature[column:, column:])
        result[:, column] = on_grid(left[:, column], step)
        error = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    return result


BANK.add("trains_in_float", then(on_grid, trained(lambda w: w)), misconception="rounds-at-the-end")
BANK.add(
    "trains_in_float_at_a_fixed_rate",
    then(on_grid, trained(lambda w: w, falls=False)),
    misconception="rounds-at-the-end",
)
BANK.add("rounds_what_it_keeps", then(on_grid, trained(straight, keep=on_grid)), misconception="updates-swallowed")
BANK.add(
    "rounds_what_it_keeps_at_a_fixed_rate",
    trained(straight, falls=False, keep=on_grid),
    misconception="updates-swallowed",
)
BANK.add(
    "keeps_the_rounded_weight_and_sees_it",
    trained(lambda w: w, keep=on_grid),
    misconception="updates-swallowed",
)
BANK.add("rounds_without_a_gradient", then(on_grid, trained(on_grid)), misconception="no-straight-through")
BANK.add("returns_the_latent_weight", trained(straight), misconception="returns-the-latent-weight")
BANK.add("never_rounds", trained(lambda w: w), misconception="never-rounds")
BANK.add("climbs", then(on_grid, trained(straight, sign=1)), misconception="moves-away")
BANK.add("zeros", lambda weight, *_: torch.zeros_like(weight), misconception="returns-zeros")
BANK.add("codes", then(lambda w: (w / step_of(w)).round(), trained(straight)), misconception="returns-codes")
BANK.add(
    "codes_in_int8", then(lambda w: (w / step_of(w)).round().char(), trained(straight)), misconception="returns-codes"
)
BANK.add("rounds_only", lambda weight, *_: on_grid(weight), misconception="no-straight-through")
BANK.add("the_start", lambda weight, *_: weight, misconception="never-rounds")


def rows_on_grid(weight):
    return on_grid(weight, weight.detach().abs().amax(1, keepdim=True) / 3)


BANK.add(
    "a_scale_for_each_row",
    then(rows_on_grid, trained(lambda w: w + (rows_on_grid(w) - w).detach())),
    misconception="a-scale-for-each-row",
)


def in_four_bits(weight):
    step = weight.detach().abs().max() / 7
    return torch.round(weight / step) * step


BANK.add(
    "four_bits",
    then(in_four_bits, trained(lambda w: w + (in_four_bits(w) - w).detach())),
    misconception="wrong-number-of-codes",
)


@BANK.wrong("no-straight-through")
def scale_alone_has_a_gradient(weight, inputs, targets, steps, learning_rate):
    latent = weight.clone().requires_grad_()
    for _ in range(steps):
        scale = latent.abs().max() / 3
        loss = nn.functional.mse_loss(inputs @ (torch.round(latent / scale) * scale).T, targets)
        loss.backward()
        latent.data -= learning_rate * latent.grad
        latent.grad = None
    return on_grid(latent.detach())


def best_clip(weight):
    clips = [weight.abs().max() * share / 40 for share in range(20, 41)]
    return min((on_grid(weight, clip / 3) for clip in clips), key=lambda w: (w - weight).square().sum().item())


BANK.add("floats_and_a_better_clip", then(best_clip, trained(lambda w: w)), misconception="too-much-lost")
BANK.add(
    "five_steps_only",
    lambda w, x, y, n, rate: BANK.answers[0].functions[0](w, x, y, 5, rate),
    misconception="too-much-lost",
)


@BANK.wrong("returns-nothing")
def forgets_to_return(weight, inputs, targets, steps, learning_rate):
    then(on_grid, trained(straight))(weight, inputs, targets, 3, learning_rate)


@BANK.wrong("wrong-shape")
def transposes(weight, inputs, targets, steps, learning_rate):
    return without_autograd(weight, inputs, targets, steps, learning_rate).T


@BANK.crashes
def detaches_before_backward(weight, inputs, targets, steps, learning_rate):
    latent = weight.clone().requires_grad_()
    nn.functional.mse_loss(inputs @ on_grid(latent).detach().T, targets).backward()
    return on_grid(latent)


@BANK.crashes
def multiplies_the_wrong_way(weight, inputs, targets, steps, learning_rate):
    return on_grid(trained(lambda w: straight(w).T)(weight, inputs, targets, steps, learning_rate))


def stub(weight, inputs, targets, steps, learning_rate):
    raise NotImplementedError("replace this line with your answer")


BANK.answers.append(Answer(BANK.exercise, "the_stub", (stub,), outcome="empty"))
