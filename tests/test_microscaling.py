"""Block formats: E8M0 against ml_dtypes, block rounding against a loop over blocks."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from qlab.formats import E2M1, E4M3, finite_values
from qlab.microscaling import decode_e8m0, encode_e8m0, round_to_mx, round_to_nvfp4


def test_e8m0_equals_ml_dtypes_on_every_code():
    codes = np.arange(256, dtype=np.uint8)
    peer = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(decode_e8m0(torch.from_numpy(codes)).numpy(), peer, equal_nan=True)
    powers = torch.from_numpy(peer[:255].copy())
    assert torch.equal(encode_e8m0(powers), torch.arange(255, dtype=torch.uint8))
    assert torch.equal(encode_e8m0(powers[1:] * 1.99), torch.arange(1, 255, dtype=torch.uint8))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_e8m0_refuses_what_it_cannot_hold(bad):
    with pytest.raises(ValueError, match="E8M0 scales must be finite and at least"):
        encode_e8m0(torch.tensor([bad]))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 200])
def test_mxfp4_puts_every_block_on_its_own_grid(length):
    x = torch.randn(length) * torch.exp2(torch.randint(-8, 8, (length,)))
    rounded = round_to_mx(x)
    grid = finite_values(E2M1).unique()
    for block, ours in zip(x.split(32), rounded.split(32), strict=True):
        scale = 2.0 ** (math.floor(math.log2(block.abs().max())) - 2)
        nearest = grid[(block[:, None] / scale - grid).abs().argmin(dim=1)] * scale
        assert ((ours - block).abs() <= (nearest - block).abs()).all()
        assert torch.isin(ours / scale, grid).all()


def test_zero_blocks_stay_zero_and_the_largest_number_stays_close():
    x = torch.cat([torch.zeros(32), torch.full((32,), 3e38)])
    assert torch.equal(round_to_mx(x)[:32], torch.zeros(32))
    assert (round_to_mx(x)[32:] / 3e38 - 1).abs().max() < 0.25
    assert torch.equal(round_to_nvfp4(torch.zeros(16)), torch.zeros(16))
    assert round_to_nvfp4(torch.empty(0)).numel() == 0


def test_nvfp4_scales_are_e4m3_numbers_of_the_tensor_scale():
    x = torch.randn(160)
    rounded = round_to_nvfp4(x)
    tensor_scale = x.abs().max() / (6 * 448)
    scales = finite_values(E4M3).unique()
    grid = finite_values(E2M1).unique()
    for block, ours in zip(x.split(16), rounded.split(16), strict=True):
        wanted = block.abs().max() / 6 / tensor_scale
        scale = scales[(scales - wanted).abs().argmin()] * tensor_scale
        assert torch.isclose(ours[:, None] / scale, grid, atol=1e-6).any(dim=1).all()


def test_bad_input_gets_one_sentence():
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        round_to_mx(torch.ones(4), block_size=0)
    with pytest.raises(ValueError, match="x must be finite, and holds 1"):
        round_to_nvfp4(torch.tensor([1.0, math.nan]))
