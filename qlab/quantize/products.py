"""Products of codes: int8 in, int32 inside, one multiplication by the scales at the end."""

import functools
import math

import torch
from jaxtyping import Float, Int, Int8, Int32
from torch import Tensor
from torch.nn.functional import pad

from qlab.quantize.grid import Grid, Quantized, refuse_non_finite, symmetric_grid_of, wide
from qlab.quantize.tiles import PER_ROW

LARGEST_INT32 = 2**31 - 1
EXACT_IN_FP32 = 2**24 // 2**14  # that many products of two int8 codes add up exactly in FP32, in any order


def int8_matmul(x: Quantized, w: Quantized) -> Float[Tensor, "tokens out"]:
    """Multiply `x` by the transpose of `w`, both as codes, without making either of them real numbers.

    With codes X and W, S_x S_w Σ (X - Z_x)(W - Z_w) is S_x S_w (Σ X W - Z_x Σ W - Z_w Σ X + K Z_x Z_w).
    Shapes:  `x` is (tokens, K), one scale for all or for each token; `w` is (out, K), one for all or for each row.
    Errors:  ValueError if scales are shared otherwise, the two K differ, or a sum over K may overflow int32:
             with 8 bits beyond K = 133 144, with a zero point in one factor 66 311, in both 33 025.
    Source:  Jacob et al. 2018, equations 4 and 7, arXiv:1712.05877.
    """
    return _rescaled(_sum_of_products(x, w), x, w)


def int8_linear(
    x: Float[Tensor, "*batch K"], w: Quantized, bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """Apply a linear layer in int8: `x` is quantized on the spot, each token with a scale of its own.

    The result has the type of `x`; no gradient reaches `x` through it.
    Errors:  ValueError if `x` is empty or holds NaN or infinity, or as for `int8_matmul`.
    """
    tokens = _quantize_tokens(wide(x.detach()).reshape(-1, x.shape[-1]))
    return _rescaled(_sum_of_products(tokens, w), tokens, w, bias).to(x.dtype).view(*x.shape[:-1], -1)


def _quantize_tokens(x: Float[Tensor, "tokens K"]) -> Quantized:
    """Return the same as `quantize_symmetric` gives at 8 bits and `PER_ROW`, sooner: no tiles have to be cut."""
    if not x.numel():
        raise ValueError(f"x must hold at least one value, got shape {tuple(x.shape)}")
    absmax = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    if not math.isfinite(absmax.sum()):
        refuse_non_finite(x)
    grid = symmetric_grid_of(absmax, bits=8, tile=PER_ROW)
    return Quantized((x / grid.scale).round_().to(torch.int8), grid)


def _sum_of_products(x: Quantized, w: Quantized) -> Int32[Tensor, "tokens out"]:
    """Sum (X - Z_x)(W - Z_w) over K."""
    _refuse_what_has_no_product(x, w)
    (x_codes, x_zero), (w_codes, w_zero) = _signed(x), _signed(w)
    total = _integer_product(x_codes, w_codes)
    if x_zero is not None:
        total -= x_zero * w_codes.sum(1, dtype=torch.int32)
    if w_zero is not None:
        total -= x_codes.sum(1, keepdim=True, dtype=torch.int32) * w_zero.T
    if x_zero is not None and w_zero is not None:
        total += x_codes.shape[1] * x_zero * w_zero.T
    return total


def _rescaled(
    total: Int32[Tensor, "tokens out"], x: Quantized, w: Quantized, bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "tokens out"]:
    y = total * x.scale
    return y.mul_(w.scale.T) if bias is None else torch.addcmul(bias, y, w.scale.T)


def _refuse_what_has_no_product(x: Quantized, w: Quantized) -> None:
    for name, factor in (("x", x), ("w", w)):
        if factor.codes.ndim != 2:
            raise ValueError(f"{name} must be a matrix of codes, got shape {tuple(factor.codes.shape)}")
        (rows, _), (down, across) = factor.codes.shape, factor.scale.shape
        if across != 1 or down not in (1, rows):
            raise ValueError(f"{name} must have one scale, or one for each of {rows} rows, got {down} x {across}")
    k, k_of_w = x.codes.shape[1], w.codes.shape[1]
    longest = LARGEST_INT32 // (_largest_step(x.grid) * _largest_step(w.grid))
    if k != k_of_w or k > longest:
        raise ValueError(f"x and w must share one K of at most {longest}, got {k} and {k_of_w}")


def _largest_step(grid: Grid) -> int:
    """The farthest that a code can be from its zero point."""
    smallest, largest = grid.codes
    return largest if grid.zero_point is None else largest - smallest


def _signed(factor: Quantized) -> tuple[Int8[Tensor, "rows K"], Int[Tensor, "tiles 1"] | None]:
    """Return codes and zero point moved to int8, which is what the product takes."""
    if factor.zero_point is None:
        return factor.codes, None
    middle = 2 ** (factor.grid.bits - 1)
    return (factor.codes - middle).view(torch.int8), factor.zero_point.int() - middle


def _integer_product(x: Int8[Tensor, "tokens K"], w: Int8[Tensor, "out K"]) -> Int32[Tensor, "tokens out"]:
    """Multiply `x` by the transpose of `w` in the way that is exact on this device."""
    if x.is_cuda:
        return _padded_product(x, w)
    if not _int_mm_is_exact():
        return _product_in_parts(x, w)
    if 16 * len(x) <= len(w):
        return torch._int_mm(w, x.T).T.contiguous()  # it rearranges its second factor: let that be the small one
    return torch._int_mm(x, w.T)


def _padded_product(x: Int8[Tensor, "tokens K"], w: Int8[Tensor, "out K"]) -> Int32[Tensor, "tokens out"]:
    """Multiply where `torch._int_mm` asks for more than 16 rows and for sides that are multiples of 8, as on CUDA."""
    (tokens, k), out = x.shape, len(w)
    x, w = pad(x, (0, -k % 8, 0, max(0, 17 - tokens))), pad(w, (0, -k % 8, 0, -out % 8))
    return torch._int_mm(x, w.T)[:tokens, :out]


def _product_in_parts(x: Int8[Tensor, "tokens K"], w: Int8[Tensor, "out K"]) -> Int32[Tensor, "tokens out"]:
    """Multiply in FP32, as much of K at a time as FP32 adds exactly."""
    total = torch.zeros(len(x), len(w), dtype=torch.int32)
    for x_part, w_part in zip(x.split(EXACT_IN_FP32, 1), w.split(EXACT_IN_FP32, 1), strict=True):
        total += (x_part.float() @ w_part.float().T).int()
    return total


@functools.cache
def _int_mm_is_exact() -> bool:
    """Tell whether this processor adds products in int32: without VNNI, pairs are added in int16 and saturate.

    Source:  oneDNN developer guide, "Nuances of int8 computations".
    """
    tall = torch.full((32, 64), 127, dtype=torch.int8)
    return all(bool((torch._int_mm(x, tall.T) == 64 * 127**2).all()) for x in (tall, tall[:1]))
