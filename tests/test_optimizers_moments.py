"""Moments in codes: against the codebooks, and the whole optimizer against that of bitsandbytes."""

import logging

import pytest
import torch

from qlab.codebooks import dynamic_map, linear_map, nearest_codes
from qlab.optimizers import Adam8bit, MappedAdam, QuantizedMoment, adam_update, state_bytes
from qlab.optimizers.mapped import DYNAMIC_MAPS, MomentMaps

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes  # noqa: E402 - the logger must be quiet first
import bitsandbytes.functional as bnb  # noqa: E402


def magnitudes(count, *, signed, seed=0):
    """Values of the kind that a moment holds: of many magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * torch.rand(count, generator=generator) ** 2
    return values if signed else values.square()


@pytest.mark.parametrize("signed", [True, False])
def test_a_moment_is_blockwise_codes_of_the_dynamic_map(signed):
    x = magnitudes(1000, signed=signed).view(10, 100)
    moment = QuantizedMoment.quantize(x, signed=signed)
    absmax = torch.stack([block.abs().max() for block in x.view(-1).split(256)])
    inverse = (1 / absmax).repeat_interleave(256)[:1000]
    assert torch.equal(moment.absmax, absmax)
    assert torch.equal(moment.codes, nearest_codes(x.view(-1) * inverse, dynamic_map(signed=signed)).view(10, 100))
    expected = dynamic_map(signed=signed)[moment.codes.int()].view(-1) * absmax.repeat_interleave(256)[:1000]
    assert torch.equal(moment.dequantize(), expected.view(10, 100))
    assert moment.nbytes == 1000 + 4 * 4


def test_an_unsigned_moment_refuses_negative_values():
    with pytest.raises(ValueError, match=r"must not be negative, got -0\.25"):
        QuantizedMoment.quantize(torch.tensor([1.0, -0.25]), signed=False)
    with pytest.raises(ValueError, match="x must be finite in FP32, and holds 1"):
        QuantizedMoment.quantize(torch.tensor([1.0, float("nan")]), signed=True)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        QuantizedMoment.quantize(torch.ones(3), signed=True, block_size=0)


@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_has_the_same_map_and_its_codes_are_never_nearer(signed):
    assert torch.equal(dynamic_map(signed=signed), bnb.create_dynamic_map(signed=signed))
    x = magnitudes(2**16, signed=signed)
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(x, dynamic_map(signed=signed), 256)
    ours, theirs = QuantizedMoment.quantize(x, signed=signed), QuantizedMoment(codes, absmax, signed)
    assert torch.equal(absmax, ours.absmax)
    our_error, their_error = ((moment.dequantize() - x).abs().double() for moment in (ours, theirs))
    slack = 1e-7 * absmax.repeat_interleave(256)  # a tie's neighborhood in FP32
    assert (our_error <= their_error + slack).all()
    missed = (ours.codes != codes).float().mean()
    assert 0 < missed < (0.05 if signed else 0.5)


def test_one_step_from_the_same_state_is_that_of_bitsandbytes():
    one, other = (torch.nn.Parameter(magnitudes(2**14, signed=True)) for _ in range(2))
    ours, theirs = Adam8bit([one]), bitsandbytes.optim.Adam8bit([other])
    names = {"exp_avg": "state1", "exp_avg_absmax": "absmax1", "exp_avg_sq": "state2", "exp_avg_sq_absmax": "absmax2"}
    for step in range(50):
        if step:
            for name, peer_name in names.items():
                ours.state[one][name].copy_(theirs.state[other][peer_name])
            one.data.copy_(other)
        before = theirs_before = other.detach().clone()
        one.grad = torch.randn(2**14, generator=torch.Generator().manual_seed(step))
        other.grad = one.grad.clone()
        ours.step()
        theirs.step()
        assert (one - other).abs().max() <= 1e-4 * (other - theirs_before).abs().max() + 2**-24 * before.abs().max()
    state, peer = ours.state[one], theirs.state[other]
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        apart = (state[name].int() - peer[names[name]].int()).abs()
        assert (apart > 1).float().mean() < 1e-3 and (apart > 0).float().mean() < (0.01 if signed else 0.1)
        assert torch.allclose(state[f"{name}_absmax"], peer[names[f"{name}_absmax"]], rtol=1e-6)


@pytest.mark.parametrize("block_size", [64, None])
def test_adam_on_any_maps_is_decode_update_and_code(block_size):
    maps = MomentMaps(linear_map(bits=4, signed=True), linear_map(signed=False), block_size)
    one = torch.nn.Parameter(torch.randn(64, 65))
    optimizer = MappedAdam([one], lr=0.1, maps=maps)
    expected, moments = one.detach().clone(), [torch.zeros(64, 65) for _ in range(2)]
    for step in (1, 2, 3):
        one.grad = torch.randn(64, 65)
        optimizer.step()
        adam_update(expected, one.grad, *moments, step=step, lr=0.1)
        assert torch.equal(one, expected)
        moments = [_recoded(moment, *way, block_size) for moment, way in
                   zip(moments, ((maps.first, True), (maps.second, False)), strict=True)]  # fmt: skip
    blocks = 1 if block_size is None else 65
    assert optimizer.state[one]["first_absmax"].shape == (blocks,)
    assert state_bytes(optimizer) == 64 * 65 // 2 + 64 * 65 + 8 * blocks


def _recoded(moment, codebook, signed, block_size):
    size = block_size or moment.numel()
    rows = []
    for block in moment.reshape(-1).split(size):
        absmax = block.abs().max()
        rows.append(codebook[nearest_codes(block * (1 / absmax), codebook).int()] * absmax)
    return torch.cat(rows).view(moment.shape)


def test_adam_on_any_maps_keeps_small_tensors_in_32_bits_and_takes_a_closure():
    one, idle = torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.randn(3))
    optimizer = MappedAdam([one, idle], maps=DYNAMIC_MAPS)

    def closure():
        one.grad = torch.ones(50)
        return 7

    assert optimizer.step(closure) == 7
    assert state_bytes(optimizer) == 8 * 50


def test_a_linear_map_loses_small_second_moments_and_the_update_explodes():
    one, other = (torch.nn.Parameter(torch.zeros(4096)) for _ in range(2))
    gradient = torch.full((4096,), 1e-2)
    gradient[::256] = 1.0  # the largest of each block
    linear = MomentMaps(dynamic_map(signed=True), linear_map(signed=False))
    ways = [(MappedAdam([one], lr=1.0, maps=linear), one), (MappedAdam([other], lr=1.0), other)]
    for optimizer, weight in ways:
        for scale in (1.0, 1e-3):
            weight.grad = gradient * scale
            optimizer.step()
    small = torch.arange(4096) % 256 != 0
    assert one[small].abs().min() > 100 and other[small].abs().max() < 3
