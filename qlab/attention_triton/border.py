"""What the kernels accept, and what is settled without one: shapes, types, devices, and lengths of zero."""

import torch
from torch import Tensor

from qlab.attention_triton.runtime import HOW_TO_GET, INSTALLED, INTERPRETED

HEAD_WIDTHS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16)
INTERPRETED_DTYPES = (*DTYPES, torch.float32)  # NumPy computes in FP32 anyway; a GPU's matrix units would use TF32


def check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse what the kernels cannot run on.

    Errors:  ModuleNotFoundError without Triton; ValueError if a shape, type or device does not fit.
    """
    if not INSTALLED:
        raise ModuleNotFoundError(HOW_TO_GET)
    _check_shapes(q, k, v)
    _check_dtypes(q, k, v)
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device, got {q.device}, {k.device} and {v.device}")
    if not INTERPRETED and q.device.type != "cuda":
        raise ValueError(
            f"the kernels are compiled for CUDA here, got tensors on {q.device.type}: move them to the GPU,"
            " or set TRITON_INTERPRET=1 before Python starts to run the kernels on the CPU"
        )


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if not q.dim() == k.dim() == v.dim() >= 3:
        raise ValueError(f"q, k and v must be (*batch, heads, sequence, head_width), {shapes}")
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, {shapes}")
    if q.shape[:-3] != k.shape[:-3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q, k and v must agree in batch and head width, {shapes}")
    if k.shape[-3] == 0 or q.shape[-3] % k.shape[-3]:
        raise ValueError(f"the heads of k must divide those of q, {shapes}")
    if q.shape[-1] not in HEAD_WIDTHS:
        raise ValueError(f"head width must be 64 or 128, got {q.shape[-1]}")


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor) -> None:
    accepted = INTERPRETED_DTYPES if INTERPRETED else DTYPES
    if q.dtype not in accepted or not q.dtype == k.dtype == v.dtype:
        names = ", ".join(str(x.dtype).removeprefix("torch.") for x in (q, k, v))
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        eight = ": there is no FP8 here, upcast first" if any(x.dtype.itemsize == 1 for x in (q, k, v)) else ""
        raise ValueError(f"q, k and v must all be {known}, got {names}{eight}")
