"""Grids and codes: the promised error, brute force on tiny inputs, and torch's own fake quantization."""

import copy
import math
import warnings

import pytest
import torch

from qlab.quantize import (
    PER_COLUMN,
    PER_ROW,
    PER_TENSOR,
    Grid,
    Tile,
    affine_grid_of,
    error_in_steps,
    per_block,
    per_group,
    quantize_affine,
    quantize_symmetric,
    quantize_with,
    sqnr_db,
    symmetric_grid,
    value_range,
)

BITS = range(2, 9)
BOTH = [quantize_symmetric, quantize_affine]
SLACK = 1e-4  # steps: four FP32 roundings of numbers up to 255 · 2
TILES = [PER_TENSOR, PER_ROW, PER_COLUMN, per_group(3), per_block(7), Tile(2, None), Tile(2, 3), Tile(5, 100)]


def steps_of_error(x, quantized):
    """The error in steps, in FP64 from the codes themselves."""
    tile, zero = quantized.grid.tile, quantized.zero_point
    code = tile.split(quantized.codes.double()) - (0 if zero is None else zero.double()[:, None, :, None])
    steps = code - tile.split(x.double()) / quantized.scale.double()[:, None, :, None]
    return tile.join(steps, x.shape).abs().max().item()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantize", BOTH)
def test_no_value_is_more_than_half_a_step_off(quantize, bits):
    for exponent in (-150, -149, -146, -140, -130, -126, -100, -20, 0, 20, 100, 126):
        for shift in (-3, -1, 0, 1, 3):
            x = ((torch.randn(50, dtype=torch.float64) / 4 + shift) * 2.0**exponent).float()
            x = x.nan_to_num()  # the largest exponent overflows now and then
            assert steps_of_error(x, quantize(x, bits=bits)) <= 0.5 + SLACK


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantize", BOTH)
def test_every_float_type_keeps_to_half_a_step(quantize, dtype):
    x = torch.randn(6, 20, dtype=torch.float64).to(dtype)
    quantized = quantize(x, bits=8, tile=PER_ROW)
    assert quantized.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert steps_of_error(x, quantized) <= 0.5 + SLACK


@pytest.mark.parametrize("shape", [(), (1,), (17,), (5, 8), (2, 3, 5), (2, 2, 2, 3)])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("quantize", BOTH)
def test_tiles_are_those_of_a_loop(quantize, tile, shape):
    x = torch.randn(shape)
    quantized = quantize(x, bits=5, tile=tile)
    columns = x.numel() if tile.flat or not shape else shape[-1]
    matrix, codes = x.reshape(-1, columns), quantized.codes.reshape(-1, columns)
    height, width = tile.rows or len(matrix), tile.columns or columns
    assert quantized.codes.shape == x.shape
    assert quantized.scale.shape == (math.ceil(len(matrix) / height), math.ceil(columns / width))
    for down, top in enumerate(range(0, len(matrix), height)):
        for across, left in enumerate(range(0, columns, width)):
            cut = (slice(top, top + height), slice(left, left + width))
            alone = quantize(matrix[cut], bits=5)
            assert torch.equal(alone.codes, codes[cut])
            assert alone.scale == quantized.scale[down, across]
    assert quantized.dequantize().shape == x.shape


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_the_nearest_of_all(bits):
    x = torch.randn(40)
    for quantized in (quantize_symmetric(x, bits=bits), quantize_affine(x, bits=bits)):
        lowest, highest = quantized.grid.codes
        zero = 0 if quantized.zero_point is None else quantized.zero_point.double()
        values = quantized.scale.double() * (torch.arange(lowest, highest + 1).double() - zero)
        nearest = (x.double()[:, None] - values.view(1, -1)).abs().amin(1)
        taken = (quantized.dequantize().double() - x.double()).abs()
        assert (taken <= nearest + 1e-6).all()


def test_ties_go_to_the_even_code():
    grid = Grid(torch.ones(1, 1), None, 8, PER_TENSOR)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 500.0, -500.0])
    assert quantize_with(x, grid).codes.tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -127]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_one_sided_range_uses_every_code_and_keeps_zero(bits, sign):
    x = sign * torch.linspace(0, 6, 1000)
    quantized = quantize_affine(x, bits=bits)
    assert quantized.zero_point.item() == (0 if sign > 0 else 2**bits - 1)
    assert quantized.codes.unique().tolist() == list(range(2**bits))
    assert quantized.dequantize()[0] == 0


