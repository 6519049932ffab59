"""Checks of storage: 4-bit codes in bytes, and numbers that really take 16 bits."""

import math

import torch
from torch import Tensor

from qlab import packing
from qlab.checks.data_types.decoding import TOPIC
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part, require

BF16_UNIT_ROUNDOFF = 2.0**-8
FP16_MAX = 65_504.0
WHICH_RANGE = (
    f"FP16 ends at {FP16_MAX:,.0f} and at 6e-8, and clamping to that changes values: which 16-bit type has more range?"
)
KEEP_THE_VALUES = "Keep the values: a 16-bit float holds them to two or three digits, an integer type does not."


def store_in_16_bits(x: Tensor) -> Tensor:
    """Return `x` in 2 bytes a value: the dtype changes, which no rounding of a float array does."""
    return x.to(torch.bfloat16)


@check(TOPIC, "pack-int4", packing.pack_int4, packing.unpack_int4, points=5)
def check_pack_int4(pack_int4: LearnerFunction, unpack_int4: LearnerFunction, draw: torch.Generator) -> None:
    """Check `pack_int4(codes)` and `unpack_int4(packed, count)`, apart and together."""
    pairs = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8))
    codes = pairs[torch.randperm(len(pairs), generator=draw)].reshape(-1).to(torch.int8)
    half = _packed(codes)
    with part("pack: half a byte a code"):
        _require_bytes(pack_int4(codes), codes)
    with part("pack: the first code of a pair in the high nibble, negative codes too"):
        got = as_tensor(pack_int4(codes), (len(half),), call="pack_int4(codes)").long() & 0xFF
        require_values(
            got,
            half,
            given=lambda i: f"codes={codes[2 * i : 2 * i + 2].tolist()}",
            suspects=lambda: _pack_suspects(codes),
        )
    with part("unpack: every byte gives back its two signed codes"):
        others = codes.flip(0)  # not what was packed last
        packed = _packed(others).to(torch.uint8)
        got = as_tensor(unpack_int4(packed, len(codes)), (len(codes),), call=f"unpack_int4(packed, {len(codes)})")
        require_values(
            got,
            others,
            given=lambda i: f"byte {int(packed[i // 2]):#04x}, {('high', 'low')[i % 2]} nibble",
            suspects=lambda: _unpack_suspects(others),
        )
    odd_lengths = [2 * int(torch.randint(2, 6, (), generator=draw)) + 1, 1]
    with part("pack: an odd number of codes takes one more byte, with an empty low nibble"):
        for count in odd_lengths:
            odd, want = codes[:count], _packed(codes[:count])
            got = as_tensor(pack_int4(odd), (len(want),), call=f"pack_int4({odd.tolist()})").long() & 0xFF
            require_values(
                got,
                want,
                given=lambda i, odd=odd: f"codes={odd.tolist()}, byte {i}",
                suspects=lambda odd=odd: _pack_suspects(torch.cat([odd, odd.new_zeros(1)])),
            )
    with part("unpack: an odd count leaves the empty nibble out"):
        for count in odd_lengths:
            want, packed = codes[-count:], _packed(codes[-count:]).to(torch.uint8)
            got = as_tensor(unpack_int4(packed, count), (count,), call=f"unpack_int4({packed.tolist()}, {count})")
            require_values(
                got,
                want,
                given=lambda i, packed=packed, n=count: f"packed={packed.tolist()}, count={n}, code {i}",
                suspects=lambda want=want: _unpack_suspects(want),
            )


@check(TOPIC, "store-in-16-bits", store_in_16_bits, points=3)
def check_store_in_16_bits(store: LearnerFunction, draw: torch.Generator) -> None:
    """Check `store_in_16_bits(x)`: bytes, range, and precision."""
    x = torch.randn(1000, generator=draw)
    wide = torch.cat([x * 10.0 ** torch.randint(-30, 30, (1000,), generator=draw), torch.tensor([70_000.0, 1e-12])])
    with part("half of the bytes"):
        got = store(x)
        as_tensor(got, (1000,), call="store_in_16_bits(x)")
        taken = getattr(got, "nbytes", None)
        require(
            taken == x.nbytes // 2,
            f"given {x.nbytes} bytes, got {_bytes_told(got)}, expected {x.nbytes // 2}",
            misconception="rounds-without-storing" if taken == x.nbytes else "not-16-bits",
            thought="Rounding changes values, not their type: a value takes two bytes only in a type of 16 bits.",
        )
    with part("no value becomes infinite or zero that FP32 could hold, from 10⁻³⁰ to 10³⁰"):
        got = as_tensor(store(wide), tuple(wide.shape), call="store_in_16_bits(x)").double()
        lost = ~got.isfinite() | (got == 0)
        first = int(lost.nonzero()[0]) if lost.any() else 0
        integers = bool((got == got.round()).all())
        require(
            not lost.any(),
            f"given {wide[first]:.6g}, got {got[first]:.6g} (wrong on {int(lost.sum())} of {len(wide)} values)",
            misconception="casts-to-integers" if integers else "fp16-range",
            thought=KEEP_THE_VALUES if integers else WHICH_RANGE,
        )
    with part("every value within 2⁻⁸ of itself, over the whole range"):
        got = as_tensor(store(wide), tuple(wide.shape), call="store_in_16_bits(x)").double()
        error = (got - wide).abs() / wide.abs()
        worst = int(error.nan_to_num(math.inf).argmax())
        clamped = got.abs().max() <= FP16_MAX
        require(
            error[worst] <= BF16_UNIT_ROUNDOFF,
            f"given {wide[worst]:.6g}, got {got[worst]:.6g}, a relative error of {error[worst]:.3g},"
            f" expected at most {BF16_UNIT_ROUNDOFF:.3g}",
            misconception="fp16-range" if clamped else "loses-precision",
            thought=WHICH_RANGE if clamped else KEEP_THE_VALUES,
        )


