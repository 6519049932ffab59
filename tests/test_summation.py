"""Running, compensated and pairwise sums, against exact sums."""

import math

import pytest
import torch

from qlab.summation import kahan_sum, pairwise_sum, running_sum

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF, ids=str)
def test_kahan_keeps_its_bound_and_pairwise_its_own(dtype):
    x = (torch.randn(500) + 0.5).to(dtype)
    exact, size, u = math.fsum(x.tolist()), x.abs().double().sum().item(), UNIT_ROUNDOFF[dtype]
    assert abs(kahan_sum(x).item() - exact) <= (2 * u + 2 * x.numel() * u**2) * size
    assert abs(pairwise_sum(x).item() - exact) <= math.ceil(math.log2(500)) * u * (1 + 10 * u) * size


@pytest.mark.parametrize(("dtype", "stuck_at"), [(torch.float16, 1.0), (torch.bfloat16, 1.0)], ids=str)
def test_small_terms_are_swallowed_by_a_running_sum(dtype, stuck_at):
    x = torch.cat([torch.ones(1), torch.full((1000,), 1e-4)]).to(dtype)
    assert running_sum(x)[-1].item() == stuck_at
    assert abs(kahan_sum(x).item() - 1.1) < 0.01


def test_sums_stay_in_their_dtype():
    x = torch.full((3,), 40_000.0, dtype=torch.float16)
    assert running_sum(x).dtype == kahan_sum(x).dtype == pairwise_sum(x).dtype == torch.float16
    assert running_sum(x).tolist() == [40_000.0, math.inf, math.inf]


def test_empty_and_single():
    assert kahan_sum(torch.empty(0)).item() == pairwise_sum(torch.empty(0)).item() == 0.0
    assert running_sum(torch.empty(0)).numel() == 0
    assert pairwise_sum(torch.tensor([3.5])).item() == kahan_sum(torch.tensor([3.5])).item() == 3.5
