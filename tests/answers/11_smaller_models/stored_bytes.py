"""Answers to `stored_bytes`, exercise `half_the_weights`."""

import math

import numpy as np
import torch

from qlab import sparsity
from tests.answers.bank import Bank

BANK = Bank("half-the-weights")


@BANK.right
def by_formula(weight, value_bytes, index_bytes):
    kept, (rows, columns) = int(weight.count_nonzero()), weight.shape
    dense = rows * columns * value_bytes
    bitmap = kept * value_bytes + (rows * columns + 7) // 8
    return dense, bitmap, kept * (value_bytes + index_bytes) + (rows + 1) * index_bytes


@BANK.right
def by_qlabs_parts(weight, value_bytes, index_bytes):
    compressed, bitmap = sparsity.csr_parts(weight), sparsity.bitmap_parts(weight)
    indices = compressed["columns"].numel() + compressed["rows"].numel()
    return (
        weight.numel() * value_bytes,
        bitmap["values"].numel() * value_bytes + bitmap["bits"].nbytes,
        compressed["values"].numel() * value_bytes + indices * index_bytes,
    )


@BANK.right
def counted_in_a_loop(weight, value_bytes, index_bytes):
    dense = bits = values = csr = 0
    for row in weight.tolist():
        csr += index_bytes
        for value in row:
            dense, bits = dense + value_bytes, bits + 1
            if value != 0:
                values, csr = values + value_bytes, csr + value_bytes + index_bytes
    return [dense, values + math.ceil(bits / 8), csr + index_bytes]


@BANK.right
def with_numpys_packbits(weight, value_bytes, index_bytes):
    places = weight.numpy() != 0
    kept = places.sum()
    csr = kept * value_bytes + (kept + len(weight) + 1) * index_bytes
    return torch.tensor([weight.numel() * value_bytes, kept * value_bytes + np.packbits(places).nbytes, csr])


@BANK.right
def a_numpy_array(weight, value_bytes, index_bytes):
    return np.array(by_formula(weight, value_bytes, index_bytes))


@BANK.wrong("counts-the-zeros")
def counts_the_zeros(weight, value_bytes, index_bytes):
    return by_formula((weight == 0).float(), value_bytes, index_bytes)


@BANK.wrong("returns-another-order")
def csr_before_bitmap(weight, value_bytes, index_bytes):
    dense, bitmap, csr = by_formula(weight, value_bytes, index_bytes)
    return dense, csr, bitmap


def built(*, dense=None, bitmap=None, csr=None):
    def answer(weight, v, i):
        right = by_formula(weight, v, i)
        kept = int(weight.count_nonzero())
        given = (dense, bitmap, csr)
        return tuple(r if f is None else f(weight, kept, v, i) for r, f in zip(right, given, strict=True))

    return answer


def wrong(name, misconception, **formulas):
    BANK.add(name, built(**formulas), misconception=misconception)


def values_only(w, k, v, i):
    return k * v


wrong("as_the_blog_has_it", "zeros-cost-nothing", dense=values_only, bitmap=values_only, csr=values_only)
wrong("a_file_without_zeros", "zeros-cost-nothing", dense=values_only)
wrong("counts_values", "counts-values", dense=lambda w, k, v, i: w.numel())
wrong("bool_mask", "a-byte-for-a-bit", bitmap=lambda w, k, v, i: k * v + w.numel())
wrong("bits_rounded_down", "rounds-bits-down", bitmap=lambda w, k, v, i: k * v + w.numel() // 8)
wrong("a_byte_more", "begins-a-byte-too-many", bitmap=lambda w, k, v, i: k * v + w.numel() // 8 + 1)
wrong("bits_of_each_row", "rounds-each-row-up", bitmap=lambda w, k, v, i: k * v + len(w) * math.ceil(w.shape[1] / 8))
wrong("of_the_tensor", "takes-the-tensors-bytes", dense=lambda w, k, v, i: w.nbytes)
wrong("bits_of_the_kept", "bits-of-what-stays", bitmap=lambda w, k, v, i: k * v + math.ceil(k / 8))
wrong("bits_and_all_values", "keeps-the-zeros", bitmap=lambda w, k, v, i: w.numel() * v + math.ceil(w.numel() / 8))
wrong("bits_in_fractions", "wrong-value", bitmap=lambda w, k, v, i: k * v + w.numel() / 8)
wrong("no_row_starts", "forgets-row-starts", csr=lambda w, k, v, i: k * (v + i))
wrong("as_many_starts_as_rows", "one-row-start-too-few", csr=lambda w, k, v, i: k * (v + i) + len(w) * i)
wrong("no_columns", "forgets-columns", csr=lambda w, k, v, i: k * v + (len(w) + 1) * i)
wrong("coordinates", "row-and-column-for-each", csr=lambda w, k, v, i: k * (v + 2 * i))
wrong("compressed_columns", "compresses-columns", csr=lambda w, k, v, i: k * (v + i) + (w.shape[1] + 1) * i)
wrong("row_starts_as_wide_as_values", "wrong-value", csr=lambda w, k, v, i: k * (v + i) + (len(w) + 1) * v)
BANK.add("dense_alone", lambda w, v, i: w.numel() * v, misconception="returns-wrong-type")
BANK.add("returns_nothing", lambda w, v, i: None, misconception="returns-nothing")


@BANK.crashes
def reads_attributes_that_are_not_there(weight, value_bytes, index_bytes):
    return weight.sparse_bytes, weight.bitmap_bytes, weight.csr_bytes
