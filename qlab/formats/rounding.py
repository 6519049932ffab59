"""Rounding a value to a format: to nearest, stochastically, and from FP32 bits to BF16 bits."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qlab.formats.float_format import FP32_MANTISSA_BITS, FloatFormat, cache_chunks

FP32_BIAS = 127
FP32_EXPONENT_MASK = 0x7F800000


def encode(x: Float[Tensor, "*shape"], fmt: FloatFormat, *, saturate: bool) -> Tensor:
    """Return the code of the number of `fmt` nearest to each `x`, ties to even.

    Shapes:  codes have the shape of `x`; uint8 up to 8 bits, int64 above.
    Errors:  as `round_to_format`.
    """
    if fmt.exponent_bits == 8:
        bits = round_to_format(x, fmt, saturate=saturate).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        return bits >> (FP32_MANTISSA_BITS - fmt.mantissa_bits)
    return _chunkwise(x, fmt, _encode_chunk, saturate=saturate)


def round_to_format(x: Float[Tensor, "*shape"], fmt: FloatFormat, *, saturate: bool) -> Float[Tensor, "*shape"]:
    """Round each `x` to the nearest number of `fmt`, ties to even, subnormals included, and return it in FP32.

    With `saturate` what is too large, infinity too, becomes the largest finite number; without it infinity, or
    NaN where the format has no infinity. NaN stays NaN. A tie between one-digit significands goes to the larger.

    Shapes:  the result has the shape of `x`.
    Errors:  ValueError if `x` is not floating point, if it holds NaN and `fmt` has none, or if `saturate` is
             False and `fmt` has neither infinity nor NaN.
    Source:  IEEE 754-2019, section 4.3.1.
    """
    if fmt.exponent_bits == 8:
        return _round_mantissa(_as_fp32(x, fmt), fmt, saturate=saturate)
    return _chunkwise(x, fmt, _round_chunk, saturate=saturate)


def stochastic_round(
    x: Float[Tensor, "*shape"], fmt: FloatFormat, *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Round each `x` up or down to a neighbor in `fmt` with the odds that keep its expectation; saturate overflow.

    Shapes:  the result has the shape of `x`, in FP32.
    Errors:  as `round_to_format`.
    Source:  Gupta et al. 2015, section 3.1, arXiv:1502.02551.
    """
    x = _as_fp32(x, fmt)
    clamped = x.clamp(-fmt.max, fmt.max)
    exponent = (torch.frexp(clamped).exponent - 1).clamp(min=fmt.min_exponent)
    step = torch.ldexp(torch.ones_like(x), exponent - fmt.mantissa_bits)
    quotient = clamped / step  # exact: `step` is a power of two
    below = quotient.floor()
    draw = torch.rand(x.shape, generator=generator, device=x.device)
    rounded = (below + (draw < quotient - below)) * step
    return torch.copysign(rounded.clamp(-fmt.max, fmt.max), x)


