"""Accumulation: the gradient of the large batch, also where micro-batches hold different numbers of tokens."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qlab.checkpointing import accumulate
from qlab.config import COURSE_MODEL
from qlab.corpus import load_corpus
from qlab.model import Decoder
from qlab.scoring import bits_per_token, held_out_bits


def setting(counts, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(counts))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).to(dtype)
    batches = [
        (torch.randn(n, 6, generator=generator, dtype=dtype), torch.randint(5, (n,), generator=generator))
        for n in counts
    ]

    def loss_sum(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    return model, batches, loss_sum


def large_batch(model, batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss = nn.functional.cross_entropy(model(x), y)
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("counts", [(4,), (4, 4, 4), (1, 9, 3), (7, 0, 2), (1000, 1)])
def test_the_gradient_is_that_of_the_large_batch(counts):
    model, batches, loss_sum = setting(counts)
    mean = accumulate(loss_sum, model.parameters(), batches, tokens=counts)
    loss, expected = large_batch(model, batches)
    assert mean.item() == pytest.approx(loss.item(), rel=1e-14) and not mean.requires_grad
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        # sums of up to a thousand terms in another order: a few units in the last place of their magnitudes' sum
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_mean_of_means_is_another_gradient_for_ragged_counts_only():
    for counts, same in [((4, 4), True), ((1, 9), False)]:
        model, batches, loss_sum = setting(counts)
        for batch, n in zip(batches, counts, strict=True):
            (loss_sum(batch) / n / len(counts)).backward()
        _, expected = large_batch(model, batches)
        gaps = [(p.grad - g).abs().max().item() for p, g in zip(model.parameters(), expected, strict=True)]
        assert (max(gaps) < 1e-12) == same and (max(gaps) > 1e-3) != same


def test_it_adds_to_what_is_there_as_backward_does():
    model, batches, loss_sum = setting((2, 3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    accumulate(loss_sum, model.parameters(), batches, tokens=(2, 3))
    _, expected = large_batch(model, batches)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 1, rtol=1e-12, atol=1e-14)


def test_a_parameter_that_no_loss_uses_keeps_no_gradient():
    model, batches, loss_sum = setting((2, 3))
    unused = nn.Parameter(torch.zeros(3))
    accumulate(loss_sum, [*model.parameters(), unused], batches, tokens=(2, 3))
    assert unused.grad is None


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ((1,), "each of the 2 micro-batches, got 1 counts"),
        ((0, 0), r"at least 1 in all, got \[0, 0\]"),
        ((3, -1), r"counts of at least 0 .* got \[3, -1\]"),
    ],
)
def test_impossible_counts_are_refused(tokens, sentence):
    model, batches, loss_sum = setting((2, 3))
    with pytest.raises(ValueError, match=sentence):
        accumulate(loss_sum, model.parameters(), batches, tokens=tokens)


def test_nothing_to_accumulate_is_refused():
    with pytest.raises(ValueError, match="at least 1 in all, got"):
        accumulate(lambda batch: batch.sum(), [torch.ones(1, requires_grad=True)], [], tokens=[])


def test_losses_that_reach_no_parameter_are_refused():
    model, batches, loss_sum = setting((2, 3))
    with pytest.raises(ValueError, match="must return one number, got a tensor of shape"):
        accumulate(lambda batch: model(batch[0]), model.parameters(), batches, tokens=(2, 3))
    with pytest.raises(ValueError, match="a loss without a gradient"):
        accumulate(lambda batch: loss_sum(batch).detach(), model.parameters(), batches, tokens=(2, 3))
    other = nn.Linear(6, 5).double()
    with pytest.raises(ValueError, match="none of the 4 parameters has a gradient"):
        accumulate(lambda batch: other(batch[0]).sum(), model.parameters(), batches, tokens=(2, 3))


@pytest.mark.slow
def test_a_mean_of_means_trains_another_model():
    corpus, lengths = load_corpus(), (128, 8)
    config = replace(COURSE_MODEL, layers=1, width=32, heads=2, kv_heads=2, ffn_width=64, sequence=128)

    def scores(*, averaged: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        decoder, generator = Decoder(config), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)

        def loss_sum(text):
            return bits_per_token(decoder(text[:, :-1]), text[:, 1:]).sum()

        for _ in range(80):
            parts = []
            for text, length in zip((corpus.train, corpus.new_domain_train), lengths, strict=True):
                starts = torch.randint(len(text) - length - 1, (4,), generator=generator).tolist()
                parts.append(torch.stack([text[start : start + length + 1] for start in starts]).long())
            if averaged:
                (sum(loss_sum(part) / (4 * n) for part, n in zip(parts, lengths, strict=True)) / 2).backward()
            else:
                accumulate(loss_sum, decoder.parameters(), parts, tokens=[4 * n for n in lengths])
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        long = held_out_bits(decoder, corpus.validation[: 128 * 128 + 1], sequence=128)
        return [long, held_out_bits(decoder, corpus.new_domain_validation[: 128 * 8 + 1], sequence=8)]

    long, short = (after - before for before, after in zip(scores(averaged=False), scores(averaged=True), strict=True))
    assert long.mean() > 3 * long.std() / len(long) ** 0.5  # worse on 94 % of the tokens
    assert short.mean() < -3 * short.std() / len(short) ** 0.5  # for the rest
