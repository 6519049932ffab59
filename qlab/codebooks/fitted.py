"""Codebooks fitted to a tensor: k-means in one dimension, and quantiles."""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.codebooks.nearest import boundaries


def kmeans_codebook(x: Float[Tensor, "*shape"], *, bits: int, iterations: int = 1000) -> Float[Tensor, " levels"]:
    """Return 2^bits levels for `x` by Lloyd's iteration: each value to its nearest level, each level to their mean.

    It starts from quantiles of the different values in `x`, and stops early when no value changes its level. No
    iteration increases the squared error. A level that loses all its values stays where it is. Where `x` has no more
    different values than there are levels they become the levels, the largest repeated.
    Shapes:  the codebook is (2^bits,), in FP32, ascending, in the units of `x`.
    Errors:  ValueError if `bits` is not 1 to 8, `iterations` is negative, or `x` is empty or holds NaN or infinity.
    Source:  Lloyd 1982, doi:10.1109/TIT.1982.1056489; for weights Han et al. 2016, section 3, arXiv:1510.00149.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    values = _sorted_values(x, bits)
    different = values.unique_consecutive()
    if different.numel() <= 2**bits:
        return torch.cat([different, different[-1:].expand(2**bits - different.numel())])
    levels = _quantiles(different, 2**bits).double()
    sums = _sums_before(values)
    ends = _ends(values, levels)
    for _ in range(iterations):
        counts, totals = ends.diff(), sums[ends].diff()
        levels = torch.where(counts > 0, totals / counts, levels)
        last_ends, ends = ends, _ends(values, levels)
        if torch.equal(ends, last_ends):
            break
    return levels.float()


def quantile_codebook(x: Float[Tensor, "*shape"], *, bits: int) -> Float[Tensor, " levels"]:
    """Return the medians of 2^bits bins that hold equally many of the values in `x`.

    Shapes:  the codebook is (2^bits,), in FP32, ascending, in the units of `x`; a frequent value repeats.
    Errors:  ValueError if `bits` is not 1 to 8, or `x` is empty or holds NaN or infinity.
    Source:  Dettmers et al. 2023, section 3, equation 4, arXiv:2305.14314 (there the means of neighboring quantiles).
    """
    return _quantiles(_sorted_values(x, bits), 2**bits)


def _sorted_values(x: Tensor, bits: int) -> Tensor:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")
    if not x.numel():
        raise ValueError(f"x must hold at least one value, got shape {tuple(x.shape)}")
    flat = x.detach().reshape(-1).float()
    if wrong := int((~flat.isfinite()).sum()):
        raise ValueError(f"x must be finite in FP32, and holds {wrong} NaN or infinite values")
    return flat.sort().values


def _quantiles(ascending: Tensor, levels: int) -> Tensor:
    """Return the value in the middle of each of `levels` equal parts."""
    middles = (2 * torch.arange(levels, device=ascending.device) + 1) * ascending.numel() // (2 * levels)
    return ascending[middles]


def _sums_before(values: Tensor) -> Tensor:
    """Return sums whose differences are the sums of stretches: `sums[end] - sums[start]`.

    They count from zero outward, so that no large negative value takes the digits of those behind it.
    """
    zero = int(torch.searchsorted(values, 0.0))
    below = -values[:zero].flip(0).cumsum(0, dtype=torch.float64).flip(0)
    above = values[zero:].cumsum(0, dtype=torch.float64)
    return torch.cat([below, above.new_zeros(1), above])


def _ends(values: Tensor, levels: Tensor) -> Tensor:
    """Return where each level's stretch of the sorted values ends, after a zero; a tie goes to the lower level."""
    inner = torch.searchsorted(values, boundaries(levels, values.dtype), right=True)
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), values.numel())])
