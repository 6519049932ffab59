"""Answers to `cast_policy`."""

import numpy as np
import torch

from qlab.formats import FP16, round_to_format
from tests.answers.bank import Bank

BANK = Bank("cast-policy")


def error_of(function, inputs, dtype=torch.float16):
    exact = function(*(x.double() for x in inputs))
    return (function(*(x.to(dtype) for x in inputs)).double() - exact).norm() / exact.norm()


@BANK.right
def as_the_solution(operations, tolerance):
    return [name for name, function, inputs in operations if error_of(function, inputs) <= tolerance]


@BANK.right
def a_set_by_emulation(operations, tolerance):
    chosen = set()
    for name, function, inputs in operations:
        exact = function(*[x.double() for x in inputs]).numpy()
        narrow = function(*[x.half().float() for x in inputs]).half().double().numpy()
        with np.errstate(invalid="ignore"):
            error = np.linalg.norm(narrow - exact) / np.linalg.norm(exact)
        if error <= tolerance:
            chosen.add(name)
    return chosen


@BANK.right
def a_mask(operations, tolerance):
    return [bool(error_of(function, inputs) <= tolerance) for _, function, inputs in operations]


@BANK.right
def by_qlabs_rounding(operations, tolerance):
    def rounded(x):
        return round_to_format(x.float(), FP16, saturate=False)

    names = []
    for name, function, inputs in operations:
        exact = function(*inputs)
        error = (rounded(function(*map(rounded, inputs))) - exact).norm() / exact.norm()
        if error.isfinite() and error <= tolerance:
            names.append(name)
    return tuple(names)


@BANK.right
def against_fp32_by_root_mean_square(operations, tolerance):
    policy = {}
    for name, function, inputs in operations:
        exact = function(*inputs).double()
        narrow = function(*(x.half() for x in inputs)).double()
        policy[name] = bool((narrow - exact).square().mean() <= tolerance**2 * exact.square().mean())
    return policy


@BANK.right
def removes_what_fails(operations, tolerance):
    names = [name for name, _, _ in operations]
    for name, function, inputs in operations:
        error = error_of(function, inputs)
        if torch.isnan(error) or error > tolerance:
            names.remove(name)
    return np.array(names, dtype=object)


@BANK.wrong("everything-in-fp16")
def everything(operations, tolerance):
    return [name for name, _, _ in operations]


@BANK.wrong("products-in-fp32")
def nothing(operations, tolerance):
    return []


@BANK.wrong("products-in-fp32")
def products_too_are_kept(operations, tolerance):
    return [n for n, f, x in operations if error_of(f, x) <= tolerance and n not in ("linear", "scores")]


@BANK.wrong("softmax-in-fp16")
def rounds_the_reference(operations, tolerance):
    names = []
    for name, function, inputs in operations:
        rounded = [x.half() for x in inputs]
        exact = function(*(x.double() for x in rounded))
        if (function(*rounded).double() - exact).norm() / exact.norm() <= tolerance:
            names.append(name)
    return names


@BANK.wrong("softmax-in-fp16")
def casts_the_result(operations, tolerance):
    names = []
    for name, function, inputs in operations:
        exact = function(*(x.double() for x in inputs))
        if (function(*inputs).half().double() - exact).norm() / exact.norm() <= tolerance:
            names.append(name)
    return names


@BANK.wrong("softmax-in-fp16")
def softmax_as_well(operations, tolerance):
    return [n for n, f, x in operations if n == "softmax" or error_of(f, x) <= tolerance]


@BANK.wrong("loss-in-fp16")
def losses_as_well(operations, tolerance):
    return [n for n, f, x in operations if n == "loss" or error_of(f, x) <= tolerance]


@BANK.wrong("norm-in-fp16")
def norms_as_well(operations, tolerance):
    return [n for n, f, x in operations if "norm" in n or error_of(f, x) <= tolerance]


