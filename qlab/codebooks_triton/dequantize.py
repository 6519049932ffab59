"""The kernel that turns 4-bit codes into values, and what the other kernels share with it."""

# ruff: noqa: PLR0913, PLR0917 - what a kernel works on comes in as arguments

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from qlab.attention_triton.runtime import INTERPRETED, launching, tl, triton
from qlab.codebooks_triton.border import FourBitCodes, Weight, check_codes

# values a program, warps
CONFIGURATIONS = [(8192, 8), (4096, 4), (8192, 4), (16_384, 8), (2048, 4)]


@triton.jit
@no_type_check
def block_constants(absmax, scales, second_codebook, mean, blocks, inside, SECOND_SIZE: tl.constexpr):
    """Return the absmax of each block: as it is stored, or from its code, the second absmax and the mean."""
    if SECOND_SIZE == 0:
        found = tl.load(absmax + blocks, mask=inside, other=0.0)
    else:
        codes = tl.load(absmax + blocks, mask=inside, other=0)
        scale = tl.load(scales + blocks // SECOND_SIZE, mask=inside, other=0.0)
        found = tl.load(second_codebook + codes.to(tl.int32)) * scale + tl.load(mean)
    return found


@triton.jit
@no_type_check
def dequantize_kernel(
    packed, codebook, absmax, scales, second_codebook, mean, out, values, bytes, length_bucket,
    SIZE: tl.constexpr, SECOND_SIZE: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Write the values of some whole blocks."""
    BLOCKS: tl.constexpr = VALUES // SIZE if VALUES > SIZE else 1
    blocks = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = blocks * SIZE < values
    scale = block_constants(absmax, scales, second_codebook, mean, blocks, inside, SECOND_SIZE)
    places = blocks[:, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, :]
    A_STORE: tl.constexpr = 128 // out.dtype.element_ty.primitive_bitwidth  # values in 16 bytes
    places = tl.max_contiguous(places, (1, A_STORE // 2))  # as many codes a thread: its values go out as they are
    pairs = tl.load(packed + places, mask=places < bytes, other=0).to(tl.int32)
    high, low = tl.load(codebook + (pairs >> 4)), tl.load(codebook + (pairs & 15))
    levels = tl.join(high, low).reshape(BLOCKS, SIZE)
    places = blocks[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + places, (levels * scale[:, None]).to(out.dtype.element_ty), mask=places < values)


def tuned(kernel, names: tuple[str, ...], configurations: list[tuple[int, ...]], key: list[str]):
    """Return Triton's autotuner over tiles of the given names and warps, and stages where a third number follows.

    The interpreter has nothing to tune, and takes the first.
    """
    count = len(names)
    chosen = configurations[:1] if INTERPRETED else configurations
    options = ("num_warps", "num_stages")
    configs = [
        triton.Config(dict(zip(names, one[:count], strict=True)), **dict(zip(options, one[count:], strict=False)))
        for one in chosen
    ]
    return triton.autotune(configs=configs, key=key)(kernel)


def dequantize_4bit(codes: FourBitCodes, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
    """Return the values that the codes stand for, rounded once to `dtype`.

    Errors:  ValueError if the codes, their place or the type do not fit; ModuleNotFoundError without Triton.
    """
    check_codes(codes, dtype=dtype)
    weight, values = Weight.of(codes), codes.shape.numel()
    kept = torch.float32 if INTERPRETED else dtype  # its stores of BF16 truncate
    out = torch.empty(codes.shape, dtype=kept, device=codes.packed.device)
    with launching(out):
        tuned_dequantize[lambda tiles: (triton.cdiv(values, max(tiles["VALUES"], weight.block_size)),)](
            weight.packed,
            weight.codebook,
            *weight.constants,
            out,
            values,
            weight.packed.numel(),
            values.bit_length(),
            SIZE=weight.block_size,
            SECOND_SIZE=weight.second_size,
        )
    return out.to(dtype)


tuned_dequantize = tuned(dequantize_kernel, ("VALUES",), CONFIGURATIONS, ["SIZE", "SECOND_SIZE", "length_bucket"])
