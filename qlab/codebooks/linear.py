"""Products with a weight that is there in codes only: a tile of rows is dequantized, multiplied, and written over."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.codebooks.blockwise import BlockwiseCodes, PieceReader, pieces
from qlab.codebooks.double_quantized import DoublyQuantizedCodes

FEW_TOKENS = 4
CPU_TILE = 2**17  # values: in FP32 a tile stays in a core's cache
CPU_TILE_OF_MANY_TOKENS = 2**18  # a product of many tokens wants more rows at once
CPU_SUMMED_TILE = 2**20  # and where products are summed, there should be few
GPU_TILE = 2**24


def codes_linear(
    x: Float[Tensor, "*batch width"], codes: BlockwiseCodes | DoublyQuantizedCodes
) -> Float[Tensor, "*batch rows"]:
    """Return x @ Wᵀ for the weight that `codes` stand for, in the type of `x`; at no time is all of it dequantized.

    It is computed in the type of `x`, except that a CPU multiplies FP16, and BF16 of a few tokens, in FP32.
    Shapes:  the codes are those of a weight (rows, width), as in `torch.nn.Linear`.
    Errors:  ValueError if `codes` are not of a matrix, or `x` is not floating, not on their device or not as wide.
    """
    weight = _weight(x, codes, axis=1)
    tokens = _tokens(x, weight.shape[1])
    y = tokens.new_empty(len(tokens), weight.shape[0])
    for first, tile in _row_tiles(weight, tokens, CPU_TILE_OF_MANY_TOKENS):
        if len(tokens) == 1:
            torch.mv(tile, tokens[0], out=y[0, first : first + len(tile)])
        else:
            y[:, first : first + len(tile)] = tokens @ tile.mT
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def codes_linear_backward(
    grad: Float[Tensor, "*batch rows"], codes: BlockwiseCodes | DoublyQuantizedCodes
) -> Float[Tensor, "*batch width"]:
    """Return grad @ W, the gradient of `codes_linear` to its `x`, in the type of `grad`, as sparing of memory.

    Tiles of rows are summed in FP32, or in FP64 for that.
    Shapes:  the codes are those of a weight (rows, width), as in `torch.nn.Linear`.
    Errors:  ValueError if `codes` are not of a matrix, or `grad` is not floating, not on their device or not as wide.
    """
    weight = _weight(grad, codes, axis=0)
    tokens = _tokens(grad, weight.shape[0])
    wide = torch.promote_types(tokens.dtype, torch.float32)
    total = torch.zeros(len(tokens), weight.shape[1], dtype=wide, device=grad.device)
    for first, tile in _row_tiles(weight, tokens, CPU_SUMMED_TILE):
        grads = tokens[:, first : first + len(tile)]
        if wide == tokens.dtype:
            total.addmm_(grads, tile)
        else:
            total += grads @ tile
    return total.to(grad.dtype).view(*grad.shape[:-1], weight.shape[1])


def _weight(x: Tensor, codes: BlockwiseCodes | DoublyQuantizedCodes, *, axis: int) -> BlockwiseCodes:
    """Return the codes of the weight, their absmaxes in FP32, once they fit `x`."""
    if len(codes.shape) != 2:
        raise ValueError(f"the codes must be those of a matrix, got shape {tuple(codes.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != codes.shape[axis]:
        raise ValueError(f"x must have {codes.shape[axis]} values a row, got shape {tuple(x.shape)}")
    if x.device != codes.packed.device:
        raise ValueError(f"x must be where the codes are, on {codes.packed.device}, got {x.device}")
    return codes.single if isinstance(codes, DoublyQuantizedCodes) else codes


def _tokens(x: Tensor, width: int) -> Tensor:
    """Return the rows of `x`, in the type that their products are computed in."""
    tokens = x.reshape(-1, width)
    few = x.dtype == torch.bfloat16 and len(tokens) <= FEW_TOKENS  # a memory-bound product: to round twice is slower
    return tokens.float() if x.device.type == "cpu" and (few or x.dtype == torch.float16) else tokens


def _row_tiles(weight: BlockwiseCodes, tokens: Tensor, cpu_tile: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row of each tile and its values in the type of `tokens`, each time in the same memory."""
    rows, width = weight.shape
    if not weight.shape.numel():
        return
    unit = math.lcm(8, weight.block_size or 1)
    step = min(rows, max(1, _tile_values(tokens, cpu_tile) // width))
    held = torch.empty(step * width + 2 * unit, dtype=tokens.dtype, device=tokens.device)
    reader = PieceReader(weight)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        start, stop = first * width // unit * unit, last * width
        for begin, end in pieces(stop - start, weight.block_size, tokens.device):
            reader.read(start + begin, out=held[begin:end])
        inside = first * width - start
        yield first, held[inside : inside + (last - first) * width].view(last - first, width)


def _tile_values(tokens: Tensor, cpu_tile: int) -> int:
    if tokens.device.type != "cpu":
        return GPU_TILE
    return CPU_TILE if len(tokens) <= FEW_TOKENS else cpu_tile