def _packed(codes: Tensor) -> Tensor:
    nibbles = [code & 0xF for code in codes.tolist()] + [0] * (len(codes) % 2)
    return torch.tensor([16 * high + low for high, low in zip(nibbles[::2], nibbles[1::2], strict=True)])


def _bytes_told(value: object) -> str:
    taken = getattr(value, "nbytes", None)
    return f"no tensor but a {type(value).__name__}" if taken is None else f"{taken} bytes of {value.dtype}"


def _require_bytes(got: object, codes: Tensor) -> None:
    as_tensor(got, tuple(got.shape) if isinstance(got, Tensor) else (len(codes) // 2,), call="pack_int4(codes)")
    require(
        getattr(got, "nbytes", None) == len(codes) // 2,
        f"given {len(codes)} codes, got {_bytes_told(got)}, expected {len(codes) // 2}",
        misconception="not-packed",
        thought="Two codes share one byte: the result is uint8 with half as many elements.",
    )


def _pack_suspects(codes: Tensor) -> list[Suspect]:
    high, low = codes[::2].long(), codes[1::2].long()
    halves = codes.long().reshape(2, -1) & 0xF
    return [
        Suspect(
            "swaps-nibbles",
            "The first code of each pair goes into the high nibble, the second into the low one.",
            (low & 0xF) << 4 | high & 0xF,
        ),
        Suspect(
            "sign-leaks-into-neighbor",
            "A negative code has ones in its upper bits: keep its lower four before you join the two.",
            (high << 4 | low) & 0xFF,
        ),
        Suspect(
            "sign-leaks-into-neighbor",
            "A negative low code borrows from the high one: keep its lower four bits before you add the two.",
            (16 * high + low) & 0xFF,
        ),
        Suspect(
            "loses-sign",
            "Negative codes must survive: −1 is stored as 1111, not as 1 or as 0.",
            high.abs() % 16 << 4 | low.abs() % 16,
        ),
        Suspect(
            "offset-codes",
            "Adding 8 is another code: here the nibble is the lower half of the two's complement.",
            (high + 8) << 4 | (low + 8),
        ),
        Suspect(
            "halves-not-pairs",
            "Neighbors share a byte: codes 0 and 1, then 2 and 3.",
            halves[0] << 4 | halves[1],
        ),
    ]


def _unpack_suspects(codes: Tensor) -> list[Suspect]:
    signed = codes.long()
    unsigned, high = signed & 0xF, torch.arange(len(signed)) % 2 == 0
    pairs = torch.nn.functional.pad(signed, (0, len(signed) % 2)).reshape(-1, 2)
    swapped = pairs.flip(1).reshape(-1)[: len(signed)]
    lost = "A nibble of 8 to 15 stands for −8 to −1: bring its sign bit back, in both nibbles."
    order = "The first code of each pair comes from the high nibble."
    return [
        Suspect("loses-sign", lost, unsigned),
        Suspect("loses-sign", lost, torch.where(high, unsigned, signed)),
        Suspect("loses-sign", lost, torch.where(high, signed, unsigned)),
        Suspect("swaps-nibbles", order, swapped),
        Suspect("swaps-nibbles", order, swapped & 0xF),
        Suspect("offset-codes", "Subtracting 8 undoes another code: 8 to 15 stand for −8 to −1.", unsigned - 8),
        Suspect(
            "halves-not-pairs",
            "Both codes of one byte stand next to each other in the result.",
            torch.cat([signed[::2], signed[1::2]]),
        ),
        Suspect(
            "wraps-in-uint8",
            "uint8 has no negative numbers, so 10 − 16 came out as 250: move to a signed type first.",
            signed & 0xFF,
        ),
    ]
