"""Answers to `fine_tune`, exercise `fine_tune_budget`."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from qlab.codebooks import NF4, quantize_blockwise
from qlab.lora import LoRALinear, QLoRALinear, inject, linear_through_codes, trainable
from tests.answers.bank import Bank

BANK = Bank("fine-tune-budget")


def linears_of(model):
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def rank_of(model, budget):
    weights = sum(layer.weight.numel() for layer in linears_of(model))
    sides = sum(layer.in_features + layer.out_features for layer in linears_of(model))
    return int((budget - 0.5625 * weights) // (16 * sides))


def train(model, optimizer, x, y, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def tuned(make, *, rank=rank_of, adam=torch.optim.Adam, loop=train):
    """Make an answer whose adapted layers `make(linear, rank)` makes."""

    def answer(model, x, y, budget_bytes, steps):
        chosen = rank(model, budget_bytes)
        inject(model, "", lambda linear: make(linear, chosen))
        return loop(model, adam(trainable(model), lr=0.03), x, y, steps)

    return answer


def single(linear, rank):
    return QLoRALinear(linear, rank=rank, alpha=2 * rank, double=False)


BANK.add("by_qlab", tuned(single))


def spending_what_double_quantization_saves(linear, rank):
    return QLoRALinear(linear, rank=rank, alpha=2 * rank)


BANK.add("at_a_rate_of_a_hundredth", tuned(single, adam=lambda p, lr: torch.optim.Adam(p, lr=lr / 3)))
BANK.add("with_alpha_sixteen", tuned(lambda linear, rank: QLoRALinear(linear, rank=rank, alpha=16, double=False)))


@BANK.right
def frozen_when_it_is_done(model, x, y, budget_bytes, steps):
    model, optimizer = tuned(single)(model, x, y, budget_bytes, steps)
    return model.eval().requires_grad_(False), optimizer


BANK.add("by_qlab_with_double_quantization", tuned(spending_what_double_quantization_saves))


class Adapted(nn.Module):
    """Codes in an attribute and the adapter of the lab."""

    def __init__(self, linear, rank):
        super().__init__()
        self.codes = quantize_blockwise(linear.weight, NF4, block_size=64)
        self.lora_a = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return linear_through_codes(x, self.codes) + 2 * F.linear(F.linear(x, self.lora_a), self.lora_b)


@BANK.right
def a_new_sequential(model, x, y, budget_bytes, steps):
    rank = rank_of(model, budget_bytes)
    layers = [Adapted(layer, rank) if isinstance(layer, nn.Linear) else layer for layer in model]
    adapted = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(adapted.parameters(), lr=0.03)
    for _ in range(steps):
        loss = (adapted(x) - y).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return [adapted, optimizer]


@BANK.right
def adamw_and_a_scheduler(model, x, y, budget_bytes, steps):
    rank = rank_of(model, budget_bytes)
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(model, name, QLoRALinear(layer, rank=rank, alpha=2 * rank, double=False))
    optimizer = torch.optim.AdamW(trainable(model), lr=0.03, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model, optimizer


@BANK.right
def a_rank_found_by_trying(model, x, y, budget_bytes, steps):
    linears = linears_of(model)
    codes = sum(layer.weight.numel() // 2 + 4 * -(-layer.weight.numel() // 64) for layer in linears)
    rank = 0
    while codes + 16 * (rank + 1) * sum(sum(layer.weight.shape) for layer in linears) <= budget_bytes:
        rank += 1
    return tuned(single, rank=lambda *_: rank)(model, x, y, budget_bytes, steps)


def wrong(name, misconception, answer):
    BANK.add(name, answer, misconception=misconception)


def full(model, x, y, budget_bytes, steps):
    model = copy.deepcopy(model)
    return train(model, torch.optim.Adam(model.parameters(), lr=0.006), x, y, steps)


wrong("trains_everything", "trains-all-weights", full)
wrong(
    "lora_on_a_float_base",
    "keeps-a-float-base",
    tuned(lambda linear, rank: LoRALinear(linear, rank=rank, alpha=2 * rank)),
)
wrong("rank_sixteen", "rank-too-large", tuned(single, rank=lambda *_: 16))
wrong("rank_one_more", "rank-too-large", tuned(single, rank=lambda *args: rank_of(*args) + 1))
wrong(
    "half_a_byte_for_a_weight",
    "rank-too-large",
    tuned(single, rank=lambda model, budget: rank_of(model, budget + sum(w.numel() for w in model.parameters()) / 16)),
)
wrong("by_sgd", "other-optimizer", tuned(single, adam=torch.optim.SGD))
wrong("rank_three_always", "rank-too-small", tuned(single, rank=lambda *_: 3))
wrong("rank_one", "rank-too-small", tuned(single, rank=lambda *_: 1))
wrong("rank_two_always", "rank-too-small", tuned(single, rank=lambda *_: 2))
wrong(
    "forgets_gradients_and_moments",
    "rank-too-large",
    tuned(single, rank=lambda model, budget: min(4 * rank_of(model, budget), 24)),
)


def no_training(model, optimizer, x, y, steps):
    return model, optimizer


wrong("never_trains", "never-steps", tuned(single, loop=no_training))


def without_a_step(model, optimizer, x, y, steps):
    for _ in range(steps):
        F.mse_loss(model(x), y).backward()
    return model, optimizer


wrong("backward_without_a_step", "never-steps", tuned(single, loop=without_a_step))


def climbs(model, optimizer, x, y, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (-F.mse_loss(model(x), y)).backward()
        optimizer.step()
    return model, optimizer


wrong("maximizes", "nothing-learned", tuned(single, loop=climbs))
wrong(
    "a_sixth_of_the_steps",
    "other-number-of-steps",
    tuned(single, loop=lambda m, o, x, y, steps: train(m, o, x, y, steps // 6)),
)
wrong(
    "always_forty_steps", "other-number-of-steps", tuned(single, loop=lambda m, o, x, y, steps: train(m, o, x, y, 40))
)
wrong("rate_of_a_thousandth", "too-little-learned", tuned(single, adam=lambda p, lr: torch.optim.Adam(p, lr=lr / 30)))


def in_batches(model, optimizer, x, y, steps):
    for _ in range(steps):
        for rows, targets in zip(x.chunk(4), y.chunk(4), strict=True):
            train(model, optimizer, rows, targets, 1)
    return model, optimizer


wrong("batches_in_every_step", "other-number-of-steps", tuned(single, loop=in_batches))
wrong(
    "one_adapter_of_two",
    "rank-too-small",
    tuned(lambda linear, rank: single(linear, rank if linear.in_features % 3 else max(rank // 2, 1))),
)
wrong(
    "four_examples",
    "nothing-learned",
    tuned(single, loop=lambda m, o, x, y, steps: train(m, o, x[:4], y[:4], steps)),
)


def everything_first(model, x, y, budget_bytes, steps):
    """Train all weights for comparison, and adapters afterwards."""
    full(model, x, y, budget_bytes, 2)
    return tuned(single)(model, x, y, budget_bytes, steps)


wrong("everything_first", "trains-more-than-adapters", everything_first)


def keeps_the_graph(model, x, y, budget_bytes, steps):
    model, optimizer = tuned(single)(model, x, y, budget_bytes, steps)
    model.last_loss = F.mse_loss(model(x), y)
    return model, optimizer


wrong("keeps_the_last_loss", "keeps-the-graph", keeps_the_graph)
wrong("model_alone", "returns-wrong-type", lambda *args: tuned(single)(*args)[0])
wrong("order_exchanged", "returns-wrong-type", lambda *args: tuned(single)(*args)[::-1])


@BANK.wrong("returns-nothing")
def returns_nothing(model, x, y, budget_bytes, steps):
    tuned(single)(model, x, y, budget_bytes, steps)


@BANK.crashes
def optimizer_of_nothing(model, x, y, budget_bytes, steps):
    model.requires_grad_(False)
    return train(model, torch.optim.Adam(trainable(model), lr=0.03), x, y, steps)
