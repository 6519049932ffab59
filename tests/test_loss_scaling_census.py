import math
import re
from dataclasses import astuple

import pytest
import torch

from qlab.formats import BF16, E2M1, E3M0, E4M3, E5M2, FORMATS, FP16, FP32, finite_values, round_to_format
from qlab.loss_scaling import census, safe_scale, underflow_fraction
from qlab.loss_scaling.census import census_of_ordered
from qlab.loss_scaling.scaler import in_fp32

# FP32 numbers, as the scale of a loss is: the product with an FP32 value is exact in FP64
SCALES = [1.0, 3.0, 1000.0, in_fp32(0.1), in_fp32(1 / 3), 2.0**20, 2.0**-20, 65535.0]
TORCH_TYPES = {"FP16": torch.float16, "BF16": torch.bfloat16, "E5M2": torch.float8_e5m2}


def counted(census, count):
    return [round(share * count, 6) for share in astuple(census)]


def in_order(x, *fmt, **scale):
    magnitudes = x.double().abs()
    return census_of_ordered(
        magnitudes[~magnitudes.isnan()].sort().values, *fmt, nan=int(magnitudes.isnan().sum()), **scale
    )


def fates(x, rounded, fmt):
    """Sort values by what rounding made of them: the same six counts, one value at a time."""
    zero, nan, gone = x == 0, x.isnan(), rounded == 0
    overflow = ~nan & ~rounded.isfinite()
    subnormal = (rounded.abs() < fmt.min_normal) & ~gone
    under = gone & ~zero
    normal = ~(zero | nan | gone | overflow | subnormal)
    return [int(which.sum()) for which in (zero, under, subnormal, normal, overflow, nan)]


def ties_and_neighbors(fmt):
    """Return every number of a format, every tie between two, and the FP64 numbers on both sides of each."""
    numbers = finite_values(fmt).double().unique()
    last_step = 2.0 ** (fmt.max_exponent - fmt.mantissa_bits)
    beyond = torch.tensor([fmt.max + last_step / 2, fmt.max + last_step, math.inf, -math.inf, math.nan]).double()
    values = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2, beyond, -beyond])
    infinity = torch.full_like(values, math.inf)
    return torch.cat([values, torch.nextafter(values, infinity), torch.nextafter(values, -infinity)])


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.bits <= 16 and f.has_nan], ids=lambda f: f.name)
def test_every_number_and_every_tie_meets_the_fate_that_rounding_gives_it(fmt):
    x = ties_and_neighbors(fmt)
    expected = fates(x, round_to_format(x, fmt, saturate=False), fmt)
    assert counted(census(x, fmt), len(x)) == expected
    assert counted(in_order(x, fmt), len(x)) == expected


@pytest.mark.parametrize("name", TORCH_TYPES)
def test_the_fates_are_those_of_pytorch_s_casts(name):
    fmt, dtype = FORMATS[name], TORCH_TYPES[name]
    x = ties_and_neighbors(fmt).float().unique()  # FP32: PyTorch casts FP64 in two steps
    assert counted(census(x, fmt), len(x)) == fates(x, x.to(dtype).float(), fmt)


@pytest.mark.parametrize(
    ("value", "fate"),
    [
        (2.0**-25, "underflow"),
        (math.nextafter(2.0**-25, 1), "subnormal"),
        (2.0**-14 - 2.0**-25, "normal"),
        (math.nextafter(2.0**-14 - 2.0**-25, 0), "subnormal"),
        (2.0**-14, "normal"),
        (math.nextafter(65520.0, 0), "normal"),
        (65520.0, "overflow"),
        (math.inf, "overflow"),
        (math.nan, "nan"),
        (-0.0, "zero"),
        (5e-324, "underflow"),
        (1.7e308, "overflow"),
    ],
)
def test_what_becomes_of_one_value_in_fp16(value, fate):
    for sign in (1, -1):
        assert getattr(census(torch.tensor([sign * value], dtype=torch.float64)), fate) == 1


def test_a_tie_above_the_largest_e4m3_stays_where_its_code_is_even():
    assert census(torch.tensor([464.0]), E4M3).normal == 1
    assert census(torch.tensor([464.00003]), E4M3).overflow == 1
    assert census(torch.tensor([7.0]), E2M1).overflow == 1  # the code of 6 is odd


