"""What attention accepts: the shapes of queries, keys and values, their types, and that they are numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The sizes of one attention: `query_heads` share `key_heads` in groups of equal size.

    Units:   `value_bytes` is the size of one stored value of q, k, v and the output.
    Errors:  ValueError if a size is negative, there is no head or width, or the heads do not divide into groups.
    """

    queries: int
    keys: int
    head_width: int
    batch: int = 1
    query_heads: int = 1
    key_heads: int = 1
    value_bytes: int = 2
    is_causal: bool = False

    def __post_init__(self):
        least = {"queries": 0, "keys": 0, "batch": 0, "head_width": 1, "query_heads": 1, "key_heads": 1}
        for name, smallest in (least | {"value_bytes": 1}).items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        if self.query_heads % self.key_heads:
            raise ValueError(f"{self.query_heads} query heads do not divide into groups for {self.key_heads} key heads")

    @property
    def group(self) -> int:
        """Query heads that read the same key head."""
        return self.query_heads // self.key_heads

    @property
    def accumulator_bytes(self) -> int:
        """Size of a sum, a maximum or a log-sum-exp: FP32 at least."""
        return max(4, self.value_bytes)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums of `dtype` are held in: FP32, or FP64 for FP64."""
    return torch.promote_types(dtype, torch.float32)


def checked_shape(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> AttentionShape:
    """Return the sizes of an attention after checking that its inputs fit together and are finite.

    Errors:  ValueError if shapes, types or devices do not fit, a type is not FP16, BF16, FP32 or FP64, the head width
             is 0, or a value is NaN or infinite: attention would spread it over whole rows without a word.
    """
    if min(q.dim(), k.dim(), v.dim()) < 2:
        raise ValueError(f"q, k and v must end in (sequence, head_width), got {_shapes(q, k, v)}")
    if k.shape != v.shape or q.dim() != k.dim() or q.shape[:-3] != k.shape[:-3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q, k and v must agree in batch and head width, k and v in all, got {_shapes(q, k, v)}")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        told = ", ".join(str(t.dtype).removeprefix("torch.") for t in (q, k, v))
        raise ValueError(f"q, k and v must all be float16, bfloat16, float32 or float64, got {told}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device, got {q.device}, {k.device} and {v.device}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        wrong = x.numel() - int(torch.isfinite(x).sum())
        if wrong:
            raise ValueError(f"{name} must be finite, got {wrong} values that are NaN or infinite")
    return AttentionShape(
        queries=q.shape[-2],
        keys=k.shape[-2],
        head_width=q.shape[-1],
        batch=q.shape[:-3].numel(),
        query_heads=q.shape[-3] if q.dim() > 2 else 1,
        key_heads=k.shape[-3] if k.dim() > 2 else 1,
        value_bytes=q.element_size(),
        is_causal=is_causal,
    )


def refuse_overflow(found: Tensor, *, dtype: torch.dtype) -> None:
    """Check what finite inputs were turned into.

    Errors:  ValueError if a value is not finite, which only scores beyond the range of `dtype` can bring about.
    """
    if not torch.isfinite(found.detach()).all():  # autograd would keep it
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"scores overflow {name}, whose largest number is {torch.finfo(dtype).max:.3g}: scale q down")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)
