import math

import pytest
import torch

from qlab.calibrate import bias_correction, clip_errors, equalize, mse_clip
from qlab.quantize import quantize_symmetric, quantize_with, symmetric_grid_of


def squared_error(x, clip, bits):
    grid = symmetric_grid_of(torch.tensor([[clip]], dtype=torch.float32), bits=bits)
    return (quantize_with(x, grid).dequantize().double() - x.double()).square().mean().item()


@pytest.mark.parametrize("bits", range(2, 9))
def test_both_parts_add_up_to_the_error_of_quantizing(bits):
    x = torch.randn(4, 500)
    clips = torch.tensor([0.3, 1.0, 2.5, x.abs().max().item()])
    errors = clip_errors(x, clips, bits=bits)
    expected = torch.tensor([squared_error(x, clip, bits) for clip in clips.tolist()]).double()
    assert torch.allclose(errors.total, expected, rtol=1e-5, atol=0)  # sums of 2 000 terms in FP32
    assert errors.clipping[-1] == 0
    whole = (quantize_symmetric(x, bits=bits).dequantize().double() - x.double()).square().mean()
    assert errors.rounding[-1].item() == pytest.approx(whole.item(), rel=1e-5)
    beyond = x[x.abs() > 0.3].double()
    assert errors.clipping[0].item() == pytest.approx(((beyond.abs() - 0.3) ** 2).sum().item() / 2000, rel=1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
def test_mse_clip_is_as_good_as_any_of_many_clips(bits):
    x = torch.distributions.StudentT(4.0).sample((2000,))
    clips = torch.linspace(0, 1, 501)[1:] * x.abs().max()
    found = mse_clip(x, bits=bits)
    near = (found * torch.linspace(0.99, 1.01, 101)).clamp(max=x.abs().max())
    least = clip_errors(x, torch.cat([clips, near]), bits=bits).total.min().item()
    assert squared_error(x, found, bits) <= (1 + 1e-5) * least  # sums of 2 000 terms in FP32


@pytest.mark.parametrize("scale", [1e-36, 1e-24, 1.0, 1e20, 1e37])
def test_squares_that_leave_fp32_do_no_harm(scale):
    x = torch.randn(2000)
    assert mse_clip(x * scale, bits=3) == pytest.approx(mse_clip(x, bits=3) * scale, rel=0.05)
    assert mse_clip(x * scale, bits=3) < 0.9 * (x * scale).abs().max()
    assert clip_errors(x * scale, torch.tensor([scale]), bits=3).total.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_float_type_will_do(dtype):
    x = torch.randn(1000).to(dtype)
    assert mse_clip(x, bits=4) == mse_clip(x.float(), bits=4)


def test_weights_count_a_value_several_times():
    x, times = torch.tensor([0.1, -0.4, 0.7, 2.0]), torch.tensor([50.0, 30.0, 10.0, 1.0])
    repeated = x.repeat_interleave(times.long())
    clips = torch.tensor([0.5, 1.0, 2.0])
    weighted, plain = clip_errors(x, clips, bits=3, weights=times), clip_errors(repeated, clips, bits=3)
    assert torch.allclose(weighted.clipping, plain.clipping) and torch.allclose(weighted.rounding, plain.rounding)
    assert mse_clip(x, bits=3, weights=times) == pytest.approx(mse_clip(repeated, bits=3), rel=0.01)


def test_tensors_with_little_to_clip():
    assert mse_clip(torch.zeros(5), bits=4) == 0
    assert mse_clip(torch.tensor([-3.0]), bits=8) == 3
    assert mse_clip(torch.tensor([1e-45]), bits=2) == 2**-149
    assert clip_errors(torch.zeros(5), torch.tensor([1.0]), bits=4).total == 0


@pytest.mark.parametrize("find", [mse_clip, lambda x, **o: clip_errors(x, torch.ones(1), **o)])
def test_bad_input_gets_a_sentence(find):
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite, and holds 1 NaN or infinite"):
            find(torch.tensor([1.0, bad]), bits=4)
    with pytest.raises(ValueError, match=r"at least one value, got shape \(0,\)"):
        find(torch.zeros(0), bits=4)
    for x in (torch.ones(3), torch.zeros(3)):
        for bits in (1, 9):
            with pytest.raises(ValueError, match=f"bits must be 2 to 8, got {bits}"):
                find(x, bits=bits)
    for weights in ([0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="weights must not be negative, with a finite sum above 0"):
            find(torch.ones(2), bits=4, weights=torch.tensor(weights))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_must_be_a_positive_number(clip):
    with pytest.raises(ValueError, match="clips must be above 0 and finite, got"):
        clip_errors(torch.ones(3), torch.tensor([1.0, clip]), bits=4)
    with pytest.raises(ValueError, match=r"clips must be above 0 and finite, got \[\]"):
        clip_errors(torch.ones(3), torch.zeros(0), bits=4)


@pytest.mark.gpu
def test_a_gpu_finds_the_same_clip():
    x = torch.randn(10_000)
    assert mse_clip(x.cuda(), bits=4) == pytest.approx(mse_clip(x, bits=4), rel=0.01)


def test_bias_correction_restores_the_mean_output():
    linear, x = torch.nn.Linear(24, 7), torch.rand(200, 24)
    before = linear(x).mean(0)
    rounded = quantize_symmetric(linear.weight.detach(), bits=3).dequantize()
    correction = bias_correction(linear.weight, rounded, x.mean(0))
    assert not correction.requires_grad
    off = (x @ rounded.T + linear.bias).mean(0) - before
    assert off.abs().max() > 1e-3
    # means of 200 sums of 24 terms of size 0.1: some 10 roundings of 2^-24
    assert (off + correction).abs().max() < 2e-6


def pair_output(first, second, x, gate):
    hidden = first(x)
    return second(hidden.relu() if gate is None else torch.nn.functional.silu(gate(x)) * hidden)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equalizing_changes_the_ranges_and_not_the_function(gated, bias):
    first, second = torch.nn.Linear(16, 12, bias=bias), torch.nn.Linear(12, 5)
    gate = torch.nn.Linear(16, 12) if gated else None
    with torch.no_grad():
        first.weight *= torch.logspace(-3, 3, 12)[:, None]
        first.weight[4] = 0
        second.weight[:, 7] = 0
    x = torch.randn(50, 16)
    before = pair_output(first, second, x, gate).detach()
    old = first.weight.detach().clone()
    divisor = equalize(first, second)
    after = pair_output(first, second, x, gate).detach()
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert divisor[4] == divisor[7] == 1
    ranges, others = first.weight.abs().amax(1), second.weight.abs().amax(0)
    live = torch.arange(12).apply_(lambda channel: channel not in (4, 7)).bool()
    assert torch.allclose(ranges[live], others[live], rtol=1e-5)
    assert torch.allclose(first.weight * divisor[:, None], old, rtol=1e-6)


def test_repairs_refuse_bad_input():
    with pytest.raises(ValueError, match="must share channels, got 4 and 5"):
        equalize(torch.nn.Linear(3, 4), torch.nn.Linear(5, 3))
    first, second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)
    second.weight.data[0, 0] = math.nan
    before = first.weight.clone()
    with pytest.raises(ValueError, match="holds 1 NaN"):
        equalize(first, second)
    assert torch.equal(first.weight, before)
    with pytest.raises(ValueError, match="holds 1 NaN"):
        bias_correction(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([1.0, math.inf, 0.0]))
