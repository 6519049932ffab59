"""Answers to `decomposition_seconds`."""

import numpy as np
import torch

from qlab.roofline import Rates, Work
from tests.answers.bank import Bank

BANK = Bank("decomposition-seconds")


def kernels(t, w, o, k):
    """Return operations in BF16 and in int8, and bytes, of each kernel."""
    return [
        (0, 0, 2 * t * w),
        (0, 0, 2 * t * w + t * w),
        (0, 2 * t * w * o, t * w + o * w + 4 * t * o),
        (2 * t * k * o, 0, 2 * t * k + 2 * o * k + 2 * t * o),
        (0, 0, 4 * t * o + 2 * t * o + 2 * t * o),
    ]


def seconds(work, machine):
    bf16, int8, rate, launch = machine
    return sum(max(a / bf16, b / int8, c / rate) + launch for a, b, c in work)


@BANK.right
def as_the_table_says(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers), machine)


@BANK.right
def by_qlabs_roofline(tokens, width, out, outliers, machine):
    bf16, int8, rate, launch = machine
    total = 5 * launch
    for a, b, c in kernels(tokens, width, out, outliers):
        rates = Rates("int8", int8, rate) if b else Rates("BF16", bf16, rate)
        total += Work(a + b, c).least_seconds(rates)
    return total


@BANK.right
def in_a_float32_tensor(tokens, width, out, outliers, machine):
    work = torch.tensor(kernels(tokens, width, out, outliers), dtype=torch.float32)
    times = work / torch.tensor(machine[:3])
    return times.amax(1).sum() + 5 * machine[3]


@BANK.right
def in_numpy(tokens, width, out, outliers, machine):
    work = np.array(kernels(tokens, width, out, outliers), dtype=float)
    return np.max(work / np.array(machine[:3]), axis=1).sum() + 5 * machine[3]


@BANK.right
def written_out(tokens, width, out, outliers, machine):
    bf16, int8, rate, launch = machine
    x, y = tokens * width, tokens * out
    total = 2 * x / rate + launch
    total += 3 * x / rate + launch
    total += max(2 * x * out / int8, (x + out * width + 4 * y) / rate) + launch
    total += max(2 * y * outliers / bf16, 2 * (tokens * outliers + out * outliers + y) / rate) + launch
    return total + 8 * y / rate + launch


@BANK.wrong("counts-the-int8-product-only")
def the_claim(tokens, width, out, outliers, machine):
    return 2 * tokens * width * out / machine[1]


@BANK.wrong("counts-the-int8-product-only")
def the_claim_with_its_traffic(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers)[2:3], machine)


@BANK.wrong("counts-the-products-only")
def both_products(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers)[2:4], machine)


@BANK.wrong("forgets-adding")
def without_the_last_kernel(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers)[:4], machine)


@BANK.wrong("forgets-finding")
def without_the_first_kernel(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers)[1:], machine)


@BANK.wrong("forgets-the-launches")
def without_launches(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers), (*machine[:3], 0.0))


@BANK.wrong("counts-one-launch")
def one_launch(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers), (*machine[:3], 0.0)) + machine[3]


@BANK.wrong("adds-arithmetic-and-traffic")
def sums_of_both(tokens, width, out, outliers, machine):
    bf16, int8, rate, launch = machine
    return sum(a / bf16 + b / int8 + c / rate + launch for a, b, c in kernels(tokens, width, out, outliers))


@BANK.wrong("overlaps-the-kernels")
def one_roofline_for_all(tokens, width, out, outliers, machine):
    bf16, int8, rate, launch = machine
    work = kernels(tokens, width, out, outliers)
    arithmetic = sum(a / bf16 + b / int8 for a, b, _ in work)
    return max(arithmetic, sum(c for _, _, c in work) / rate) + 5 * launch


@BANK.wrong("counts-a-multiply-add-once")
def half_the_operations(tokens, width, out, outliers, machine):
    return seconds([(a / 2, b / 2, c) for a, b, c in kernels(tokens, width, out, outliers)], machine)


@BANK.wrong("int8-at-the-bf16-rate")
def one_rate_for_both(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers), (machine[0], *machine[:1], *machine[2:]))


@BANK.wrong("outliers-at-the-int8-rate")
def int8_rate_for_both(tokens, width, out, outliers, machine):
    return seconds(kernels(tokens, width, out, outliers), (machine[1], *machine[1:]))


@BANK.wrong("counts-arithmetic-only")
def without_traffic(tokens, width, out, outliers, machine):
    return seconds([(a, b, 0) for a, b, _ in kernels(tokens, width, out, outliers)], machine)


@BANK.wrong("forgets-the-second-copy")
def weights_kept_once(tokens, width, out, outliers, machine):
    work = kernels(tokens, width, out, outliers)
    a, b, c = work[3]
    work[3] = (a, b, c - 2 * out * outliers)
    return seconds(work, machine)


@BANK.wrong("leaves-columns-out")
def the_rest_of_the_columns(tokens, width, out, outliers, machine):
    work, rest = kernels(tokens, width, out, outliers), width - outliers
    work[2] = (0, 2 * tokens * rest * out, tokens * rest + out * rest + 4 * tokens * out)
    return seconds(work, machine)


@BANK.wrong("sums-in-one-byte")
def int8_sums(tokens, width, out, outliers, machine):
    work = kernels(tokens, width, out, outliers)
    work[2] = (0, work[2][1], tokens * width + out * width + tokens * out)
    return seconds(work, machine)


@BANK.wrong("wrong-value")
def milliseconds(tokens, width, out, outliers, machine):
    return 1e3 * as_the_table_says(tokens, width, out, outliers, machine)


@BANK.wrong("returns-wrong-type")
def as_text(tokens, width, out, outliers, machine):
    return f"{as_the_table_says(tokens, width, out, outliers, machine)} s"


@BANK.wrong("returns-nothing")
def forgets_to_return(tokens, width, out, outliers, machine):
    as_the_table_says(tokens, width, out, outliers, machine)


@BANK.crashes
def unpacks_three_rates(tokens, width, out, outliers, machine):
    bf16, int8, rate = machine
    return tokens * width * out / int8 / bf16 / rate
