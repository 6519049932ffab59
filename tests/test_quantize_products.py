"""Products of codes: exact integers on every path, FP64 as the judge, and refusals in one sentence."""

import pytest
import torch

from qlab.quantize import (
    PER_COLUMN,
    PER_ROW,
    PER_TENSOR,
    Tile,
    int8_linear,
    int8_matmul,
    products,
    quantize_affine,
    quantize_symmetric,
)

BOTH = [quantize_symmetric, quantize_affine]
PATHS = [products._integer_product, products._product_in_parts, products._padded_product]


@pytest.mark.parametrize("product", PATHS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 64, 64), (2, 7, 64), (3, 1025, 5), (17, 40, 16), (33, 2100, 9)])
def test_every_path_gives_the_exact_integer(product, sizes):
    if product is products._padded_product and not products._int_mm_is_exact():
        pytest.skip("torch._int_mm saturates on this processor; this path is for GPUs")
    tokens, k, out = sizes
    for smallest in (-128, 120):  # 120 to 127 all over is where int16 would saturate
        x = torch.randint(smallest, 128, (tokens, k), dtype=torch.int8)
        w = torch.randint(smallest, 128, (out, k), dtype=torch.int8)
        assert torch.equal(product(x, w).long(), x.long() @ w.long().T)


def test_a_processor_that_saturates_is_worked_around(monkeypatch):
    x, w = (torch.full((rows, 3000), 127, dtype=torch.int8) for rows in (2, 5))
    monkeypatch.setattr(products, "_int_mm_is_exact", lambda: False)
    assert (products._integer_product(x, w) == 3000 * 127**2).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("of_x", BOTH)
@pytest.mark.parametrize("of_w", BOTH)
@pytest.mark.parametrize("tile", [PER_ROW, PER_TENSOR])
def test_the_product_is_that_of_the_dequantized_factors(of_x, of_w, tile, bits):
    for tokens, k, out in ((1, 5, 40), (9, 300, 7)):
        x = of_x(torch.randn(tokens, k) + 1, bits=bits, tile=tile)
        w = of_w(torch.randn(out, k) - 1, bits=8, tile=tile)
        exact_x, exact_w = x.dequantize().double(), w.dequantize().double()
        size = exact_x.abs() @ exact_w.abs().T
        # in FP64 from rounded reals: one rounding for each real, two scales, the integer's own conversion
        assert ((int8_matmul(x, w) - exact_x @ exact_w.T).abs() <= 6 * 2**-24 * size + 1e-12).all()


@pytest.mark.parametrize("quantize", BOTH)
def test_the_longest_sum_does_not_overflow_and_a_longer_one_is_refused(quantize):
    longest = {quantize_symmetric: 133_144, quantize_affine: 33_025}[quantize]
    ones = torch.ones(1, longest)
    factor = quantize(ones, bits=8, tile=PER_ROW)
    torch.testing.assert_close(int8_matmul(factor, factor).item(), float(longest))
    longer = quantize(torch.ones(1, longest + 1), bits=8, tile=PER_ROW)
    with pytest.raises(ValueError, match=f"one K of at most {longest}, got {longest + 1}"):
        int8_matmul(longer, longer)


def test_what_has_no_product_is_refused():
    x = torch.randn(4, 6)
    good = quantize_symmetric(x, bits=8)
    with pytest.raises(ValueError, match="w must have one scale, or one for each of 4 rows, got 1 x 6"):
        int8_matmul(good, quantize_symmetric(x, bits=8, tile=PER_COLUMN))
    with pytest.raises(ValueError, match="x must have one scale, or one for each of 4 rows, got 2 x 1"):
        int8_matmul(quantize_symmetric(x, bits=8, tile=Tile(2, None)), good)
    with pytest.raises(ValueError, match="must share one K of at most 133144, got 6 and 5"):
        int8_matmul(good, quantize_symmetric(x[:, :5], bits=8))
    with pytest.raises(ValueError, match=r"x must be a matrix of codes, got shape \(24,\)"):
        int8_matmul(quantize_symmetric(x.flatten(), bits=8), good)
    with pytest.raises(ValueError, match="x must be finite, and holds 1 NaN"):
        int8_linear(torch.tensor([[1.0, torch.nan]]), quantize_symmetric(x[:, :2], bits=8))
    with pytest.raises(ValueError, match=r"x must hold at least one value, got shape \(0, 6\)"):
        int8_linear(torch.empty(0, 6), good)


def test_large_finite_tokens_are_not_refused():
    w = quantize_symmetric(torch.eye(4) * 1e-30, bits=8, tile=PER_ROW)
    assert int8_linear(torch.full((9, 4), 3e38), w).shape == (9, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 3, 6), (40, 6)])
def test_tokens_get_the_codes_of_quantize_symmetric(shape, dtype):
    x = torch.randn(shape).to(dtype)
    w = quantize_symmetric(torch.randn(64, 6), bits=8, tile=PER_ROW)
    bias = torch.randn(64)
    tokens = quantize_symmetric(x.reshape(-1, 6), bits=8, tile=PER_ROW)
    expected = int8_matmul(tokens, w) + bias
    got = int8_linear(x, w, bias)
    assert got.dtype == dtype and got.shape == (*shape[:-1], 64) and got.is_contiguous()
    torch.testing.assert_close(got.view(-1, 64), expected.to(dtype), rtol=2**-22, atol=1e-6)
    slim = products._quantize_tokens(x.reshape(-1, 6).to(tokens.scale.dtype))
    assert torch.equal(slim.codes, tokens.codes) and torch.equal(slim.scale, tokens.scale)


def test_views_and_tokens_of_zeros():
    x = torch.randn(6, 10).T
    w = quantize_symmetric(torch.randn(3, 6), bits=8, tile=PER_ROW)
    assert torch.equal(int8_linear(x, w), int8_linear(x.contiguous(), w))
    assert not int8_linear(torch.zeros(2, 6), w).any()


def test_the_gradient_reaches_the_bias_and_not_x():
    x, bias = torch.randn(3, 6, requires_grad=True), torch.zeros(4, requires_grad=True)
    w = quantize_symmetric(torch.randn(4, 6), bits=8, tile=PER_ROW)
    int8_linear(x, w, bias).sum().backward()
    assert x.grad is None and bias.grad.tolist() == [3] * 4
    assert not int8_linear(x, w).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1, 64, 64), (5, 30, 7), (40, 128, 64)])
def test_a_gpu_gives_the_same(sizes):
    tokens, k, out = sizes
    x, weight = torch.randn(tokens, k), torch.randn(out, k)
    here = int8_linear(x, quantize_symmetric(weight, bits=8, tile=PER_ROW))
    there = int8_linear(x.cuda(), quantize_symmetric(weight.cuda(), bits=8, tile=PER_ROW))
    torch.testing.assert_close(there.cpu(), here)
