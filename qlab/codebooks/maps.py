"""Codebooks that are known before any data: levels between -1 and 1, ascending, for values divided by their absmax."""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.formats import FloatFormat, finite_values

NF4_OFFSET = 0.9677083  # the outermost probability: of infinite quantiles nothing could be made
FP4_MAGNITUDES = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
SMALLEST_DECADE = -6


def normal_map(offset: float = NF4_OFFSET) -> Float[Tensor, " 16"]:
    """Return 16 quantiles of a normal distribution over the largest: 7 negative, an exact zero, 8 positive.

    Source:  Dettmers et al. 2023, section 3 and appendix E, arXiv:2305.14314; the probabilities are FP32 numbers, as
             in bitsandbytes, which decides on the last bit.
    """
    positive, negative = (
        torch.special.ndtri(torch.linspace(offset, 0.5, levels + 1)[:-1].double()).float() for levels in (8, 7)
    )
    return _ascending(-negative, torch.zeros(1), positive) / positive.max()


def format_map(fmt: FloatFormat) -> Float[Tensor, " levels"]:
    """Return the different finite numbers of a format of at most 8 bits over the largest: 15 for E2M1, with one zero.

    Errors:  ValueError if the format has more than 8 bits.
    """
    if fmt.bits > 8:
        raise ValueError(f"a format must have at most 8 bits to be a codebook, got {fmt.name} with {fmt.bits}")
    return finite_values(fmt).unique() / fmt.max


def dynamic_map(*, signed: bool) -> Float[Tensor, " 256"]:
    """Return the 8-bit dynamic map: seven decades, from 10^-7 to 1, each with twice the levels of the one below it.

    Signed, the decade up to 1 has 64 levels of each sign; unsigned it has 128. Zero and 1 are levels of their own.
    Source:  Dettmers et al. 2022, sections 1.3 and 2.2, arXiv:2110.02861.
    """
    decades = []
    for exponent in range(SMALLEST_DECADE, 1):
        levels = 2 ** (exponent - SMALLEST_DECADE + (0 if signed else 1))
        edges = torch.linspace(0.1, 1, levels + 1)
        decades.append(10.0**exponent * ((edges[:-1] + edges[1:]) / 2))
    positive = torch.cat(decades)
    return _ascending(-positive if signed else positive[:0], torch.tensor([0.0, 1.0]), positive)


def linear_map(*, bits: int = 8, signed: bool) -> Float[Tensor, " levels"]:
    """Return evenly spaced levels: the multiples of 1 / (2^(bits-1) - 1) from -1 to 1, or of 1 / (2^bits - 1) from 0.

    Errors:  ValueError if `bits` is not 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    largest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return torch.arange(-largest if signed else 0, largest + 1) / largest


def _ascending(*parts: Tensor) -> Tensor:
    return torch.cat(parts).sort().values


NF4 = normal_map()
FP4 = _ascending(-torch.tensor(FP4_MAGNITUDES[1:]), torch.tensor(FP4_MAGNITUDES)) / max(FP4_MAGNITUDES)
