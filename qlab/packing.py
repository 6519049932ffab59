"""Packing: two 4-bit codes in the byte that holds them."""

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor


def pack_int4(codes: Int8[Tensor, " n"]) -> UInt8[Tensor, " bytes"]:
    """Pack signed 4-bit codes two to a byte, the first of each pair in the high nibble.

    Shapes:  `codes` is (n,); the result is (ceil(n / 2),); a last odd code gets a low nibble of zero.
    Errors:  ValueError if a code is outside -8 to 7.
    """
    if codes.numel() and not (codes.min() >= -8 and codes.max() <= 7):
        raise ValueError(f"int4 codes must be -8 to 7, got {codes.min()} to {codes.max()}")
    nibbles = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(torch.uint8) & 0xF
    return nibbles[0::2] << 4 | nibbles[1::2]


def unpack_int4(packed: UInt8[Tensor, " bytes"], *, count: int) -> Int8[Tensor, " n"]:
    """Return the first `count` signed codes that `pack_int4` packed.

    Shapes:  `packed` is (ceil(count / 2),); the result is (count,).
    Errors:  ValueError if `count` does not fit the bytes.
    """
    if (count + 1) // 2 != packed.numel():
        raise ValueError(f"count must be {2 * packed.numel() - 1} or {2 * packed.numel()}, got {count}")
    nibbles = torch.stack([packed >> 4, packed & 0xF], dim=1).reshape(-1)[:count]
    return ((nibbles ^ 8).to(torch.int8)) - 8  # moves 8..15, the codes with the sign bit, to -8..-1
