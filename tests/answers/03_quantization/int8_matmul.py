"""Answers to `int8_matmul`."""

import numpy as np
import torch

from qlab import quantize
from tests.answers.bank import Bank

BANK = Bank("int8-matmul")


def terms(x, w):
    """Return the four sums as int64."""
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    x_codes, w_codes, w_zero = x_codes.long(), w_codes.long(), w_zero.long().T
    k = x_codes.shape[1]
    return x_codes @ w_codes.T, x_zero * w_codes.sum(1), x_codes.sum(1, keepdim=True) * w_zero, k * x_zero * w_zero


def scaled(total, x, w):
    return total * x[1] * w[1].T


@BANK.right
def with_the_four_terms(x, w):
    products, of_w, of_x, of_both = terms(x, w)
    return scaled((products - of_w - of_x + of_both).int(), x, w)


@BANK.right
def with_the_differences(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    return ((x_codes.int() - x_zero) @ (w_codes.int() - w_zero).T) * (x_scale * w_scale.T)


@BANK.right
def by_qlab(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    x_grid = quantize.Grid(
        torch.tensor([[x_scale]]), torch.tensor([[x_zero]], dtype=torch.uint8), 8, quantize.PER_TENSOR
    )
    w_grid = quantize.Grid(w_scale, (w_zero + 128).to(torch.uint8), 8, quantize.PER_ROW)
    w_codes = (w_codes.int() + 128).to(torch.uint8)
    return quantize.int8_matmul(quantize.Quantized(x_codes, x_grid), quantize.Quantized(w_codes, w_grid))


@BANK.right
def by_torchs_int8_kernel(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    shifted, zero, k = (x_codes.int() - 128).to(torch.int8), x_zero - 128, x_codes.shape[1]
    total = torch._int_mm(shifted, w_codes.T.contiguous())
    total = total - zero * w_codes.sum(1, dtype=torch.int32)
    total = total - shifted.sum(1, keepdim=True, dtype=torch.int32) * w_zero.T + k * zero * w_zero.T
    return total.float() * w_scale.T * x_scale


@BANK.right
def in_double_precision(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    return (x_codes.double() - x_zero) @ (w_codes.double() - w_zero).T * x_scale * w_scale.T.double()


@BANK.right
def in_numpy_as_a_list(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    total = np.einsum("tk,ok->to", x_codes.numpy().astype(int) - x_zero, w_codes.numpy().astype(int) - w_zero.numpy())
    return (total * x_scale * w_scale.numpy().T).tolist()


@BANK.right
def row_by_row(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    columns = []
    for row, scale, zero in zip(w_codes.int(), w_scale, w_zero, strict=True):
        columns.append(((x_codes.int() - x_zero) * (row - zero)).sum(1) * (x_scale * scale))
    return torch.stack(columns).T


@BANK.right
def in_float_by_pieces_that_stay_exact(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    left, right = (x_codes.float() - x_zero).split(128, dim=1), (w_codes.float() - w_zero).split(128, dim=1)
    total = sum((a @ b.T).int() for a, b in zip(left, right, strict=True))
    return total * x_scale * w_scale.T


@BANK.wrong("accumulates-in-8-bits")
def eight_bits_throughout(x, w):
    products, of_w, of_x, of_both = terms(x, w)
    return scaled((products - of_w - of_x + of_both).to(torch.int8), x, w)


@BANK.wrong("accumulates-in-8-bits")
def the_product_in_eight_bits(x, w):
    _, of_w, of_x, of_both = terms(x, w)
    products = x[0].view(torch.int8) @ w[0].T
    return scaled(products.int() - of_w - of_x + of_both, x, w)


@BANK.wrong("accumulates-in-8-bits")
def the_product_in_unsigned_bytes(x, w):
    return scaled(x[0] @ w[0].view(torch.uint8).T, x, w)


@BANK.wrong("accumulates-in-16-bits")
def sixteen_bits(x, w):
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    return scaled((x_codes.short() - x_zero) @ (w_codes.short() - w_zero.short()).T, x, w)


@BANK.wrong("drops-the-cross-terms")
def products_only(x, w):
    return scaled(terms(x, w)[0], x, w)


@BANK.wrong("forgets-the-sum-of-w")
def without_the_sum_of_w(x, w):
    products, _, of_x, of_both = terms(x, w)
    return scaled(products - of_x + of_both, x, w)


@BANK.wrong("forgets-the-sum-of-x")
def without_the_sum_of_x(x, w):
    products, of_w, _, of_both = terms(x, w)
    return scaled(products - of_w + of_both, x, w)


@BANK.wrong("forgets-k-zx-zw")
def three_terms(x, w):
    products, of_w, of_x, _ = terms(x, w)
    return scaled(products - of_w - of_x, x, w)


@BANK.wrong("subtracts-k-zx-zw")
def every_term_subtracted(x, w):
    products, of_w, of_x, of_both = terms(x, w)
    return scaled(products - of_w - of_x - of_both, x, w)


@BANK.wrong("forgets-k")
def zero_points_counted_once(x, w):
    products, of_w, of_x, _ = terms(x, w)
    return scaled(products - of_w - of_x + x[2] * w[2].T, x, w)


@BANK.wrong("adds-the-cross-terms")
def every_term_added(x, w):
    return scaled(sum(terms(x, w)), x, w)


@BANK.wrong("scale-on-the-wrong-axis")
def a_scale_for_each_token(x, w):
    products, of_w, of_x, of_both = terms(x, w)
    return (products - of_w - of_x + of_both) * x[1] * w[1]


@BANK.wrong("forgets-a-scale")
def integers(x, w):
    return scaled(terms(x, w)[0] - terms(x, w)[1] - terms(x, w)[2] + terms(x, w)[3], (None, 1.0), (None, w[1] * 0 + 1))


@BANK.wrong("forgets-a-scale")
def without_the_scale_of_x(x, w):
    return with_the_four_terms((x[0], 1.0, x[2]), w)


@BANK.wrong("accumulates-in-float")
def dequantizes_first(x, w):
    (x_codes, x_scale, x_zero), (w_codes, w_scale, w_zero) = x, w
    return (x_scale * (x_codes.float() - x_zero)) @ (w_scale * (w_codes.float() - w_zero)).T


@BANK.wrong("accumulates-in-float")
def products_in_fp32(x, w):
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    return scaled((x_codes.float() - x_zero) @ (w_codes.float() - w_zero).T, x, w)


@BANK.wrong("accumulates-in-float")
def fp32_then_to_integers(x, w):
    _, of_w, of_x, of_both = terms(x, w)
    products = (x[0].float() @ w[0].float().T).round().int()
    return scaled(products - of_w - of_x + of_both, x, w)


@BANK.wrong("accumulates-in-float")
def exact_sums_scaled_one_by_one(x, w):
    products, of_w, of_x, of_both = (scaled(term.float(), x, w) for term in terms(x, w))
    return products - of_w - of_x + of_both


@BANK.wrong("reads-uint8-as-int8")
def x_cast_to_int8(x, w):
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    return scaled((x_codes.to(torch.int8).int() - x_zero) @ (w_codes.int() - w_zero).T, x, w)


@BANK.wrong("reads-uint8-as-int8")
def the_kernel_on_x_cast_to_int8(x, w):
    return scaled(torch._int_mm(x[0].to(torch.int8), w[0].T.contiguous()), x, w)


@BANK.wrong("wraps-the-difference")
def subtracts_in_uint8(x, w):
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    return scaled((x_codes - x_zero).int() @ (w_codes - w_zero.int()).T, x, w)


@BANK.wrong("reads-uint8-as-int8")
def differences_in_int8_for_the_kernel(x, w):
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    left, right = (x_codes.int() - x_zero).to(torch.int8), (w_codes.int() - w_zero).to(torch.int8)
    return scaled(torch._int_mm(left, right.T.contiguous()), x, w)


@BANK.wrong("wrong-value")
def in_bfloat16(x, w):
    (x_codes, _, x_zero), (w_codes, _, w_zero) = x, w
    return scaled((x_codes.int() - x_zero).bfloat16() @ (w_codes.int() - w_zero).bfloat16().T, x, w)


@BANK.wrong("wrong-value")
def zero_points_of_the_first_row(x, w):
    return with_the_four_terms(x, (w[0], w[1], w[2][:1].expand_as(w[2])))


@BANK.wrong("transposes")
def rows_of_w_first(x, w):
    return with_the_four_terms(x, w).T


@BANK.wrong("wrong-value")
def zeros(x, w):
    return torch.zeros(len(x[0]), len(w[0]))


@BANK.wrong("returns-nothing")
def forgets_to_return(x, w):
    with_the_four_terms(x, w)


@BANK.crashes
def multiplies_two_types(x, w):
    return scaled(x[0] @ w[0].T, x, w)


@BANK.wrong("drops-the-cross-terms")
def corrects_the_sum_once(x, w):
    products, *_ = terms(x, w)
    return scaled(products - x[2] * w[2].T, x, w)


@BANK.right
def shifted_into_int8(x, w):
    (x_codes, x_scale, x_zero), w_terms = x, w
    shifted = (x_codes.int() - 128).to(torch.int8)
    return with_the_four_terms((shifted, x_scale, x_zero - 128), w_terms)


@BANK.right
def exact_floats_in_pieces(x, w):
    left, right = (x[0].int() - x[2]).float(), (w[0].int() - w[2]).float()
    pieces = zip(left.split(128, 1), right.split(128, 1), strict=True)
    return scaled(sum((a @ b.T).long() for a, b in pieces), x, w)
