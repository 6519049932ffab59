"""A linear layer with an adapter in FP64, and what slips make of its output and its gradients."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn

Gradients = tuple[Tensor, Tensor, Tensor]  # of x, A and B
SCALE = "The update is (alpha / rank) · B A x: multiply the adapter's part by it, once."
BIAS = "The base's output is W x + b: call the layer you were given."


@dataclass(frozen=True)
class Adapted:
    """Weight, bias, both adapter matrices and the scale, as FP64 numbers."""

    weight: Tensor
    bias: Tensor
    a: Tensor
    b: Tensor
    scaling: float
    alpha: float

    @classmethod
    def of(cls, linear: nn.Linear, a: Tensor, b: Tensor, scaling: float, alpha: float) -> "Adapted":
        """Read a layer, and copies of an adapter's matrices."""
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        return cls(*(t.detach().double().clone() for t in (linear.weight, bias, a, b)), scaling, alpha)

    @property
    def rank(self) -> int:
        """The adapter's rank."""
        return self.a.shape[0]

    def magnitudes(self) -> "Adapted":
        """Return the same layer with every number's magnitude: what it gives for |x| is the sum of all sizes."""
        sizes = (t.abs() for t in (self.weight, self.bias, self.a, self.b))
        return Adapted(*sizes, abs(self.scaling), abs(self.alpha))

    def base(self, x: Tensor) -> Tensor:
        """Return what the layer gives without its adapter."""
        return x @ self.weight.T + self.bias

    def low(self, x: Tensor) -> Tensor:
        """Return B A x, without the scale."""
        return x @ self.a.T @ self.b.T

    def output(self, x: Tensor) -> Tensor:
        """Return the layer's output for rows `x`."""
        return self.base(x) + self.scaling * self.low(x)

    def gradients(self, x: Tensor, upstream: Tensor) -> Gradients:
        """Return the gradients of x, A and B."""
        scaled = self.scaling * upstream
        return (
            upstream @ self.weight + scaled @ self.b @ self.a,
            (scaled @ self.b).T @ x,
            scaled.T @ (x @ self.a.T),
        )


def _scales(case: Adapted) -> Iterator[tuple[str, str, float]]:
    yield "scale-missing", SCALE, 1.0
    yield "scale-by-alpha", SCALE, case.alpha
    yield "scale-by-the-rank-alone", SCALE, 1 / case.rank
    yield "scale-upside-down", SCALE, case.rank / case.alpha if case.alpha else 0.0
    yield "scale-by-the-root", f"{SCALE} (Division by √rank is another method.)", case.alpha / sqrt(case.rank)
    yield "scale-twice", SCALE, case.scaling**2
    yield "scale-twice", SCALE, case.alpha * case.rank
    yield "adapter-not-used", "The output is the base's alone: add the adapter's part.", 0.0
    yield "scale-rounded-down", f"{SCALE} It need not be whole: `/`, not `//`.", float(case.alpha // case.rank)


def output_slips(case: Adapted, x: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """List what slips make of the output."""
    base, low = case.base(x), case.low(x)
    for misconception, thought, scale in _scales(case):
        yield misconception, thought, base + scale * low
    yield "base-not-used", "The adapter is added to the base's output.", case.scaling * low
    yield "base-not-used", "The adapter is added to the base's output.", low
    yield "scales-the-base", SCALE, case.scaling * (base + low)
    yield "forgets-the-bias", BIAS, base - case.bias + case.scaling * low
    yield "bias-twice", BIAS, base + case.bias + case.scaling * low
    yield "scales-the-bias", SCALE, base + case.scaling * (low + case.bias)
    yield "subtracts-the-update", "W + ΔW: the adapter's part is added.", base - case.scaling * low


def gradient_slips(case: Adapted, x: Tensor, upstream: Tensor) -> Iterator[tuple[str, str, Gradients]]:
    """List what slips make of the gradients."""
    for misconception, thought, scale in _scales(case):
        yield misconception, thought, replace(case, scaling=scale).gradients(x, upstream)
    _, of_a, of_b = case.gradients(x, upstream)
    cut = "Only the gradients of A and B stop there: that of x goes through both paths."
    yield "base-cuts-the-gradient", cut, (case.scaling * upstream @ case.b @ case.a, of_a, of_b)
    yield "adapter-cuts-the-gradient", cut, (upstream @ case.weight, of_a, of_b)
