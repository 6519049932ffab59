"""Tensors as bytes: type, shape, strides and the stretch of memory that they show."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {str(value)[6:]: value for value in vars(torch).values() if isinstance(value, torch.dtype)}
NO_NUMBERS = ("qint", "quint", "bits", "complex32")  # of the last torch warns that it is experimental
ROOM = 4_096  # elements between those shown that may come along
MOST_DIMENSIONS = 32
WORTH_STACKING = 64
MOST_BYTES = 2**25  # that all tensors of a message may show: what is read from them may take ten times as much


@dataclass(frozen=True)
class Raw:
    """A tensor's layout and the bytes from its first value to its last.

    Units:   shape and strides in elements.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    wants_gradient: bool
    data: bytes


def raw(tensor: Tensor) -> Raw:
    """Read a tensor's bytes, whatever its class says of itself; a sparse one becomes dense."""
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        wants = bool(tensor.requires_grad)
        values = torch.Tensor._make_subclass(Tensor, tensor.detach())
        if values.is_quantized:
            values = values.dequantize()
        values = values.cpu().to_dense().resolve_conj().resolve_neg()
        if str(values.dtype)[6:].startswith(NO_NUMBERS):
            raise TypeError(f"{values.dtype} is not carried")
        if _extent(tuple(values.shape), values.stride()) > 2 * values.numel() + ROOM:
            values = values.contiguous()  # most of the stretch is not shown
        shape, strides, size = tuple(values.shape), values.stride(), values.element_size()
        length = _extent(shape, strides) * size
        start = values.storage_offset() * size
        flat = torch.empty(0, dtype=torch.uint8, device="cpu").set_(values.untyped_storage(), start, (length,), (1,))
        return Raw(str(values.dtype)[6:], shape, strides, wants, flat.numpy().tobytes())


def stackable(values: list[Any]) -> bool:
    """Tell whether all values are dense tensors on the CPU, of one type and shape, that want no gradient."""
    first = values[0]
    if type(first) is not Tensor or first.layout != torch.strided or first.is_quantized or first.device.type != "cpu":
        return False
    kind = (first.dtype, first.shape, first.layout, first.device, False)
    return all(type(v) is Tensor and (v.dtype, v.shape, v.layout, v.device, v.requires_grad) == kind for v in values)


def shown_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor's values would take one by one."""
    with torch._C.DisableTorchFunctionSubclass():
        return _shown(tuple(tensor.shape), tensor.dtype)


def _shown(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(max(n, 1) for n in shape) * dtype.itemsize


def rebuilt(raw: Raw) -> Tensor:
    """Build a tensor over its own copy of the bytes.

    Errors:  ValueError if the layout does not fit the bytes, or shows more than `MOST_BYTES`.
    """
    dtype = DTYPES.get(raw.dtype)
    fitting = len(raw.shape) == len(raw.strides) <= MOST_DIMENSIONS
    if dtype is None or raw.dtype.startswith(NO_NUMBERS) or not fitting:
        raise ValueError(f"no tensor of {raw.dtype[:40]} with {len(raw.shape)} dimensions")
    if max(raw.strides, default=0) > MOST_BYTES or _shown(raw.shape, dtype) > MOST_BYTES:
        raise ValueError(f"a tensor of shape {raw.shape} shows more than {MOST_BYTES:,} bytes")
    if _extent(raw.shape, raw.strides) * dtype.itemsize != len(raw.data):
        raise ValueError(f"{len(raw.data)} bytes are not those of a tensor of {math.prod(raw.shape)} values")
    data = bytearray(raw.data)
    flat = (
        torch.frombuffer(data, dtype=torch.uint8).clone() if data else torch.empty(0, dtype=torch.uint8, device="cpu")
    )
    if dtype is torch.bool:
        flat = (flat != 0).view(torch.uint8)  # a byte of 2 would be neither True nor False
    return torch.empty(0, dtype=dtype, device="cpu").set_(flat.untyped_storage(), 0, raw.shape, raw.strides)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements lie from the first that is shown to the last."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
