"""Narrow arithmetic on a machine that has none: every operation in FP32, its inputs and its result rounded.

A CPU multiplies FP16 some sixty times slower than FP32. A tensor core multiplies narrow inputs, adds up in FP32 and
rounds the result once, and that is what is imitated here, in the forward and in the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class CastPolicy:
    """Which operations a run computes in its narrow type: those named, or all of them if none is.

    Units:   names of PyTorch's operations as autograd dispatches them, such as "mm"; a backward pass has its own.
    """

    name: str
    narrow: frozenset[str] = frozenset()

    def narrows(self, operation: str) -> bool:
        """Return whether `operation` computes in the narrow type."""
        return not self.narrow or operation in self.narrow


EVERYTHING = CastPolicy("everything")
PRODUCTS = CastPolicy(
    "matrix products",
    frozenset(
        {
            "mm",
            "addmm",
            "bmm",
            "baddbmm",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward",
        }
    ),
)


class Emulated(TorchDispatchMode):
    """Inside this `with`, round to `dtype` what the operations of a policy read and write; tensors stay FP32.

    Call `backward` inside as well. A tensor that is written in place is rounded after. Sums inside an operation stay in
    FP32, as in a kernel. Views, and tensors of other types than FP32, are left alone.
    """

    def __init__(self, dtype: torch.dtype, policy: CastPolicy):
        super().__init__()
        self.dtype, self.policy = dtype, policy

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, its inputs and its results rounded if the policy says so."""
        kwargs = kwargs or {}
        if func.is_view or not self.policy.narrows(func.overloadpacket.__name__):
            return func(*args, **kwargs)
        arguments = func._schema.arguments
        written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        for_reading = [x if w else tree_map(self.rounded, x) for x, w in zip(args, written, strict=False)]
        by_name = {a.name: w for a, w in zip(arguments, written, strict=True)}
        named = {k: x if by_name[k] else tree_map(self.rounded, x) for k, x in kwargs.items()}
        result = func(*for_reading, **named)
        if any(written):
            tree_map(self.round_in_place, [x for x, w in zip(args, written, strict=False) if w])
            tree_map(self.round_in_place, [x for k, x in kwargs.items() if by_name[k]])
            return result
        return tree_map(self.rounded, result)

    def rounded(self, value: object) -> object:
        """Return an FP32 tensor with its values rounded, and anything else as it is."""
        return value.to(self.dtype).float() if self._is_rounded(value) else value

    def round_in_place(self, value: object) -> None:
        """Round the values of an FP32 tensor where they are."""
        if self._is_rounded(value):
            value.copy_(value.to(self.dtype))

    @staticmethod
    def _is_rounded(value: object) -> bool:
        return isinstance(value, Tensor) and value.dtype == torch.float32


def narrow_error(f: Callable[..., Tensor], *inputs: Tensor, dtype: torch.dtype) -> float:
    """Return how far `f` computed in `dtype`, operation by operation, is from `f` in FP64, on the same rounded inputs.

    Units:   the largest error as a share of the largest magnitude of the FP64 result; infinite if it holds a NaN or an
             infinity that FP64 does not.
    """
    narrow = [x.to(dtype).float() for x in inputs]
    exact = f(*(x.double() for x in narrow))
    with Emulated(dtype, EVERYTHING):
        computed = f(*narrow)
    error = ((computed.double() - exact).abs().max() / exact.abs().max()).item()
    return math.inf if math.isnan(error) else error
