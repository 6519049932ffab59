"""Codebooks: nearest levels against exact arithmetic, maps and codes against bitsandbytes, k-means against its word."""

import logging
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from qlab import codebooks
from qlab.codebooks import (
    FP4,
    NF4,
    dynamic_map,
    format_map,
    kmeans_codebook,
    linear_map,
    nearest_codes,
    quantile_codebook,
    quantize_blockwise,
)
from qlab.codebooks.nearest import TABLE_PAYS_FROM, NearestSearch, require_row
from qlab.formats import E2M1, E3M0, FP16
from qlab.quantize import per_block, quantize_symmetric

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes.functional as bnb  # noqa: E402 - the logger must be quiet first

CODEBOOKS = {
    "NF4": NF4,
    "FP4": FP4,
    "dynamic": dynamic_map(signed=True),
    "dynamic unsigned": dynamic_map(signed=False),
    "linear": linear_map(signed=True),
    "both ends of FP32": torch.tensor([-3e38, -1e-45, 0, 1e-45, 1e-30, 1, 3.4e38]),
    "inexact midpoint": torch.tensor([-1e-30, 1]),
    "midpoint zero": torch.tensor([-1e-45, 1e-45]),
    "one level": torch.tensor([5.0]),
    "two boundaries in a cell": 1 + torch.arange(200) * 2**-23,
    "powers": torch.cat([-(2.0 ** -torch.arange(100)), 2.0 ** -torch.arange(100)]).sort().values,
}


def neighbors(x: torch.Tensor) -> torch.Tensor:
    ends = torch.full_like(x, math.inf)
    return torch.cat([x, torch.nextafter(x, ends), torch.nextafter(x, -ends)])


def hard_values(codebook: torch.Tensor) -> torch.Tensor:
    """Return the levels, their midpoints, what lies right beside these, and the ends of FP32."""
    midpoints = ((codebook[1:].double() + codebook[:-1].double()) / 2).float()
    extremes = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38])
    found = torch.cat([neighbors(neighbors(midpoints)), neighbors(codebook), extremes])
    return found[torch.randperm(found.numel())[:600]]


