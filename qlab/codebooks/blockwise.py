"""Block-wise codes: each block of a tensor divided by its largest magnitude, then coded with one codebook for all."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qlab.codebooks.nearest import piece_values, search_of
from qlab.packing import pack_codes, unpack_codes

SMALLEST_NORMAL = 2.0**-126
SUBNORMAL_LIFT = 2.0**24


@dataclass(frozen=True)
class BlockwiseCodes:
    """The codes of a tensor in flattened order, and what they mean: `codebook[code]` times the absmax of its block.

    Four bits are packed two codes a byte, the first in the high nibble; other widths by `qlab.packing.pack_codes`.
    Without a `block_size` there is no absmax, and the codebook is in the units of the tensor.
    Shapes:  `packed` is (bytes,), `absmax` (ceil(values / block_size),), `shape` that of the tensor.
    """

    packed: UInt8[Tensor, " bytes"]
    absmax: Float[Tensor, " blocks"] | None
    codebook: Float[Tensor, " levels"]
    block_size: int | None
    shape: torch.Size

    @property
    def bits(self) -> int:
        """The bits of a code: as few as number the levels."""
        return _code_bits(self.codebook)

    @property
    def bits_per_value(self) -> float:
        """Bits of a code and its share of the constants: of the absmaxes, or of a codebook made for this tensor."""
        constants = self.codebook if self.absmax is None else self.absmax
        return self.bits + 8 * constants.nbytes / self.shape.numel()

    @property
    def codes(self) -> UInt8[Tensor, "*shape"]:
        """The codes one a byte, in the shape of the tensor."""
        return _unpack(self.packed, self.bits, self.shape.numel()).view(self.shape)

    def dequantize(self, *, out: Float[Tensor, "*shape"] | None = None) -> Float[Tensor, "*shape"]:
        """Return the values that the codes stand for: in FP32, or in `out` and its type.

        To reuse `out` saves the memory of a large new tensor, and the time to get it.
        Errors:  ValueError if `out` has another shape or is not contiguous.
        """
        if out is not None and (out.shape != self.shape or not out.is_contiguous()):
            raise ValueError(f"out must be contiguous, of shape {tuple(self.shape)}, got {tuple(out.shape)}")
        values = new_values(self.shape, self.packed.device) if out is None else out
        flat, reader = values.view(-1), PieceReader(self)
        for start, end in pieces(flat.numel(), self.block_size, flat.device):
            reader.read(start, out=flat[start:end])
        return values


class PieceReader:
    """Turns pieces of codes into values, in buffers that it keeps: half the time would go into getting new ones."""

    def __init__(self, codes: BlockwiseCodes):
        self.codes, self.bits, self.size = codes, codes.bits, codes.block_size
        self.codes_per_look_up = 2 if self.bits == 4 else 1
        self.table = _pairs(codes.codebook) if self.bits == 4 else codes.codebook
        self.step = piece_step(codes.shape.numel(), self.size, codes.packed.device)
        look_ups = self.step // self.codes_per_look_up
        self.indices = torch.empty(look_ups, dtype=torch.int32, device=codes.packed.device)
        self.levels = torch.empty(look_ups, dtype=self.table.dtype, device=codes.packed.device)

    def read(self, start: int, *, out: Float[Tensor, " n"]) -> None:
        """Fill `out` with the values from `start` on, both as one of `pieces` gives them."""
        count = out.numel()
        look_ups = -(-count // self.codes_per_look_up)
        indices, levels = (
            (self.indices, self.levels) if count == self.step else (self.indices[:look_ups], self.levels[:look_ups])
        )
        stored = self.codes.packed[start * self.bits // 8 : (start * self.bits + -(-count // 8) * 8 * self.bits) // 8]
        indices.copy_(stored[:look_ups] if self.bits == 4 else _unpack(stored, self.bits, count))
        values = torch.index_select(self.table, 0, indices, out=levels).view(torch.float32)
        if self.codes.absmax is None or self.size is None:
            out.copy_(values[:count])
        else:
            absmax = self.codes.absmax[start // self.size : -(-(start + count) // self.size)]
            _multiply_blocks(values[:count], absmax, self.size, out=out)


def quantize_blockwise(
    x: Float[Tensor, "*shape"], codebook: Float[Tensor, " levels"], *, block_size: int | None
) -> BlockwiseCodes:
    """Divide each `block_size` consecutive values of `x` by their largest magnitude and find their nearest levels.

    The codebook is one for values from -1 to 1, unless `block_size` is None: then `x` itself is coded, with a codebook
    in its units. The division is a multiplication by 1 / absmax in FP32, as in bitsandbytes; a block of zeros keeps
    absmax 0. `x` is read in FP32, in flattened order; the last block may be shorter.
    Errors:  ValueError if `block_size` is below 1, `x` is empty or holds NaN or infinity (FP64 beyond FP32 counts as
             such), or `codebook` is not 1 to 256 finite numbers in ascending order.
    Source:  Dettmers et al. 2022, section 2.1, arXiv:2110.02861.
    """
    _require_blocks(x, block_size)
    flat = x.detach().reshape(-1)
    search = search_of(codebook, flat.device)
    packed, absmax = [], []
    for start, end in pieces(flat.numel(), block_size, flat.device):
        blocks = _blocks(flat[start:end].float(), block_size)
        largest = blocks.abs().amax(dim=1)
        absmax.append(largest)
        normalized = blocks if block_size is None else _normalized(blocks, largest)
        codes = search.find(normalized.view(-1))[: end - start]
        packed.append(_pack(codes, _code_bits(codebook)))
    constants = torch.cat(absmax)
    if not constants.isfinite().all():
        wrong = int((~flat.float().isfinite()).sum())
        raise ValueError(f"x must be finite in FP32, and holds {wrong} NaN or infinite values")
    kept = None if block_size is None else constants
    levels = codebook.detach().to(flat.device, torch.float32)
    return BlockwiseCodes(torch.cat(packed), kept, levels, block_size, x.shape)


def _require_blocks(x: Tensor, block_size: int | None) -> None:
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if not x.numel():
        raise ValueError(f"x must hold at least one value, got shape {tuple(x.shape)}")


def pieces(count: int, block_size: int | None, device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield the two ends of pieces of whole blocks and of eights of values: so codes of any width fill their bytes."""
    step = piece_step(count, block_size, device)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def piece_step(count: int, block_size: int | None, device: torch.device) -> int:
    """Return how many values the largest of `pieces` has."""
    least = math.lcm(8, block_size or 1)
    return min(least * max(1, piece_values(device) // least), 8 * -(-count // 8))


def _blocks(values: Tensor, block_size: int | None) -> Tensor:
    """Return `values` as rows of a block each, the last one filled up with zeros; as one row without a size."""
    width = min(block_size or values.numel(), values.numel())
    return torch.nn.functional.pad(values, (0, -values.numel() % width)).view(-1, width)


def _normalized(blocks: Tensor, absmax: Tensor) -> Tensor:
    """Return each block over its absmax; where 1 / absmax would overflow both are made larger before."""
    lift = torch.where(absmax < SMALLEST_NORMAL, SUBNORMAL_LIFT, 1.0)
    inverse = torch.where(absmax > 0, 1 / (absmax * lift), 0.0)
    return (blocks * lift[:, None]).mul_(inverse[:, None])


def new_values(shape: torch.Size, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of any values, on a CPU from numpy: a large one gets pages of 2 MiB there, not of 4 KiB."""
    if device.type == "cpu":
        held = numpy.empty(shape.numel() * dtype.itemsize, dtype=numpy.uint8)
        return torch.from_numpy(held).view(dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def _multiply_blocks(levels: Tensor, absmax: Tensor, block_size: int, *, out: Tensor) -> None:
    width = min(block_size, levels.numel())
    full, rest = divmod(levels.numel(), width)
    inside = levels.numel() - rest
    if rest:  # a shorter last block
        torch.mul(levels[inside:], absmax[full:], out=out[inside:])
        levels, absmax, out = levels[:inside], absmax[:full], out[:inside]
    torch.mul(levels.view(full, width), absmax[:, None], out=out.view(full, width))


def _code_bits(codebook: Tensor) -> int:
    return max(1, (codebook.numel() - 1).bit_length())


def _pack(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes
    if bits != 4:
        return pack_codes(codes, bits=bits)
    even = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
    return even[0::2] << 4 | even[1::2]


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    if bits == 8:
        return packed[:count]
    if bits != 4:
        return unpack_codes(packed, bits=bits, count=count)
    return torch.stack([packed >> 4, packed & 0xF], dim=1).view(-1)[:count]


def _pairs(codebook: Tensor) -> Tensor:
    """Return for each byte the levels of its two codes, side by side as one element of 64 bits."""
    codes = torch.arange(256, device=codebook.device)
    levels = torch.nn.functional.pad(codebook, (0, 16 - codebook.numel()))
    return torch.stack([levels[codes >> 4], levels[codes & 0xF]], dim=1).view(torch.float64).view(-1)
