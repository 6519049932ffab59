"""Fake quantization: real numbers that sit on the grid, with a gradient that reaches what was rounded."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qlab.quantize import PER_ROW, Grid, Tile, code_range, quantize_with, symmetric_grid, value_range

SMALLEST_STEP = 2.0**-126


class _StraightThrough(torch.autograd.Function):
    """Round to a grid forward; backward, pass the gradient where nothing was clipped."""

    @staticmethod
    def forward(x: Tensor, grid: Grid) -> Tensor:
        return quantize_with(x, grid).dequantize().to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, grid = inputs
        ctx.save_for_backward(within(x, grid))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


def fake_quantize(x: Float[Tensor, "*shape"], grid: Grid) -> Float[Tensor, "*shape"]:
    """Return `x` rounded to `grid`; its gradient is 1 within the grid and 0 for values that were clipped.

    The true gradient is 0 almost everywhere: a staircase is flat. Nothing would ever be learned through it.
    Errors:  ValueError if the grid does not fit `x`, or `x` is empty or holds NaN or infinity.
    Source:  Bengio et al. 2013, arXiv:1308.3432 (straight-through); Jacob et al. 2018, section 3, arXiv:1712.05877.
    """
    return _StraightThrough.apply(x, grid)


def within(x: Float[Tensor, "*shape"], grid: Grid) -> Tensor:
    """Tell which values of `x` round to a code of `grid` without being clipped."""
    lowest, highest = grid.codes
    steps = (grid.tile.split(x.detach()) / grid.scale[:, None, :, None]).round()
    if grid.zero_point is not None:
        steps = steps + grid.zero_point[:, None, :, None]
    return grid.tile.join((steps >= lowest) & (steps <= highest), x.shape)


class FakeQuantize(nn.Module):
    """Round a weight to the symmetric grid of its own largest magnitudes, found anew at each call."""

    def __init__(self, *, bits: int, tile: Tile = PER_ROW) -> None:
        super().__init__()
        code_range(bits, signed=True)
        self.bits, self.tile = bits, tile

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `weight` on its grid; its gradient passes straight through."""
        return fake_quantize(weight, symmetric_grid(weight.detach(), bits=self.bits, tile=self.tile))


class LearnedStep(nn.Module):
    """Round a weight to a symmetric grid whose step sizes are learned together with it.

    An optimizer may carry a step size below zero: only its magnitude counts, since the grid is symmetric.
    Source:  Esser et al. 2020, section 2, arXiv:1902.08153.
    """

    def __init__(self, weight: Float[Tensor, "*shape"], *, bits: int, tile: Tile = PER_ROW) -> None:
        super().__init__()
        _, self.largest = code_range(bits, signed=True)
        self.bits, self.tile = bits, tile
        value_range(weight.detach())
        wide = weight.detach().float()
        count = tile.split(torch.ones_like(wide)).sum(dim=(1, 3))  # without what fills up ragged tiles
        start = 2 * tile.split(wide.abs()).sum(dim=(1, 3)) / count / self.largest**0.5
        self.scale = nn.Parameter(torch.where(start > 0, start, 1.0))
        self.register_buffer("gradient_scale", (count * self.largest).rsqrt(), persistent=False)

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `weight` on the grid; the gradient reaches the weight within the grid, and the step everywhere.

        Errors:  ValueError if `weight` or a step size is NaN or infinite.
        """
        value_range(weight.detach())
        if wrong := int((~self.scale.isfinite()).sum()):
            raise ValueError(f"step sizes must be finite, and {wrong} are NaN or infinite: training has diverged")
        whole = torch.where(self.scale.abs() < SMALLEST_STEP, SMALLEST_STEP, self.scale)
        scaled = whole * self.gradient_scale
        scale = (whole - scaled).detach() + scaled  # the value of `scale` to an ULP, a gradient made smaller
        steps = self.tile.split(weight) / scale[:, None, :, None]
        clipped = steps.clamp(-self.largest, self.largest)
        codes = clipped + (clipped.round() - clipped).detach()
        return self.tile.join(codes * scale[:, None, :, None], weight.shape).to(weight.dtype)
