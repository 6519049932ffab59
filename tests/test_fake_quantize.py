import math

import pytest
import torch

from qlab.calibrate import FakeQuantize, LearnedStep, fake_quantize
from qlab.quantize import (
    PER_COLUMN,
    PER_ROW,
    PER_TENSOR,
    Grid,
    affine_grid,
    affine_grid_of,
    per_block,
    per_group,
    quantize_symmetric,
    quantize_with,
    symmetric_grid,
    symmetric_grid_of,
)

TILES = {"tensor": PER_TENSOR, "row": PER_ROW, "column": PER_COLUMN, "group": per_group(5), "block": per_block(6)}


def half_of_its_range(x, tile, *, affine):
    """A grid that clips: it ends at half of what each tile holds."""
    return (affine_grid if affine else symmetric_grid)(x.detach() / 2, bits=4, tile=tile)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tile", TILES)
def test_the_value_is_on_the_grid_and_the_gradient_stops_where_it_ends(tile, affine):
    x = torch.randn(4, 13, requires_grad=True)
    grid = half_of_its_range(x, TILES[tile], affine=affine)
    upstream = torch.randn(4, 13)
    y = fake_quantize(x, grid)
    y.backward(upstream)
    quantized = quantize_with(x.detach(), grid)
    assert torch.equal(y, quantized.dequantize())
    # clipped: not within half a step of what it became
    far = ((y - x).abs() / grid.tile.join(spread(grid, x), x.shape)).detach() > 0.5 + 1e-4
    assert far.any() and not far.all()
    assert torch.equal(x.grad, torch.where(far, 0.0, upstream))


def spread(grid, x):
    return grid.scale[:, None, :, None].expand_as(grid.tile.split(x))


def test_without_the_straight_through_gradient_nothing_would_be_learned():
    # gradcheck cannot be used: finite differences see the flat steps of the staircase, and that gradient is 0
    x = torch.tensor([0.31, -0.72], dtype=torch.float64, requires_grad=True)
    grid = symmetric_grid_of(torch.ones(1, 1, dtype=torch.float64), bits=4)
    (gradient,) = torch.autograd.grad(fake_quantize(x, grid).sum(), x)
    assert torch.equal(gradient, torch.ones(2, dtype=torch.float64))
    assert torch.equal(fake_quantize(x + 1e-6, grid), fake_quantize(x - 1e-6, grid))


@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
def test_pytorch_gives_the_same_values_and_gradients(zero_point):
    ours = (torch.randn(2000) * 8).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    grid = Grid(torch.tensor([[0.1]]), torch.tensor([[zero_point]], dtype=torch.uint8), 8, PER_TENSOR)
    upstream = torch.randn(2000)
    y = fake_quantize(ours, grid)
    z = torch.fake_quantize_per_tensor_affine(theirs, 0.1, zero_point, 0, 255)
    y.backward(upstream)
    z.backward(upstream)
    assert 0 < (ours.grad == 0).sum() < 2000
    assert torch.equal(y, z) and torch.equal(ours.grad, theirs.grad)


