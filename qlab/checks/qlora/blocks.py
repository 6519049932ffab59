"""Check of `quantize_blocks` and `dequantize_blocks`: absmax by block, nearest levels, two codes a byte, and back."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qlab import codebooks
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.learner import LearnerFunction
from qlab.checks.qlora.blocks_drawn import Blocks, at_midpoints, code_suspects, drawn_blocks, with_zeros
from qlab.checks.qlora.nearest import admitted
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.codes import dtype_of, require_close, unpacked
from qlab.checks.report import Refused, check, part, require

QUANTIZE = "quantize_blocks(x, codebook, block_size)"
DEQUANTIZE = "dequantize_blocks(packed, absmax, codebook, block_size)"
ROUNDING = 2.0**-23  # one product in FP32, and a level that was read in FP32
ORDER = "The first code of a pair goes into the high nibble: `first << 4 | second`."


@check(TOPIC, "nf4-blockwise", codebooks.quantize_blockwise, codebooks.BlockwiseCodes, points=5)
def check_nf4_blockwise(quantize: LearnerFunction, dequantize: LearnerFunction, draw: torch.Generator) -> None:
    """Check `quantize_blocks` and `dequantize_blocks`, the way there and the way back."""
    with part("the absmax of every block, its largest value negative or not"):
        for blocks in (drawn_blocks(draw), drawn_blocks(draw)):
            _require_absmax(blocks, _quantized(quantize, blocks)[1])
    with part("each value's nearest level, two codes a byte, the first in the high nibble"):
        for blocks in (drawn_blocks(draw), at_midpoints(draw)):
            _require_codes(blocks, _quantized(quantize, blocks)[0])
    with part("a block of zeros, and a last block that is shorter"):
        for blocks in (with_zeros(draw), drawn_blocks(draw, ragged=True)):
            packed, absmax = _quantized(quantize, blocks)
            _require_absmax(blocks, absmax)
            _require_codes(blocks, packed)
    with part("back again: each code's level times the absmax of its block"):
        _require_values(dequantize, drawn_blocks(draw), draw)
    with part("back again with a last block that is shorter"):
        _require_values(dequantize, drawn_blocks(draw, ragged=True), draw)


def _quantized(quantize: LearnerFunction, blocks: Blocks) -> tuple[Tensor, Tensor]:
    result = quantize(blocks.x, blocks.codebook, blocks.size)
    packed, absmax = unpacked(result, ("packed", "absmax"), call=QUANTIZE)
    return _packed(packed, blocks), _constants(absmax, blocks)


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else getattr(value, "size", None) or len(value)


def _packed(packed: Any, blocks: Blocks) -> Tensor:
    count = len(blocks.x)
    require(
        packed is None or _numel(packed) != count,
        f"`{QUANTIZE}[0]` holds {count} numbers for {count} values",
        misconception="not-packed",
        thought=f"A code has 4 bits, and a byte has room for two. {ORDER}",
    )
    kind = dtype_of(packed)
    require(
        "int" not in kind or kind.endswith("int8") or kind.startswith("Python"),
        f"`{QUANTIZE}[0]` is {kind}, expected uint8",
        misconception="wide-codes",
        thought="Two codes take one byte: `.to(torch.uint8)`.",
    )
    got = as_tensor(packed, (count // 2,), call=f"{QUANTIZE}[0]").double()
    strange = got[(got != got.round()) | (got < -128) | (got > 255)].tolist()
    require(
        not strange,
        f"`{QUANTIZE}[0]` holds {strange[:1]}, which is no byte",
        misconception="not-a-byte",
        thought="A byte is a whole number from 0 to 255.",
    )
    return got.long() % 256


def _constants(absmax: Any, blocks: Blocks) -> Tensor:
    count = len(blocks.absmax)
    one = absmax is not None and count > 1 and isinstance(absmax, Tensor) and absmax.numel() == 1
    require(
        not one,
        f"`{QUANTIZE}[1]` is one number for {count} blocks",
        misconception="one-absmax-for-all",
        thought=BY_BLOCK,
    )
    return as_tensor(absmax, (count,), call=f"{QUANTIZE}[1]").double()


BY_BLOCK = "Each block has its own: view the values as rows of a block each, and take `abs().amax(1)`."


def _require_absmax(blocks: Blocks, got: Tensor) -> None:
    want, rows = blocks.absmax, blocks.rows
    lost = ~got.isfinite()
    require(
        not lost.any(),
        f"{int(lost.sum())} absmaxes are not finite",
        misconception="not-finite",
        thought="The largest magnitude of a block is one of its values.",
    )
    of_zeros = got[(want == 0) & (got != 0)].tolist()
    require(
        not of_zeros,
        f"the absmax of a block of zeros is {of_zeros[:1]}, expected 0",
        misconception="changes-zero-blocks",
        thought="Keep 0: times any level it gives the zeros back. Avoid 0 / 0 by dividing by 1 there.",
    )
    signed = rows.gather(1, rows.abs().argmax(1, keepdim=True)).squeeze(1)
    suspects = [
        Suspect("one-absmax-for-all", BY_BLOCK, want.max().expand_as(want)),
        Suspect("forgets-the-sign", "The largest magnitude may be negative: `abs()` first.", rows.amax(1)),
        Suspect("forgets-the-sign", "A magnitude has no sign: `abs()`.", signed),
        Suspect("step-for-absmax", "With a codebook from -1 to 1 the constant is the absmax itself.", want / 7),
        Suspect("inverse-for-absmax", "Return the absmax, not what you multiplied by.", 1 / want),
    ]
    told = f"{len(blocks.x)} values in blocks of {blocks.size}: block"
    require_close(got, want, given=lambda i: f"{told} {i}", suspects=suspects)


def _pair(codes: Tensor) -> tuple[Tensor, Tensor]:
    return codes[0::2], codes[1::2]


def _require_codes(blocks: Blocks, packed: Tensor) -> None:
    codes = torch.stack([packed >> 4, packed & 0xF], dim=1).flatten()
    values = blocks.divided(blocks.absmax)
    want = admitted(codes, values, blocks.codebook)
    if torch.equal(codes, want):
        return
    for misconception, thought, slip in _packings(packed):
        right = torch.equal(slip, admitted(slip, values, blocks.codebook))
        if right:
            raise Refused(
                f"{blocks.told(0)}: your bytes hold the right codes in other places",
                misconception=misconception,
                thought=thought,
            )
    require_values(codes, want, given=blocks.told, suspects=lambda: code_suspects(blocks, codes))


def _packings(packed: Tensor) -> Iterator[Slip]:
    high, low = packed >> 4, packed & 0xF
    yield "nibbles-swapped", ORDER, torch.stack([low, high], dim=1).flatten()
    halves = f"Neighbors share a byte, `codes[0::2]` and `codes[1::2]`. {ORDER}"
    yield "packs-halves", halves, torch.cat([high, low])
    yield "packs-halves", halves, torch.cat([low, high])


def _require_values(dequantize: LearnerFunction, blocks: Blocks, draw: torch.Generator) -> None:
    codes = torch.randint(16, blocks.x.shape, generator=draw)
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)
    absmax = blocks.absmax.float()
    absmax[1] = 0.0
    result = dequantize(packed, absmax, blocks.codebook, blocks.size)
    got = as_tensor(result, blocks.x.shape, call=DEQUANTIZE).double()

    def by_block(places: Tensor) -> Tensor:
        return absmax.double()[places % len(absmax)]

    places = torch.arange(len(codes))
    levels, right = blocks.codebook.double(), by_block(places // blocks.size)
    want = levels[codes] * right

    def slips() -> Iterator[Slip]:
        swapped = torch.stack([codes[1::2], codes[0::2]], dim=1).flatten()
        yield "nibbles-swapped", ORDER, levels[swapped] * right
        halves = f"Neighbors share a byte: interleave high and low nibbles with `torch.stack(…, dim=1)`. {ORDER}"
        yield "packs-halves", halves, levels[torch.cat(_pair(codes))] * right
        yield "packs-halves", halves, levels[torch.cat(_pair(codes)[::-1])] * right
        yield "forgets-the-absmax", "A level is worth itself times the absmax of its block.", levels[codes]
        yield "one-absmax-for-all", "Each block has an absmax of its own.", levels[codes] * absmax.double().max()
        spread = "`repeat_interleave` gives every value its block's absmax; `repeat` begins anew after each block."
        yield "absmax-of-another-block", spread, levels[codes] * by_block(places)
        bytewise = "A block holds `block_size` values, and half as many bytes."
        for size in (2 * blocks.size, max(1, blocks.size // 2)):
            yield "counts-bytes-for-values", bytewise, levels[codes] * by_block(places // size)
        yield "codes-for-levels", "Look each code up in the codebook.", codes * right
        yield "even-steps", "Look each code up in the codebook.", (codes / 7.5 - 1) * right
        yield "own-codebook", "Use the codebook you are given.", codebooks.NF4.double()[codes] * right

    def told(i: int) -> str:
        return f"{len(codes)} codes in blocks of {blocks.size}: code {codes[i]} of block {i // blocks.size}"

    require_near(got, want, ROUNDING * want.abs(), given=told, slips=slips)