def nearest_by_fractions(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    levels = [Fraction(level) for level in codebook.tolist()]
    distances = ([abs(Fraction(value) - level) for level in levels] for value in x.tolist())
    return torch.tensor([d.index(min(d)) for d in distances], dtype=torch.uint8)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_nearest_is_nearest_in_exact_arithmetic(name):
    codebook = CODEBOOKS[name]
    x = hard_values(codebook)
    expected = nearest_by_fractions(x, codebook)
    assert torch.equal(nearest_codes(x, codebook), expected)
    many = torch.cat([x, torch.randn(TABLE_PAYS_FROM)])  # enough for the table
    assert torch.equal(nearest_codes(many, codebook)[: x.numel()], expected)
    wide = neighbors((codebook[1:].double() + codebook[:-1].double()) / 2)[:200]
    assert torch.equal(nearest_codes(wide, codebook), nearest_by_fractions(wide, codebook))


@pytest.mark.parametrize("name", CODEBOOKS)
def test_the_table_agrees_with_a_binary_search_on_any_pattern(name):
    codebook = CODEBOOKS[name]
    x = torch.randint(-(2**31), 2**31, (20_000,)).to(torch.int32).view(torch.float32)
    x[x.isnan()] = math.inf
    by_table = nearest_codes(x, codebook)
    by_search = torch.cat([nearest_codes(piece, codebook) for piece in x.split(TABLE_PAYS_FROM - 1)])
    assert torch.equal(by_table, by_search)
    has_table = NearestSearch(codebook).table is not None
    assert has_table == (name != "two boundaries in a cell")


def test_ties_go_to_the_lower_level_and_infinity_to_the_ends():
    codebook = torch.tensor([-1.0, 0.0, 1.0])
    x = torch.tensor([[-math.inf, -0.5, -0.0], [0.5, 0.75, math.inf]])
    assert nearest_codes(x, codebook).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert nearest_codes(torch.tensor(0.9), codebook).shape == ()
    assert nearest_codes(torch.empty(0, 3), codebook).shape == (0, 3)
    assert torch.equal(nearest_codes(x.T, codebook), nearest_codes(x, codebook).T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read(dtype):
    x = torch.randn(40, 500).to(dtype).T
    for block_size in (64, None):
        coded = quantize_blockwise(x, NF4, block_size=block_size)
        again = quantize_blockwise(x.float().contiguous(), NF4, block_size=block_size)
        assert torch.equal(coded.codes, again.codes)
        assert torch.equal(coded.dequantize(), again.dequantize())
        assert coded.dequantize().shape == x.shape
    assert torch.equal(nearest_codes(x, NF4), nearest_codes(x.double(), NF4))


def test_maps_equal_those_of_bitsandbytes():
    assert (NF4 - bnb.get_4bit_type("nf4", device="cpu")).abs().max() <= 1e-7
    assert torch.equal(FP4, bnb.get_4bit_type("fp4", device="cpu").unique())
    for signed in (True, False):
        assert torch.equal(dynamic_map(signed=signed), bnb.create_dynamic_map(signed=signed))
        ours, theirs = linear_map(signed=signed), bnb.create_linear_map(signed=signed)
        assert (theirs[:, None] - ours).abs().amin(dim=1).max() <= 2**-23  # it has a second, inexact zero


def test_what_the_maps_promise():
    assert NF4.numel() == 16 and (NF4 < 0).sum() == 7 and (NF4 > 0).sum() == 8
    assert NF4[7] == 0 and NF4[0] == -1 and NF4[15] == 1
    for signed in (True, False):
        levels = dynamic_map(signed=signed)
        assert levels.numel() == levels.unique().numel() == 256
        assert (levels == 0).sum() == 1 and levels.max() == 1
        assert ((levels > 0.1) & (levels < 1)).sum() == (64 if signed else 128)
    assert linear_map(bits=3, signed=True).mul(3).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert linear_map(bits=2, signed=False).mul(3).tolist() == [0, 1, 2, 3]


def test_fp4_is_not_e2m1_but_for_one_magnitude():
    e2m1 = format_map(E2M1)
    assert FP4.numel() == e2m1.numel() == 15
    differ = e2m1 != FP4
    assert FP4[differ].tolist() == [pytest.approx(-1 / 192), pytest.approx(1 / 192)]
    assert e2m1[differ].tolist() == [pytest.approx(-1 / 12), pytest.approx(1 / 12)]
    assert format_map(E3M0).mul(16).tolist()[8:] == [0.25, 0.5, 1, 2, 4, 8, 16]


def packed_codes(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed >> 4, packed & 0xF], dim=-1).flatten()


@pytest.mark.parametrize("shape", [(1000, 64), (37, 3, 100), (20, 4096), (66_000,)])
@pytest.mark.parametrize("block_size", [64, 128, 4096])
def test_nf4_is_bit_identical_to_bitsandbytes(shape, block_size):
    x = torch.randn(shape) * torch.exp(torch.randn(shape))
    packed, state = bnb.quantize_4bit(x, blocksize=block_size, quant_type="nf4")
    ours = quantize_blockwise(x, NF4, block_size=block_size)
    assert torch.equal(ours.packed, packed.flatten())
    assert torch.equal(ours.absmax, state.absmax)
    levels = state.code[packed_codes(packed).long()]
    assert torch.equal(ours.dequantize().flatten(), levels * absmax_of_each(ours))
    if shape[-1] % block_size == 0:  # elsewhere its CPU kernel takes the absmax of a wrong block
        assert torch.equal(ours.dequantize(), bnb.dequantize_4bit(packed, state).view(shape))


def absmax_of_each(coded: codebooks.BlockwiseCodes) -> torch.Tensor:
    return coded.absmax.repeat_interleave(coded.block_size)[: coded.shape.numel()]


def test_fp4_gives_the_values_of_bitsandbytes():
    x = torch.randn(300, 128)
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type="fp4")
    ours = quantize_blockwise(x, FP4, block_size=64)
    theirs = state.code[packed_codes(packed).long()]  # another order, and two codes for zero
    assert torch.equal(FP4[ours.codes.flatten().long()], theirs)
    assert torch.equal(ours.dequantize(), bnb.dequantize_4bit(packed, state))


