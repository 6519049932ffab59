"""A moment of Adam kept in 8-bit codes: levels of a dynamic map, times the absmax of each block."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qlab.codebooks import BlockwiseCodes, dynamic_map, quantize_blockwise

BLOCK_SIZE = 256
SIGNED_MAP, UNSIGNED_MAP = dynamic_map(signed=True), dynamic_map(signed=False)


@dataclass(frozen=True)
class QuantizedMoment:
    """Codes of a byte a value and an FP32 absmax a block: signed for the mean of gradients, unsigned for squares.

    Shapes:  `codes` has the shape of the moment, `absmax` is (ceil(values / block_size),).
    """

    codes: UInt8[Tensor, "*shape"]
    absmax: Float[Tensor, " blocks"]
    signed: bool
    block_size: int = BLOCK_SIZE

    @classmethod
    def quantize(cls, x: Float[Tensor, "*shape"], *, signed: bool, block_size: int = BLOCK_SIZE) -> "QuantizedMoment":
        """Give each value the nearest level of the dynamic map for its block.

        Errors:  ValueError if `x` is empty or holds NaN or infinity, or, unsigned, a negative value; or if
                 `block_size` is below 1.
        Source:  Dettmers et al. 2022, section 2, arXiv:2110.02861.
        """
        if not signed and (x < 0).any():
            raise ValueError(f"an unsigned moment must not be negative, got {x.min().item():g}")
        coded = quantize_blockwise(x, map_for(signed=signed), block_size=block_size)
        return cls(coded.codes, coded.absmax, signed, block_size)

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """Return the values that the codes stand for, in FP32."""
        levels = map_for(signed=self.signed).to(self.codes.device)
        flat = self.codes.reshape(-1)
        return BlockwiseCodes(flat, self.absmax, levels, self.block_size, self.codes.shape).dequantize()

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the absmaxes."""
        return self.codes.nbytes + self.absmax.nbytes


def map_for(*, signed: bool) -> Float[Tensor, " 256"]:
    """Return the 8-bit dynamic map: the signed one for means of gradients, the unsigned one for means of squares."""
    return SIGNED_MAP if signed else UNSIGNED_MAP


def blocks_of(values: int, block_size: int) -> int:
    """Return how many blocks hold `values` values; the last one may be shorter."""
    return -(-values // block_size)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes that an optimizer keeps between steps: every storage of its state once, whoever views it.

    Numbers that are no tensors, such as a step count, are left out.
    """
    storages = {}
    waiting = list(optimizer.state.values())
    while waiting:
        kept = waiting.pop()
        if isinstance(kept, Tensor):
            storages[kept.untyped_storage()._cdata] = kept.untyped_storage().nbytes()
        elif isinstance(kept, dict):
            waiting.extend(kept.values())
        elif isinstance(kept, (list, tuple)):
            waiting.extend(kept)
    return sum(storages.values())
