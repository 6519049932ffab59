"""The compiled kernels on a CUDA GPU: against FP64 at lengths that fill it, with linear memory, beside torch's own."""

import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from qlab.attention import standard_attention
from qlab.attention_triton import INTERPRETED, flash_attention, flash_forward
from qlab.attention_triton.backward import keys_kernel, queries_kernel
from qlab.attention_triton.forward import forward_kernel
from qlab.measure import PeakBytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED and torch.cuda.is_available(), reason="TRITON_INTERPRET is set"),
]
DTYPES = [torch.float16, torch.bfloat16]
LENGTHS = [(1, 1), (17, 129), (129, 17), (1000, 1000), (2048, 2048), (4099, 4099)]


def inputs(queries: int, keys: int, *, width: int, dtype: torch.dtype, key_heads: int = 2):
    """Draw q, k, v and the gradient of the output on the GPU, with four heads."""
    shapes = [(1, 4, queries, width), *[(1, key_heads, keys, width)] * 2, (1, 4, queries, width)]
    q, k, v, grad = (torch.randn(shape, device="cuda").to(dtype) for shape in shapes)
    return *(x.requires_grad_() for x in (q, k, v)), grad


def passes(way, given, **options):
    """Run both passes."""
    *q_k_v, grad = given
    output = way(*q_k_v, **options)
    return output.detach(), *torch.autograd.grad(output, q_k_v, grad)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1.0)).item()


@pytest.mark.parametrize(
    ("width", "is_causal", "dtype"), list(itertools.product([64, 128], [False, True], DTYPES)), ids=str
)
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_errors_are_at_most_half_again_those_of_torch(queries, keys, width, is_causal, dtype):
    given = inputs(queries, keys, width=width, dtype=dtype)
    wide = tuple(x.detach().double().requires_grad_() for x in given)
    exact = passes(standard_attention, wide, is_causal=is_causal)
    theirs = passes(F.scaled_dot_product_attention, given, is_causal=is_causal, enable_gqa=True)
    ours = passes(flash_attention, given, is_causal=is_causal)
    for mine, reference, truth in zip(ours, theirs, exact, strict=True):
        assert mine.isfinite().all()
        zero = truth.norm() < 1e-9  # as the gradients of a row with a single key are: only roundings are left
        allowed = torch.finfo(dtype).eps if zero else 1.5 * relative_error(reference, truth)
        assert relative_error(mine, truth) <= allowed


@pytest.mark.parametrize("is_causal", [False, True])
def test_every_configuration_computes_the_same(is_causal: bool):
    given = inputs(700, 700, width=64, dtype=torch.float16)
    expected = passes(flash_attention, given, is_causal=is_causal)
    kept = {kernel: (kernel.configs, dict(kernel.cache)) for kernel in (forward_kernel, keys_kernel, queries_kernel)}
    try:
        for kernel, (configurations, _) in kept.items():
            for configuration in configurations:
                kernel.configs = [configuration]
                try:
                    found = passes(flash_attention, given, is_causal=is_causal)
                except OutOfResources:  # a GPU with less shared memory than Hopper's
                    continue
                for one, first in zip(found, expected, strict=True):
                    assert relative_error(one, first.double()) < 2**-9, configuration
            kernel.configs = configurations
    finally:
        for kernel, (configurations, cache) in kept.items():
            kernel.configs = configurations
            kernel.cache.clear()
            kernel.cache.update(cache)


def test_two_runs_give_the_same_bits():
    given = inputs(3000, 3000, width=128, dtype=torch.bfloat16)
    first = passes(flash_attention, given, is_causal=True)
    for _ in range(3):
        assert all(map(torch.equal, first, passes(flash_attention, given, is_causal=True)))


def test_memory_grows_with_the_length_and_not_with_its_square():
    def peak(length: int) -> int:
        given = inputs(length, length, width=64, dtype=torch.bfloat16, key_heads=4)
        passes(flash_attention, given, is_causal=True)  # tuning takes memory of its own
        with PeakBytes(device="cuda") as measured:
            passes(flash_attention, given, is_causal=True)
        return measured.bytes

    short, long = peak(2048), peak(16_384)
    assert long <= 8 * short * 1.05
    assert long <= 16 * 4 * 16_384 * 64 * 2  # some q, k, v and outputs; scores would be 256


def test_large_scores_and_long_addresses_are_safe():
    q, k, v, _ = inputs(300, 300, width=64, dtype=torch.float16)
    assert flash_attention(q * 200, k, v, is_causal=True).isfinite().all()
    apart = 2**31 + 64  # values from one head to the next
    held = torch.empty(apart + 64 * 64, dtype=torch.float16, device="cuda")
    wide = held.as_strided((1, 2, 64, 64), (apart, apart, 64, 1))
    wide.normal_()
    found = flash_attention(wide, wide, wide)
    assert relative_error(found, standard_attention(*[wide.double()] * 3)) < 2**-9


def test_another_stream_and_a_cpu_tensor():
    q, k, v, _ = inputs(500, 500, width=64, dtype=torch.float16)
    expected = flash_attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = flash_attention(q, k, v)
    stream.synchronize()
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="compiled for CUDA here, got tensors on cpu"):
        flash_forward(q.cpu(), k.cpu(), v.cpu())
    with pytest.raises(ValueError, match="must all be float16 or bfloat16, got float32"):
        flash_attention(q.float(), k.float(), v.float())
