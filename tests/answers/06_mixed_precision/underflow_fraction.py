"""Answers to `underflow_fraction`."""

import math

import numpy as np
import torch

from qlab import loss_scaling
from tests.answers.bank import Bank

BANK = Bank("underflow-fraction")
BANK.add("qlab", lambda x, scale: loss_scaling.underflow_fraction(x, scale=scale))


def share(lost, of):
    return (lost & of).sum().item() / max(of.sum().item(), 1)


@BANK.right
def by_the_cast(x, scale=1.0):
    kept = x[(x != 0) & x.isfinite()]
    return ((kept * scale).half() == 0).double().mean().item() if len(kept) else 0.0


@BANK.right
def by_the_limit(x, scale=1.0):
    return share(x.double().abs() * scale <= 2**-25, (x != 0) & torch.isfinite(x))


@BANK.right
def a_tensor_in_fp32(x, scale=1.0):
    counted = (x != 0) & x.isfinite()
    lost = counted & ((x * scale).to(torch.float16) == 0)
    return lost.float().sum() / counted.float().sum().clamp(min=1)


@BANK.right
def in_numpy(x, scale=1.0):
    values = x.numpy().astype(np.float64).ravel()
    values = values[np.isfinite(values) & (values != 0)]
    with np.errstate(over="ignore"):
        return np.float32(((values * scale).astype(np.float16) == 0).mean()) if values.size else np.float32(0)


@BANK.right
def in_a_loop(x, scale=1.0):
    lost = total = 0
    for value in x.flatten().tolist():
        if value and math.isfinite(value):
            total += 1
            lost += abs(value * scale) <= 2.0**-25
    return lost / total if total else 0


@BANK.right
def nan_to_num_of_the_mean(x, scale=1.0):
    kept = x.flatten()[x.flatten().nan_to_num(0, 0, 0).nonzero().flatten()]
    return (kept * scale).half().eq(0).double().mean().nan_to_num(0)


@BANK.right
def survivors_subtracted(x, scale=1.0):
    counted = x.isfinite().logical_and(x.abs() > 0)
    alive = counted & (x * scale).half().bool()
    return 1 - alive.sum() / counted.sum() if counted.any() else torch.tensor(0.0)


@BANK.wrong("counts-zeros")
def counts_zeros(x, scale=1.0):
    return ((x * scale).half() == 0).float().mean()


@BANK.wrong("counts-zeros")
def counts_zeros_of_the_finite(x, scale=1.0):
    return ((x[x.isfinite()] * scale).half() == 0).float().mean()


@BANK.wrong("divides-by-all")
def divides_by_all(x, scale=1.0):
    return (((x * scale).half() == 0) & (x != 0)).float().mean()


@BANK.wrong("counts-non-finite")
def counts_non_finite(x, scale=1.0):
    return share((x * scale).half() == 0, x != 0)


@BANK.wrong("no-values-no-share")
def divides_zero_by_zero(x, scale=1.0):
    kept = x[(x != 0) & x.isfinite()]
    return ((kept * scale).half() == 0).float().mean()


@BANK.wrong("subnormals-are-zero")
def subnormals_are_zero(x, scale=1.0):
    return share((x * scale).abs() < torch.finfo(torch.float16).tiny, (x != 0) & x.isfinite())


@BANK.wrong("smallest-is-the-limit")
def smallest_is_the_limit(x, scale=1.0):
    return share((x * scale).abs() < 2**-24, (x != 0) & x.isfinite())


@BANK.wrong("tie-goes-up")
def tie_goes_up(x, scale=1.0):
    return share((x * scale).abs() < 2**-25, (x != 0) & x.isfinite())


@BANK.wrong("forgets-the-scale")
def forgets_the_scale(x, scale=1.0):
    return share(x.half() == 0, (x != 0) & x.isfinite())


@BANK.wrong("scales-after-the-cast")
def scales_after_the_cast(x, scale=1.0):
    return share(x.half() * scale == 0, (x != 0) & x.isfinite())


@BANK.wrong("divides-by-the-scale")
def divides_by_the_scale(x, scale=1.0):
    return share((x / scale).half() == 0, (x != 0) & x.isfinite())


@BANK.wrong("forgets-the-sign")
def forgets_the_sign(x, scale=1.0):
    return share(x * scale <= 2**-25, (x != 0) & x.isfinite())


@BANK.wrong("counts-overflow")
def counts_overflow(x, scale=1.0):
    rounded = (x * scale).half()
    return share((rounded == 0) | rounded.isinf(), (x != 0) & x.isfinite())


@BANK.wrong("share-that-survives")
def share_that_survives(x, scale=1.0):
    return share((x * scale).half() != 0, (x != 0) & x.isfinite())


@BANK.wrong("returns-a-count")
def returns_a_count(x, scale=1.0):
    return int((((x * scale).half() == 0) & (x != 0)).sum())


@BANK.wrong("returns-percent")
def returns_percent(x, scale=1.0):
    return 100 * share((x * scale).half() == 0, (x != 0) & x.isfinite())


@BANK.wrong("nothing-underflows")
def asks_bf16(x, scale=1.0):
    return share((x * scale).bfloat16() == 0, (x != 0) & x.isfinite())


@BANK.wrong("wrong-value")
def never_loses_anything(x, scale=1.0):
    return 0.5


@BANK.wrong("nothing-underflows")
def always_zero(x, scale=1.0):
    return 0.0


@BANK.wrong("returns-nothing")
def returns_nothing(x, scale=1.0):
    share((x * scale).half() == 0, x != 0)


@BANK.crashes
def crashes(x, scale=1.0):
    return torch.finfo(torch.float16).smallest_subnormal / x.shape[7]


def kept_values(x):
    return x[(x != 0) & x.isfinite()]


@BANK.right
def by_numpy_in_double(x, scale=1.0):
    kept = kept_values(x).double().numpy() * scale
    with np.errstate(over="ignore", under="ignore"):
        return np.mean(kept.astype(np.float16) == 0) if kept.size else 0


@BANK.wrong("leaves-out-overflow")
def finite_after_the_cast(x, scale=1.0):
    narrow = (x * scale).half()
    kept = (x != 0) & narrow.isfinite()
    return (narrow[kept] == 0).double().mean().item() if kept.any() else 0.0


@BANK.wrong("counts-non-finite")
def counts_nan(x, scale=1.0):
    kept = x[(x != 0) & ~x.isinf()]
    return ((kept * scale).half() == 0).double().mean().item() if kept.numel() else 0.0
