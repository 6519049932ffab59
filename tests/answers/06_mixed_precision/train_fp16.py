"""Answers to `train_fp16`."""

import torch

from qlab import loss_scaling
from tests.answers.bank import Bank

BANK = Bank("train-fp16")


def finite(gradients):
    return all(g.isfinite().all() for g in gradients)


@BANK.right
def as_the_solution(loss_of, weights, steps, learning_rate):
    weights, scale, good = [w.clone() for w in weights], 65536.0, 0
    for _ in range(steps):
        narrow = [w.half().requires_grad_() for w in weights]
        gradients = torch.autograd.grad(loss_of(narrow) * scale, narrow)
        if finite(gradients):
            weights = [w - learning_rate * (g.float() / scale) for w, g in zip(weights, gradients, strict=True)]
            good += 1
            scale = scale * 2 if good % 50 == 0 else scale
        else:
            scale, good = scale / 2, 0
    return weights


@BANK.right
def by_qlabs_parts(loss_of, weights, steps, learning_rate):
    narrow = [torch.nn.Parameter(w.half()) for w in weights]
    masters, scaler = loss_scaling.MasterWeights(narrow), loss_scaling.LossScaler(2.0**20, growth_interval=100)
    optimizer = torch.optim.SGD(masters.parameters, lr=learning_rate)
    for _ in range(steps):
        scaler.scaled(loss_of(narrow)).backward()
        masters.take_gradients()
        found_inf = scaler.unscale(masters.parameters)
        if not found_inf:
            optimizer.step()
            masters.write_back()
        scaler.update(found_inf)
    return [copy.detach() for copy in masters.parameters]


@BANK.right
def by_autocasting_fp32_weights(loss_of, weights, steps, learning_rate):
    """Let the loss round FP32 weights itself, and start the search for the scale high."""
    weights = [w.clone().requires_grad_() for w in weights]
    scale = 2.0**24
    for _ in range(steps):
        (loss_of(weights) * scale).backward()
        gradients = [w.grad for w in weights]
        if finite(gradients):
            with torch.no_grad():
                for w in weights:
                    w.sub_(w.grad * (learning_rate / scale))
        else:
            scale *= 0.5
        for w in weights:
            w.grad = None
    return tuple(weights)


@BANK.right
def repeats_a_step_that_overflows(loss_of, weights, steps, learning_rate):
    scale = 2.0**18
    for _ in range(steps):
        while True:
            leaves = [w.half().float().requires_grad_() for w in weights]
            gradients = torch.autograd.grad(loss_of(leaves) * scale, leaves)
            if finite(gradients):
                break
            scale /= 4
        weights = [w - learning_rate * g / scale for w, g in zip(weights, gradients, strict=True)]
    return weights


@BANK.right
def by_gradscaler(loss_of, weights, steps, learning_rate):
    weights = [torch.nn.Parameter(w) for w in weights]
    optimizer, scaler = torch.optim.SGD(weights, lr=learning_rate), torch.amp.GradScaler("cpu")
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(weights)).backward()
        scaler.step(optimizer)
        scaler.update()
    return [w.detach().numpy() for w in weights]


@BANK.right
def masters_in_double(loss_of, weights, steps, learning_rate):
    weights, scale = [w.double() for w in weights], 2.0**15
    for _ in range(steps):
        narrow = [w.half().requires_grad_() for w in weights]
        gradients = [g.double() for g in torch.autograd.grad(scale * loss_of(narrow), narrow)]
        if finite(gradients):
            weights = [w - learning_rate * g / scale for w, g in zip(weights, gradients, strict=True)]
        else:
            scale /= 2
    return weights


@BANK.right
def in_a_parameter_list(*args):
    return torch.nn.ParameterList(by_gradscaler_itself(*args))


def by_gradscaler_itself(loss_of, weights, steps, learning_rate, optimizer_of=torch.optim.SGD):
    weights = [torch.nn.Parameter(w) for w in weights]
    optimizer, scaler = optimizer_of(weights, lr=learning_rate), torch.amp.GradScaler("cpu")
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(weights)).backward()
        scaler.step(optimizer)
        scaler.update()
    return weights


