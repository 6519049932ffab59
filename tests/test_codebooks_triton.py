"""The 4-bit kernels against `qlab.codebooks` and FP64, on the device they run on: interpreted or compiled."""

import pytest
import torch

pytest.importorskip("triton")

from qlab.attention_triton import DEVICE, INTERPRETED
from qlab.codebooks import FP4, NF4, double_quantize, dynamic_map, quantize_blockwise
from qlab.codebooks_triton import accepts, dequantize_4bit, linear_4bit, linear_4bit_backward

SHAPES = [(70, 192, 64), (5, 77, 16), (3, 4096, 4096), (9, 256, 128), (1, 64, 64), (33, 100, 32)]
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}  # levels and result, rounded
DTYPES = list(TOLERANCES)


def coded(rows: int, width: int, block_size: int, *, codebook: torch.Tensor = NF4, double: bool = False):
    """Draw a weight on the kernels' device and return its codes."""
    codes = quantize_blockwise(torch.randn(rows, width, device=DEVICE), codebook, block_size=block_size)
    return double_quantize(codes) if double else codes


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("rows", "width", "block_size"), SHAPES)
def test_dequantized_values_are_those_of_the_codes(rows: int, width: int, block_size: int, double: bool):
    codes = coded(rows, width, block_size, codebook=FP4 if rows % 2 else NF4, double=double)
    expected = codes.dequantize()
    found = dequantize_4bit(codes)
    if INTERPRETED or not double:
        assert torch.equal(found, expected)
        for dtype in DTYPES:
            assert torch.equal(dequantize_4bit(codes, dtype=dtype), expected.to(dtype))
    else:  # a compiled kernel adds the mean without rounding the product before
        assert torch.allclose(found, expected, rtol=2**-22)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("rows", "width", "block_size"), SHAPES[:4])
def test_products_agree_with_fp64(rows: int, width: int, block_size: int, double: bool, dtype: torch.dtype):
    codes = coded(rows, width, block_size, double=double)
    weight = codes.dequantize().double()
    for tokens in (1, 5):
        x = torch.randn(tokens, width, device=DEVICE).to(dtype)
        found = linear_4bit(x, codes)
        assert found.dtype == dtype and found.shape == (tokens, rows)
        assert relative_error(found, x.double() @ weight.T) < TOLERANCES[dtype]


@pytest.mark.parametrize("tokens", [2, 16, 17, 64, 65])
def test_every_number_of_tokens_agrees_with_fp64(tokens: int):
    codes = coded(100, 320, 64)
    x = torch.randn(tokens, 320, device=DEVICE).half()
    assert relative_error(linear_4bit(x, codes), x.double() @ codes.dequantize().double().T) < 2**-10


def test_the_gradient_goes_through_the_same_weight():
    codes = coded(70, 192, 64, double=True)
    grad = torch.randn(2, 3, 70, device=DEVICE)
    found = linear_4bit_backward(grad, codes)
    assert found.shape == (2, 3, 192)
    assert relative_error(found, grad.double() @ codes.dequantize().double()) < 1e-5  # a GPU's FP32 product may be TF32


def test_axes_strides_and_no_tokens():
    codes = coded(8, 64, 64)
    x = torch.randn(64, 6, device=DEVICE).T[::2]
    expected = x @ codes.dequantize().T
    assert torch.allclose(linear_4bit(x[None], codes)[0], expected, atol=1e-4)
    assert torch.allclose(linear_4bit(x[0], codes), expected[0], atol=1e-4)
    assert linear_4bit(x[:0], codes).shape == (0, 8)


def test_an_outlier_of_a_token_reaches_every_row_and_no_other_token():
    codes = coded(70, 192, 64)
    x = torch.zeros(3, 192, device=DEVICE).half()
    x[1, 77] = 1000.0
    found = linear_4bit(x, codes)
    assert not found[0].any() and not found[2].any()
    assert torch.allclose(found[1], (1000 * codes.dequantize()[:, 77]).half(), rtol=2**-9)


@pytest.mark.parametrize(
    ("codes", "dtype", "sentence"),
    [
        (lambda: coded(8, 96, 48), torch.float32, "power of two from 16 to 4096, got 48"),
        (lambda: coded(8, 64, 64, codebook=dynamic_map(signed=True)), torch.float32, "must have 4 bits, got 8"),
        (lambda: coded(8, 64, 64), torch.float64, "float32, bfloat16 or float16, got float64"),
    ],
)
def test_bad_inputs_are_named(codes, dtype, sentence):
    assert not accepts(codes(), dtype=dtype)
    with pytest.raises(ValueError, match=sentence):
        dequantize_4bit(codes(), dtype=dtype)


def test_a_token_that_does_not_fit_is_named():
    codes = coded(8, 64, 64)
    assert accepts(codes)
    with pytest.raises(ValueError, match=r"x must have 64 values a row, got shape \(2, 63\)"):
        linear_4bit(torch.ones(2, 63, device=DEVICE), codes)
    with pytest.raises(ValueError, match=r"of a matrix, got shape \(64,\)"):
        linear_4bit(
            torch.ones(2, 64, device=DEVICE), quantize_blockwise(torch.ones(64, device=DEVICE), NF4, block_size=64)
        )
