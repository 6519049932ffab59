"""The 2:4 pattern: of each four neighbors in a row two stay, so that the places of those two take four bits."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qlab.packing import pack_codes, unpack_codes

GROUP, KEPT = 4, 2
POSITION_BITS = 2


def two_four_mask(weight: Float[Tensor, "*rows width"]) -> Bool[Tensor, "*rows width"]:
    """Return True at the two largest magnitudes of each four neighbors in a row; of equal ones the first stay.

    Errors:  ValueError if the width is no multiple of 4, as the kernels need it, or a weight is NaN or infinite.
    Source:  Mishra et al. 2021, section 3, arXiv:2104.08378.
    """
    _refuse(weight)
    groups = weight.detach().abs().unflatten(-1, (-1, GROUP))
    largest = groups.argsort(dim=-1, descending=True, stable=True)[..., :KEPT]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, largest, True).flatten(-2)


@dataclass(frozen=True, eq=False)
class TwoFourCodes:
    """A 2:4 weight as it is stored: the values that stay, and two bits for the place of each in its four.

    Shapes:  `values` is (*rows, width / 2), `packed_positions` holds four places a byte.
    """

    values: Float[Tensor, "*rows half"]
    packed_positions: UInt8[Tensor, " bytes"]

    @property
    def nbytes(self) -> int:
        """Bytes of values and places together."""
        return self.values.nbytes + self.packed_positions.nbytes

    def dense(self) -> Float[Tensor, "*rows width"]:
        """Return the weight with its zeros."""
        count = self.values.numel()
        positions = unpack_codes(self.packed_positions, bits=POSITION_BITS, count=count).long()
        pairs = self.values.unflatten(-1, (-1, KEPT))
        groups = self.values.new_zeros(*pairs.shape[:-1], GROUP)
        return groups.scatter_(-1, positions.view(pairs.shape), pairs).flatten(-2)


def two_four_codes(weight: Float[Tensor, "*rows width"]) -> TwoFourCodes:
    """Prune `weight` to 2:4 and keep what stays, with its places: 9/16 of its bytes in BF16, 17/32 in FP32.

    A weight that has the pattern comes back bit for bit, but that the sign of a pruned zero is lost.
    Errors:  ValueError if the width is no multiple of 4, or a weight is NaN or infinite.
    """
    groups = two_four_mask(weight).unflatten(-1, (-1, GROUP))
    positions = groups.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :KEPT]
    values = weight.detach().unflatten(-1, (-1, GROUP)).gather(-1, positions)
    return TwoFourCodes(values.flatten(-2), pack_codes(positions.to(torch.uint8).flatten(), bits=POSITION_BITS))


def _refuse(weight: Tensor) -> None:
    width = weight.shape[-1] if weight.ndim else 0
    if not width or width % GROUP:
        raise ValueError(f"2:4 needs a width that is a multiple of 4, got {width}")
    if wrong := int((~weight.isfinite()).sum()):
        raise ValueError(f"weight must be finite, and holds {wrong} NaN or infinite values")