def test_where_nf4_and_bitsandbytes_part_ours_is_nearer():
    """It rounds midpoints to FP32, and 6 of 15 are rounded up: these very numbers it codes too low."""
    midpoints = (NF4[1:] + NF4[:-1]) / 2
    rounded_up = midpoints[midpoints.double() > (NF4[1:].double() + NF4[:-1].double()) / 2]
    assert rounded_up.numel() == 6
    block = torch.cat([torch.ones(1), rounded_up, torch.zeros(57)])
    packed, _ = bnb.quantize_4bit(block, blocksize=64, quant_type="nf4")
    ours = quantize_blockwise(block, NF4, block_size=64).codes
    assert torch.equal(
        ours.int() - packed_codes(packed).int(), torch.cat([torch.zeros(1), torch.ones(6), torch.zeros(57)])
    )


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_codes_are_nearest_where_those_of_bitsandbytes_nearly_are(signed):
    x = torch.randn(50, 4096) if signed else torch.randn(50, 4096).square()
    codebook = dynamic_map(signed=signed)
    theirs, state = bnb.quantize_blockwise(x, code=codebook, blocksize=256)
    ours = quantize_blockwise(x, codebook, block_size=256)
    assert torch.equal(ours.absmax, state.absmax)
    normalized = (x.view(-1, 256) / ours.absmax[:, None]).flatten().double()
    error, their_error = ((codebook[c.flatten().long()] - normalized).abs() for c in (ours.codes, theirs))
    assert (error <= their_error + 2**-23).all()  # x times 1 / absmax has two roundings, of 2^-24 each
    assert 0 < (ours.codes != theirs).float().mean() < (0.005 if signed else 0.05)


@pytest.mark.parametrize("codebook", [NF4, FP4, dynamic_map(signed=True), linear_map(bits=3, signed=True), NF4[:1]])
@pytest.mark.parametrize("count", [1, 5, 64, 65, 1001])
@pytest.mark.parametrize("block_size", [1, 7, 64, 10**25])
def test_ragged_blocks_stand_for_level_times_absmax(codebook, count, block_size):
    x = torch.randn(count)
    coded = quantize_blockwise(x, codebook, block_size=block_size)
    blocks = x.split(min(block_size, count))
    assert torch.equal(coded.absmax, torch.stack([block.abs().max() for block in blocks]))
    absmax = torch.cat([block.abs().max().expand(block.numel()) for block in blocks])
    assert torch.equal(coded.codes, nearest_codes(x * (1 / absmax), codebook))
    assert torch.equal(coded.dequantize(), codebook[coded.codes.long()] * absmax)


@pytest.mark.parametrize("codebook", [NF4, dynamic_map(signed=True), linear_map(bits=3, signed=True)])
@pytest.mark.parametrize("block_size", [7, 63, 4096, 70_000, None])
def test_pieces_join_without_a_seam(codebook, block_size):
    x = torch.randn(200_001)
    coded = quantize_blockwise(x, codebook, block_size=block_size)
    absmax = torch.ones(x.numel()) if block_size is None else absmax_of_each(coded)
    assert torch.equal(coded.codes, nearest_codes(x * (1 / absmax), codebook))
    assert torch.equal(coded.dequantize(), codebook[coded.codes.long()] * absmax)


