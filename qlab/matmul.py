"""Matrix products in each data type a device offers: their rate, and their error against FP64."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.formats import E4M3, round_to_format
from qlab.measure import median_ms


@dataclass(frozen=True)
class MatmulResult:
    """One measured product of two n × n matrices of standard normal values.

    Units:   `tera_per_s` counts a multiply-add as two operations; `relative_error` is ‖C − C₆₄‖ / ‖C₆₄‖.
    """

    name: str
    n: int
    ms: float
    tera_per_s: float
    relative_error: float


@dataclass(frozen=True)
class Unavailable:
    """A product this device cannot do, and what torch said."""

    name: str
    reason: str


def measure_products(*, n: int, device: torch.device | str, seed: int = 0) -> tuple[MatmulResult | Unavailable, ...]:
    """Measure an n × n product in every data type, each with the same inputs.

    Errors:  ValueError if `n` is not a positive multiple of 16, which FP8 kernels need.
    """
    if n < 16 or n % 16:
        raise ValueError(f"n must be a positive multiple of 16, got {n}")
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, n, generator=generator).to(device) for _ in range(2))
    exact = a.double() @ b.double()
    return tuple(_measure(name, operation, a, b, exact) for name, operation in PRODUCTS.items())


def _measure(
    name: str, prepare: Callable[[Tensor, Tensor], Callable[[], Tensor]], a: Tensor, b: Tensor, exact: Tensor
) -> MatmulResult | Unavailable:
    try:
        with _fp32_precision("tf32" if name == "TF32" else "ieee"):
            multiply = prepare(a, b)
            error = ((multiply().double() - exact).norm() / exact.norm()).item()
            ms = median_ms(multiply, repeats=5, warmup=2, device=a.device)
    except (RuntimeError, NotImplementedError) as failure:
        return Unavailable(name, str(failure).splitlines()[0])
    return MatmulResult(name, len(a), ms, 2 * len(a) ** 3 / (ms * 1e9), error)


def _tf32(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    if a.device.type != "cuda" or torch.cuda.get_device_capability(a.device) < (8, 0):
        raise RuntimeError("TF32 needs an NVIDIA GPU of compute capability 8.0 or newer")
    return lambda: a @ b


def _cast(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Callable[[], Tensor]]:
    def prepare(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
        a, b = a.to(dtype), b.to(dtype)
        return lambda: a @ b

    return prepare


def _fp8(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    a, b = (round_to_format(x, E4M3, saturate=True).to(torch.float8_e4m3fn) for x in (a, b.t().contiguous()))
    one = torch.ones((), device=a.device)
    return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _int8(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """Quantize each matrix with one scale, multiply int8 with int32 accumulation, and scale the result back."""
    scales = [x.abs().max() / 127 for x in (a, b)]
    a, b = (torch.round(x / scale).to(torch.int8) for x, scale in zip((a, b), scales, strict=True))
    unscale = scales[0] * scales[1]
    return lambda: torch._int_mm(a, b) * unscale


PRODUCTS = {
    "FP32": lambda a, b: lambda: a @ b,
    "TF32": _tf32,
    "BF16": _cast(torch.bfloat16),
    "FP16": _cast(torch.float16),
    "FP8": _fp8,
    "INT8": _int8,
}


@contextlib.contextmanager
def _fp32_precision(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