def test_a_format_without_subnormal_numbers_has_none():
    shares = census(torch.tensor([0.125, 0.1250001, 0.25, 0.2499]), E3M0)
    assert (shares.underflow, shares.subnormal, shares.normal) == (0.25, 0, 0.75)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("fmt", [FP16, BF16, E5M2, E4M3], ids=lambda f: f.name)
def test_a_scale_moves_the_values_not_the_borders(fmt, scale):
    generator = torch.Generator().manual_seed(3)
    spread = torch.empty(20_000).uniform_(-140, 100, generator=generator)
    borders = torch.tensor([fmt.min_subnormal / 2, fmt.min_normal - fmt.min_subnormal / 2, fmt.max]).double()
    x = torch.cat([torch.exp2(spread), -torch.exp2(spread), (borders / scale).float(), torch.zeros(7)])
    scaled = x.double() * scale
    expected = fates(scaled, round_to_format(scaled, fmt, saturate=False), fmt)
    assert counted(census(x, fmt, scale=scale), len(x)) == expected
    assert counted(in_order(x, fmt, scale=scale), len(x)) == expected
    present = int(((x != 0) & x.isfinite()).sum())
    assert underflow_fraction(x, fmt, scale=scale) == expected[1] / present


@pytest.mark.parametrize("scale", [3.0, 5.0, 1.75, 1.25, 7.0])
def test_a_tie_that_the_scale_makes_is_a_tie(scale):
    ties = torch.tensor([65520.0, 2.0**-14 - 2.0**-25, 2.0**-25]).double()
    x = (ties / scale).float()
    exact = x.double() * scale
    assert counted(census(x, scale=scale), 3) == fates(exact, round_to_format(exact, FP16, saturate=False), FP16)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_infinity_overflows_and_zero_is_zero_at_any_scale(scale):
    shares = census(torch.tensor([math.inf, 0.0, math.nan, -math.inf]), FP32, scale=scale)
    assert (shares.zero, shares.overflow, shares.nan) == (0.25, 0.5, 0.25)


def test_the_share_that_underflows_leaves_out_zeros_and_what_is_not_finite():
    x = torch.tensor([0.0, 0.0, math.inf, math.nan, 2.0**-25, 2.0**-24, 1.0, -(2.0**-30)])
    assert underflow_fraction(x) == 0.5
    assert underflow_fraction(x, scale=2.0**6) == 0
    assert underflow_fraction(torch.zeros(3)) == 0
    assert underflow_fraction(torch.tensor([math.nan])) == 0
    assert underflow_fraction(torch.zeros(0)) == 0


def test_shares_add_up_to_one_for_any_shape_type_and_layout():
    x = torch.randn(6, 4, 5, requires_grad=True)
    for values in (x, x.transpose(0, 2), x.half(), x.double(), x[0, 0, 0], x[::2]):
        shares = astuple(census(values, scale=2.0**-14))
        assert sum(shares) == pytest.approx(1.0, abs=1e-12)
        assert shares == astuple(census(values.contiguous().flatten().clone(), scale=2.0**-14))


def test_the_order_does_not_matter_and_nothing_is_changed():
    x = torch.randn(1000) * 1e-5
    before = x.clone()
    assert census(x) == census(x.flip(0)) == in_order(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(scale):
    for ask in (census, underflow_fraction):
        with pytest.raises(ValueError, match=re.escape(f"scale must be above 0 and finite, got {scale}")):
            ask(torch.ones(2), scale=scale)


def test_no_values_have_no_shares():
    with pytest.raises(ValueError, match=re.escape("x must hold at least one value, got shape (0, 3)")):
        census(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=re.escape("there must be at least one value, got none")):
        census_of_ordered(torch.zeros(0).double())


@pytest.mark.parametrize("largest", [1.0, 3e-5, 65504.0, 1e-30, 0.7, 2.0**-24, 1e6])
@pytest.mark.parametrize("fmt", [FP16, BF16, E4M3], ids=lambda f: f.name)
def test_a_safe_scale_is_the_largest_power_of_two_that_leaves_half_free(largest, fmt):
    scale = safe_scale(largest, fmt)
    assert math.log2(scale) % 1 == 0
    assert scale * largest <= fmt.max / 2 < 2 * scale * largest


@pytest.mark.parametrize("largest", [0.0, -1.0, math.inf, math.nan])
def test_there_is_no_safe_scale_for_nothing(largest):
    with pytest.raises(ValueError, match=re.escape(f"must be above 0 and finite, got {largest}")):
        safe_scale(largest)
