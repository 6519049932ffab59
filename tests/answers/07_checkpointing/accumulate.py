"""Answers to `accumulate`."""

import torch

from qlab import checkpointing
from tests.answers.bank import Bank

BANK = Bank("accumulate")


def tokens_of(batches):
    return sum(len(targets) for _, targets in batches)


@BANK.right
def by_qlab(model, batches):
    def loss_sum(batch):
        return model(*batch).sum()

    counts = [len(targets) for _, targets in batches]
    return checkpointing.accumulate(loss_sum, model.parameters(), batches, tokens=counts)


@BANK.right
def sums_over_all_tokens(model, batches):
    total = tokens_of(batches)
    for x, targets in batches:
        (model(x, targets).sum() / total).backward()


@BANK.right
def means_by_their_share(model, batches):
    total = tokens_of(batches)
    for x, targets in batches:
        loss = model(x, targets)
        (loss.mean() * loss.numel() / total).backward()


@BANK.right
def gradient_of_every_token_given(model, batches):
    total = tokens_of(batches)
    for x, targets in batches:
        losses = model(x, targets)
        losses.backward(torch.full_like(losses, 1 / total))


@BANK.right
def sums_first_and_divides_in_the_end(model, batches):
    parameters, total = list(model.parameters()), 0
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for x, targets in batches:
        losses = model(x, targets)
        total += len(losses)
        for one, grad in zip(sums, torch.autograd.grad(losses.sum(), parameters), strict=True):
            one.add_(grad)
    for parameter, one in zip(parameters, sums, strict=True):
        parameter.grad = one / total if parameter.grad is None else parameter.grad + one / total


@BANK.right
def puts_the_earlier_aside(model, batches):
    earlier = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    for batch in batches:
        model(*batch).sum().backward()
    for parameter, before in zip(model.parameters(), earlier, strict=True):
        parameter.grad /= tokens_of(batches)
        if before is not None:
            parameter.grad += before


@BANK.right
def by_two_passes_over_the_tokens(model, batches):
    total = 0
    for x, targets in batches:
        with torch.no_grad():
            total += model(x, targets).numel()
    for x, targets in batches:
        for some, few in zip(x.split(7), targets.split(7), strict=True):
            model(some, few).div(total).sum().backward()


def looped(share, *, before=lambda model: None, inside=lambda model: None, after=lambda model, batches: None):
    """Make an answer that differentiates `share(losses, batches)` of each micro-batch."""

    def answer(model, batches):
        before(model)
        for x, targets in batches:
            inside(model)
            share(model(x, targets), batches).backward()
        after(model, batches)

    return answer


def zero(model):
    model.zero_grad()


def right(losses, batches):
    return losses.sum() / tokens_of(batches)


def wrong(name, misconception, share, **parts):
    BANK.add(name, looped(share, **parts), misconception=misconception)


wrong("forgets_to_divide", "no-division", lambda losses, _: losses.mean())
wrong("sums_alone", "no-division", lambda losses, _: losses.sum())
wrong("mean_of_means", "averages-averages", lambda losses, batches: losses.mean() / len(batches))
wrong("sums_over_micro_batches", "divides-by-micro-batches", lambda losses, batches: losses.sum() / len(batches))
wrong("both_divisions", "divides-twice", lambda losses, batches: right(losses, batches) / len(batches))
wrong("means_over_all_tokens", "divides-twice", lambda losses, batches: losses.mean() / tokens_of(batches))
wrong(
    "length_of_the_first",
    "assumes-equal-lengths",
    lambda losses, batches: losses.sum() / (len(batches) * len(batches[0][1])),
)
wrong("zeroes_before_each", "zeroes-in-the-loop", right, inside=zero)
wrong("zeroes_and_averages", "zeroes-in-the-loop", lambda losses, b: losses.mean() / len(b), inside=zero)
wrong("zeroes_and_takes_means", "zeroes-in-the-loop", lambda losses, b: losses.mean(), inside=zero)
wrong("zeroes_at_the_start", "overwrites-earlier-gradients", right, before=zero)


def divide_all(model, batches):
    for parameter in model.parameters():
        parameter.grad /= tokens_of(batches)


wrong("divides_what_was_there", "scales-earlier-gradients", lambda losses, _: losses.sum(), after=divide_all)
wrong("zeroes_at_the_end", "leaves-no-gradient", right, after=lambda model, _: model.zero_grad())


def descend(model, batches):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1 * parameter.grad)


wrong("takes_the_step_too", "changes-the-parameters", right, after=descend)


@BANK.wrong("overwrites-earlier-gradients")
def assigns_the_gradient(model, batches):
    parameters = list(model.parameters())
    shares = [torch.autograd.grad(right(model(*batch), batches), parameters) for batch in batches]
    for parameter, *pieces in zip(parameters, *shares, strict=True):
        parameter.grad = sum(pieces)


@BANK.wrong("keeps-all-graphs")
def one_backward_in_the_end(model, batches):
    sum(right(model(*batch), batches) for batch in batches).backward()


@BANK.wrong("keeps-all-graphs")
def a_list_of_losses(model, batches):
    losses = [model(*batch) for batch in batches]
    for one in losses:
        right(one, batches).backward()


@BANK.wrong("keeps-all-graphs")
def keeps_the_graphs_by_asking(model, batches):
    kept = []
    for batch in batches:
        kept.append(right(model(*batch), batches))
        kept[-1].backward(retain_graph=True)


@BANK.wrong("runs-the-big-batch")
def joins_them(model, batches):
    x, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    model(x, targets).mean().backward()


@BANK.wrong("first-micro-batch-only")
def returns_in_the_loop(model, batches):
    for batch in batches:
        right(model(*batch), batches).backward()
        return


@BANK.wrong("leaves-no-gradient")
def computes_the_loss_only(model, batches):
    return sum(right(model(*batch), batches) for batch in batches)


@BANK.wrong("leaves-no-gradient")
def returns_nothing(model, batches):
    pass


@BANK.wrong("wrong-value")
def one_token_too_many(model, batches):
    for batch in batches:
        (model(*batch).sum() / (tokens_of(batches) + 1)).backward()


@BANK.crashes
def backward_of_a_row(model, batches):
    for batch in batches:
        model(*batch).backward()


@BANK.crashes
def backward_twice(model, batches):
    total = 0
    for batch in batches:
        total = total + right(model(*batch), batches)
        total.backward()
