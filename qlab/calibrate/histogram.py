"""A histogram that grows with its data: what an observer can keep of millions of values."""

import torch
from jaxtyping import Float
from torch import Tensor

BINS = 4096
FIRST_LIMIT = 2.0**-100
EXACT_COUNTS = 2**24  # torch.histc counts in FP32: more values in one bin it would lose


class Histogram:
    """Counts of values in equal bins over ±limit; the limit doubles until it holds them, and bins merge in pairs."""

    def __init__(self) -> None:
        self.limit = FIRST_LIMIT
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.low, self.high = torch.inf, -torch.inf

    def add(self, x: Float[Tensor, "*shape"]) -> None:
        """Count the values of `x`, read in FP32.

        Errors:  ValueError if `x` is empty or holds NaN or infinity (FP64 beyond FP32 counts as such).
        """
        if not x.numel():
            raise ValueError(f"a calibration batch must hold at least one value, got shape {tuple(x.shape)}")
        values = x.detach().float().flatten()
        low, high = values.min().item(), values.max().item()
        if not (abs(low) < torch.inf and abs(high) < torch.inf):
            wrong = int((~values.isfinite()).sum())
            raise ValueError(f"a calibration batch must be finite, and holds {wrong} NaN or infinite values")
        while max(-low, high) > self.limit:
            self.counts = torch.nn.functional.pad(self.counts.view(-1, 2).sum(1), (BINS // 4, BINS // 4))
            self.limit *= 2
        for piece in values.split(EXACT_COUNTS):
            shares = piece / 2 / (self.limit / 2)  # in this order: a limit of 2^128 is beyond FP32
            self.counts += torch.histc(shares, BINS, min=-1, max=1).cpu().double()
        self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def centers(self) -> Float[Tensor, " bins"]:
        """The middle of each bin, in FP64."""
        return self.limit * ((2 * torch.arange(BINS, dtype=torch.float64) + 1) / BINS - 1)

    def quantile(self, share: float) -> float:
        """Return the value below which `share` of the counted values lie, to the width of a bin."""
        wanted = share * self.counts.sum()
        place = int(torch.searchsorted(self.counts.cumsum(0), wanted).clamp(max=BINS - 1))
        before = self.counts[:place].sum()
        inside = ((wanted - before) / self.counts[place].clamp(min=1)).clamp(0, 1).item()
        edge = self.limit * (2 * (place + inside) / BINS - 1)
        return min(max(edge, self.low), self.high)

    def magnitudes(self) -> Float[Tensor, " half"]:
        """Return the counts by magnitude, from 0 to the limit."""
        return self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)
