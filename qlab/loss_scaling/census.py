"""What becomes of values in a narrow format, before anything is computed with them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.formats import FP16, FloatFormat


@dataclass(frozen=True, kw_only=True)
class Census:
    """The share of the values that meets each fate; together they are 1.

    Units:   shares of all values. `subnormal` ones arrive with fewer significant bits than the format has, `overflow`
             counts what rounds to infinity and what was infinite.
    """

    zero: float
    underflow: float
    subnormal: float
    normal: float
    overflow: float
    nan: float


def census(x: Float[Tensor, "*shape"], fmt: FloatFormat = FP16, *, scale: int | float = 1.0) -> Census:
    """Sort the values of `x` times `scale` by what rounding to `fmt` makes of them, ties to even.

    Errors:  ValueError if `x` is empty or `scale` is not above 0 and finite.
    """
    _require_scale(scale)
    if not x.numel():
        raise ValueError(f"x must hold at least one value, got shape {tuple(x.shape)}")
    magnitudes = x.detach().double().abs().flatten()
    counts = torch.bucketize(magnitudes, _borders(fmt, scale, x.device)).bincount(minlength=5)
    return _census(counts.cumsum(0)[:4].tolist(), nan=int(magnitudes.isnan().sum()), count=x.numel())


def census_of_ordered(
    magnitudes: Float[Tensor, " n"], fmt: FloatFormat = FP16, *, scale: int | float = 1.0, nan: int = 0
) -> Census:
    """Return the census of FP64 magnitudes in ascending order, with `nan` more values that are NaN, by a few look-ups.

    Errors:  as `census`.
    """
    _require_scale(scale)
    count = len(magnitudes) + nan
    if not count:
        raise ValueError("there must be at least one value, got none")
    upto = torch.searchsorted(magnitudes, _borders(fmt, scale, magnitudes.device), right=True)
    return _census(upto.tolist(), nan=nan, count=count)


def underflow_fraction(x: Float[Tensor, "*shape"], fmt: FloatFormat = FP16, *, scale: int | float = 1.0) -> float:
    """Return the share of the nonzero finite values of `x` that `fmt` rounds to zero once they are scaled.

    Half the smallest subnormal, 2⁻²⁵ in FP16, is a tie, and goes to zero. The share of no values is 0.
    Errors:  ValueError if `scale` is not above 0 and finite.
    """
    _require_scale(scale)
    magnitudes = x.detach().double().abs()
    present = (magnitudes > 0) & magnitudes.isfinite()
    lost = present & (magnitudes * scale <= fmt.min_subnormal / 2)
    return int(lost.sum()) / max(1, int(present.sum()))


def safe_scale(largest: int | float, fmt: FloatFormat = FP16) -> float:
    """Return the largest power of two that leaves a value, multiplied by it, within half of what `fmt` can hold.

    Errors:  ValueError if `largest` is not above 0 and finite.
    """
    if not 0 < largest < math.inf:
        raise ValueError(f"the largest magnitude must be above 0 and finite, got {largest}")
    return 2.0 ** math.floor(math.log2(fmt.max / 2 / largest))


def _borders(fmt: FloatFormat, scale: int | float, device: torch.device) -> Float[Tensor, "4"]:
    """Return the largest magnitudes that, times the scale, count as zero, underflow, subnormal and normal."""
    half_a_step_below_normal = fmt.min_normal - fmt.min_subnormal / 2  # a tie that goes to the normal number
    half_a_step_above_max = fmt.max + 2.0 ** (fmt.max_exponent - fmt.mantissa_bits) / 2
    tie_overflows = fmt.max_code % 2  # E4M3, whose largest code is even, keeps it
    borders = [
        0.0,
        fmt.min_subnormal / 2,
        max(fmt.min_subnormal / 2, math.nextafter(half_a_step_below_normal, 0)),  # E3M0 has no subnormal number
        math.nextafter(half_a_step_above_max, 0) if tie_overflows else half_a_step_above_max,
    ]
    scaled = torch.tensor(borders, dtype=torch.float64, device=device) / scale
    return scaled.clamp(max=torch.finfo(torch.float64).max)  # an infinity overflows at any scale


def _census(upto: list[int], *, nan: int, count: int) -> Census:
    """Make shares of how many values are no larger than each border."""
    zero, lost, below_normal, finite = upto
    return Census(
        zero=zero / count,
        underflow=(lost - zero) / count,
        subnormal=(below_normal - lost) / count,
        normal=(finite - below_normal) / count,
        overflow=(count - finite - nan) / count,
        nan=nan / count,
    )


def _require_scale(scale: int | float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, got {scale}")
