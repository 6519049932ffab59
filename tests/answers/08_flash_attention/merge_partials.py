"""Answers to `merge_partials`."""

import math

import numpy as np
import torch

from qlab import attention
from tests.answers.bank import Bank

BANK = Bank("merge-partials")


def finite(maximum):
    return torch.where(maximum == -torch.inf, 0.0, maximum)


def joined(a, b, of_a, of_b, maximum=None):
    total = of_a * a[1] + of_b * b[1]
    output = of_a[:, None] * a[2] + of_b[:, None] * b[2]
    return torch.maximum(a[0], b[0]) if maximum is None else maximum, total, output


def factors(a, b):
    top = finite(torch.maximum(a[0], b[0]))
    return torch.exp(a[0] - top), torch.exp(b[0] - top)


@BANK.right
def with_where(a, b):
    return joined(a, b, *factors(a, b))


@BANK.right
def by_qlab(a, b):
    merged = attention.merge(*(attention.Partial(m[:, None], total[:, None], output) for m, total, output in (a, b)))
    return merged.maximum[:, 0], merged.total[:, 0], merged.output


@BANK.right
def in_double_as_a_list(a, b):
    a, b = [t.double() for t in a], [t.double() for t in b]
    return list(joined(a, b, *factors(a, b)))


@BANK.right
def zeros_for_nan(a, b):
    maximum = torch.maximum(a[0], b[0])
    return joined(a, b, torch.exp(a[0] - maximum).nan_to_num(), torch.exp(b[0] - maximum).nan_to_num())


@BANK.right
def row_by_row(a, b):
    rows = []
    for ma, la, oa, mb, lb, ob in zip(*a, *b, strict=True):
        top = max(ma.item(), mb.item())
        fa = math.exp(ma.item() - top) if ma > -math.inf else 0.0
        fb = math.exp(mb.item() - top) if mb > -math.inf else 0.0
        rows.append((top, fa * la.item() + fb * lb.item(), (fa * oa + fb * ob).tolist()))
    return [list(column) for column in zip(*rows, strict=True)]


@BANK.right
def with_one_factor_where_the_other_is_one(a, b):
    smaller = a[0] < b[0]
    gap = torch.exp(-(a[0] - b[0]).abs().nan_to_num(posinf=1e9))
    return joined(a, b, torch.where(smaller, gap, 1.0), torch.where(smaller, 1.0, gap))


@BANK.right
def in_numpy_base_two(a, b):
    (ma, la, oa), (mb, lb, ob) = ([np.asarray(t, dtype=np.float64) for t in side] for side in (a, b))
    top = np.maximum(ma, mb)
    at = np.where(np.isneginf(top), 0, top)
    fa, fb = np.exp2((ma - at) * np.log2(np.e)), np.exp2((mb - at) * np.log2(np.e))
    return top, la * fa + lb * fb, oa * fa[:, None] + ob * fb[:, None]


@BANK.right
def through_the_log_sum_exp(a, b):
    maximum = torch.maximum(a[0], b[0])
    total = torch.logaddexp(a[0] + a[1].log(), b[0] + b[1].log()) - finite(maximum)
    of_a, of_b = factors(a, b)
    return maximum, total.exp(), a[2] * of_a[:, None] + b[2] * of_b[:, None]


@BANK.right
def stacked(a, b):
    maxima, totals, outputs = (torch.stack(pair) for pair in zip(a, b, strict=True))
    maximum = maxima.amax(0)
    weights = (maxima - finite(maximum)).exp()
    return maximum, (weights * totals).sum(0), torch.einsum("sr,srw->rw", weights, outputs)


@BANK.right
def in_place(a, b):
    top = torch.maximum(a[0], b[0])
    of_a, of_b = factors(a, b)
    a[1].mul_(of_a).add_(b[1] * of_b)
    a[2].mul_(of_a.unsqueeze(1)).add_(b[2] * of_b.unsqueeze(1))
    return top, a[1], a[2]


@BANK.wrong("forgets-to-rescale-the-old-side")
def old_side_as_it_was(a, b):
    return joined(a, b, torch.ones_like(a[0]), factors(a, b)[1])


@BANK.wrong("forgets-to-rescale-the-old-side")
def old_total_as_it_was(a, b):
    of_a, of_b = factors(a, b)
    maximum, _, output = joined(a, b, of_a, of_b)
    return maximum, a[1] + of_b * b[1], output


@BANK.wrong("forgets-to-rescale-the-new-side")
def new_side_as_it_was(a, b):
    return joined(a, b, factors(a, b)[0], torch.ones_like(a[0]))


@BANK.wrong("forgets-to-rescale")
def adds_everything(a, b):
    return torch.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]


@BANK.wrong("forgets-to-rescale")
def rescales_the_total_only(a, b):
    maximum, total, _ = joined(a, b, *factors(a, b))
    return maximum, total, a[2] + b[2]


@BANK.wrong("forgets-to-rescale-the-old-side")
def rescales_the_old_total_but_not_its_output(a, b):
    of_a, of_b = factors(a, b)
    maximum, total, _ = joined(a, b, of_a, of_b)
    return maximum, total, a[2] + of_b[:, None] * b[2]


