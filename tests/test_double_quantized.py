"""Double quantization: bytes as stored, absmaxes against bitsandbytes and against their own promise."""

import logging

import pytest
import torch

from qlab.codebooks import FP4, NF4, double_quantize, dynamic_map, quantize_blockwise
from qlab.codebooks.double_quantized import ABSMAX_MAP

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes.functional as bnb  # noqa: E402 - the logger must be quiet first


def doubly(x: torch.Tensor, codebook=NF4, *, block_size=64, second=256):
    single = quantize_blockwise(x, codebook, block_size=block_size)
    return single, double_quantize(single, block_size=second)


def test_codes_and_constants_equal_those_of_bitsandbytes():
    x = torch.randn(2**12, 250) * torch.rand(2**12, 1)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    single, ours = doubly(x)
    assert torch.equal(ours.packed, packed.view(-1))
    assert torch.equal(ours.absmax_mean, state.offset)
    assert torch.equal(ours.absmax_codes.absmax, state.state2.absmax)
    # its CPU kernel does not always find the nearest level: ours differ there only, and are nearer
    differ = ours.absmax_codes.codes != state.absmax
    assert differ.float().mean() < 0.005
    theirs = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(ours.absmax[~differ], theirs[~differ])
    ours_off, theirs_off = ((absmax - single.absmax).abs()[differ] for absmax in (ours.absmax, theirs))
    assert (ours_off <= theirs_off).all()


def test_nf4_codes_of_ten_million_values_are_those_of_bitsandbytes_but_on_its_rounded_midpoints():
    x = torch.randn(10**7)
    ours = quantize_blockwise(x, NF4, block_size=64)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4")
    assert torch.equal(ours.absmax, state.absmax)
    bytes_apart = (ours.packed != packed.view(-1)).nonzero().view(-1)
    # 6 of its 15 midpoints are rounded up to FP32, and a value in a few millions is such a number: ours is nearer there
    assert bytes_apart.numel() <= 12
    places = torch.cat([2 * bytes_apart, 2 * bytes_apart + 1])
    codes, theirs = (torch.stack([p >> 4, p & 15]).view(-1) for p in (ours.packed[bytes_apart], packed[bytes_apart, 0]))
    normalized = x[places] * (1 / ours.absmax[places // 64])
    midpoints = (NF4[1:] + NF4[:-1]) / 2
    apart = codes != theirs
    assert torch.isin(normalized[apart], midpoints).all() and apart.sum() == bytes_apart.numel()
    off, off_theirs = ((NF4.double()[c.long()] - normalized.double()).abs()[apart] for c in (codes, theirs))
    assert (off < off_theirs).all()


def test_stored_bits_are_4_127_by_the_bytes():
    x = torch.randn(2**11, 2**11)
    single, ours = doubly(x)
    held = (ours.packed, ours.absmax_codes.packed, ours.absmax_codes.absmax, ours.absmax_mean)
    assert ours.stored_bytes == sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert ours.bits_per_value == pytest.approx(4 + 8 / 64 + 32 / (64 * 256) + 32 / 2**22, abs=1e-12)
    assert round(ours.bits_per_value, 3) == 4.127
    assert single.bits_per_value == 4.5
    assert torch.equal(ours.codes, single.codes) and ours.packed is single.packed


@pytest.mark.parametrize(
    ("shape", "codebook", "block_size", "second"),
    [
        ((7, 13), NF4, 64, 256),
        ((1,), NF4, 64, 256),
        ((3, 5, 11), FP4, 8, 3),
        ((100, 100), dynamic_map(signed=True), 32, 7),
        ((33,), torch.linspace(-1, 1, 7), 5, 1),
        ((65,), NF4, 1, 64),
    ],
    ids=str,
)
def test_every_value_is_its_level_times_the_coded_absmax_of_its_block(shape, codebook, block_size, second):
    x = torch.randn(shape)
    single, ours = doubly(x, codebook, block_size=block_size, second=second)
    absmax = ours.absmax_codes.dequantize() + ours.absmax_mean
    blocks = torch.arange(x.numel()) // block_size
    expected = (codebook[ours.codes.flatten().long()] * absmax[blocks]).view(shape)
    assert torch.equal(ours.dequantize(), expected)
    assert ours.shape == x.shape and ours.bits == single.bits
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = torch.empty(shape, dtype=dtype)
        assert ours.dequantize(out=out) is out and torch.equal(out, expected.to(dtype))
    # off by at most half a gap of the dynamic map, whose widest is under 0.0142 of the largest distance to the mean
    largest = (single.absmax - ours.absmax_mean).abs().max()
    assert (absmax - single.absmax).abs().max() <= 0.0071 * largest + 1e-6


def test_the_widest_gap_of_the_map_is_what_the_bound_says():
    assert ABSMAX_MAP.diff().max() < 0.0142


def test_equal_blocks_zeros_and_one_block_lose_nothing():
    for x in (torch.ones(640), torch.zeros(640), torch.randn(64)):
        single, ours = doubly(x)
        assert torch.equal(ours.dequantize(), single.dequantize())
    x = torch.cat([torch.zeros(64), torch.randn(6400)])
    assert torch.equal(doubly(x)[1].dequantize()[:64], torch.zeros(64))  # whatever absmax the zeros get


def test_what_cannot_be_quantized_again_is_refused():
    with pytest.raises(ValueError, match="one absmax a block, got block_size None"):
        double_quantize(quantize_blockwise(torch.randn(9), NF4, block_size=None))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        doubly(torch.randn(9), second=0)
    with pytest.raises(ValueError, match=r"the absmaxes must have a mean in FP32, got inf"):
        doubly(torch.full((256,), 3e38))
    _, ours = doubly(torch.randn(4, 6))
    with pytest.raises(ValueError, match=r"out must be contiguous, of shape \(4, 6\), got \(6, 4\)"):
        ours.dequantize(out=torch.empty(6, 4))
