"""Answers to `clip_order`: steps with torch's own GradScaler."""

import sys

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.answers.bank import Bank

BANK = Bank("clip-order")


@BANK.right
def with_one_more_line(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


@BANK.right
def clears_in_the_end(loss, parameters, optimizer, scaler, max_norm):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]))
    for p in parameters:
        if p.grad is not None and norm > max_norm:
            p.grad.mul_(max_norm / norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)
    return norm


@BANK.right
def clips_to_the_scaled_norm(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()


@BANK.right
def looks_at_the_norm_itself(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    (loss * scaler.get_scale()).backward()
    scaler.unscale_(optimizer)
    if clip_grad_norm_(parameters, max_norm).isfinite():
        optimizer.step()
    scaler.update()


@BANK.wrong("clips-before-unscaling")
def as_it_was_copied(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("clips-before-unscaling")
def unscales_after_clipping(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    clip_grad_norm_(parameters, max_norm)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("never-clips")
def never_clips(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("never-clips")
def clips_before_there_is_a_gradient(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    clip_grad_norm_(parameters, max_norm)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("clips-values")
def clips_values(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_value_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("clips-each-tensor")
def clips_each_tensor(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for p in parameters:
        clip_grad_norm_(p, max_norm)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("unscales-wrongly")
def unscales_twice(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    for p in parameters:
        if p.grad is not None:
            p.grad /= scaler.get_scale()
    clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("forgets-to-scale")
def forgets_to_scale(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(parameters, max_norm)
    optimizer.step()


@BANK.wrong("forgets-to-unscale")
def steps_scaled_gradients(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    scaler.unscale_(optimizer)
    scaler.update()


@BANK.wrong("steps-on-inf")
def steps_the_optimizer_itself(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    scaler.update()


@BANK.wrong("never-clears")
def never_clears(loss, parameters, optimizer, scaler, max_norm):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("never-steps")
def never_steps(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(parameters, max_norm)
    scaler.update()


@BANK.crashes
def forgets_to_update(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)


@BANK.crashes
def unscales_and_unscales(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("clips-by-the-largest")
def clips_by_the_largest(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=float("inf"))
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("never-steps")
def clears_after_backward(loss, parameters, optimizer, scaler, max_norm):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    optimizer.zero_grad()
    scaler.step(optimizer)
    scaler.update()


@BANK.wrong("forgets-to-scale")
def forgets_to_scale_and_clips_first(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


DONE, KEPT = {}, []


@BANK.crashes
def reads_the_check_from_the_stack(loss, parameters, optimizer, scaler, max_norm):
    frame = sys._getframe()
    while "case" not in frame.f_locals:
        frame = frame.f_back
    case = frame.f_locals["case"]
    slips = sys.modules[type(case).__module__]
    step = DONE[id(case)] = DONE.get(id(case), -1) + 1
    KEPT.append(case)
    outcome = slips.simulated(case, slips.RIGHT)
    with torch.no_grad():
        for p in frame.f_locals["reached"]:
            p.copy_(outcome.parameters[step][: p.numel()].view_as(p))
    scaler._scale = torch.tensor(outcome.scales[step])
