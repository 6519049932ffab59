"""Answers to `store_in_16_bits`."""

import ml_dtypes
import numpy as np
import torch

from qlab import formats
from qlab.checks.data_types.storage import store_in_16_bits
from tests.answers.bank import Bank

BANK = Bank("store-in-16-bits")
BANK.add("by_qlab", store_in_16_bits)


@BANK.right
def by_type(x):
    return x.type(torch.bfloat16)


@BANK.right
def into_an_empty_tensor(x):
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    out.copy_(x)
    return out


@BANK.right
def through_bit_patterns(x):
    patterns = formats.fp32_bits_to_bf16_bits(x.view(torch.int32).long() & 0xFFFFFFFF)
    return torch.from_numpy(patterns.numpy().astype(np.uint16)).view(torch.bfloat16)


@BANK.right
def fp16_where_it_fits(x):
    finite = x.abs().max() < 65_504 and x.abs().min() > 2.0**-14
    return x.half() if finite else x.bfloat16()


@BANK.wrong("rounds-without-storing")
def rounds_the_array(x):
    return torch.round(x * 2**8) / 2**8


@BANK.wrong("rounds-without-storing")
def rounds_decimals(x):
    return torch.round(x, decimals=4)


@BANK.wrong("rounds-without-storing")
def there_and_back(x):
    return x.bfloat16().float()


@BANK.wrong("fp16-range")
def half(x):
    return x.half()


@BANK.wrong("fp16-range")
def half_clamped(x):
    return x.clamp(-65_504, 65_504).half()


@BANK.wrong("casts-to-integers")
def integers(x):
    return x.to(torch.int16)


@BANK.wrong("rounds-without-storing")
def integers_as_floats(x):
    return x.round()


@BANK.wrong("not-16-bits")
def eight_bits(x):
    return x.to(torch.float8_e5m2)


@BANK.wrong("returns-wrong-type")
def a_name(x):
    return "bfloat16"


@BANK.right
def as_a_numpy_array(x):
    return x.numpy().astype(ml_dtypes.bfloat16)


@BANK.wrong("fp16-range")
def clamped_to_what_fp16_holds(x):
    return (x.sign() * x.abs().clamp(6e-8, 65_504)).half()


@BANK.wrong("fp16-range")
def ten_where_it_is_large(x):
    return torch.where(x.abs() >= 10, x.sign() * 10, x).bfloat16()
