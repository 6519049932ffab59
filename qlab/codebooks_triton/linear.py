"""A linear layer on a weight in 4-bit codes: which kernel multiplies depends on how many tokens there are."""

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention_triton.runtime import INTERPRETED
from qlab.codebooks_triton.border import FourBitCodes, Weight, check_codes
from qlab.codebooks_triton.dequantize import dequantize_4bit
from qlab.codebooks_triton.products import few_tokens, one_token

MOST_TOKENS = 64  # from here on a product of dequantized values is limited by arithmetic, and cuBLAS does that best


def linear_4bit(x: Float[Tensor, "*batch width"], codes: FourBitCodes) -> Float[Tensor, "*batch rows"]:
    """Return x @ Wᵀ for the weight that `codes` stand for, in the type of `x`, summed in FP32.

    One token, or a few in 16 bits, are multiplied straight from the codes if blocks end where rows do; for more the
    weight is dequantized for as long as the product takes.
    Shapes:  the codes are those of a weight (rows, width), as in `torch.nn.Linear`.
    Errors:  ValueError if `codes` or `x` do not fit; ModuleNotFoundError without Triton.
    """
    rows, width = _matrix(x, codes, axis=1)
    tokens = x.reshape(-1, width).contiguous()
    whole_blocks = width and rows and width % codes.block_size == 0
    in_tensor_cores = x.dtype != torch.float32 and len(tokens) <= MOST_TOKENS
    if len(tokens) and whole_blocks and (len(tokens) == 1 or in_tensor_cores):
        given = tokens.float() if INTERPRETED else tokens
        product = one_token if len(tokens) == 1 else few_tokens
        y = product(given, Weight.of(codes), rows=rows).to(x.dtype)
    else:
        y = tokens @ dequantize_4bit(codes, dtype=x.dtype).mT
    return y.view(*x.shape[:-1], rows)


def linear_4bit_backward(grad: Float[Tensor, "*batch rows"], codes: FourBitCodes) -> Float[Tensor, "*batch width"]:
    """Return grad @ W, the gradient of `linear_4bit` to its `x`; the weight is dequantized for as long as that takes.

    Shapes:  the codes are those of a weight (rows, width), as in `torch.nn.Linear`.
    Errors:  ValueError if `codes` or `grad` do not fit; ModuleNotFoundError without Triton.
    """
    _matrix(grad, codes, axis=0)
    return grad @ dequantize_4bit(codes, dtype=grad.dtype)


def _matrix(x: Tensor, codes: FourBitCodes, *, axis: int) -> torch.Size:
    """Return the shape of the weight, once it fits `x`."""
    check_codes(codes, dtype=x.dtype)
    if len(codes.shape) != 2:
        raise ValueError(f"the codes must be those of a matrix, got shape {tuple(codes.shape)}")
    if x.dim() == 0 or x.shape[-1] != codes.shape[axis]:
        raise ValueError(f"x must have {codes.shape[axis]} values a row, got shape {tuple(x.shape)}")
    if x.device != codes.packed.device:
        raise ValueError(f"x must be where the codes are, on {codes.packed.device}, got {x.device}")
    return codes.shape