def test_pytorch_agrees_on_signed_codes_by_row():
    ours = torch.randn(6, 50, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    scale = torch.linspace(0.05, 0.3, 6)
    y = fake_quantize(ours, Grid(scale[:, None], None, 4, PER_ROW))
    z = torch.fake_quantize_per_channel_affine(theirs, scale, torch.zeros(6, dtype=torch.int32), 0, -7, 7)
    y.sum().backward()
    z.sum().backward()
    assert 0 < (ours.grad == 0).sum() < 300
    assert torch.equal(y, z) and torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_type_stays(dtype):
    x = torch.randn(3, 8).to(dtype).requires_grad_()
    for rounding in (FakeQuantize(bits=4), LearnedStep(x, bits=4)):
        y = rounding(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype


@pytest.mark.parametrize("tile", TILES)
def test_no_gradient_leaks_through_the_scale(tile):
    weight = torch.randn(4, 13, requires_grad=True)
    y = FakeQuantize(bits=3, tile=TILES[tile])(weight)
    y.backward(torch.ones(4, 13))
    assert torch.equal(weight.grad, torch.ones(4, 13))  # its grid clips nothing; absmax would get extra gradient
    assert torch.equal(y, quantize_symmetric(weight.detach(), bits=3, tile=TILES[tile]).dequantize())
    weight.grad = None
    fake_quantize(weight, symmetric_grid(weight, bits=3, tile=TILES[tile])).sum().backward()
    assert torch.equal(weight.grad, torch.ones(4, 13))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("tile", TILES)
def test_a_learned_step_has_the_gradient_of_the_paper(tile, bits):
    tile, largest = TILES[tile], 2 ** (bits - 1) - 1
    weight, upstream = torch.randn(4, 13, requires_grad=True), torch.randn(4, 13)
    rounding = LearnedStep(weight, bits=bits, tile=tile)
    rounding.scale.data *= torch.rand_like(rounding.scale) + 0.1
    rounding(weight).backward(upstream)
    expected, count = torch.zeros_like(rounding.scale), torch.zeros_like(rounding.scale)
    places = tile.split(torch.arange(1.0, 53).view(4, 13))  # the zeros that fill up ragged tiles belong to no place
    for down, _, across, _ in (cell.tolist() for cell in places.nonzero()):
        count[down, across] += 1
    for down, row, across, column in (cell.tolist() for cell in places.nonzero()):
        place = int(places[down, row, across, column]) - 1
        v = weight.flatten()[place].item() / rounding.scale[down, across].item()
        step = upstream.flatten()[place].item()
        slope = round(v) - v if abs(v) < largest else math.copysign(largest, v)
        expected[down, across] += slope * step / math.sqrt(count[down, across] * largest)
        # times the scale and divided by it again: two roundings
        assert weight.grad.flatten()[place].item() == pytest.approx(step if abs(v) < largest else 0, rel=2**-22)
    assert torch.allclose(rounding.scale.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_learned_step_starts_where_the_paper_says():
    weight = torch.randn(3, 7)
    start = LearnedStep(weight, bits=3, tile=per_group(4)).scale
    assert torch.allclose(start[:, 0], 2 * weight[:, :4].abs().mean(1) / 3**0.5)
    assert torch.allclose(start[:, 1], 2 * weight[:, 4:].abs().mean(1) / 3**0.5)  # three values, not four
    assert torch.equal(LearnedStep(torch.zeros(2, 4), bits=4).scale, torch.ones(2, 1))


def test_a_step_below_zero_counts_by_its_magnitude_and_one_of_zero_gives_numbers():
    weight = torch.randn(2, 9)
    rounding = LearnedStep(weight, bits=3)
    before = rounding(weight).detach()
    rounding.scale.data.neg_()
    assert torch.equal(rounding(weight), before)
    rounding.scale.data.zero_()
    y = rounding(weight)
    y.sum().backward()
    assert y.isfinite().all() and rounding.scale.grad.isfinite().all()
    assert rounding(torch.zeros(2, 9)).count_nonzero() == 0


def test_bad_input_gets_a_sentence():
    grid = affine_grid_of(torch.zeros(1, 1), torch.ones(1, 1), bits=4)
    weight = torch.ones(2, 2)
    learned = LearnedStep(weight, bits=4)
    for bad in (math.nan, math.inf):
        x = torch.tensor([[1.0, bad], [0.0, 1.0]])
        for rounding in (
            lambda x: fake_quantize(x, grid),
            FakeQuantize(bits=4),
            learned,
            lambda x: LearnedStep(x, bits=4),
        ):
            with pytest.raises(ValueError, match="finite, and holds 1 NaN or infinite"):
                rounding(x)
            with pytest.raises(ValueError, match="at least one value"):
                rounding(torch.zeros(0, 2))
    learned.scale.data[1] = math.nan
    with pytest.raises(ValueError, match="step sizes must be finite, and 1 are NaN"):
        learned(weight)
    for make in (lambda bits: FakeQuantize(bits=bits), lambda bits: LearnedStep(weight, bits=bits)):
        for bits in (1, 9):
            with pytest.raises(ValueError, match=f"bits must be 2 to 8, got {bits}"):
                make(bits)
    with pytest.raises(ValueError, match=r"scale must be \(3, 1\) for x of shape \(3, 2\), got \(1, 1\)"):
        fake_quantize(torch.ones(3, 2), Grid(torch.ones(1, 1), None, 4, PER_ROW))
    with pytest.raises(ValueError, match="at least 1 value wide and high, got 0"):
        per_group(0)
