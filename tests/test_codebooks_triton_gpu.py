"""The compiled 4-bit kernels on a CUDA GPU: every configuration, large sizes, and beside a product in FP64."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

from qlab.attention_triton import INTERPRETED
from qlab.codebooks import NF4, double_quantize, quantize_blockwise
from qlab.codebooks_triton import dequantize_4bit, linear_4bit, linear_4bit_backward
from qlab.codebooks_triton.dequantize import tuned_dequantize
from qlab.codebooks_triton.products import tuned_few_tokens, tuned_one_token
from qlab.measure import PeakBytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED and torch.cuda.is_available(), reason="TRITON_INTERPRET is set"),
]


def coded(rows: int, width: int, *, block_size: int = 64, double: bool = False):
    codes = quantize_blockwise(torch.randn(rows, width, device="cuda"), NF4, block_size=block_size)
    return double_quantize(codes) if double else codes


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("rows", "width"), [(4096, 4096), (1000, 11_008), (4099, 192), (64, 16_384)])
@pytest.mark.parametrize("tokens", [1, 2, 16, 63, 256])
def test_products_err_no_more_than_those_of_dequantized_values(rows: int, width: int, tokens: int):
    for dtype, double in itertools.product((torch.bfloat16, torch.float16), (False, True)):
        codes = coded(rows, width, double=double)
        weight = codes.dequantize()
        x = torch.randn(tokens, width, device="cuda").to(dtype)
        exact = x.double() @ weight.double().T
        theirs = relative_error(x @ weight.to(dtype).T, exact)
        assert relative_error(linear_4bit(x, codes), exact) <= 1.5 * theirs
        grad = torch.randn(tokens, rows, device="cuda").to(dtype)
        exact = grad.double() @ weight.double()
        theirs = relative_error(grad @ weight.to(dtype), exact)
        assert relative_error(linear_4bit_backward(grad, codes), exact) <= 1.5 * theirs


@pytest.mark.parametrize("block_size", [16, 64, 4096])
def test_every_configuration_computes_the_same(block_size: int):
    codes = coded(700, 8192, block_size=block_size, double=True)
    calls = {
        tuned_dequantize: lambda: dequantize_4bit(codes),
        tuned_one_token: lambda: linear_4bit(torch.ones(1, 8192, device="cuda"), codes),
        tuned_few_tokens: lambda: linear_4bit(torch.ones(5, 8192, device="cuda").half(), codes).float(),
    }
    for kernel, call in calls.items():
        configurations, cache, expected = kernel.configs, dict(kernel.cache), call()
        try:
            for configuration in configurations:
                kernel.configs = [configuration]
                kernel.cache.clear()
                assert relative_error(call(), expected.double()) < 2**-10, configuration
        finally:
            kernel.configs = configurations
            kernel.cache.clear()
            kernel.cache.update(cache)


def test_more_than_two_to_the_31_values():
    codes = coded(2**16 + 64, 2**15)
    row = 2**16 + 63
    expected = codes.codebook[codes.packed[-(2**14) :].view(-1, 1).bitwise_right_shift(4).long().view(-1)]
    found = dequantize_4bit(codes, dtype=torch.bfloat16)
    scales = codes.absmax[-(2**9) :].repeat_interleave(32)
    assert torch.equal(found[row, ::2], (expected * scales).bfloat16())
    x = torch.zeros(2, 2**15, device="cuda").bfloat16()
    x[:, 6] = 1
    assert torch.equal(linear_4bit(x[:1], codes)[0, row], found[row, 6])
    assert torch.allclose(linear_4bit(x, codes)[:, row], found[row, 6].expand(2), rtol=2**-7)


def test_two_runs_give_the_same_bits_and_few_tokens_hold_no_weight():
    codes = coded(4096, 4096)
    for tokens in (1, 16):
        x = torch.randn(tokens, 4096, device="cuda").bfloat16()
        first = linear_4bit(x, codes)
        assert all(torch.equal(first, linear_4bit(x, codes)) for _ in range(3))
        with PeakBytes(device="cuda") as peak:
            linear_4bit(x, codes)
        assert peak.bytes < 2 * codes.shape.numel() / 4


def test_codes_on_the_cpu_are_refused():
    codes = quantize_blockwise(torch.randn(8, 64), NF4, block_size=64)
    with pytest.raises(ValueError, match="compiled for CUDA here, got codes on cpu"):
        dequantize_4bit(codes)
