"""Narrow arithmetic on a machine that has none: every operation in FP32, its inputs and its result rounded.

A CPU may multiply FP16 a hundred times slower than FP32. A tensor core multiplies narrow inputs, adds up in FP32 and
rounds the result once, and that is what is imitated here, in the forward and in the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


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
            "addbmm",
            "mv",
            "addmv",
            "dot",
            "convolution",
            "convolution_backward",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward",
        }
    ),
)
# what fused attention saves for its backward pass, and what batch norm writes to: in FP32 whatever the inputs are
KEPT_IN_FP32 = {"logsumexp", "running_mean", "running_var"}


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
        if torch.is_inference_mode_enabled():  # only there whole layers arrive, not the operations they are made of
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func.is_view or not self.policy.narrows(func.overloadpacket.__name__):
            return func(*args, **kwargs)
        arguments = func._schema.arguments
        written = {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}
        given = {a.name: x for a, x in zip(arguments, args, strict=False)} | kwargs
        read = {name: x if name in written | KEPT_IN_FP32 else tree_map(self.rounded, x) for name, x in given.items()}
        result = func(*list(read.values())[: len(args)], **{name: read[name] for name in kwargs})
        in_place = [x for name, x in given.items() if name in written]
        tree_map(self.round_in_place, in_place)
        done = {id(x) for x in tree_leaves(in_place)}
        if isinstance(result, tuple):
            returned = zip(func._schema.returns, result, strict=True)
            done |= {id(x) for returns, x in returned if returns.name in KEPT_IN_FP32}
        return tree_map(lambda x: x if id(x) in done else self.rounded(x), result)

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
    computed = computed.double()
    agree = (computed == exact) | (computed.isnan() & exact.isnan())
    if agree.all():
        return 0.0
    largest = exact.abs().nan_to_num(posinf=0.0).max()
    error = ((computed - exact)[~agree].abs().max() / largest).item()
    return math.inf if math.isnan(error) else error
