"""Answers to `kahan_sum`."""

import math

import torch

from qlab import summation
from tests.answers.bank import Bank

BANK = Bank("kahan-sum")
BANK.add("by_qlab", summation.kahan_sum)


@BANK.right
def as_kahan_wrote_it(x):
    total, lost = x[0], x[0] * 0
    for term in x[1:]:
        y = term - lost
        t = total + y
        lost = (t - total) - y
        total = t
    return total


@BANK.right
def by_neumaier(x):
    total = torch.tensor(0.0, dtype=x.dtype)
    correction = torch.tensor(0.0, dtype=x.dtype)
    for term in x:
        t = total + term
        large, small = (total, term) if total.abs() >= term.abs() else (term, total)
        correction = correction + ((large - t) + small)
        total = t
    return total + correction


@BANK.right
def by_two_sum_and_a_float_result(x):
    total, low = x.new_zeros(()), x.new_zeros(())
    for term in x.unbind():
        t = total + term
        z = t - total
        low += (total - (t - z)) + (term - z)
        total = t
    return float(total + low)


@BANK.right
def with_the_other_sign_of_the_correction(x):
    total = carried = torch.zeros((), dtype=x.dtype)
    for i in range(len(x)):
        y = x[i] + carried
        t = total + y
        carried = y - (t - total)
        total = t
    return total.reshape(1)


BANK.add("a tree of sums, which meets the bound too", summation.pairwise_sum)


@BANK.wrong("loses-low-bits")
def forgets_the_very_last_term(x):
    return summation.kahan_sum(x[:-1])


@BANK.wrong("no-compensation")
def plain_loop(x):
    total = torch.zeros((), dtype=x.dtype)
    for term in x:
        total = total + term
    return total


@BANK.wrong("adds-the-correction")
def wrong_sign(x):
    total = lost = torch.zeros((), dtype=x.dtype)
    for term in x:
        y = term + lost
        t = total + y
        lost = (t - total) - y
        total = t
    return total


@BANK.wrong("no-compensation")
def correction_never_used(x):
    total = lost = torch.zeros((), dtype=x.dtype)
    for term in x:
        lost = ((total + term) - total) - term + 0 * lost
        total = total + term
    return total


@BANK.wrong("no-compensation")
def correction_reset_each_turn(x):
    total = torch.zeros((), dtype=x.dtype)
    for term in x:
        lost = torch.zeros((), dtype=x.dtype)
        total = total + (term - lost)
    return total


@BANK.wrong("accumulates-wider")
def torch_sum(x):
    return x.sum()


@BANK.wrong("accumulates-wider")
def in_fp32(x):
    return x.float().sum().to(x.dtype)


@BANK.wrong("accumulates-wider")
def in_double(x):
    return x.double().sum().to(x.dtype)


@BANK.wrong("accumulates-wider")
def in_python_floats(x):
    return math.fsum(x.tolist())


@BANK.wrong("accumulates-wider")
def kahan_in_python_floats(x):
    total = lost = 0.0
    for term in x.tolist():
        y = term - lost
        t = total + y
        lost = (t - total) - y
        total = t
    return total


@BANK.wrong("accumulates-wider")
def kahan_in_fp32(x):
    return summation.kahan_sum(x.float())


@BANK.wrong("accumulates-wider")
def total_in_the_dtype_correction_in_double(x):
    """Kahan in double, with the running total rounded at the end only."""
    total = lost = torch.zeros((), dtype=torch.float64)
    for term in x.double():
        y = term - lost
        t = total + y
        lost, total = (t - total) - y, t
    return total.to(x.dtype)


@BANK.wrong("no-compensation")
def sorted_first(x):
    return plain_loop(x.sort().values)


@BANK.wrong("loses-low-bits")
def forgets_the_last_term(x):
    return summation.kahan_sum(x[: len(x) // 2])


@BANK.wrong("not-finite")
def divides_by_its_correction(x):
    return plain_loop(x) / torch.zeros((), dtype=x.dtype)


@BANK.wrong("wrong-shape")
def returns_partial_sums(x):
    return summation.running_sum(x)
