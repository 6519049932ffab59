"""Answers to `accumulation_step`, exercise `accumulation_loop`."""

import torch
import torch.nn.functional as F

from qlab import checkpointing
from tests.answers.bank import Bank

BANK = Bank("accumulation-loop")


def counted(batches):
    return sum(int((targets != -100).sum()) for _, targets in batches)


def summed(model, x, targets):
    return F.cross_entropy(model(x).flatten(0, 1), targets.flatten(), reduction="sum")


def mean(model, x, targets):
    return F.cross_entropy(model(x).flatten(0, 1), targets.flatten())


@BANK.right
def sums_over_all_that_count(model, optimizer, batches):
    total, told = counted(batches), 0.0
    optimizer.zero_grad()
    for x, targets in batches:
        loss = summed(model, x, targets) / total
        loss.backward()
        told += loss.item()
    optimizer.step()
    return told


@BANK.right
def by_qlab(model, optimizer, batches):
    optimizer.zero_grad()
    counts = [int((targets != -100).sum()) for _, targets in batches]
    loss = checkpointing.accumulate(lambda b: summed(model, *b), model.parameters(), batches, tokens=counts)
    optimizer.step()
    return loss


@BANK.right
def means_weighted_and_nothing_skipped(model, optimizer, batches):
    optimizer.zero_grad()
    total, told = counted(batches), []
    for x, targets in batches:
        own = counted([(x, targets)])
        if not own:
            continue
        share = mean(model, x, targets) * (own / total)
        share.backward()
        told.append(share.detach())
    optimizer.step()
    return torch.stack(told).sum()


@BANK.right
def with_a_mask(model, optimizer, batches):
    total, told = counted(batches), 0
    for parameter in model.parameters():
        parameter.grad = None
    for x, targets in batches:
        mask = targets != -100
        scores = model(x).log_softmax(-1)
        picked = scores.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        loss = -(picked * mask).sum() / total
        loss.backward()
        told = told + loss.detach().numpy()
    optimizer.step()
    return told


@BANK.right
def divides_the_gradients_in_the_end(model, optimizer, batches):
    optimizer.zero_grad()
    total = told = 0
    for x, targets in batches:
        loss = summed(model, x, targets)
        loss.backward()
        total, told = total + (targets >= 0).sum(), told + loss.detach()
    for parameter in model.parameters():
        parameter.grad.div_(total)
    optimizer.step()
    optimizer.zero_grad()
    return told / total


@BANK.right
def the_big_batch(model, optimizer, batches):
    x, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    optimizer.zero_grad()
    loss = mean(model, x, targets)
    loss.backward()
    optimizer.step()
    return loss


def looped(share, *, zero="before", step="after", told=sum):
    """Make an answer of the copied loop's shape."""

    def answer(model, optimizer, batches):
        losses = []
        if zero == "before":
            optimizer.zero_grad()
        for x, targets in batches:
            if zero == "inside":
                optimizer.zero_grad()
            loss = share(model, x, targets, batches)
            loss.backward()
            losses.append(loss.item())
            if step == "inside":
                optimizer.step()
        if step == "after":
            optimizer.step()
        return told(losses)

    return answer


def right(model, x, targets, batches):
    return summed(model, x, targets) / counted(batches)


def wrong(name, misconception, share, **parts):
    BANK.add(name, looped(share, **parts), misconception=misconception)


wrong("the_copied_loop", "forgets-to-divide", lambda m, x, t, b: mean(m, x, t))
wrong("sums_alone", "forgets-to-divide", lambda m, x, t, b: summed(m, x, t))
wrong("the_copied_loop_mended_once", "averages-averages", lambda m, x, t, b: mean(m, x, t) / len(b))
wrong(
    "divides_by_all_positions",
    "counts-padding",
    lambda m, x, t, b: summed(m, x, t) / sum(targets.numel() for _, targets in b),
)
wrong("positions_and_micro_batches", "counts-padding", lambda m, x, t, b: summed(m, x, t) / t.numel() / len(b))
wrong("divides_by_both", "divides-twice", lambda m, x, t, b: right(m, x, t, b) / len(b))
wrong("sums_over_micro_batches", "divides-by-micro-batches", lambda m, x, t, b: summed(m, x, t) / len(b))
wrong("zeroes_before_each", "zeroes-in-the-loop", right, zero="inside")
wrong("zeroes_and_averages", "zeroes-in-the-loop", lambda m, x, t, b: mean(m, x, t) / len(b), zero="inside")
wrong("never_zeroes", "never-zeroes", right, zero="never")
wrong("steps_each_time", "steps-in-the-loop", right, step="inside")
wrong("steps_and_zeroes_each_time", "steps-in-the-loop", right, step="inside", zero="inside")
wrong("forgets_the_step", "never-steps", right, step="never")
wrong("tells_the_last_share", "last-loss-only", right, told=lambda losses: losses[-1])


@BANK.wrong("last-loss-only")
def tells_the_last_mean_of_the_old_weights(model, optimizer, batches):
    optimizer.zero_grad()
    for x, targets in batches:
        loss = mean(model, x, targets)
        if counted([(x, targets)]):
            (loss * counted([(x, targets)]) / counted(batches)).backward()
    optimizer.step()
    return loss.item()


@BANK.wrong("averages-averages")
def tells_the_mean_of_means(model, optimizer, batches):
    optimizer.zero_grad()
    told = []
    for x, targets in batches:
        right(model, x, targets, batches).backward()
        if counted([(x, targets)]):
            told.append(mean(model, x, targets).item())
    optimizer.step()
    return sum(told) / len(told)


@BANK.wrong("nan-on-padding-only")
def means_weighted_by_zero(model, optimizer, batches):
    optimizer.zero_grad()
    told = 0
    for x, targets in batches:
        loss = mean(model, x, targets) * counted([(x, targets)]) / counted(batches)
        loss.backward()
        told += loss.item()
    optimizer.step()
    return told


@BANK.wrong("returns-nothing")
def returns_nothing(model, optimizer, batches):
    sums_over_all_that_count(model, optimizer, batches)


@BANK.wrong("wrong-value")
def one_token_too_many(model, optimizer, batches):
    optimizer.zero_grad()
    told = 0
    for x, targets in batches:
        loss = summed(model, x, targets) / (counted(batches) + 1)
        loss.backward()
        told += loss.item()
    optimizer.step()
    return told


@BANK.crashes
def flattens_nothing(model, optimizer, batches):
    optimizer.zero_grad()
    for x, targets in batches:
        F.cross_entropy(model(x), targets).backward()
    optimizer.step()
    return 0.0
