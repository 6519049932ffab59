"""What a layer gives on any grid for its input: the right one, and those of answers that find it in another way."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import require

WIDTH = 24
HAIR = 2e-4  # of a step: x / S + Z is up to 255, and in FP32 takes six roundings of 6e-8; nearer to a tie, either code
ROUNDING = 2.0**-21  # of the sum of magnitudes: FP32 rounds each product, each partial sum and each scale to 2⁻²⁴


@dataclass(frozen=True)
class Layer:
    """A weight as its task gives it: codes (out, in), a scale for each row (out, 1)."""

    codes: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        return self.codes.double() * self.scale.double()


@dataclass(frozen=True)
class Call:
    """One call of a layer: its input, and the outputs it gave."""

    x: Tensor
    got: Tensor


@dataclass(frozen=True)
class Grid:
    """Codes for an input: x ≈ S · (code − Z), where code is round(x / S) + Z, clamped."""

    scale: Tensor
    zero: Tensor
    lowest: float = 0.0
    highest: float = 255.0
    to_integer: Callable[[Tensor], Tensor] = torch.round
    wraps: bool = False

    def steps(self, x: Tensor, nudge: float = 0.0) -> Tensor:
        """Return code − Z for each value; `nudge` moves them by a part of a step before they are rounded."""
        codes = self.to_integer(x.double() / self.scale + nudge) + self.zero
        codes = codes % 256 if self.wraps else codes.clamp(self.lowest, self.highest)
        return codes - self.zero

    def spans(self, x: Tensor) -> Tensor:
        """Return the magnitude of each value as read, and of S · Z: S · code − S · Z is rounded by its parts."""
        return (self.steps(x).abs() + self.zero.abs()) * self.scale


Product = Callable[[Tensor, Grid, Layer], Tensor]
Rule = Callable[[int, Call], Grid]


def product(steps: Tensor, grid: Grid, layer: Layer) -> Tensor:
    """Return the layer's outputs for an input of so many steps."""
    return (steps * grid.scale) @ layer.weight.T


@dataclass(frozen=True)
class Slip:
    """A misconception: the grid it uses at each call, and what it makes of the steps."""

    misconception: str
    thought: str
    rule: Rule
    product: Product = product

    def outputs(self, calls: Sequence[Call], layer: Layer) -> Tensor:
        """Return the outputs of all calls; where a value is near the middle of two codes, the one that fits."""
        every = []
        for number, call in enumerate(calls):
            grid = self.rule(number, call)
            values = [self.product(grid.steps(call.x, nudge), grid, layer) for nudge in (0.0, -HAIR, HAIR)]
            for other in values[1:]:
                same = (call.got - other).abs() <= 1e-5 * other.abs()
                values[0] = torch.where(same, call.got, values[0])
            every.append(values[0])
        return flat(every)


def require_outputs(
    calls: Sequence[Call],
    layer: Layer,
    right: Callable[[Call], Grid],
    slips: Callable[[], Iterable[Slip]],
) -> None:
    """Refuse the part unless every output is that of the right grid, to the rounding of FP32."""
    got = flat([call.got for call in calls])
    sums = flat([right(call).spans(call.x) @ layer.weight.T.abs() for call in calls])

    def near(values: Tensor) -> Tensor:
        return torch.where((got - values).abs() <= ROUNDING * (sums + values.abs()), got, values)

    require_values(
        got,
        near(Slip("", "", lambda _, call: right(call)).outputs(calls, layer)),
        given=lambda i: told(i, calls, layer),
        suspects=lambda: [Suspect(s.misconception, s.thought, near(s.outputs(calls, layer))) for s in slips()],
    )


def told(i: int, calls: Sequence[Call], layer: Layer) -> str:
    """Describe the call, the row and the output behind place `i` of all outputs."""
    number = 0
    while i >= calls[number].got.numel():
        i -= calls[number].got.numel()
        number += 1
    x, (row, output) = calls[number].x, divmod(i, calls[number].got.shape[1])
    alone = torch.equal(layer.weight, torch.eye(len(layer.codes), dtype=torch.float64))
    value = f"x[{row}, {output}] = {x[row, output]:.5g} and w = 1" if alone else f"output {output} of row {row}"
    return f"call {number + 1}: {value}, x from {x.min():.4g} to {x.max():.4g}, that row up to {x[row].abs().max():.4g}"


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def outputs_of(value: Any, x: Tensor, layer: Layer, *, call: str) -> Tensor:
    """Read what a layer returned for `x`, and refuse what is not finite."""
    got = as_tensor(value, (len(x), len(layer.codes)), call=call).double()
    lost = ~got.isfinite()
    require(
        not lost.any(),
        f"`{call}`: {int(lost.sum())} of {got.numel()} outputs are not finite",
        misconception="not-finite" if x[lost.any(1)].any(1).any() else "divides-by-zero",
        thought="A token of zeros has the scale 0, and 0 / 0 is NaN: give it the scale 1.",
    )
    return got


def identity() -> Layer:
    """Return the layer whose outputs are its inputs, as their codes read."""
    return Layer(torch.eye(WIDTH, dtype=torch.int8), torch.ones(WIDTH, 1))


def random_layer(out: int, draw: torch.Generator) -> Layer:
    codes = torch.randint(-127, 128, (out, WIDTH), generator=draw).to(torch.int8)
    return Layer(codes, uniform(1e-3, 2e-2, (out, 1), draw))


def symmetric(absmax: Tensor, *, largest: int = 127, to_integer: Callable[[Tensor], Tensor] = torch.round) -> Grid:
    """Return the grid whose largest code stands for `absmax`; zeros get a scale of 1."""
    scale = torch.where(absmax > 0, absmax, float(largest)).double() / largest
    return Grid(scale, torch.zeros(()), -largest, largest, to_integer)


def affine(low: float, high: float) -> Grid:
    """Return the grid of 256 codes from low to high, which need not contain zero."""
    scale = torch.tensor((high - low) / 255 or 1.0, dtype=torch.float64)
    return Grid(scale, (-low / scale).round())


def widened(*tensors: Tensor) -> Grid:
    """Return the affine grid of all values together, zero among them."""
    return affine(min(0.0, *(x.min().item() for x in tensors)), max(0.0, *(x.max().item() for x in tensors)))


def unrounded(steps: Tensor) -> Tensor:
    """Stand in for the rounding of who forgets it."""
    return steps


def of_steps(steps: Tensor, _: Grid, layer: Layer) -> Tensor:
    """Forget the input's scale."""
    return steps @ layer.weight.T


def of_weight_codes(steps: Tensor, grid: Grid, layer: Layer) -> Tensor:
    """Forget the weight's scale."""
    return (steps * grid.scale) @ layer.codes.double().T


def of_codes_alone(steps: Tensor, _: Grid, layer: Layer) -> Tensor:
    """Forget both scales."""
    return steps @ layer.codes.double().T