def fp32_bits_to_bf16_bits(bits: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Round FP32 bit patterns to BF16 bit patterns with integer arithmetic alone, ties to even; NaN stays NaN.

    Units:   patterns are unsigned, held in int64.
    """
    is_nan = (bits & 0x7FFFFFFF) > FP32_EXPONENT_MASK
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding could carry a NaN into infinity, or past it into -0
    return torch.where(is_nan, quiet_nan, rounded)


def _as_fp32(x: Tensor, fmt: FloatFormat) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if not fmt.has_nan and x.isnan().any():
        raise ValueError(f"{fmt.name} has no NaN, and x holds {int(x.isnan().sum())}")
    x = x.detach()
    if x.dtype != torch.float64 or fmt.mantissa_bits == FP32_MANTISSA_BITS:
        return x.float()
    # Rounding twice moves ties: round to odd first (Boldo and Melquiond 2008), which the second rounding survives.
    nearest = x.float()
    bits = nearest.view(torch.int32) - (nearest.double().abs() > x.abs()).int()
    return (bits | (nearest.double() != x).int()).view(torch.float32)


def _round_mantissa(x: Tensor, fmt: FloatFormat, *, saturate: bool) -> Tensor:
    """Round to a format with the exponents of FP32: integer arithmetic on the bits of `x`."""
    dropped = FP32_MANTISSA_BITS - fmt.mantissa_bits
    if dropped:
        bits = x.view(torch.int32)
        last_place = (bits >> dropped) & 1
        rounded = ((bits + (2 ** (dropped - 1) - 1) + last_place) & -(2**dropped)).view(torch.float32)
        x = torch.where(x.isnan(), x, rounded)
    return x.clamp(-fmt.max, fmt.max) if saturate else x.clone()


def _chunkwise(x: Tensor, fmt: FloatFormat, operation: Callable[..., None], *, saturate: bool) -> Tensor:
    """Apply `operation` to pieces that fit the cache: 10⁷ values cross main memory once instead of nine times."""
    if not saturate and not fmt.has_nan:
        raise ValueError(f"{fmt.name} has neither infinity nor NaN: overflow can only saturate")
    flat = _as_fp32(x, fmt).reshape(-1)
    dtype = torch.float32 if operation is _round_chunk else fmt.code_dtype
    out = torch.empty(flat.shape, dtype=dtype, device=x.device)
    for chunk, target in cache_chunks(flat, out):
        operation(chunk, fmt, target, saturate=saturate)
    return out.reshape(x.shape)


def _magic(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Return 1.5 · 2^k with the k for which the last place of FP32 at x + magic is the step of `fmt` at `x`.

    Adding it makes the FP32 adder round `x` to nearest even in `fmt`: one rule for normals and subnormals.
    """
    bits = x.view(torch.int32) & FP32_EXPONENT_MASK
    bits.clamp_(min=(fmt.min_exponent + FP32_BIAS) << FP32_MANTISSA_BITS)
    bits += ((FP32_MANTISSA_BITS - fmt.mantissa_bits) << FP32_MANTISSA_BITS) + 2 ** (FP32_MANTISSA_BITS - 1)
    return bits.view(torch.float32)


def _round_chunk(x: Tensor, fmt: FloatFormat, out: Tensor, *, saturate: bool) -> None:
    limit = fmt.max if saturate else 2.0 ** (fmt.max_exponent + 1)
    clamped = x.clamp(-limit, limit)
    magic = _magic(clamped, fmt)
    torch.copysign(clamped.add_(magic).sub_(magic), x, out=out)
    if not saturate:
        overflow = torch.copysign(torch.tensor(math.inf if fmt.has_infinity else math.nan), out)
        torch.where(out.abs() > fmt.max, overflow, out, out=out)


def _encode_chunk(x: Tensor, fmt: FloatFormat, out: Tensor, *, saturate: bool) -> None:
    dropped = FP32_MANTISSA_BITS - fmt.mantissa_bits
    limit = fmt.max if saturate else 2.0 ** (fmt.max_exponent + 1)
    magnitude = x.abs().clamp_(max=limit)
    magic = _magic(magnitude, fmt)
    # x / step, from the low bits of the sum; then add 2^mantissa_bits for each binade above the subnormals
    code = magnitude.add_(magic).view(torch.int32)
    magic = magic.view(torch.int32)
    code -= magic
    first_binade = (fmt.min_exponent + FP32_BIAS + dropped) << FP32_MANTISSA_BITS
    code += magic.sub_(first_binade + 2 ** (FP32_MANTISSA_BITS - 1)) >> dropped
    code.clamp_(max=fmt.max_code if saturate else fmt.max_code + 1)
    if fmt.has_nan:
        code.masked_fill_(x.isnan(), fmt.nan_code)
    out.copy_(code)
    out |= torch.signbit(x).to(out.dtype) << (fmt.bits - 1)
