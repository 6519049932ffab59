"""Answers to `attention_flops` and `relative_error`, exercise `attention_claims`."""

import math

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from qlab import attention
from qlab.attention import AttentionShape
from tests.answers.bank import Answer, Bank

BANK = Bank("attention-claims")


def flops(length, width, block_columns):
    product = 2 * length * length * width
    return 6 * product, 7 * product + -(-length // block_columns) * length * width


def rms(x):
    return x.square().mean().sqrt()


def exact(q, k, v):
    q, k, v = (t.double() for t in (q, k, v))
    return torch.softmax(q @ k.T / math.sqrt(q.shape[1]), 1) @ v


def error(output, q, k, v):
    return (rms(output.double() - exact(q, k, v)) / rms(exact(q, k, v))).item()


def flops_by_qlab(length, width, block_columns):
    shape = AttentionShape(queries=length, keys=length, head_width=width)
    blocks = {"block_rows": length, "block_columns": block_columns}
    standard = sum(attention.standard_flops(shape, backward=backward) for backward in (False, True))
    tiled = sum(attention.flash_flops(shape, **blocks, backward=backward) for backward in (False, True))
    return standard, tiled + math.ceil(length / block_columns) * length * width


def error_by_torch(output, q, k, v):
    reference = scaled_dot_product_attention(*(t.double()[None] for t in (q, k, v)))[0]
    return torch.linalg.norm(output.double() - reference) / torch.linalg.norm(reference)


def flops_tile_by_tile(length, width, block_columns):
    tiled = 0
    for start in range(0, length, block_columns):
        columns = min(block_columns, length - start)
        tiled += (2 + 5) * 2 * length * columns * width + length * width
    return [float(12 * length**2 * width), float(tiled)]


def error_in_numpy(output, q, k, v):
    q, k, v, output = (t.float().numpy().astype(np.float64) for t in (q, k, v, output))
    scores = q @ k.T / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    reference = weights @ v / weights.sum(axis=1, keepdims=True)
    return np.sqrt(((output - reference) ** 2).mean() / (reference**2).mean())


def error_over_the_output(output, q, k, v):
    return [[rms(output.double() - exact(q, k, v)).item() / rms(output.double()).item()]]


def error_by_tiles_in_double(output, q, k, v):
    reference, _ = attention.flash_forward(q.double(), k.double(), v.double(), block_rows=5, block_columns=7)
    return float(
        torch.std(output.double() - reference, correction=0) ** 2 + (output.double() - reference).mean() ** 2
    ) ** 0.5 / float(rms(reference))


def wrong(misconception, name, of_flops=flops, of_error=error):
    BANK.add(name, of_flops, of_error, misconception=misconception)


def by(change):
    """Return the right FLOPs, changed."""
    return lambda n, d, columns: change(*flops(n, d, columns), n, d, columns)


def of(measure):
    """Return an error measured in another way, from the output and the exact one."""
    return lambda output, q, k, v: measure(output.double(), exact(q, k, v))


def with_reference(reference):
    return lambda output, q, k, v: (rms(output.double() - reference(q, k, v).double()) / rms(exact(q, k, v))).item()


def in_fp32(q, k, v):
    q, k, v = (t.float() for t in (q, k, v))
    return torch.softmax(q @ k.T / math.sqrt(q.shape[1]), 1) @ v


BANK.add("formulas", flops, error)
BANK.add("by_qlab_and_torch", flops_by_qlab, error_by_torch)
BANK.add("tile_by_tile_and_numpy", flops_tile_by_tile, error_in_numpy)
BANK.add("a_list_and_the_outputs_size", lambda *a: list(map(torch.tensor, flops(*a))), error_over_the_output)
BANK.add("by_tiles_in_double", flops, error_by_tiles_in_double)

wrong("computes-no-scores-again", "it_computes_the_same", by(lambda s, t, n, d, c: (s, s)))
wrong("computes-no-scores-again", "rescaling_only", by(lambda s, t, n, d, c: (s, s + -(-n // c) * n * d)))
wrong("forgets-the-rescaling", "no_rescaling", by(lambda s, t, n, d, c: (s, 14 * n * n * d)))
wrong("counts-a-multiply-add-once", "one_flop_a_multiply_add", by(lambda s, t, n, d, c: (s // 2, 7 * n * n * d)))
wrong("rounds-blocks-down", "whole_blocks", by(lambda s, t, n, d, c: (s, 14 * n * n * d + n // c * n * d)))
wrong("forgets-a-product", "forward_only", by(lambda s, t, n, d, c: (4 * n * n * d, 4 * n * n * d)))
wrong("tiled-for-standard", "the_wrong_way_round", by(lambda s, t, n, d, c: (t, s)))
wrong("wrong-value", "it_computes_less", by(lambda s, t, n, d, c: (s, s // 2)))
wrong("reference-not-in-fp64", "fp32_reference", of_error=with_reference(in_fp32))
wrong(
    "reference-not-in-fp64",
    "torchs_own_in_fp32",
    of_error=with_reference(lambda q, k, v: scaled_dot_product_attention(q[None], k[None], v[None])[0]),
)
wrong(
    "reference-not-in-fp64",
    "doubles_too_late",
    of_error=with_reference(lambda q, k, v: torch.softmax((q @ k.T).double() / q.shape[1] ** 0.5, 1) @ v.double()),
)
wrong("not-relative", "absolute", of_error=of(lambda o, e: rms(o - e)))
wrong("forgets-the-root", "mean_square", of_error=of(lambda o, e: (o - e).square().mean() / e.square().mean()))
wrong("forgets-the-root", "root_above_only", of_error=of(lambda o, e: rms(o - e) / e.square().mean()))
wrong("maximum-for-rms", "largest", of_error=of(lambda o, e: (o - e).abs().max() / e.abs().max()))
wrong("mean-for-rms", "mean", of_error=of(lambda o, e: (o - e).abs().mean() / e.abs().mean()))
wrong("errors-cancel", "signed", of_error=of(lambda o, e: (o - e).mean()))
wrong(
    "rounds-the-reference",
    "rounded_reference",
    of_error=lambda output, q, k, v: rms((output - exact(q, k, v).to(output.dtype)).double()) / rms(exact(q, k, v)),
)
wrong(
    "scale-forgotten",
    "no_scale",
    of_error=lambda o, q, k, v: error(o, q * q.shape[1] ** 0.5, k, v),
)
wrong("returns-nothing", "forgets_to_return", of_error=lambda *args: None)
wrong("returns-wrong-type", "one_number", of_flops=lambda n, d, c: 14 * n * n * d)
BANK.answers.append(
    Answer(BANK.exercise, "fp64_meets_fp32", (flops, lambda o, q, k, v: (o - q.double() @ k.T).mean()), "", "crashed")
)
