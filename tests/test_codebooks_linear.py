"""Products with a weight in codes: against FP64, a few rows of it at a time."""

import itertools

import pytest
import torch

from qlab.codebooks import FP4, NF4, double_quantize, dynamic_map, linear_map, quantize_blockwise
from qlab.codebooks.linear import codes_linear, codes_linear_backward
from qlab.measure import PeakBytes

CODEBOOKS = {
    "nf4": NF4,
    "fp4": FP4,
    "dynamic": dynamic_map(signed=True),
    "three bits": linear_map(bits=3, signed=True),
}
BLOCK_SIZES = [1, 64, 100, 10_007, None]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def coded(rows: int, width: int, codebook: torch.Tensor, block_size: int | None):
    return quantize_blockwise(torch.randn(rows, width), codebook, block_size=block_size)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("block_size", BLOCK_SIZES, ids=str)
@pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=CODEBOOKS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 5), (130, 100), (9, 192)])
def test_every_width_and_block_agrees_with_fp64(rows: int, width: int, codebook: torch.Tensor, block_size: int | None):
    codes = coded(rows, width, codebook, block_size)
    weight = codes.dequantize().double()
    for tokens in (1, 6):
        x, grad = torch.randn(tokens, width).double(), torch.randn(tokens, rows).double()
        assert relative_error(codes_linear(x, codes), x @ weight.T) < 1e-12
        assert relative_error(codes_linear_backward(grad, codes), grad @ weight) < 1e-12


@pytest.mark.parametrize(("rows", "width", "tokens"), [(700, 192, 1), (700, 192, 5), (5, 70_000, 1), (5000, 300, 9)])
def test_several_tiles_agree_with_fp64(rows: int, width: int, tokens: int):
    codes = coded(rows, width, NF4, 100)
    weight = codes.dequantize().double()
    x, grad = torch.randn(tokens, width), torch.randn(tokens, rows)
    rounding = 2**-24 * max(rows, width) ** 0.5  # n errors of FP32 add up as √n
    assert relative_error(codes_linear(x, codes), x.double() @ weight.T) < rounding
    assert relative_error(codes_linear_backward(grad, codes), grad.double() @ weight) < rounding


@pytest.mark.parametrize("tokens", [1, 4, 5, 40])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_type_errs_by_its_own_rounding(dtype: torch.dtype, tokens: int):
    codes = double_quantize(coded(64, 256, NF4, 64))
    weight = codes.dequantize().double()
    x, grad = torch.randn(2, tokens, 256).to(dtype), torch.randn(2, tokens, 64).to(dtype)
    pairs = [
        (codes_linear(x, codes), x.double() @ weight.T),
        (codes_linear_backward(grad, codes), grad.double() @ weight),
    ]
    for found, exact in pairs:
        assert found.dtype == dtype and found.shape == exact.shape
        assert relative_error(found, exact) < TOLERANCES[dtype]


def test_one_row_no_row_and_any_strides():
    codes = coded(8, 64, NF4, 64)
    weight = codes.dequantize()
    x = torch.randn(64, 6).T[::2]
    assert torch.allclose(codes_linear(x, codes), x @ weight.T, atol=1e-5)
    assert codes_linear(x[0], codes).shape == (8,)
    assert codes_linear(x[:0], codes).shape == (0, 8) and codes_linear_backward(x[:0, :8], codes).shape == (0, 64)
    grad = torch.ones(1).expand(3, 8)
    assert torch.allclose(codes_linear_backward(grad, codes), grad @ weight, atol=1e-5)


def test_at_no_time_is_all_of_the_weight_dequantized():
    codes = coded(4096, 512, NF4, 64)
    whole = 4 * codes.shape.numel()
    for product, width in ((codes_linear, 512), (codes_linear_backward, 4096)):
        for tokens in (1, 8):
            x = torch.randn(tokens, width)
            with PeakBytes() as peak:
                product(x, codes)
            assert peak.bytes < whole * 0.6


@pytest.mark.parametrize(
    ("x", "codes", "sentence"),
    [
        (torch.ones(2, 63), coded(8, 64, NF4, 64), r"must have 64 values a row, got shape \(2, 63\)"),
        (torch.ones(2, 64), quantize_blockwise(torch.ones(64), NF4, block_size=64), r"of a matrix, got shape \(64,\)"),
        (torch.ones(2, 64, device="meta"), coded(8, 64, NF4, 64), "on cpu, got meta"),
    ],
)
def test_errors_are_one_sentence_with_the_value(x, codes, sentence):
    with pytest.raises(ValueError, match=sentence):
        codes_linear(x, codes)


@pytest.mark.gpu
def test_products_on_a_gpu_are_those_of_the_cpu():
    for codebook, block_size in itertools.product(CODEBOOKS.values(), (64, 100)):
        codes = quantize_blockwise(torch.randn(130, 100, device="cuda"), codebook, block_size=block_size)
        weight = codes.dequantize().double()
        x, grad = torch.randn(9, 100, device="cuda").double(), torch.randn(9, 130, device="cuda").double()
        assert relative_error(codes_linear(x, codes), x @ weight.T) < 1e-12
        assert relative_error(codes_linear_backward(grad, codes), grad @ weight) < 1e-12