@pytest.mark.parametrize("quantize", BOTH)
def test_zero_is_exact_wherever_the_range_lies(quantize):
    for shift in (-5.0, -0.3, 0.0, 0.2, 100.0):
        x = torch.cat([torch.zeros(1), torch.rand(30) + shift])
        assert quantize(x, bits=4).dequantize()[0] == 0


@pytest.mark.parametrize("quantize", BOTH)
def test_a_range_of_zero_gets_scale_one(quantize):
    for x in (torch.zeros(4), torch.full((4,), 1e-44), torch.full((4,), -1e-40)):
        quantized = quantize(x, bits=8)
        assert quantized.scale.item() == 1
        assert not quantized.dequantize().any()
    assert (quantize(torch.full((4,), 3.7), bits=8).dequantize() - 3.7).abs().max() < 1e-6


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_views_are_quantized_as_they_read(tile):
    x = torch.randn(8, 6).T[:, ::2]
    for quantize in BOTH:
        ours, copied = quantize(x, bits=6, tile=tile), quantize(x.contiguous(), bits=6, tile=tile)
        assert torch.equal(ours.codes, copied.codes)
        assert torch.equal(ours.dequantize(), copied.dequantize())


def test_no_graph_is_kept_of_the_values_but_a_scale_may_be_learned():
    x = torch.randn(4, requires_grad=True)
    for quantize in BOTH:
        assert not quantize(x, bits=8).dequantize().requires_grad
    scale = torch.full((1, 1), 0.1, requires_grad=True)
    quantized = quantize_with(x, Grid(scale, None, 8, PER_TENSOR))
    quantized.dequantize().sum().backward()
    assert scale.grad.item() == quantized.codes.sum().item()


def test_inference_mode_gives_the_same():
    x = torch.randn(4, 4)
    with torch.inference_mode():
        inside = quantize_affine(x, bits=8).dequantize()
    assert torch.equal(inside.clone(), quantize_affine(x, bits=8).dequantize())


def test_the_input_is_left_alone():
    x = torch.randn(4, 4)
    before = x.clone()
    for quantize in BOTH:
        quantize(x, bits=3).dequantize()
    value_range(x)
    assert torch.equal(x, before)


def test_bits_per_value_counts_the_constants():
    x = torch.randn(4, 64)
    assert quantize_symmetric(x, bits=4, tile=per_group(32)).bits_per_value == 4 + 32 / 32
    assert quantize_affine(x, bits=4, tile=per_group(32)).bits_per_value == 4 + 40 / 32


@pytest.mark.parametrize("bits", BITS)
def test_each_bit_brings_six_decibels(bits):
    x = torch.rand(100_000) * 2 - 1
    found = sqnr_db(x, quantize_affine(x, bits=bits).dequantize())
    assert abs(found - 20 * math.log10(2**bits - 1)) < 0.1  # S² / 12 of noise for a uniform value


def test_error_in_steps_is_at_most_half():
    x = torch.randn(5, 9)
    assert error_in_steps(x, quantize_affine(x, bits=3, tile=Tile(2, 4))).abs().max() <= 0.5 + SLACK


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantize", BOTH)
def test_values_that_are_not_finite_are_refused_wherever_they_are(quantize, bad):
    for place in (0, 7, 29):
        x = torch.randn(5, 6)
        x.view(-1)[place] = bad
        with pytest.raises(ValueError, match="x must be finite, and holds 1 NaN or infinite values"):
            quantize(x, bits=8, tile=Tile(2, 4))
        with pytest.raises(ValueError, match="x must be finite, and holds 1 NaN"):
            quantize_with(x, Grid(torch.ones(1, 1), None, 8, PER_TENSOR))


def test_large_finite_values_are_not_taken_for_infinite_ones():
    x = torch.tensor([3.3e38, -3.3e38]).repeat(10)
    for quantize in BOTH:
        assert quantize(x, bits=8, tile=per_group(2)).scale.isfinite().all()


