"""Operations as a training run meets them: harmless in FP16, or spoiled by its range or by its eleven bits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Operation:
    """One entry of the list: `spoiled` is the misconception of an answer that runs it in FP16 all the same."""

    name: str
    function: Function
    inputs: tuple[Tensor, ...]
    spoiled: str = ""

    @property
    def entry(self) -> tuple[str, Function, tuple[Tensor, ...]]:
        """What the answer is given."""
        return self.name, self._asked, self.inputs

    @property
    def _asked(self) -> Function:
        """The function for casts of its own inputs: what an answer calls, a judge may have to run.

        Errors:  TypeError for what is no floating-point tensor, ValueError for other shapes than those of the inputs.
        """

        @wraps(self.function)
        def run(*inputs: Any) -> Tensor:
            strange = [x for x in inputs if not isinstance(x, Tensor) or not x.is_floating_point()]
            if strange:
                got = getattr(strange[0], "dtype", type(strange[0]).__name__)
                raise TypeError(f"`{self.name}` takes floating-point tensors, got {got}")
            expected, got = ([tuple(x.shape) for x in some] for some in (self.inputs, inputs))
            if got != expected:
                raise ValueError(f"`{self.name}` takes its own inputs, of shapes {expected}, got {got}")
            return self.function(*inputs)

        return run

    def error(self, run: Callable[[Function, tuple[Tensor, ...]], Tensor], exact: Tensor | None = None) -> float:
        """Return how far a way to run the operation is from FP64, as a share of the length of the result."""
        exact = self.function(*(x.double() for x in self.inputs)) if exact is None else exact
        return ((run(self.function, self.inputs).double() - exact).norm() / exact.norm()).item()


def in_fp16(function: Function, inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float16) -> Tensor:
    """Run an operation as a kernel does that reads and writes FP16."""
    return function(*(x.to(dtype) for x in inputs))


def emulated(function: Function, inputs: tuple[Tensor, ...]) -> Tensor:
    """Run it in FP32 around FP16 inputs, and round the result."""
    return function(*(x.half().float() for x in inputs)).half()


def products(draw: torch.Generator) -> list[Operation]:
    """Return matrix products of the sizes that normalized activations have."""
    width = drawn(24, 40, draw)
    x, weight = _randn(draw, 12, width), _randn(draw, 20, width) / width**0.5
    q, k = _randn(draw, 2, 9, width), _randn(draw, 2, 9, width)
    return [
        Operation("linear", functional.linear, (x, weight)),
        Operation("scores", lambda q, k: q @ k.transpose(-2, -1), (q / width**0.5, k)),
    ]


def elementwise(draw: torch.Generator) -> list[Operation]:
    """Return operations on single values of ordinary size."""
    x, y = _randn(draw, 10, 30), 3 * _randn(draw, 10, 30)
    return [Operation("relu", torch.relu, (x,)), Operation("residual", torch.add, (x, 1 + x.abs() + y.abs()))]


def near_a_large_number(draw: torch.Generator) -> list[Operation]:
    """Return operations on differences of values near 200 or more, where the steps of FP16 are 1/8 and wider."""
    offset = uniform(140.0, 240.0, (12, 1), draw)
    targets = torch.randint(30, (12,), generator=draw)
    return [
        Operation("softmax", _softmax, (offset + 2 * _randn(draw, 12, 30),), "softmax-in-fp16"),
        Operation("loss", lambda x: _losses(x, targets), (offset + 2 * _randn(draw, 12, 30),), "loss-in-fp16"),
        Operation("layer_norm", _layer_norm, (3 * offset + _randn(draw, 12, 30),), "norm-in-fp16"),
    ]


def out_of_range(draw: torch.Generator) -> list[Operation]:
    """Return operations that meet or make numbers above 65504 or below 2⁻²⁵; the last one makes NaN of them."""
    return [
        Operation("sum", torch.sum, (uniform(20.0, 60.0, (4_000,), draw),), "sums-in-fp16"),
        Operation("exp", torch.exp, (uniform(-2.0, 14.0, (200,), draw),), "exponentials-in-fp16"),
        Operation("log", torch.log, (10.0 ** uniform(-12.0, -9.0, (200,), draw),), "exponentials-in-fp16"),
        Operation("square", torch.square, (uniform(200.0, 500.0, (200,), draw),), "exponentials-in-fp16"),
        Operation("gradient norm", torch.linalg.vector_norm, (4e-9 * _randn(draw, 500),), "norm-in-fp16"),
        Operation("layer_norm of sums", _layer_norm, (1e5 + 3e4 * _randn(draw, 8, 30),), "norm-in-fp16"),
    ]


def unlike_their_names(draw: torch.Generator) -> list[Operation]:
    """Return products that overflow, and small cases of what mostly needs FP32."""
    big = drawn(300, 600, draw)
    return [
        Operation(
            "linear",
            functional.linear,
            (big * _randn(draw, 9, 32), _randn(draw, 9, 32) * big),
            "products-that-overflow",
        ),
        Operation("softmax", _softmax, (uniform(-2.0, 2.0, (12, 30), draw),)),
        Operation("sum", torch.sum, (uniform(1.0, 2.0, (40,), draw),)),
        Operation("exp", torch.exp, (uniform(-2.0, 2.0, (100,), draw),)),
        Operation("gradient norm", torch.linalg.vector_norm, (_randn(draw, 100),)),
    ]


def mostly_vanishing(draw: torch.Generator) -> list[Operation]:
    """Return copies of a thousand values below 2⁻²⁵ and of one large enough to make up for them, or too small for it.

    The thousand err by 3e-4 to 6e-4 of 1e-3, and by 2% to 3% of 2e-5; the sum of magnitudes calls the first 1% to 2%,
    and the largest value alone calls the second 0.2%.
    """
    vanishing = [uniform(1e-8, 2e-8, (1_000,), draw) for _ in range(2)]
    inputs = [torch.cat([x, x.new_tensor([large])]) for x, large in zip(vanishing, (1e-3, 2e-5), strict=True)]
    return [
        Operation("update", torch.neg, (inputs[0],)),
        Operation("small update", torch.neg, (inputs[1],), "small-gradients-in-fp16"),
    ]


def _randn(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw)


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets, reduction="none")


def shuffled(operations: list[Any], draw: torch.Generator) -> list[Any]:
    """Return the operations in a random order."""
    return [operations[i] for i in torch.randperm(len(operations), generator=draw).tolist()]
