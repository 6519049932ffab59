"""Observers: they see activations batch by batch, and answer with the range that is worth spending codes on."""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.calibrate.clipping import mse_clip
from qlab.calibrate.histogram import BINS, Histogram
from qlab.quantize import Grid, affine_grid_of, code_range

Range = tuple[float, float]
KL_STRIDE = 8  # thresholds tried lie this many bins apart
NOTHING_SEEN = "no calibration data: an observer must see at least one batch before it knows a range, it saw 0"


class MinMax:
    """Remember the smallest and the largest value of all batches."""

    def __init__(self) -> None:
        self.seen = Histogram()

    def observe(self, x: Float[Tensor, "*shape"]) -> None:
        """Take a batch into account.

        Errors:  ValueError if `x` is empty or holds NaN or infinity.
        """
        self.seen.add(x)

    def range(self) -> Range:
        """Return the range found, widened to contain zero.

        Errors:  ValueError if nothing was observed.
        """
        if not self.seen.counts.any():
            raise ValueError(NOTHING_SEEN)
        low, high = self._range()
        return min(low, 0.0), max(high, 0.0)

    def grid(self, *, bits: int) -> Grid:
        """Return the affine grid over the range, one scale for the tensor."""
        low, high = (torch.full((1, 1), end) for end in self.range())
        return affine_grid_of(low, high, bits=bits)

    def _range(self) -> Range:
        return self.seen.low, self.seen.high


class MovingAverage(MinMax):
    """Average each batch's smallest and largest value, recent batches more: one odd batch moves the range a little.

    Source:  Jacob et al. 2018, section 3.1, arXiv:1712.05877.
    """

    def __init__(self, *, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
        super().__init__()
        self.momentum, self.average = momentum, (0.0, 0.0)

    def observe(self, x: Float[Tensor, "*shape"]) -> None:
        """Take a batch into account.

        Errors:  ValueError if `x` is empty or holds NaN or infinity.
        """
        first = not self.seen.counts.any()
        super().observe(x)
        now = (x.float().min().item(), x.float().max().item())
        kept = 0.0 if first else self.momentum
        self.average = tuple(kept * old + (1 - kept) * new for old, new in zip(self.average, now, strict=True))

    def _range(self) -> Range:
        return self.average


class Percentile(MinMax):
    """Keep a share of the values and cut equal shares off both tails."""

    def __init__(self, *, percent: float = 99.9) -> None:
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, got {percent}")
        super().__init__()
        self.percent = percent

    def _range(self) -> Range:
        tail = (1 - self.percent / 100) / 2
        return self.seen.quantile(tail), self.seen.quantile(1 - tail)


class LeastSquares(MinMax):
    """Clip where the mean squared error of symmetric codes is smallest; the range ends where the values do.

    Source:  Sung et al. 2015, arXiv:1511.06488, section 3.
    """

    def __init__(self, *, bits: int) -> None:
        code_range(bits, signed=True)
        super().__init__()
        self.bits = bits

    def _range(self) -> Range:
        found = self.seen.counts > 0
        shares = self.seen.centers[found] / self.seen.limit  # the last center itself may lie beyond FP32
        clip = self.seen.limit * mse_clip(shares, bits=self.bits, weights=self.seen.counts[found])
        return max(-clip, self.seen.low), min(clip, self.seen.high)


class Entropy(MinMax):
    """Clip where the distribution of the quantized magnitudes diverges least from the real one.

    The real one has all that is clipped in its last bin; bins that hold nothing stay empty when a level is spread.
    Source:  Migacz 2017, "8-bit inference with TensorRT", GTC.
    """

    def __init__(self, *, bits: int) -> None:
        code_range(bits, signed=True)
        super().__init__()
        self.bits = bits

    def _range(self) -> Range:
        levels, counts = 2 ** (self.bits - 1), self.seen.magnitudes()
        kept = range(max(levels, KL_STRIDE), BINS // 2 + 1, KL_STRIDE)
        divergences = [_divergence(counts, bins, levels) for bins in kept]
        best = kept[min(range(len(kept)), key=divergences.__getitem__)]
        clip = self.seen.limit * best / (BINS // 2)
        return max(-clip, self.seen.low), min(clip, self.seen.high)


def _divergence(counts: Tensor, bins: int, levels: int) -> float:
    """Return the Kullback-Leibler divergence, in nats, of `levels` levels from the first `bins` bins and the tail."""
    inside = counts[:bins]
    level = torch.arange(bins) * levels // bins
    mass = torch.zeros(levels, dtype=counts.dtype).index_add(0, level, inside)
    occupied = torch.zeros(levels, dtype=counts.dtype).index_add(0, level, (inside > 0).to(counts.dtype))
    spread = torch.where(inside > 0, (mass / occupied.clamp(min=1))[level], 0.0)
    real = inside.clone()
    real[-1] += counts[bins:].sum()
    if not spread.any():
        return torch.inf
    real, spread = real / real.sum(), (spread / spread.sum()).clamp(min=1e-12)
    return torch.special.xlogy(real, real / spread).sum().item()