@BANK.wrong("rescales-the-wrong-way")
def new_minus_old(a, b):
    maximum = torch.maximum(a[0], b[0])
    return joined(a, b, torch.exp(maximum - a[0]), torch.exp(maximum - b[0]))


@BANK.wrong("rescales-the-wrong-way")
def new_minus_old_for_the_old_side(a, b):
    maximum = torch.maximum(a[0], b[0])
    return joined(a, b, torch.exp(maximum - a[0]), torch.exp(b[0] - maximum))


@BANK.wrong("swaps-the-factors")
def factors_exchanged(a, b):
    of_a, of_b = factors(a, b)
    return joined(a, b, of_b, of_a)


@BANK.wrong("nan-for-masked-rows")
def the_textbook(a, b):
    maximum = torch.maximum(a[0], b[0])
    return joined(a, b, torch.exp(a[0] - maximum), torch.exp(b[0] - maximum))


@BANK.wrong("nan-for-masked-rows")
def through_the_gap(a, b):
    gap = (a[0] - b[0]).abs()
    smaller = a[0] < b[0]
    return joined(a, b, torch.where(smaller, torch.exp(-gap), 1.0), torch.where(smaller, 1.0, torch.exp(-gap)))


@BANK.wrong("divides-too-early")
def divides_by_the_total(a, b):
    maximum, total, output = joined(a, b, *factors(a, b))
    return maximum, total, output / total.clamp(min=1e-30)[:, None]


@BANK.wrong("takes-the-outputs-for-divided")
def weights_the_outputs_by_their_totals(a, b):
    of_a, of_b = factors(a, b)
    maximum, total, _ = joined(a, b, of_a, of_b)
    output = (of_a * a[1])[:, None] * a[2] + (of_b * b[1])[:, None] * b[2]
    return maximum, total, output / total.clamp(min=1e-30)[:, None]


@BANK.wrong("averages-the-outputs")
def mean_of_outputs(a, b):
    maximum, total, _ = joined(a, b, *factors(a, b))
    return maximum, total, (a[2] + b[2]) / 2


@BANK.wrong("keeps-one-maximum")
def stays_under_the_first_maximum(a, b):
    return joined(a, b, torch.ones_like(a[0]), torch.exp(b[0] - a[0]), a[0])


@BANK.wrong("one-maximum-for-all-rows")
def one_maximum(a, b):
    top = torch.maximum(a[0], b[0]).max().expand(len(a[0]))
    return joined(a, b, torch.exp(a[0] - top), torch.exp(b[0] - top), top)


@BANK.wrong("loses-minus-infinity")
def the_least_number_for_minus_infinity(a, b):
    maximum = torch.maximum(a[0], b[0]).clamp(min=torch.finfo(torch.float32).min)
    return joined(a, b, torch.exp(a[0] - maximum), torch.exp(b[0] - maximum), maximum)


@BANK.wrong("loses-minus-infinity")
def zero_for_minus_infinity(a, b):
    maximum = finite(torch.maximum(a[0], b[0]))
    return joined(a, b, torch.exp(a[0] - maximum), torch.exp(b[0] - maximum), maximum)


@BANK.wrong("rescales-by-the-difference")
def always_to_the_new_side(a, b):
    return joined(a, b, torch.exp(a[0] - b[0]), torch.ones_like(b[0]))


@BANK.wrong("wrong-value")
def exponentials_without_a_maximum(a, b):
    maximum = torch.maximum(a[0], b[0])
    return maximum, a[1] * a[0].exp() + b[1] * b[0].exp(), a[2] * a[0].exp()[:, None] + b[2] * b[0].exp()[:, None]


@BANK.wrong("wrong-value")
def exponentials_one_by_one(a, b):
    maximum = torch.maximum(a[0], b[0])
    of_a, of_b = (side[0].exp() / maximum.exp() for side in (a, b))
    return joined(a, b, of_a.nan_to_num(), of_b.nan_to_num())


@BANK.wrong("returns-wrong-type")
def returns_the_output_only(a, b):
    _, total, output = joined(a, b, *factors(a, b))
    return output / total.clamp(min=1e-30)[:, None]


@BANK.wrong("exponentiates-the-maxima")
def by_exponentials_of_the_maxima(a, b):
    maximum = torch.maximum(a[0], b[0])
    of_a, of_b, new = a[0].exp(), b[0].exp(), maximum.masked_fill(maximum == -torch.inf, 0).exp()
    output = (of_a[:, None] * a[2] + of_b[:, None] * b[2]) / new[:, None]
    return maximum, (of_a * a[1] + of_b * b[1]) / new, output


@BANK.wrong("keeps-one-maximum")
def believes_the_new_side_is_larger(a, b):
    factor = (a[0] - b[0]).exp()
    return b[0], factor * a[1] + b[1], factor[:, None] * a[2] + b[2]


@BANK.wrong("returns-nothing")
def forgets_to_return(a, b):
    joined(a, b, *factors(a, b))


@BANK.crashes
def forgets_the_axis(a, b):
    of_a, of_b = factors(a, b)
    return torch.maximum(a[0], b[0]), of_a * a[1] + of_b * b[1], of_a * a[2] + of_b * b[2]
