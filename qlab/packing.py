"""Packing: codes of 2 to 8 bits without a bit between them."""

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


def pack_codes(codes: UInt8[Tensor, " n"], *, bits: int) -> UInt8[Tensor, " bytes"]:
    """Pack unsigned codes of `bits` bits, eight of them into `bits` bytes, the first in the lowest bits.

    Shapes:  `codes` is (n,); the result is (bits * ceil(n / 8),), filled up with zero codes.
    Errors:  ValueError if `bits` is not 1 to 8 or a code needs more bits.
    """
    count = packed_bytes(codes.numel(), bits=bits) // bits
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"codes of {bits} bits must be below {2**bits}, got {codes.max()}")
    padded = torch.zeros(8 * count, dtype=torch.uint8, device=codes.device)
    padded[: codes.numel()] = codes
    if bits == 8:
        return padded
    words = padded.view(torch.int64)
    for lane, low, shift in reversed(_lanes(bits)):
        upper = words & low << lane // 2
        words += (upper >> shift) - upper
    return padded.view(count, 8)[:, :bits].reshape(-1)


def unpack_codes(packed: UInt8[Tensor, " bytes"], *, bits: int, count: int) -> UInt8[Tensor, " n"]:
    """Return the first `count` codes that `pack_codes` packed.

    Errors:  ValueError if `count` does not fit the bytes.
    """
    if packed.numel() != packed_bytes(count, bits=bits):
        raise ValueError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits=bits)} bytes, got {packed.numel()}"
        )
    if bits == 8:
        return packed[:count].clone()
    words = torch.nn.functional.pad(packed.reshape(-1, bits), (0, 8 - bits)).view(torch.int64)
    for lane, low, shift in _lanes(bits):
        upper = words & low << lane // 2 - shift
        words += (upper << shift) - upper
    return words.view(torch.uint8).view(-1)[:count]


def _lanes(bits: int) -> list[tuple[int, int, int]]:
    """List how eight codes spread over a word: first the word, then its halves and quarters, part in the middle.

    Returns lane width, a mask of the bits that the lower half of the codes takes in each lane, and the upper's way up.
    """
    lanes = []
    for lane in (64, 32, 16):
        taken = lane // 16 * bits
        low = sum(2**taken - 1 << start for start in range(0, 64, lane))
        lanes.append((lane, low, lane // 2 - taken))
    return lanes


def packed_bytes(count: int, *, bits: int) -> int:
    """Return the bytes that `count` codes take: `bits` bytes for each eight begun.

    Errors:  ValueError if `bits` is not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")
    return bits * -(-count // 8)
