"""Answers to `safe_softmax`."""

import math

import numpy as np
import torch

from qlab import attention
from tests.answers.bank import Bank

BANK = Bank("safe-softmax")
BANK.add("qlabs_own", attention.safe_softmax)


@BANK.right
def with_where(scores):
    scores = scores.float()
    top = scores.amax(-1, keepdim=True)
    weights = (scores - torch.where(top.isfinite(), top, 0.0)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


@BANK.right
def by_torch_and_zeros_for_nan(scores):
    return torch.softmax(scores.float(), -1).nan_to_num()


@BANK.right
def in_double(scores):
    return torch.softmax(scores.double(), dim=-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0)


@BANK.right
def rounded_to_half_at_the_end(scores):
    weights = torch.exp(scores.float() - scores.float().amax(-1, keepdim=True).clamp(min=-1e38))
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-38)).to(scores.dtype)


@BANK.right
def with_a_logarithm(scores):
    scores = scores.to(torch.float32)
    total = scores.logsumexp(-1, keepdim=True)
    return (scores - total.masked_fill(total == -torch.inf, 0)).exp()


@BANK.right
def in_powers_of_two(scores):
    scores = scores.float() * math.log2(math.e)
    top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    weights = torch.exp2(scores - top)
    return weights / (weights.sum(-1, keepdim=True) + (weights.sum(-1, keepdim=True) == 0))


@BANK.right
def in_numpy(scores):
    x = scores.numpy().astype(np.float64)
    top = x.max(axis=-1, keepdims=True)
    top[np.isneginf(top)] = 0
    weights = np.exp(x - top)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


@BANK.right
def row_by_row_as_lists(scores):
    rows = []
    for row in scores.reshape(-1, scores.shape[-1]).tolist():
        top = max(row)
        weights = [math.exp(s - top) if s > -math.inf else 0.0 for s in row]
        total = sum(weights) or 1.0
        rows.append([w / total for w in weights])
    return torch.tensor(rows).reshape(scores.shape).tolist()


@BANK.right
def in_place_on_what_was_given(scores):
    scores = scores if scores.dtype == torch.float32 else scores.float()
    top = scores.amax(-1, keepdim=True)
    scores.sub_(torch.where(top == -torch.inf, torch.zeros_like(top), top)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True).clamp_(min=1e-30))


@BANK.right
def key_by_key(scores):
    flat = scores.float().reshape(-1, scores.shape[-1])
    maximum, total = torch.full((len(flat),), -math.inf), torch.zeros(len(flat))
    for column in flat.unbind(1):
        new = torch.maximum(maximum, column)
        pivot = torch.where(new == -math.inf, 0.0, new)
        total = total * (maximum - pivot).exp() + (column - pivot).exp()
        maximum = new
    pivot = torch.where(maximum == -math.inf, 0.0, maximum)
    return ((flat - pivot[:, None]).exp() / total.clamp(min=1e-38)[:, None]).reshape(scores.shape)


@BANK.right
def not_contiguous(scores):
    return torch.softmax(scores.float(), -1).nan_to_num().unsqueeze(-1).expand(*scores.shape, 2)[..., 0]


@BANK.wrong("no-maximum")
def naive(scores):
    weights = scores.float().exp()
    return weights / weights.sum(-1, keepdim=True)


@BANK.wrong("no-maximum")
def naive_with_zeros_for_nan(scores):
    weights = scores.float().exp()
    return (weights / weights.sum(-1, keepdim=True)).nan_to_num()


@BANK.wrong("no-maximum")
def naive_where_the_sum_is_zero(scores):
    weights = scores.float().exp()
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


@BANK.wrong("one-maximum-for-all-rows")
def one_maximum(scores):
    weights = (scores.float() - scores.float().max()).exp()
    return weights / weights.sum(-1, keepdim=True)


@BANK.wrong("nan-for-masked-rows")
def torchs_own(scores):
    return torch.softmax(scores.float(), -1)


@BANK.wrong("nan-for-masked-rows")
def the_textbook(scores):
    weights = (scores.float() - scores.float().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


@BANK.wrong("shares-out-a-masked-row")
def a_large_negative_number(scores):
    return torch.softmax(scores.float().clamp(min=-1e9), -1)


@BANK.wrong("shares-out-a-masked-row")
def the_least_number(scores):
    return torch.softmax(scores.float().clamp(min=torch.finfo(torch.float32).min), -1)


@BANK.wrong("wrong-axis")
def the_first_axis(scores):
    return torch.softmax(scores.float(), 0).nan_to_num()


@BANK.wrong("wrong-axis")
def all_values_together(scores):
    weights = (scores.float() - scores.float().max()).exp()
    return weights / weights.sum()


@BANK.wrong("computes-in-half")
def in_half_throughout(scores):
    top = scores.amax(-1, keepdim=True)
    weights = (scores - torch.where(top.isfinite(), top, torch.zeros_like(top))).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, torch.ones_like(total))


@BANK.wrong("computes-in-half")
def takes_exp_in_half(scores):
    top = scores.amax(-1, keepdim=True)
    weights = (scores - torch.where(top.isfinite(), top, torch.zeros_like(top))).exp().float()
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


@BANK.wrong("not-normalized")
def never_divides(scores):
    top = scores.float().amax(-1, keepdim=True)
    return (scores.float() - torch.where(top.isfinite(), top, 0.0)).exp()


@BANK.wrong("powers-of-two")
def exp2_of_the_scores(scores):
    top = scores.float().amax(-1, keepdim=True)
    weights = torch.exp2(scores.float() - torch.where(top.isfinite(), top, 0.0))
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


@BANK.wrong("returns-the-logarithm")
def log_softmax(scores):
    return torch.log_softmax(scores.float(), -1)


@BANK.wrong("clamps-the-scores")
def a_clamp_against_overflow(scores):
    weights = scores.float().clamp(-80, 80).exp()
    return weights / weights.sum(-1, keepdim=True)


@BANK.wrong("subtracts-the-mean")
def the_mean(scores):
    scores = scores.float()
    weights = (scores - scores.mean(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


@BANK.wrong("subtracts-the-mean")
def the_mean_of_what_is_seen(scores):
    scores = scores.float()
    weights = (scores - scores.masked_fill(scores == -torch.inf, 0).mean(-1, keepdim=True)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


@BANK.wrong("subtracts-the-minimum")
def the_minimum_and_zeros_for_nan(scores):
    scores = scores.float()
    least = scores.amin(-1, keepdim=True)
    weights = (scores - least.masked_fill(least == -torch.inf, 0)).exp()
    total = weights.sum(-1, keepdim=True)
    return (weights / total.masked_fill(total == 0, 1)).nan_to_num()


@BANK.wrong("one-sum-for-all-rows")
def the_sum_of_everything(scores):
    top = scores.float().amax(-1, keepdim=True)
    weights = (scores.float() - top.masked_fill(top == -torch.inf, 0)).exp()
    return weights / weights.sum()


@BANK.wrong("wrong-value")
def an_epsilon_in_the_sum(scores):
    top = scores.float().amax(-1, keepdim=True)
    weights = (scores.float() - torch.where(top.isfinite(), top, 0.0)).exp()
    return weights / (weights.sum(-1, keepdim=True) + 1e-3)


@BANK.wrong("wrong-shape")
def one_row_for_all(scores):
    return torch.softmax(scores.float(), -1).sum(0)


@BANK.wrong("returns-nothing")
def forgets_to_return(scores):
    torch.softmax(scores.float(), -1)


@BANK.crashes
def misspelled(scores):
    return torch.sofmax(scores, -1)
