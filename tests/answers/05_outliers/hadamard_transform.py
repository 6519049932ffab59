"""Answers to `hadamard_transform` and `rotate`."""

import math

import numpy as np
import torch

from qlab import outliers
from tests.answers.bank import Answer, Bank

BANK = Bank("hadamard-transform")


def matrix(width):
    made = torch.ones(1, 1)
    while len(made) < width:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made


def by_matrix(x):
    return x @ matrix(x.shape[-1]) / math.sqrt(x.shape[-1])


def rotated_by(transform):
    """Return `rotate` built on a transform of the last axis."""
    return lambda x, weight: (transform(x), transform(weight))


rotate = rotated_by(by_matrix)
BANK.add("by_the_matrix", by_matrix, rotate)
BANK.add("by_qlab", outliers.hadamard_transform, rotated_by(outliers.hadamard_transform))


def by_recursion(x):
    if x.shape[-1] == 1:
        return x
    first, second = x.chunk(2, -1)
    first, second = by_recursion(first), by_recursion(second)
    return torch.cat([first + second, first - second], -1) / 2**0.5


BANK.add("by_recursion", by_recursion, rotated_by(by_recursion))


def by_butterflies_in_numpy(x):
    y = x.numpy().astype(np.float64).copy()
    half, width = 1, y.shape[-1]
    while half < width:
        for start in range(0, width, 2 * half):
            for i in range(start, start + half):
                a, b = y[..., i].copy(), y[..., i + half].copy()
                y[..., i], y[..., i + half] = a + b, a - b
        half *= 2
    return (y / np.sqrt(width)).tolist()


BANK.add("by_butterflies_in_numpy", by_butterflies_in_numpy, rotated_by(by_butterflies_in_numpy))


def by_kron(x):
    h = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) * 0.5**0.5
    made = torch.ones(1, 1)
    while len(made) < x.shape[-1]:
        made = torch.kron(made, h)
    return torch.einsum("...i,ij->...j", x, made)


BANK.add("by_kron", by_kron, rotated_by(by_kron))


def in_walsh_order(x):
    """Sort the rows by the number of their sign changes, as signal processing does."""
    h = matrix(x.shape[-1])
    order = (h[:, 1:] != h[:, :-1]).sum(1).argsort()
    return x @ h[:, order] / math.sqrt(x.shape[-1])


BANK.add("in_walsh_order", in_walsh_order, rotated_by(in_walsh_order))


def with_fixed_random_signs(x):
    signs = torch.randint(0, 2, (x.shape[-1],), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    return by_matrix(x * signs)


BANK.add("with_random_signs_first", with_fixed_random_signs, rotated_by(with_fixed_random_signs))


def not_normalized(x):
    return x @ matrix(x.shape[-1])


BANK.add("without_the_root", not_normalized, rotated_by(not_normalized), misconception="not-orthonormal")


def divided_by_n(x):
    return x @ matrix(x.shape[-1]) / x.shape[-1]


BANK.add("divided_by_n", divided_by_n, rotated_by(divided_by_n), misconception="not-orthonormal")


def one_round(x):
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first + second, first - second], -1).flatten(-2) / math.sqrt(x.shape[-1])


BANK.add("one_round_of_pairs", one_round, rotated_by(one_round), misconception="stops-too-early")


def one_round_of_halves(x):
    first, second = x.chunk(2, -1)
    return torch.cat([first + second, first - second], -1) / 2**0.5


BANK.add("one_round_of_halves", one_round_of_halves, rotated_by(one_round_of_halves), misconception="stops-too-early")


def random_orthogonal(x):
    made = torch.randn(x.shape[-1], x.shape[-1], generator=torch.Generator().manual_seed(0))
    return x @ torch.linalg.qr(made).Q


BANK.add("a_random_rotation", random_orthogonal, rotated_by(random_orthogonal), misconception="another-rotation")


def all_ones(x):
    return x.sum(-1, keepdim=True).expand_as(x) / math.sqrt(x.shape[-1])


BANK.add("sums_without_differences", all_ones, rotated_by(all_ones), misconception="not-orthogonal")


def signs_all_wrong(x):
    h = matrix(x.shape[-1]).clone()
    h[-1] = h[0]
    return x @ h / math.sqrt(x.shape[-1])


BANK.add("two_rows_alike", signs_all_wrong, rotated_by(signs_all_wrong), misconception="not-orthogonal")


def along_the_first_axis(x):
    return (matrix(len(x)) @ x / math.sqrt(len(x))) if len(x) & (len(x) - 1) == 0 and x.ndim == 2 else by_matrix(x)


BANK.add("along_the_first_axis", along_the_first_axis, rotate, misconception="wrong-axis")


def divided_by_the_root_of_two(x):
    return x @ matrix(x.shape[-1]) / 2**0.5


BANK.add("root_of_two", divided_by_the_root_of_two, rotate, misconception="not-orthonormal")


def new_signs_at_every_call(x):
    return by_matrix(x * (torch.randint(0, 2, (x.shape[-1],)) * 2.0 - 1))


redrawn = (new_signs_at_every_call, rotated_by(new_signs_at_every_call))
BANK.add("new_signs_at_every_call", *redrawn, misconception="changes-from-call-to-call")
BANK.add("only_x_rotated", by_matrix, lambda x, w: (by_matrix(x), w), misconception="rotates-one-factor")
BANK.add("only_weight_rotated", by_matrix, lambda x, w: (x, by_matrix(w)), misconception="rotates-one-factor")


def rows_of_weight(x, weight):
    turned = by_matrix(weight.T).T if len(weight) & (len(weight) - 1) == 0 else by_matrix(weight)
    return by_matrix(x), turned


BANK.add("rows_of_weight", by_matrix, rows_of_weight, misconception="rotates-the-wrong-axis")
BANK.add("nothing_rotated", by_matrix, lambda x, w: (x, w), misconception="changes-nothing")
BANK.add("signs_only", by_matrix, lambda x, w: (-x, -w), misconception="not-spread")
BANK.add("reversed_channels", by_matrix, lambda x, w: (x.flip(-1), w.flip(-1)), misconception="not-spread")
BANK.add("x_as_it_is", lambda x: x, rotate, misconception="changes-nothing")
BANK.add("in_bfloat16", lambda x: by_matrix(x).bfloat16(), rotate, misconception="wrong-value")
BANK.add("the_product", by_matrix, lambda x, w: x @ w.T, misconception="returns-wrong-type")
BANK.add("weight_transposed", by_matrix, lambda x, w: (by_matrix(x), by_matrix(w).T), misconception="wrong-shape")
BANK.add("returns_nothing", lambda x: None, lambda x, w: None, misconception="returns-nothing")


def needs_a_matrix_of_two_axes(x):
    (_, width) = x.shape
    return x @ matrix(width) / math.sqrt(width)


crashing = (needs_a_matrix_of_two_axes, rotate)
BANK.answers.append(Answer("hadamard-transform", "needs_two_axes", crashing, outcome="crashed"))