def test_any_shape():
    for x in (torch.tensor(-3.0), torch.randn(3, 1).expand(3, 50), torch.nn.Parameter(torch.randn(4, 5, 6, 7))):
        coded = quantize_blockwise(x, NF4, block_size=8)
        assert coded.codes.shape == coded.dequantize().shape == coded.shape == x.shape
        flat = quantize_blockwise(x.flatten(), NF4, block_size=8)
        assert torch.equal(coded.packed, flat.packed) and torch.equal(coded.absmax, flat.absmax)


def test_zeros_stay_zero_and_tiny_blocks_keep_their_digits():
    x = torch.zeros(4, 64)
    x[1] = torch.linspace(-1, 1, 64) * 1e-40  # subnormal: 1 / absmax overflows
    x[2] = torch.linspace(-1, 1, 64) * 3e38
    x[3, 5] = 1e-45  # the smallest number there is
    for codebook in (NF4, dynamic_map(signed=True)):
        coded = quantize_blockwise(x, codebook, block_size=64)
        values = coded.dequantize()
        assert values.isfinite().all()
        assert torch.equal(values[0], torch.zeros(64)) and values[3, 5] == 1e-45
        assert torch.equal(coded.codes[0], nearest_codes(torch.zeros(64), codebook))
        assert torch.equal(coded.codes[1], nearest_codes(x[1].double() / x[1].abs().max().double(), codebook))
        assert torch.equal(coded.codes[2], nearest_codes(x[2] * (1 / x[2].abs().max()), codebook))


def test_round_trip_through_codes_is_a_fixed_point():
    x = torch.randn(33, 77)
    for codebook in (NF4, FP4, dynamic_map(signed=False), linear_map(bits=5, signed=True)):
        once = quantize_blockwise(x.abs(), codebook, block_size=32)
        twice = quantize_blockwise(once.dequantize(), codebook, block_size=32)
        assert torch.equal(once.codes, twice.codes) and torch.equal(once.absmax, twice.absmax)


def test_dequantize_into_a_tensor_that_is_there():
    x = torch.randn(101, 3)
    coded = quantize_blockwise(x, NF4, block_size=64)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        room = torch.full((1 + x.numel(),), math.nan, dtype=dtype)
        out = room[1:].view(x.shape)  # not where a pair of FP32 numbers may begin
        assert coded.dequantize(out=out) is out
        assert torch.equal(out, coded.dequantize().to(dtype)) and room[0].isnan()
    with pytest.raises(ValueError, match=r"out must be contiguous, of shape \(101, 3\), got \(3, 101\)"):
        coded.dequantize(out=torch.empty(3, 101))
    with pytest.raises(ValueError, match="out must be contiguous"):
        coded.dequantize(out=torch.empty(3, 101).T)


def test_what_is_kept_in_inference_mode_serves_outside_of_it():
    codebook = torch.randn(16).sort().values  # a new one: nothing is kept of it yet
    x = torch.randn(5000, requires_grad=True)
    with torch.inference_mode():
        inside = quantize_blockwise(x, codebook, block_size=64)
    outside = quantize_blockwise(x, codebook, block_size=64)
    assert torch.equal(inside.packed, outside.packed)
    (outside.dequantize() * x).sum().backward()
    assert torch.equal(x.grad, outside.dequantize())


def test_a_matrix_is_no_codebook():
    with pytest.raises(ValueError, match=r"one row of 1 to 256 levels, got shape \(4, 8\)"):
        require_row(
            linear_map(bits=5, signed=False).view(4, 8)
        )  # in the tests the shape checker speaks before the rest


def test_bits_per_value_count_the_constants():
    x = torch.randn(128, 64)
    assert quantize_blockwise(x, NF4, block_size=64).bits_per_value == 4 + 32 / 64
    assert quantize_blockwise(x, FP4, block_size=64).bits_per_value == 4.5
    assert quantize_blockwise(x, dynamic_map(signed=True), block_size=256).bits_per_value == 8 + 32 / 256
    assert quantize_blockwise(x, kmeans_codebook(x, bits=3), block_size=None).bits_per_value == 3 + 32 * 8 / 8192
    assert quantize_blockwise(x[0, :10], NF4, block_size=64).bits_per_value == 4 + 32 / 10
    for codebook, stored in ((NF4, 4096), (dynamic_map(signed=True), 8192), (linear_map(bits=3, signed=True), 3072)):
        assert quantize_blockwise(x, codebook, block_size=64).packed.nbytes == stored


