"""What a code means: floating-point formats, named and made to measure, and the value of each code."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

FP32_MANTISSA_BITS = 23
CHUNK = 65_536  # elements: a chunk and its two buffers (768 KiB) stay in a core's L2 cache


class Specials(Enum):
    """Which codes are not numbers."""

    IEEE = "the all-ones exponent holds infinity and NaN"
    ONE_NAN = "no infinity; only the all-ones code is NaN, one per sign"
    NONE = "every code is a finite number"


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format of at most 32 bits: a sign, an exponent, and stored mantissa bits.

    Errors:  ValueError if the exponent has not 2 to 8 bits or the mantissa not 0 to 23.
    Source:  IEEE 754-2019, section 3.4; Micikevicius et al. 2022, arXiv:2209.05433 (FP8);
             OCP Microscaling Formats v1.0, section 5.3 (FP6, FP4).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Specials = Specials.IEEE

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits must be 2 to 8, got {self.exponent_bits}")
        if not 0 <= self.mantissa_bits <= FP32_MANTISSA_BITS:
            raise ValueError(f"mantissa_bits must be 0 to {FP32_MANTISSA_BITS}, got {self.mantissa_bits}")
        if self.exponent_bits == 8 and self.specials is not Specials.IEEE:
            raise ValueError(f"an 8-bit exponent needs IEEE specials, got {self.specials.name}")

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest normal number, and of every subnormal one."""
        return 1 - self.bias

    @property
    def max_code(self) -> int:
        """The code of the largest finite number."""
        all_ones = 2 ** (self.bits - 1) - 1
        reserved = {Specials.IEEE: 2**self.mantissa_bits, Specials.ONE_NAN: 1, Specials.NONE: 0}
        return all_ones - reserved[self.specials]

    @property
    def max_exponent(self) -> int:
        return (self.max_code >> self.mantissa_bits) - self.bias

    @property
    def max(self) -> float:
        fraction = self.max_code % 2**self.mantissa_bits / 2**self.mantissa_bits
        return (1 + fraction) * 2.0**self.max_exponent

    @property
    def min_normal(self) -> float:
        return 2.0**self.min_exponent

    @property
    def min_subnormal(self) -> float:
        """The smallest step of the format, and its smallest positive number if the mantissa has a bit."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """The gap between 1 and the next larger number."""
        return 2.0**-self.mantissa_bits

    @property
    def has_infinity(self) -> bool:
        return self.specials is Specials.IEEE

    @property
    def has_nan(self) -> bool:
        return self.specials is not Specials.NONE

    @property
    def nan_code(self) -> int:
        """The positive NaN that `encode` writes: quiet where the format can tell."""
        if self.specials is Specials.IEEE:
            return self.max_code + 1 + 2 ** max(self.mantissa_bits - 1, 0)
        return self.max_code + 1

    @property
    def code_dtype(self) -> torch.dtype:
        """uint8 up to 8 bits, int64 above: torch computes on no wider unsigned type."""
        return torch.uint8 if self.bits <= 8 else torch.int64


FP32 = FloatFormat("FP32", 8, 23)
TF32 = FloatFormat("TF32", 8, 10)
BF16 = FloatFormat("BF16", 8, 7)
FP16 = FloatFormat("FP16", 5, 10)
E5M2 = FloatFormat("E5M2", 5, 2)
E4M3 = FloatFormat("E4M3", 4, 3, Specials.ONE_NAN)
E4M3_IEEE = FloatFormat("E4M3 (IEEE)", 4, 3)
E3M4 = FloatFormat("E3M4", 3, 4)
E3M2 = FloatFormat("E3M2", 3, 2, Specials.NONE)
E2M3 = FloatFormat("E2M3", 2, 3, Specials.NONE)
E2M1 = FloatFormat("E2M1", 2, 1, Specials.NONE)
E3M0 = FloatFormat("E3M0", 3, 0, Specials.NONE)
FORMATS = {f.name: f for f in (FP32, TF32, BF16, FP16, E5M2, E4M3, E4M3_IEEE, E3M4, E3M2, E2M3, E2M1, E3M0)}


def decode(codes: Int[Tensor, "*shape"] | UInt8[Tensor, "*shape"], fmt: FloatFormat) -> Float[Tensor, "*shape"]:
    """Return the FP32 value of each code, exactly.

    Errors:  ValueError if a code is negative or needs more than `fmt.bits` bits.
    """
    if codes.dtype != torch.uint8 or fmt.bits < 8:
        _require_codes(codes, fmt)
    if fmt.bits > 16:
        return decode_by_formula(codes, fmt)
    table = _decode_table(fmt).to(codes.device)
    flat = codes.reshape(-1)
    values = torch.empty(flat.shape, dtype=torch.float32, device=codes.device)
    for chunk, out in cache_chunks(flat, values):
        torch.index_select(table, 0, chunk.int(), out=out)
    return values.reshape(codes.shape)


def finite_values(fmt: FloatFormat) -> Float[Tensor, " n"]:
    """Return every finite number of a format of at most 16 bits, ascending, with both zeros."""
    positive = torch.arange(fmt.max_code + 1)
    return decode(torch.cat([positive.flip(0) + 2 ** (fmt.bits - 1), positive]), fmt)


@lru_cache
def _decode_table(fmt: FloatFormat) -> Float[Tensor, " codes"]:
    return decode_by_formula(torch.arange(2**fmt.bits), fmt)


def decode_by_formula(codes: Tensor, fmt: FloatFormat) -> Tensor:
    """Return the FP32 value of each code by the definition of the format; `decode` looks the same values up."""
    codes = codes.to(torch.int64)
    magnitude = codes & (2 ** (fmt.bits - 1) - 1)
    sign = 1.0 - 2.0 * (codes >> (fmt.bits - 1)).double()
    exponent_field = magnitude >> fmt.mantissa_bits
    fraction = (magnitude & (2**fmt.mantissa_bits - 1)).double() * fmt.epsilon
    significand = fraction + (exponent_field > 0)  # the implicit one, which subnormals lack
    value = torch.ldexp(significand, exponent_field.clamp(min=1) - fmt.bias)
    if fmt.has_infinity:
        value[magnitude == fmt.max_code + 1] = math.inf
        value[magnitude > fmt.max_code + 1] = math.nan
    else:
        value[magnitude > fmt.max_code] = math.nan
    return (sign * value).float()


def _require_codes(codes: Tensor, fmt: FloatFormat) -> None:
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    if codes.numel() and not (codes.min() >= 0 and codes.max() < 2**fmt.bits):
        raise ValueError(f"{fmt.name} codes must be 0 to {2**fmt.bits - 1}, got {codes.min()} to {codes.max()}")


def cache_chunks(flat: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield matching pieces of two flat tensors, small enough that work on them stays in the cache."""
    return zip(flat.split(CHUNK), out.split(CHUNK), strict=True)