def test_bad_arguments_get_one_sentence():
    x = torch.randn(4, 4)
    for quantize in BOTH:
        for bits in (1, 9):
            with pytest.raises(ValueError, match=f"bits must be 2 to 8, got {bits}"):
                quantize(x, bits=bits)
        with pytest.raises(ValueError, match=r"x must hold at least one value, got shape \(0, 3\)"):
            quantize(torch.empty(0, 3), bits=8)
    with pytest.raises(ValueError, match="at least 1 value wide and high, got 0"):
        per_block(0)
    with pytest.raises(ValueError, match=r"scale must be \(4, 1\) for x of shape \(4, 4\), got \(3, 1\)"):
        quantize_with(x, symmetric_grid(x[:3], bits=8, tile=PER_ROW))
    with pytest.raises(ValueError, match="x must hold a value that is not zero"):
        sqnr_db(torch.zeros(3), torch.zeros(3))


def _boundary_share(x, scale, ours, theirs):
    """Check that codes differ by at most one, and only within FP32's rounding of a tie; return how many differ."""
    differs = ours != theirs
    assert ((ours - theirs).abs() <= 1).all()
    steps = (x.double() / scale.double())[differs]
    # the inverse, the product with it and our quotient round once each: 3 · 2^-24 of at most 255 steps
    assert ((steps - steps.floor() - 0.5).abs() <= 3 * 2**-24 * 255).all()
    return differs.double().mean().item()


@pytest.mark.parametrize("bits", [4, 8])
def test_torch_fake_quantize_per_tensor_agrees_but_at_ties(bits):
    x = torch.randn(100_000)
    quantized = quantize_affine(x, bits=bits)
    scale, zero = quantized.scale.item(), int(quantized.zero_point)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 2**bits - 1)
    ours, peer = (((y / quantized.scale).round()).long().view(-1) for y in (quantized.dequantize(), theirs))
    assert _boundary_share(x, quantized.scale.view(-1), ours, peer) <= 1e-4  # it multiplies by 1 / scale


def test_torch_fake_quantize_per_channel_agrees_but_at_ties():
    x = torch.randn(64, 1000)
    quantized = quantize_affine(x, bits=8, tile=PER_ROW)
    scale, zero = quantized.scale.view(-1), quantized.zero_point.view(-1).int()
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, 0, 255)
    ours, peer = ((y / quantized.scale).round().long() for y in (quantized.dequantize(), theirs))
    assert _boundary_share(x, quantized.scale, ours, peer) <= 1e-4


def test_torch_quantize_per_tensor_agrees_but_at_ties():
    x = torch.randn(100_000)
    quantized = quantize_affine(x, bits=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are slated for deletion
        theirs = torch.quantize_per_tensor(x, quantized.scale.item(), int(quantized.zero_point), torch.quint8)
        codes = theirs.int_repr()
    assert _boundary_share(x, quantized.scale.view(-1), quantized.codes.long(), codes.long()) <= 1e-4


def test_torchao_finds_the_same_scales_and_codes():
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    x = torch.randn(16, 64)
    quantized = quantize_affine(x, bits=8, tile=per_group(32))
    scale, zero = primitives.choose_qparams_affine(
        x, primitives.MappingType.ASYMMETRIC, (1, 32), torch.uint8, eps=1e-12, scale_dtype=torch.float32
    )
    torch.testing.assert_close(scale.view(16, 2), quantized.scale, rtol=3 * 2**-23, atol=0)
    assert (zero.view(16, 2).long() - quantized.zero_point.long()).abs().max() <= 1  # where -low / S is near a tie
    codes = primitives.quantize_affine(x, (1, 32), quantized.scale, quantized.zero_point.int(), torch.uint8)
    whole = quantized.scale.repeat_interleave(32, dim=1)
    assert _boundary_share(x, whole, quantized.codes.long(), codes.long()) <= 1e-3


def test_records_can_be_copied():
    quantized = copy.deepcopy(quantize_affine(torch.randn(3, 3), bits=8))
    assert affine_grid_of(torch.tensor([[-1.0]]), torch.tensor([[1.0]]), bits=8).zero_point.item() in (127, 128)
    assert quantized.dequantize().shape == (3, 3)
