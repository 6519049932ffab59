"""Micro-batches for a small model, and what each way of adding up their losses makes of its gradient."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qlab.checks.checkpointing.accumulating_runs import MicroBatch, TokenLosses
from qlab.checks.numbers import drawn

WIDTH, INNER, OUT = 12, 40, 5


def drawn_model(draw: torch.Generator) -> TokenLosses:
    """Draw the weights of a model."""
    sizes = ((INNER, WIDTH), (OUT, INNER))
    return TokenLosses(*(torch.randn(size, generator=draw, dtype=torch.float64) / size[1] ** 0.5 for size in sizes))


def micro_batches(lengths: Sequence[int], draw: torch.Generator) -> list[MicroBatch]:
    """Draw micro-batches of these numbers of tokens, each from a region of its own, so that their losses differ."""
    return [
        (
            torch.randn(n, WIDTH, generator=draw, dtype=torch.float64) + torch.randn(WIDTH, generator=draw),
            torch.randint(drawn(2, OUT, draw), (n,), generator=draw),
        )
        for n in lengths
    ]


def joined(batches: Sequence[MicroBatch]) -> MicroBatch:
    """Return the big batch."""
    return torch.cat([x for x, _ in batches]), torch.cat([targets for _, targets in batches])


def gradient(model: TokenLosses, loss: Callable[[TokenLosses], Tensor]) -> Tensor:
    """Return the gradient of a loss to all parameters, as one row."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model), list(model.parameters()))])


Loss = Callable[[TokenLosses], Tensor]


def mean_of_all(batches: Sequence[MicroBatch]) -> Loss:
    """Return the mean loss over the tokens of all micro-batches: what the big batch gives."""
    return lambda model: model(*joined(batches)).mean()


def slips(batches: Sequence[MicroBatch]) -> Iterator[tuple[str, str, Loss]]:
    """List the losses that wrong ways of adding up differentiate."""
    k, tokens = len(batches), sum(len(targets) for _, targets in batches)
    divide = "Gradients add up from call to call of `backward`, so each share must be divided before."
    yield "no-division", divide, lambda m: sum(m(*b).mean() for b in batches)
    yield "no-division", divide, lambda m: m(*joined(batches)).sum()
    weight = "A mean of means gives a token of a short micro-batch more weight: divide each *sum* by all tokens."
    yield "averages-averages", weight, lambda m: sum(m(*b).mean() for b in batches) / k
    count = "A sum over tokens is divided by the number of tokens, not of micro-batches."
    yield "divides-by-micro-batches", count, lambda m: m(*joined(batches)).sum() / k
    once = "One division is enough."
    yield "divides-twice", once, lambda m: m(*joined(batches)).mean() / k
    yield "divides-twice", once, lambda m: sum(m(*b).mean() for b in batches) / tokens
    same = "Micro-batches differ in length: count the tokens of every one."
    for one in (batches[0], batches[-1], max(batches, key=lambda b: len(b[1]))):
        length = len(one[1])
        yield "assumes-equal-lengths", same, lambda m, length=length: m(*joined(batches)).sum() / (k * length)
    zero = "Gradients are zeroed once, before the first micro-batch, not in between."
    for place, thought in ((-1, zero), (0, "Every micro-batch adds its share, not the first alone.")):
        name = "zeroes-in-the-loop" if place else "first-micro-batch-only"
        some = batches[place]
        for divisor in (tokens, len(some[1]), len(some[1]) * k, 1, k):
            yield name, thought, lambda m, some=some, divisor=divisor: m(*some).sum() / divisor


def lengths(draw: torch.Generator, *, ragged: bool) -> list[int]:
    """Draw how many tokens each of a few micro-batches has; ragged ones differ by a factor of 3 or more."""
    count = drawn(4, 6, draw)
    if not ragged:
        return [drawn(17, 40, draw)] * count
    some = [drawn(5, 12, draw), drawn(60, 90, draw), *(drawn(13, 50, draw) for _ in range(count - 2))]
    return [some[place] for place in torch.randperm(count, generator=draw).tolist()]
