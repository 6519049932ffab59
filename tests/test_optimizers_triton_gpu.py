"""The compiled Adam kernel on a CUDA GPU: every configuration, many values, and the memory it takes."""

import pytest
import torch

pytest.importorskip("triton")

from qlab.attention_triton import INTERPRETED
from qlab.codebooks import dynamic_map
from qlab.codebooks.nearest import search_of
from qlab.measure import PeakBytes
from qlab.optimizers_triton import FusedMoment, FusedRates, fused_adam8bit_
from qlab.optimizers_triton.adam import tuned_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED and torch.cuda.is_available(), reason="TRITON_INTERPRET is set"),
]
RATES = FusedRates(step_size=1e-3, root_correction=1.0, betas=(0.9, 0.999), eps=1e-8)


def drawn(values: int, dtype: torch.dtype):
    """Draw a parameter, its gradient and two moments under way, the same each time."""
    draw = torch.Generator("cuda").manual_seed(0)
    given = [torch.randn(values, generator=draw, device="cuda").to(dtype) for _ in range(2)]
    moments = []
    for signed in (True, False):
        levels = dynamic_map(signed=signed).cuda()
        codes = torch.randint(256, (values,), generator=draw, dtype=torch.uint8, device="cuda")
        absmax = torch.rand(-(-values // 256), generator=draw, device="cuda") * 1e-2
        moments.append(FusedMoment(codes, absmax, levels, search_of(levels, levels.device).table))
    return *given, tuple(moments)


def stepped(values: int, dtype: torch.dtype):
    """Return everything that one step wrote."""
    parameter, gradient, moments = drawn(values, dtype)
    fused_adam8bit_(parameter, gradient, moments, RATES, block_size=256)
    return parameter, *(x for one in moments for x in (one.codes, one.absmax))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_configuration_writes_the_same_bits(dtype: torch.dtype):
    expected = stepped(100_003, dtype)
    configurations, cache = tuned_kernel.configs, dict(tuned_kernel.cache)
    try:
        for configuration in configurations:
            tuned_kernel.configs = [configuration]
            tuned_kernel.cache.clear()
            assert all(map(torch.equal, stepped(100_003, dtype), expected)), configuration
    finally:
        tuned_kernel.configs = configurations
        tuned_kernel.cache.clear()
        tuned_kernel.cache.update(cache)


def test_tuning_leaves_one_step_behind():
    first = stepped(2**23, torch.float32)
    assert all(map(torch.equal, stepped(2**23, torch.float32), first))


def test_many_values_take_no_memory_beyond_their_own():
    parameter, gradient, moments = drawn(2**31 + 512, torch.bfloat16)
    fused_adam8bit_(parameter[: 2**23], gradient[: 2**23], few(moments, 2**23), RATES, block_size=256)  # tunes
    last = parameter[-1].item()
    moved = gradient[-1].item()
    with PeakBytes(device="cuda") as peak:
        fused_adam8bit_(parameter, gradient, moments, RATES, block_size=256)
    assert peak.bytes == 0
    assert parameter[-1].item() == last or (parameter[-1].item() < last) == (moved > 0) or abs(moved) < 1


def few(moments: tuple[FusedMoment, ...], values: int) -> tuple[FusedMoment, ...]:
    """Return the moments of the first values."""
    return tuple(FusedMoment(m.codes[:values], m.absmax[: values // 256], m.levels, m.cells) for m in moments)
