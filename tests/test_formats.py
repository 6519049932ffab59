"""Every code and every tie of every format, against ml_dtypes and torch's own types."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from qlab import formats
from qlab.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M0,
    E3M2,
    E3M4,
    E4M3,
    E4M3_IEEE,
    E5M2,
    FP16,
    FP32,
    TF32,
    FloatFormat,
    Specials,
    decode,
    encode,
    finite_values,
    fp32_bits_to_bf16_bits,
    round_to_format,
    stochastic_round,
)

PEERS = {
    BF16: ml_dtypes.bfloat16,
    FP16: np.float16,
    E5M2: ml_dtypes.float8_e5m2,
    E4M3: ml_dtypes.float8_e4m3fn,
    E4M3_IEEE: ml_dtypes.float8_e4m3,
    E3M4: ml_dtypes.float8_e3m4,
    E3M2: ml_dtypes.float6_e3m2fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E2M1: ml_dtypes.float4_e2m1fn,
}
TORCH_PEERS = {BF16: torch.bfloat16, FP16: torch.float16, E5M2: torch.float8_e5m2, E4M3: torch.float8_e4m3fn}
with_peer = pytest.mark.parametrize("fmt", PEERS, ids=lambda f: f.name)


def bits_of(x: torch.Tensor | np.ndarray) -> np.ndarray:
    """FP32 patterns, with every NaN made the same: the standard leaves its payload open."""
    x = np.asarray(x, dtype=np.float32)
    return np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32))


def peer_codes(fmt: FloatFormat) -> np.ndarray:
    return np.arange(2**fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)


def hard_inputs(fmt: FloatFormat) -> torch.Tensor:
    """Every finite number of the format, every midpoint, their FP32 neighbors, and a sweep of magnitudes."""
    values = finite_values(fmt).double().unique()
    middle = (values[1:] + values[:-1]) / 2
    edge = torch.tensor([fmt.max * f for f in (1.0001, 1.01, 1.04, 1.1, 1.5, 3)], dtype=torch.float64)
    exact = torch.cat([values, middle, edge, -edge]).float()
    near = torch.cat([exact, exact.nextafter(torch.tensor(math.inf)), exact.nextafter(torch.tensor(-math.inf))])
    sweep = torch.randn(20_000) * torch.exp2(torch.randint(-30, 20, (20_000,)))
    return torch.cat([near, sweep, torch.tensor([0.0, -0.0, 1e-45, -1e-45, math.inf, -math.inf])])


@with_peer
def test_decode_equals_ml_dtypes_on_every_code(fmt):
    codes = peer_codes(fmt)
    peer = codes.view(PEERS[fmt]).astype(np.float32)
    ours = decode(torch.from_numpy(codes.astype(np.int64)), fmt)
    assert (bits_of(ours) == bits_of(peer)).all()


@pytest.mark.parametrize("fmt", TORCH_PEERS, ids=lambda f: f.name)
def test_decode_equals_torch_on_every_code(fmt):
    codes = torch.from_numpy(peer_codes(fmt).copy())
    assert (bits_of(decode(codes.long(), fmt)) == bits_of(codes.view(TORCH_PEERS[fmt]).float())).all()


@with_peer
def test_encode_inverts_decode_on_every_number(fmt):
    codes = torch.arange(2**fmt.bits)
    values = decode(codes, fmt)
    numbers = ~values.isnan()
    back = encode(values[numbers], fmt, saturate=not fmt.has_infinity)
    assert torch.equal(back.long(), codes[numbers])


@with_peer
def test_round_and_encode_equal_ml_dtypes_on_every_tie(fmt):
    x = hard_inputs(fmt)
    if not fmt.has_nan:
        x = x[x.isfinite()]
    saturate = not fmt.has_nan  # ml_dtypes saturates only where the format has nothing else to give
    with np.errstate(over="ignore"):  # NumPy warns where FP16 overflows to infinity, which is the point
        peer = x.numpy().astype(PEERS[fmt])
    rounded = round_to_format(x, fmt, saturate=saturate)
    assert (bits_of(rounded) == bits_of(peer.astype(np.float32))).all()
    codes = encode(x, fmt, saturate=saturate)
    assert (bits_of(decode(codes, fmt)) == bits_of(rounded)).all()
    number = ~np.isnan(peer.astype(np.float32))
    width = np.uint16 if fmt.bits > 8 else np.uint8
    assert (codes.numpy()[number] == peer.view(width)[number]).all()


@with_peer
def test_saturation_keeps_every_value_finite(fmt):
    x = hard_inputs(fmt)
    rounded = round_to_format(x, fmt, saturate=True)
    inside = x.clamp(-fmt.max, fmt.max)
    assert rounded.abs().max() == fmt.max
    assert (bits_of(rounded) == bits_of(inside.numpy().astype(PEERS[fmt]).astype(np.float32))).all()
    assert (bits_of(decode(encode(x, fmt, saturate=True), fmt)) == bits_of(rounded)).all()


def test_torch_saturates_e4m3_as_we_do_when_asked():
    x = hard_inputs(E4M3)
    assert (bits_of(round_to_format(x, E4M3, saturate=True)) == bits_of(x.to(torch.float8_e4m3fn).float())).all()


def test_tf32_is_fp32_with_thirteen_fewer_mantissa_bits():
    x = hard_inputs(FP16)
    rounded = round_to_format(x, TF32, saturate=False)
    assert (rounded[rounded.isfinite()].view(torch.int32) % 2**13 == 0).all()
    error = (rounded - x).abs()[x.isfinite()]
    half_step = (x[x.isfinite()].abs() * 2.0**-11).clamp(min=TF32.min_subnormal / 2)
    assert (error <= half_step).all()


def test_fp32_is_the_identity():
    x = hard_inputs(FP16)
    assert (bits_of(round_to_format(x, FP32, saturate=False)) == bits_of(x)).all()
    assert (bits_of(decode(encode(x, FP32, saturate=False), FP32)) == bits_of(x)).all()


def test_e3m0_has_its_fifteen_values():
    positive = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert finite_values(E3M0).unique().tolist() == [-v for v in reversed(positive)] + [0.0, *positive]


def test_e3m0_ties_go_to_the_larger_magnitude_and_half_of_the_smallest_to_zero():
    x = torch.tensor([0.375, 0.75, 1.5, 3.0, -6.0, 12.0, 0.125, 0.126])
    rounded = round_to_format(x, E3M0, saturate=True)
    assert rounded.tolist() == [0.5, 1.0, 2.0, 4.0, -8.0, 16.0, 0.0, 0.25]


def test_e2m1_is_the_ocp_table():
    assert finite_values(E2M1).unique().tolist()[7:] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("fmt", "largest", "smallest"),
    [
        (FP16, 65504.0, 2.0**-24),
        (BF16, 3.3895313892515355e38, 2.0**-133),
        (E4M3, 448.0, 2.0**-9),
        (E5M2, 57344.0, 2.0**-16),
        (E2M1, 6.0, 0.5),
        (E3M0, 16.0, 0.25),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_the_published_limits(fmt, largest, smallest):
    assert (fmt.max, fmt.min_subnormal) == (largest, smallest)


def test_bf16_bits_equal_the_cast_on_random_ties_and_special_patterns():
    patterns = torch.randint(0, 2**32, (200_000,))
    ties = (torch.randint(0, 2**16, (50_000,)) << 16) | 0x8000
    special = torch.tensor([0, 1 << 31, 0x7F7FFFFF, 0x7F800000, 0xFF800000])
    bits = torch.cat([patterns, ties, special])
    fp32 = bits.to(torch.int32).view(torch.float32)  # int64 to int32 keeps the low 32 bits
    cast = fp32.to(torch.bfloat16).view(torch.int16).long() & 0xFFFF
    number = ~fp32.isnan()
    assert torch.equal(fp32_bits_to_bf16_bits(bits)[number], cast[number])


def test_bf16_bits_keep_every_nan_a_nan():
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FC00000])
    values = (fp32_bits_to_bf16_bits(bits) << 16).to(torch.int32).view(torch.float32)
    assert values.isnan().all()


@pytest.mark.parametrize("fmt", [BF16, FP16, E4M3, E2M1], ids=lambda f: f.name)
def test_stochastic_rounding_picks_neighbors_and_keeps_the_mean(fmt):
    count = 40_000
    for value in (1.3, -2.7, 0.3 * fmt.min_subnormal, 1.99 * fmt.min_normal):
        x = torch.full((count,), value)
        rounded = stochastic_round(x, fmt, generator=torch.Generator().manual_seed(1))
        low, high = rounded.min().item(), rounded.max().item()
        grid = finite_values(fmt).double().unique()
        below, above = grid[grid <= x[0].item()].max().item(), grid[grid >= x[0].item()].min().item()
        assert (low, high) == (below, above)
        spread = (above - below) / 2  # a coin's standard deviation is at most half its step
        assert abs(rounded.double().mean().item() - x[0].item()) <= 5 * spread / math.sqrt(count)


def test_stochastic_rounding_leaves_numbers_of_the_format_alone():
    values = finite_values(E4M3)
    assert torch.equal(stochastic_round(values, E4M3, generator=torch.Generator().manual_seed(2)), values)


def test_float64_is_rounded_once():
    tie = 1 + 2.0**-4  # halfway between 1 and 1.125 in E4M3
    x = torch.tensor([tie + 2.0**-40, tie, tie - 2.0**-40, -tie - 2.0**-40, 1e300, -1e300], dtype=torch.float64)
    assert round_to_format(x, E4M3, saturate=True).tolist() == [1.125, 1.0, 1.0, -1.125, 448.0, -448.0]
    bf16_tie = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert round_to_format(bf16_tie, BF16, saturate=False).item() == 1 + 2.0**-7


def test_views_empty_tensors_scalars_and_gradients_are_handled():
    x = torch.randn(64, 64)
    assert torch.equal(round_to_format(x.t(), E4M3, saturate=True), round_to_format(x, E4M3, saturate=True).t())
    assert encode(x[:, ::3], E2M1, saturate=True).shape == (64, 22)
    assert round_to_format(torch.empty(0, 3), E5M2, saturate=False).shape == (0, 3)
    assert decode(torch.empty(0, dtype=torch.uint8), E4M3).numel() == 0
    assert round_to_format(torch.tensor(1.06), E4M3, saturate=True).item() == 1.0
    assert not round_to_format(x.requires_grad_(), E4M3, saturate=True).requires_grad
    before = x.detach().clone()
    encode(x, E4M3, saturate=False)
    stochastic_round(x, E4M3)
    assert torch.equal(x.detach(), before)


def test_nan_survives_or_is_refused():
    x = torch.tensor([1.0, math.nan])
    assert round_to_format(x, E4M3, saturate=True)[1].isnan()
    assert encode(x, E4M3, saturate=True)[1] == 0x7F
    assert decode(encode(x, E5M2, saturate=True), E5M2)[1].isnan()
    assert round_to_format(x, BF16, saturate=True)[1].isnan()
    with pytest.raises(ValueError, match="E2M1 has no NaN, and x holds 1"):
        round_to_format(x, E2M1, saturate=True)
    with pytest.raises(ValueError, match="E2M1 has neither infinity nor NaN"):
        round_to_format(x[:1], E2M1, saturate=False)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (lambda: FloatFormat("x", 9, 2), "exponent_bits must be 2 to 8, got 9"),
        (lambda: FloatFormat("x", 4, 24), "mantissa_bits must be 0 to 23, got 24"),
        (lambda: FloatFormat("x", 8, 3, Specials.NONE), "an 8-bit exponent needs IEEE specials, got NONE"),
        (lambda: decode(torch.tensor([16]), E2M1), "E2M1 codes must be 0 to 15, got 16 to 16"),
        (lambda: decode(torch.tensor([-1, 4]), FP16), "FP16 codes must be 0 to 65535, got -1 to 4"),
    ],
)
def test_bad_input_gets_one_sentence(bad, sentence):
    with pytest.raises(ValueError, match=sentence):
        bad()


def test_every_public_name_is_exported_once():
    assert sorted(formats.__all__) == sorted(set(formats.__all__))
    assert {f.name for f in formats.FORMATS.values()} == set(formats.FORMATS)


@pytest.mark.gpu
@with_peer
def test_the_gpu_rounds_as_the_cpu_does(fmt):
    x = hard_inputs(fmt)
    if not fmt.has_nan:
        x = x[x.isfinite()]
    rounded = round_to_format(x.cuda(), fmt, saturate=True)
    assert (bits_of(rounded.cpu()) == bits_of(round_to_format(x, fmt, saturate=True))).all()
    codes = encode(x.cuda(), fmt, saturate=True)
    assert torch.equal(codes.cpu(), encode(x, fmt, saturate=True))
    assert (bits_of(decode(codes, fmt).cpu()) == bits_of(rounded.cpu())).all()
