"""Answers to `pack_int4` and `unpack_int4`."""

import numpy as np
import torch

from qlab import packing
from tests.answers.bank import Bank

BANK = Bank("pack-int4")


def padded(codes):
    return torch.cat([codes, codes.new_zeros(len(codes) % 2)])


def pack(codes):
    pairs = padded(codes).reshape(-1, 2).int() & 0xF
    return (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)


def unpack(packed, count):
    high, low = packed.int() >> 4, packed.int() & 0xF
    nibbles = torch.stack([high, low], dim=1).flatten()[:count]
    return torch.where(nibbles > 7, nibbles - 16, nibbles).to(torch.int8)


BANK.add("arithmetic", pack, unpack)
BANK.add("by_qlab", packing.pack_int4, lambda packed, count: packing.unpack_int4(packed, count=count))


def loop_pack(codes):
    values = codes.tolist()
    values += [0] * (len(values) % 2)
    return torch.tensor([(a % 16) << 4 | b % 16 for a, b in zip(values[::2], values[1::2])], dtype=torch.uint8)  # noqa: B905


def loop_unpack(packed, count):
    codes = []
    for byte in packed.tolist():
        for nibble in (byte // 16, byte % 16):
            codes.append(nibble - 16 if nibble & 8 else nibble)
    return codes[:count]


BANK.add("loops, and a list comes back", loop_pack, loop_unpack)


def numpy_pack(codes):
    a = codes.numpy().view(np.uint8) & 15
    a = np.append(a, np.zeros(len(a) % 2, np.uint8))
    return a[::2] << 4 | a[1::2]


def shift_unpack(packed, count):
    signed = packed.view(torch.int8)
    return torch.stack([signed >> 4, (signed << 4) >> 4], dim=-1).view(-1)[:count]


BANK.add("numpy, and sign extension by shifts", numpy_pack, shift_unpack)
BANK.add("signed bytes", lambda codes: pack(codes).view(torch.int8), unpack)

BANK.add(
    "swapped both ways",
    lambda codes: pack(padded(codes).reshape(-1, 2).flip(1).flatten()),
    lambda packed, count: unpack(packed, 2 * len(packed)).reshape(-1, 2).flip(1).flatten()[:count],
    misconception="swaps-nibbles",
)
BANK.add(
    "swapped when unpacking",
    pack,
    lambda packed, count: unpack(packed, 2 * len(packed)).reshape(-1, 2).flip(1).flatten()[:count],
    misconception="swaps-nibbles",
)
BANK.add("unsigned when unpacking", pack, lambda p, count: unpack(p, count) & 0xF, misconception="loses-sign")
BANK.add(
    "low nibble unsigned",
    pack,
    lambda packed, count: torch.stack([packed.view(torch.int8) >> 4, packed.view(torch.int8) & 0xF], 1).flatten()[
        :count
    ],
    misconception="loses-sign",
)
BANK.add("absolute values", lambda codes: pack(codes.abs()), unpack, misconception="loses-sign")


def leaking_pack(codes):
    pairs = padded(codes).reshape(-1, 2)
    return (pairs[:, 0] << 4 | pairs[:, 1]).view(torch.uint8)


BANK.add("sign leaks", leaking_pack, unpack, misconception="sign-leaks-into-neighbor")
BANK.add(
    "not packed", lambda codes: codes.view(torch.uint8), lambda p, n: p.view(torch.int8), misconception="not-packed"
)
BANK.add("packed into int64", lambda codes: pack(codes).long(), unpack, misconception="not-packed")
BANK.add("a list for a tensor", lambda codes: pack(codes).tolist(), unpack, misconception="not-packed")
BANK.add(
    "offset codes",
    lambda codes: pack(codes + 8),
    lambda packed, count: (unpack(packed, count) & 0xF) - 8,
    misconception="offset-codes",
)
BANK.add(
    "halves",
    lambda codes: pack(
        torch.stack([padded(codes)[: (len(codes) + 1) // 2], padded(codes)[(len(codes) + 1) // 2 :]], 1).flatten()
    ),
    lambda packed, count: unpack(packed, 2 * len(packed)).reshape(-1, 2).t().flatten()[:count],
    misconception="halves-not-pairs",
)
BANK.add("ignores count", pack, lambda packed, count: unpack(packed, 2 * len(packed)), misconception="wrong-shape")
BANK.add("drops the odd one", lambda codes: pack(codes[: len(codes) // 2 * 2]), unpack, misconception="wrong-shape")
BANK.add(
    "empty nibble in front",
    lambda codes: pack(torch.cat([codes.new_zeros(len(codes) % 2), codes])),
    unpack,
    misconception="wrong-value",
)
BANK.add(
    "subtracts in uint8",
    pack,
    lambda packed, n: torch.stack([packed >> 4, packed & 15], 1).flatten()[:n] - (unpack(packed, n) < 0).byte() * 16,
    misconception="wraps-in-uint8",
)
BANK.add(
    "adds what it should mask",
    lambda codes: (16 * padded(codes)[::2].int() + padded(codes)[1::2]).to(torch.uint8),
    unpack,
    misconception="sign-leaks-into-neighbor",
)


class Remembers:
    """Unpacks whatever was packed last."""

    def pack(self, codes):
        self.codes = codes
        return pack(codes)

    def unpack(self, packed, count):
        return self.codes[:count]


MEMORY = Remembers()
BANK.add("remembers", MEMORY.pack, MEMORY.unpack, misconception="wrong-value")
