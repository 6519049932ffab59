"""Double quantization: the absmax of each block is a number to store as well, and is coded in turn."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qlab.codebooks.blockwise import BlockwiseCodes, quantize_blockwise
from qlab.codebooks.maps import dynamic_map

ABSMAX_MAP = dynamic_map(signed=True)


@dataclass(frozen=True)
class DoublyQuantizedCodes:
    """Block-wise codes whose absmaxes are codes themselves: `absmax_codes` of how far each is from `absmax_mean`.

    Shapes:  `packed` is (bytes,), `absmax_codes` holds ceil(values / block_size) codes, `absmax_mean` is ().
    """

    packed: UInt8[Tensor, " bytes"]
    absmax_codes: BlockwiseCodes
    absmax_mean: Float[Tensor, ""]
    codebook: Float[Tensor, " levels"]
    block_size: int
    shape: torch.Size

    @property
    def absmax(self) -> Float[Tensor, " blocks"]:
        """The absmax of each block as its code stands for it, made anew at each call."""
        return self.absmax_codes.dequantize().add_(self.absmax_mean)

    @property
    def single(self) -> BlockwiseCodes:
        """The same codes with the absmaxes in FP32: four bytes a block, as long as it lives."""
        return BlockwiseCodes(self.packed, self.absmax, self.codebook, self.block_size, self.shape)

    @property
    def bits(self) -> int:
        """The bits of a code: as few as number the levels."""
        return max(1, (self.codebook.numel() - 1).bit_length())

    @property
    def stored_bytes(self) -> int:
        """Bytes of the codes, of the codes of the absmaxes, of their own absmaxes, and of the mean."""
        second = self.absmax_codes
        return sum(tensor.nbytes for tensor in (self.packed, second.packed, second.absmax, self.absmax_mean))

    @property
    def bits_per_value(self) -> float:
        """Stored bits over values: with NF4 and blocks of 64 and of 256, 4 + 8 / 64 + 32 / (64 · 256) = 4.127."""
        return 8 * self.stored_bytes / self.shape.numel()

    @property
    def codes(self) -> UInt8[Tensor, "*shape"]:
        """The codes one a byte, in the shape of the tensor."""
        return self.single.codes

    def dequantize(self, *, out: Float[Tensor, "*shape"] | None = None) -> Float[Tensor, "*shape"]:
        """Return the values that the codes stand for: in FP32, or in `out` and its type.

        Errors:  ValueError if `out` has another shape or is not contiguous.
        """
        return self.single.dequantize(out=out)


def double_quantize(codes: BlockwiseCodes, *, block_size: int = 256) -> DoublyQuantizedCodes:
    """Code the absmaxes of `codes` with 8 bits, `block_size` of them at a time, after taking their mean away.

    A largest magnitude is never negative: without its mean it uses both signs of the dynamic map.
    Errors:  ValueError if `codes` have no absmax, `block_size` is below 1, or the absmaxes sum to more than FP32 holds.
    Source:  Dettmers et al. 2023, section 3, arXiv:2305.14314; the mean and the map as in bitsandbytes.
    """
    if codes.absmax is None or codes.block_size is None:
        raise ValueError("codes must have one absmax a block, got block_size None: there is nothing to quantize again")
    mean = codes.absmax.mean()
    if not mean.isfinite():
        raise ValueError(f"the absmaxes must have a mean in FP32, got {mean}: divide the tensor by a power of two")
    second = quantize_blockwise(codes.absmax - mean, ABSMAX_MAP, block_size=block_size)
    return DoublyQuantizedCodes(codes.packed, second, mean, codes.codebook, codes.block_size, codes.shape)