def test_blockwise_leaves_no_graph_and_its_input_as_it_was():
    x = torch.randn(200, requires_grad=True)
    before = x.detach().clone()
    for block_size in (64, None):
        assert not quantize_blockwise(x, NF4, block_size=block_size).dequantize().requires_grad
    assert torch.equal(x, before)
    assert not kmeans_codebook(x, bits=2).requires_grad and not nearest_codes(x, NF4).requires_grad


def squared_error(x: torch.Tensor, codebook: torch.Tensor) -> float:
    return (codebook[nearest_codes(x, codebook).long()].double() - x.double()).square().sum().item()


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("tail", [0.0, 1.0, 3.0])
def test_kmeans_never_increases_the_error_and_rests_on_means(bits, tail):
    x = torch.randn(3000) * torch.exp(tail * torch.randn(3000))
    errors = [squared_error(x, kmeans_codebook(x, bits=bits, iterations=n)) for n in range(30)]
    for before, after in pairwise(errors):
        assert after <= before * (1 + 1e-6)  # FP32 levels: half an ULP each
    codebook = kmeans_codebook(x, bits=bits, iterations=10_000)
    assert codebook.shape == (2**bits,) and (codebook.diff() >= 0).all()
    codes = nearest_codes(x, codebook)
    means = torch.stack([x[codes == code].double().mean() for code in codes.unique()])
    assert torch.allclose(codebook[codes.unique().long()].double(), means, rtol=1e-6, atol=1e-6)


def test_kmeans_finds_the_optimum_of_small_cases():
    x = torch.tensor([9.0, 0, 1, 10, 11, 1])
    assert kmeans_codebook(x, bits=1).tolist() == [pytest.approx(2 / 3), 10]
    normal = torch.special.ndtri((torch.arange(100_000) + 0.5) / 100_000)
    lloyd_max = torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104])  # Max 1960, table I
    assert torch.allclose(kmeans_codebook(normal, bits=2), lloyd_max, atol=1e-3)


def test_kmeans_with_few_or_frequent_values():
    assert kmeans_codebook(torch.tensor([[3.0, -1], [3, 2]]), bits=2).tolist() == [-1, 2, 3, 3]
    assert kmeans_codebook(torch.full((9,), 2.5), bits=3).tolist() == [2.5] * 8
    x = torch.cat([torch.zeros(10_000), torch.randn(50)])
    assert squared_error(x, kmeans_codebook(x, bits=4)) < squared_error(x, quantile_codebook(x, bits=4)) / 10
    assert quantile_codebook(x, bits=4).abs().max() == 0


def test_kmeans_survives_outliers():
    x = torch.cat([torch.tensor([-1e30]), torch.randn(1000)])
    codebook = kmeans_codebook(x, bits=2)
    assert codebook[0] == -1e30
    assert torch.allclose(codebook[1:], kmeans_codebook(x, bits=2, iterations=10_000)[1:])
    codes = nearest_codes(x, codebook)
    assert torch.allclose(codebook[2], x[codes == 2].mean(), rtol=1e-5)
    assert kmeans_codebook(torch.tensor([-3e38, 3e38, 0, 1, 2]), bits=1).isfinite().all()


def test_quantiles_hold_equally_many_values():
    x = torch.randn(1600).exp()
    codebook = quantile_codebook(x, bits=4)
    medians = torch.stack([bin_.sort().values[50] for bin_ in x.sort().values.split(100)])
    assert torch.equal(codebook, medians)
    assert quantile_codebook(torch.tensor([2.0, 1.0]), bits=2).tolist() == [1, 1, 2, 2]