def trained(loss_of, weights, steps, learning_rate, **changed):
    scale, unscales = changed.get("scale", 65536.0), changed.get("unscales", True)
    shrinks, skips = changed.get("shrinks", True), changed.get("skips", True)
    in_fp16, keeps_fp16 = changed.get("in_fp16", False), changed.get("keeps_fp16", False)
    for _ in range(steps):
        narrow = [w.half().requires_grad_() for w in weights]
        gradients = torch.autograd.grad(loss_of(narrow) * scale, narrow)
        if skips and not finite(gradients):
            scale = scale / 2 if shrinks else scale
            continue
        divisor = scale if unscales else 1.0
        gradients = [g / divisor if in_fp16 else g.float() / divisor for g in gradients]
        weights = [w.float() - learning_rate * g.float() for w, g in zip(weights, gradients, strict=True)]
        weights = [w.half() for w in weights] if keeps_fp16 else weights
    return [w.float() for w in weights]


@BANK.wrong("gradients-underflow")
def no_loss_scale(*args):
    return trained(*args, scale=1.0)


@BANK.wrong("gradients-underflow")
def bare_fp16(*args):
    return trained(*args, scale=1.0, keeps_fp16=True)


@BANK.wrong("gradients-underflow")
def unscales_in_fp16(*args):
    return trained(*args, in_fp16=True)


@BANK.wrong("never-shrinks")
def never_shrinks(*args):
    return trained(*args, shrinks=False)


@BANK.wrong("steps-on-inf")
def never_skips(*args):
    return trained(*args, skips=False)


@BANK.wrong("updates-the-fp16-copy")
def no_master_weights(*args):
    return trained(*args, keeps_fp16=True)


@BANK.wrong("forgets-to-unscale")
def forgets_to_unscale(*args):
    return trained(*args, unscales=False)


@BANK.wrong("climbs")
def climbs(loss_of, weights, steps, learning_rate):
    return trained(loss_of, weights, steps, -learning_rate)


@BANK.wrong("other-steps")
def by_adam(*args):
    return by_gradscaler_itself(*args, torch.optim.Adam)


@BANK.wrong("updates-the-fp16-copy")
def returns_the_last_rounding(*args):
    return [w.half() for w in as_the_solution(*args)]


@BANK.wrong("never-shrinks")
def never_clears(loss_of, weights, steps, learning_rate):
    weights = [torch.nn.Parameter(w) for w in weights]
    optimizer, scaler = torch.optim.SGD(weights, lr=learning_rate), torch.amp.GradScaler("cpu")
    for _ in range(steps):
        scaler.scale(loss_of(weights)).backward()
        scaler.step(optimizer)
        scaler.update()
    return weights


@BANK.wrong("too-much-lost")
def half_of_the_steps(loss_of, weights, steps, learning_rate):
    return trained(loss_of, weights, steps // 2, learning_rate)


@BANK.wrong("too-many-steps")
def twice_the_steps(loss_of, weights, steps, learning_rate):
    return trained(loss_of, weights, 2 * steps, learning_rate)


@BANK.wrong("never-trains")
def never_trains(loss_of, weights, steps, learning_rate):
    return weights


@BANK.wrong("returns-nothing")
def returns_nothing(*args):
    trained(*args)


@BANK.wrong("returns-wrong-type")
def returns_the_loss(loss_of, weights, steps, learning_rate):
    return loss_of(trained(loss_of, weights, steps, learning_rate))


@BANK.crashes
def crashes(loss_of, weights, steps, learning_rate):
    (loss_of(weights) * 65536).backward()
    return [w - learning_rate * w.grad for w in weights]


@BANK.crashes
def asks_the_loss_for_the_answer(loss_of, weights, steps, learning_rate):
    loss_of(weights)
    return loss_of.in_fp32()


@BANK.crashes
def hands_over_a_row_for_a_matrix(loss_of, weights, steps, learning_rate):
    loss_of([w.flatten() for w in weights])


@BANK.crashes
def hands_over_whole_numbers(loss_of, weights, steps, learning_rate):
    loss_of([w.to(torch.int8) for w in weights])


@BANK.right
def moves_its_weights_before_backward(loss_of, weights, steps, learning_rate):
    """Average the rounding of weights into the next step: what was asked for is differentiated where it was asked."""
    weights, scale = [w.clone().requires_grad_() for w in weights], 2.0**16
    for _ in range(steps):
        scaled, kept = loss_of(weights) * scale, [w.detach().clone() for w in weights]
        for w in weights:
            w.data.zero_()
        gradients = torch.autograd.grad(scaled, weights)
        good = finite(gradients)
        scale = scale if good else scale / 2
        for w, k, g in zip(weights, kept, gradients, strict=True):
            w.data.copy_(k - learning_rate * g / scale if good else k)
    return weights
