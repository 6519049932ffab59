"""What the kernels accept, and the pointers that they read a weight through."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from qlab.attention_triton.runtime import HOW_TO_GET, INSTALLED, INTERPRETED

BLOCK_SIZES = tuple(2**power for power in range(4, 13))  # 16 to 4 096: a tensor core takes 16 values at least
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@runtime_checkable
class FourBitCodes(Protocol):
    """The codes of a tensor, two a byte, the first in the high nibble: `BlockwiseCodes` or `DoublyQuantizedCodes`.

    The latter have their absmaxes in `absmax_codes` of 8 bits, and what was taken off those in `absmax_mean`.
    """

    packed: Tensor
    codebook: Tensor
    block_size: int | None
    shape: torch.Size

    @property
    def bits(self) -> int: ...


@dataclass(frozen=True)
class Weight:
    """What a kernel reads: a weight's constants as they are stored, and sizes that it is compiled for.

    `constants` are the absmaxes, or their codes, and then of those the absmaxes, the codebook and the mean; where there
    are none the first stands in for them, and `second_size`, the values in a block of absmaxes, is 0.
    """

    packed: Tensor
    codebook: Tensor
    constants: tuple[Tensor, Tensor, Tensor, Tensor]
    block_size: int
    second_size: int

    @classmethod
    def of(cls, codes: FourBitCodes) -> "Weight":
        """Collect the tensors, each contiguous."""
        second: Any = getattr(codes, "absmax_codes", None)
        if second is None:
            absmax = codes.absmax.contiguous()  # type: ignore[attr-defined]
            constants, second_size = (absmax,) * 4, 0
        else:
            stored = second.packed, second.absmax, second.codebook, codes.absmax_mean  # type: ignore[attr-defined]
            constants, second_size = tuple(x.contiguous() for x in stored), second.block_size
        return cls(codes.packed.contiguous(), codes.codebook.contiguous(), constants, codes.block_size, second_size)


def accepts(codes: FourBitCodes, *, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Tell whether the kernels take these codes, where they are, and this type of values."""
    return _refusal(codes, dtype) is None


def check_codes(codes: FourBitCodes, *, dtype: torch.dtype) -> None:
    """Refuse what the kernels cannot run on.

    Errors:  ModuleNotFoundError without Triton; ValueError if the codes, their place or the type do not fit.
    """
    if not INSTALLED:
        raise ModuleNotFoundError(HOW_TO_GET)
    if sentence := _refusal(codes, dtype):
        raise ValueError(sentence)


def _refusal(codes: FourBitCodes, dtype: torch.dtype) -> str | None:
    """Say what does not fit, or nothing."""
    second: Any = getattr(codes, "absmax_codes", None)
    refusals = {
        HOW_TO_GET: not INSTALLED,
        f"codes must have 4 bits, got {codes.bits}": codes.bits != 4,
        f"block_size must be a power of two from 16 to 4096, got {codes.block_size}": (
            codes.block_size not in BLOCK_SIZES
        ),
        f"values must be float32, bfloat16 or float16, got {str(dtype).removeprefix('torch.')}": dtype not in DTYPES,
        "absmaxes must be FP32 or codes of 8 bits in blocks": second is not None
        and (second.bits != 8 or second.block_size is None),
        f"the kernels are compiled for CUDA here, got codes on {codes.packed.device.type}": (
            not INTERPRETED and codes.packed.device.type != "cuda"
        ),
    }
    return next((sentence for sentence, refused in refusals.items() if refused), None)