def test_non_uniform_codes_have_less_error_on_a_bell():
    x = torch.randn(64_000)
    nf4 = quantize_blockwise(x, NF4, block_size=64)
    int4 = quantize_symmetric(x, bits=4, tile=per_block(64))
    assert nf4.bits_per_value == int4.bits_per_value
    assert (nf4.dequantize() - x).square().mean() < 0.85 * (int4.dequantize() - x).square().mean()
    uniform = linear_map(bits=4, signed=True) * x.abs().max()
    assert squared_error(x, kmeans_codebook(x, bits=4)) < squared_error(x, uniform) / 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_blockwise(torch.ones(4), NF4, block_size=0), "block_size must be at least 1, got 0"),
        (lambda: quantize_blockwise(torch.empty(0, 3), NF4, block_size=8), r"at least one value, got shape \(0, 3\)"),
        (lambda: quantize_blockwise(torch.tensor([1, math.nan]), NF4, block_size=8), "finite in FP32, and holds 1 NaN"),
        (lambda: quantize_blockwise(torch.tensor([1, math.inf]), NF4, block_size=None), "finite in FP32, and holds 1"),
        (lambda: quantize_blockwise(torch.tensor([1e300]).double(), NF4, block_size=8), "finite in FP32, and holds 1"),
        (lambda: nearest_codes(torch.tensor([math.nan, 0, math.nan]), NF4), "must not hold NaN, and holds 2"),
        (lambda: nearest_codes(torch.tensor([math.nan]).double(), NF4), "must not hold NaN, and holds 1"),
        (lambda: nearest_codes(torch.ones(3), torch.arange(257.0)), r"1 to 256 levels, got shape \(257,\)"),
        (lambda: nearest_codes(torch.ones(3), torch.empty(0)), r"1 to 256 levels, got shape \(0,\)"),
        (lambda: nearest_codes(torch.ones(3), torch.tensor([0, 2.0, 1])), "ascending order, got 2 before 1"),
        (lambda: quantize_blockwise(torch.ones(3), NF4.flip(0), block_size=2), "ascending order, got 1 before 0.722"),
        (
            lambda: nearest_codes(torch.ones(3), torch.tensor([0, math.inf])),
            "codebook must be finite in FP32, and holds 1",
        ),
        (lambda: kmeans_codebook(torch.ones(3), bits=9), "bits must be 1 to 8, got 9"),
        (lambda: quantile_codebook(torch.ones(3), bits=0), "bits must be 1 to 8, got 0"),
        (lambda: kmeans_codebook(torch.ones(3), bits=2, iterations=-1), "iterations must be at least 0, got -1"),
        (lambda: kmeans_codebook(torch.empty(0), bits=2), r"at least one value, got shape \(0,\)"),
        (lambda: quantile_codebook(torch.tensor([math.inf]), bits=2), "finite in FP32, and holds 1"),
        (lambda: linear_map(bits=9, signed=True), "bits must be 2 to 8, got 9"),
        (lambda: format_map(FP16), "at most 8 bits to be a codebook, got FP16 with 16"),
    ],
)
def test_errors_are_one_sentence_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
def test_codes_on_a_gpu_are_those_of_the_cpu():
    x = torch.randn(300, 1000)
    for codebook in (NF4, FP4, dynamic_map(signed=True), linear_map(bits=3, signed=True)):
        for block_size in (64, None):
            here = quantize_blockwise(x, codebook, block_size=block_size)
            there = quantize_blockwise(x.cuda(), codebook, block_size=block_size)
            assert torch.equal(there.packed.cpu(), here.packed)
            assert torch.equal(there.dequantize().cpu(), here.dequantize())
    assert torch.allclose(kmeans_codebook(x.cuda(), bits=4).cpu(), kmeans_codebook(x, bits=4), atol=1e-4)
