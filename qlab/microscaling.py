"""Microscaling: 4- to 8-bit elements in short blocks that share one small scale."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qlab.formats import E2M1, E4M3, FloatFormat, round_to_format

E8M0_BIAS = 127
E8M0_NAN_CODE = 255


def decode_e8m0(codes: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 2^(code - 127) for each code of the scale format E8M0; code 255 is NaN.

    Source:  OCP Microscaling Formats v1.0, section 5.4.1.
    """
    powers = torch.ldexp(torch.ones(256, dtype=torch.float64), torch.arange(256) - E8M0_BIAS).float()
    powers[E8M0_NAN_CODE] = torch.nan
    return powers.to(codes.device)[codes.long()]


def encode_e8m0(scales: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return the code of the largest power of two that is not above each scale.

    Errors:  ValueError if a scale is not a positive finite number of at least 2^-127.
    """
    if scales.numel() and not (scales.min() >= 2.0**-E8M0_BIAS and scales.isfinite().all()):
        raise ValueError(f"E8M0 scales must be finite and at least 2^-127, got {scales.min()} to {scales.max()}")
    return (torch.frexp(scales).exponent - 1 + E8M0_BIAS).to(torch.uint8)


def round_to_mx(x: Float[Tensor, " n"], element: FloatFormat = E2M1, *, block_size: int = 32) -> Float[Tensor, " n"]:
    """Round `x` to `element` in blocks that share a power-of-two scale: MXFP4 and its kin.

    Shapes:  `x` is (n,); a ragged last block is a shorter block.
    Units:   stored bits a value: element.bits + 8 / block_size, 4.25 for MXFP4.
    Errors:  ValueError if `block_size` is below 1 or `x` holds NaN or infinity.
    Source:  OCP Microscaling Formats v1.0, sections 5.2 and 6.3.
    """
    blocks, absmax = _blocks(x, block_size)
    smallest = 2.0 ** (element.max_exponent - E8M0_BIAS)  # keeps the scale of an all-zero block encodable
    ratio = absmax.clamp(min=smallest) * 2.0**-element.max_exponent
    scale = decode_e8m0(encode_e8m0(ratio))
    return (round_to_format(blocks / scale, element, saturate=True) * scale).reshape(-1)[: x.numel()]


def round_to_nvfp4(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Round `x` to E2M1 in blocks of 16 with an E4M3 scale each and one FP32 scale for the tensor.

    Shapes:  `x` is (n,); a ragged last block is a shorter block.
    Units:   stored bits a value: 4 + 8 / 16 = 4.5, and 32 for the tensor.
    Errors:  ValueError if `x` holds NaN or infinity.
    Source:  NVIDIA 2025, "Pretraining large language models with NVFP4", appendix C, arXiv:2509.25149.
    """
    blocks, absmax = _blocks(x, 16)
    tensor_scale = absmax.max() / (E2M1.max * E4M3.max) if x.numel() and absmax.max() > 0 else torch.ones(())
    scale = round_to_format(absmax / E2M1.max / tensor_scale, E4M3, saturate=True) * tensor_scale
    scale = torch.where(scale > 0, scale, 1.0)
    return (round_to_format(blocks / scale, E2M1, saturate=True) * scale).reshape(-1)[: x.numel()]


def _blocks(x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if not x.isfinite().all():
        raise ValueError(f"x must be finite, and holds {int((~x.isfinite()).sum())} NaN or infinite values")
    blocks = torch.nn.functional.pad(x.float(), (0, -x.numel() % block_size)).reshape(-1, block_size)
    return blocks, blocks.abs().amax(dim=1, keepdim=True)