@BANK.wrong("sums-in-fp16")
def sums_as_well(operations, tolerance):
    return [n for n, f, x in operations if n == "sum" or error_of(f, x) <= tolerance]


@BANK.wrong("exponentials-in-fp16")
def exponentials_as_well(operations, tolerance):
    return [n for n, f, x in operations if n == "exp" or error_of(f, x) <= tolerance]


@BANK.wrong("accepts-nan")
def accepts_nan(operations, tolerance):
    return [name for name, function, inputs in operations if not error_of(function, inputs) > tolerance]


@BANK.wrong("asks-bf16")
def asks_bf16(operations, tolerance):
    return [name for name, function, inputs in operations if error_of(function, inputs, torch.bfloat16) <= tolerance]


@BANK.wrong("absolute-error")
def absolute_error(operations, tolerance):
    names = []
    for name, function, inputs in operations:
        exact = function(*(x.double() for x in inputs))
        if (function(*(x.half() for x in inputs)) - exact).abs().max() <= tolerance:
            names.append(name)
    return names


@BANK.wrong("by-name-not-by-error")
def by_name(operations, tolerance):
    wide = ("softmax", "loss", "layer_norm", "sum", "exp", "log", "square", "gradient norm", "layer_norm of sums")
    return [name for name, _, _ in operations if name not in wide]


@BANK.wrong("ignores-the-tolerance")
def ignores_the_tolerance(operations, tolerance):
    return [name for name, function, inputs in operations if error_of(function, inputs) <= 2**-8]


@BANK.wrong("returns-the-wide-ones")
def returns_the_wide_ones(operations, tolerance):
    return [name for name, function, inputs in operations if not error_of(function, inputs) <= tolerance]


@BANK.wrong("wide-for-nothing")
def no_relu(operations, tolerance):
    return [n for n, f, x in operations if n != "relu" and error_of(f, x) <= tolerance]


@BANK.wrong("not-a-name")
def returns_functions(operations, tolerance):
    return [function for name, function, inputs in operations if error_of(function, inputs) <= tolerance]


@BANK.wrong("returns-nothing")
def returns_nothing(operations, tolerance):
    as_the_solution(operations, tolerance)


@BANK.crashes
def crashes(operations, tolerance):
    return [name for name, function, inputs in operations if function(inputs.half()) <= tolerance]


@BANK.wrong("keeps-the-result-wide")
def rounds_the_inputs_alone(operations, tolerance):
    names = []
    for name, function, inputs in operations:
        exact = function(*(x.double() for x in inputs))
        error = (function(*(x.half().float() for x in inputs)) - exact).norm() / exact.norm()
        if error <= tolerance:
            names.append(name)
    return names


def in_norm(operations, tolerance, order):
    names = []
    for name, function, inputs in operations:
        exact = function(*(x.double() for x in inputs)).flatten()
        error = function(*(x.half() for x in inputs)).flatten().double() - exact
        if error.norm(order) / exact.norm(order) <= tolerance:
            names.append(name)
    return names


@BANK.wrong("another-norm")
def by_the_largest_value(operations, tolerance):
    return in_norm(operations, tolerance, float("inf"))


@BANK.wrong("another-norm")
def by_the_sum_of_magnitudes(operations, tolerance):
    return in_norm(operations, tolerance, 1)


def largest_of(inputs):
    """Make inputs as large as the border lets through, of one stored number."""
    return [torch.ones(1, dtype=x.dtype).expand(30_000, 558) for x in inputs]


@BANK.crashes
def asks_for_a_product_of_its_own_size(operations, tolerance):
    return [name for name, function, inputs in operations if function(*largest_of(inputs)).isfinite().all()]


@BANK.crashes
def asks_in_whole_numbers(operations, tolerance):
    return [name for name, function, inputs in operations if error_of(function, inputs, torch.int8) <= tolerance]


@BANK.crashes
def leaves_an_input_out(operations, tolerance):
    return [name for name, function, inputs in operations if function(*inputs[1:]).isfinite().all()]
