"""Answers to `merge_adapter`, exercise `merge_adapter`."""

import numpy as np
import torch
from torch import nn

from qlab.lora import LoRALinear
from tests.answers.bank import Bank

BANK = Bank("merge-adapter")


@BANK.right
def by_qlab(weight, a, b, scaling):
    linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    layer = LoRALinear(linear, rank=len(a), alpha=scaling * len(a))
    layer.lora_a.data.copy_(a)
    layer.lora_b.data.copy_(b)
    return layer.merged_weight()


@BANK.right
def in_one_line(weight, a, b, scaling):
    return (weight.float() + scaling * (b @ a)).to(weight.dtype)


@BANK.right
def scales_b_first(weight, a, b, scaling):
    return torch.addmm(weight.float(), b * scaling, a).to(weight.dtype)


@BANK.right
def one_direction_at_a_time(weight, a, b, scaling):
    merged = weight.double()
    for row, column in zip(a.double(), b.T.double(), strict=True):
        merged += scaling * torch.outer(column, row)
    return merged.to(weight.dtype)


@BANK.right
def by_feeding_the_identity(weight, a, b, scaling):
    x = torch.eye(weight.shape[1])
    return (x @ weight.float().T + scaling * (x @ a.T) @ b.T).T.to(weight.dtype)


@BANK.right
def in_numpy(weight, a, b, scaling):
    merged = weight.float().numpy() + np.float32(scaling) * np.einsum("or,ri->oi", b.numpy(), a.numpy())
    return torch.from_numpy(merged).to(weight.dtype)


def wide(update):
    """Make an answer that adds in FP32 and returns the weight's type."""

    def answer(weight, a, b, scaling):
        return (weight.float() + update(a, b, scaling)).to(weight.dtype)

    return answer


def wrong(name, misconception, update):
    BANK.add(name, wide(update), misconception=misconception)


wrong("transposed_product", "wrong-order", lambda a, b, s: s * (a.T @ b.T))
wrong("transposed_in_the_end", "wrong-order", lambda a, b, s: s * (b @ a).T)
wrong("transposed_without_scale", "wrong-order", lambda a, b, s: (b @ a).T)
wrong("without_scale", "scale-missing", lambda a, b, s: b @ a)
wrong("scales_both_factors", "scale-twice", lambda a, b, s: (s * b) @ (s * a))
wrong("divides_by_the_rank", "divides-by-the-rank-again", lambda a, b, s: s / len(a) * b @ a)
wrong("subtracts", "subtracts-the-update", lambda a, b, s: -s * b @ a)
wrong("adds_nothing", "returns-the-weight", lambda a, b, s: 0.0)
wrong("first_direction_alone", "wrong-value", lambda a, b, s: s * b[:, :1] @ a[:1] * 1.01)
wrong("a_transposed_where_it_fits", "wrong-order", lambda a, b, s: s * b @ (a.T if len(a) == a.shape[1] else a))


@BANK.wrong("wrong-order")
def a_before_b_where_it_fits(weight, a, b, scaling):
    update = a @ b if a.shape[1] == b.shape[0] else (b @ a)
    return (weight.float() + scaling * update).to(weight.dtype)


@BANK.wrong("wrong-order")
def a_before_b(weight, a, b, scaling):
    return (weight.float() + scaling * (a @ b)).to(weight.dtype)


@BANK.wrong("returns-the-update")
def the_update_alone(weight, a, b, scaling):
    return scaling * (b @ a)


@BANK.wrong("scales-the-weight")
def brackets_too_wide(weight, a, b, scaling):
    return (scaling * (weight.float() + b @ a)).to(weight.dtype)


@BANK.wrong("rounds-before-adding")
def update_in_the_weights_type(weight, a, b, scaling):
    return weight + (scaling * (b @ a)).to(weight.dtype)


@BANK.wrong("rounds-before-adding")
def all_in_the_weights_type(weight, a, b, scaling):
    return weight + scaling * (b.to(weight.dtype) @ a.to(weight.dtype))


@BANK.wrong("rounds-before-adding")
def in_place(weight, a, b, scaling):
    return weight.add_((scaling * (b @ a)).to(weight))


@BANK.wrong("widens-the-weight")
def leaves_fp32_that_was_rounded(weight, a, b, scaling):
    return in_one_line(weight, a, b, scaling).float()


@BANK.wrong("widens-the-weight")
def leaves_fp32(weight, a, b, scaling):
    return weight + scaling * (b @ a)


@BANK.wrong("wrong-value")
def cuts_to_bf16(weight, a, b, scaling):
    merged = weight.float() + scaling * (b @ a)
    if weight.dtype == torch.float32:
        return merged
    return (merged.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()


@BANK.wrong("rounds-before-adding")
def product_rounded_before_it_is_scaled(weight, lora_a, lora_b, scaling):
    return (weight.float() + scaling * (lora_b @ lora_a).to(weight.dtype).float()).to(weight.dtype)


@BANK.wrong("returns-nothing")
def returns_nothing(weight, a, b, scaling):
    weight += (scaling * (b @ a)).to(weight.dtype)


@BANK.crashes
def multiplies_by_a_keyword(weight, a, b, scaling):
    return weight + torch.matmul(b, a, scale=scaling)
