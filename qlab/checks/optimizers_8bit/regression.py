"""A regression that optimizers are tried on: batches, gradients in closed form, and the path a rule takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlab.checks.optimizers_8bit.rules import RIGHT, Moments, Rule, Settings
from qlab.checks.quantization.codes import uniform
from qlab.codebooks import linear_map
from qlab.optimizers import QuantizedMoment

IN, OUT, ROWS = 12, 256, 16
Batch = tuple[Tensor, Tensor]
Tensors = tuple[Tensor, ...]
Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Regression:
    """Batches of (x, y), and the rate of each step.

    Inputs differ in size up to a thousand times, and so do the gradients to the rows of the weight; outputs differ ten
    times, and so do the gradients along a row. A row is a block.
    """

    batches: tuple[Batch, ...]
    rates: tuple[float, ...]
    settings: Settings

    def gradients(self, weight: Tensor, bias: Tensor, batch: Batch) -> Tensors:
        x, y = batch
        error = (x @ weight + bias - y) * (2 / y.numel())
        return x.T @ error, error.sum(0)

    def path_end(self, rule: Rule = RIGHT, keep: Keep | None = None, *, uses_kept: bool = False) -> Tensor:
        """Return where a rule ends that keeps its moments through `keep`, as one row."""
        states = [Moments(*(torch.zeros_like(p) for _ in range(3))) for p in start()]
        for step, (batch, rate) in enumerate(zip(self.batches, self.rates, strict=True), 1):
            gradients = self.gradients(*(state.parameter.float() for state in states), batch)
            settings = Settings(rate, self.settings.betas, self.settings.eps)
            kept = keep if uses_kept or step < len(self.batches) else None  # what the last step keeps moves nothing
            for i, (state, gradient) in enumerate(zip(states, gradients, strict=True)):
                states[i] = _stepped(rule, state, gradient, step, settings, kept, uses_kept=uses_kept)
        return torch.cat([state.parameter.double().flatten() for state in states])


def _stepped(  # noqa: PLR0913, PLR0917 - what a step takes, and how its moments are kept
    rule: Rule, state: Moments, gradient: Tensor, step: int, settings: Settings, keep: Keep | None, *, uses_kept: bool
) -> Moments:
    after = rule(state, gradient, step, settings)
    if keep is None:
        return after
    kept = keep(after.exp_avg.float(), after.exp_avg_sq.float())
    if not uses_kept:
        return Moments(after.parameter, *kept)
    frozen = Rule(first=lambda b, m, g: m, second=lambda b, v, g: v)
    return Moments(frozen(Moments(state.parameter, *kept), gradient, step, settings).parameter, *kept)


def start() -> Tensors:
    return torch.zeros(IN, OUT), torch.zeros(OUT)


def parameters() -> nn.ParameterList:
    """Return the parameters at the start; a list of this kind reaches an answer as it is, and not as copies."""
    return nn.ParameterList([nn.Parameter(tensor) for tensor in start()])


def regression(draw: torch.Generator, steps: int) -> Regression:
    """Draw a regression whose rate falls to a third halfway."""
    scale, out = 10 ** uniform(-3, 0, (IN,), draw), 10 ** uniform(-1, 0, (OUT,), draw)
    truth = 0.3 * torch.randn(IN, OUT, generator=draw) / scale[:, None]
    batches = []
    for _ in range(steps):
        x = torch.randn(ROWS, IN, generator=draw) * scale
        batches.append((x, (x @ truth + 0.3 * torch.randn(ROWS, OUT, generator=draw)) * out))
    rate = uniform(0.005, 0.02, (), draw).item()
    betas = (uniform(0.5, 0.7, (), draw).item(), uniform(0.9, 0.97, (), draw).item())  # far from the usual ones
    rates = (rate,) * (steps // 2) + (rate / 3,) * (steps - steps // 2)
    return Regression(tuple(batches), rates, Settings(rate, betas, 1e-8))


def in_codes(exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the moments as they should be kept."""
    return coded(exp_avg, signed=True), coded(exp_avg_sq, signed=False)


def coded(x: Tensor, *, signed: bool, block_size: int = 256) -> Tensor:
    if not x.isfinite().all():
        return x * torch.nan  # a rule that has diverged
    return QuantizedMoment.quantize(x, signed=signed, block_size=block_size).dequantize()


def as_zeros(exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(exp_avg), torch.zeros_like(exp_avg_sq)


def in_one_block(exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(coded(x, signed=signed, block_size=x.numel()) for x, signed in ((exp_avg, True), (exp_avg_sq, False)))


def in_even_steps(exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor]:
    return _even(exp_avg, signed=True), _even(exp_avg_sq, signed=False)


def squares_in_even_steps(exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor]:
    return coded(exp_avg, signed=True), _even(exp_avg_sq, signed=False)


def _even(x: Tensor, *, signed: bool) -> Tensor:
    blocks = x.reshape(-1, 256)
    absmax = blocks.abs().amax(1, keepdim=True)
    levels = len(linear_map(bits=8, signed=signed)) // (2 if signed else 1)
    largest = levels if signed else levels - 1
    return ((blocks / torch.where(absmax > 0, absmax, 1.0) * largest).round() / largest * absmax).view_as(x)
