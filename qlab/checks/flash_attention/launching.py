"""What `triton_forward` does beside its result: the products that torch is asked for, and the kernels it launches."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qlab.attention_triton import DEVICE, INTERPRETED, runtime
from qlab.checks.learner import LearnerFunction


class Launched(NamedTuple):
    """What the answer returned, the products of torch's own, how many launches, and whether they made a difference."""

    returned: Any
    products: list[str]
    launches: int
    in_vain: bool


class TorchProducts(TorchFunctionMode):
    """Note the products and softmaxes that torch itself is asked for: a kernel's are not torch's."""

    PARTS_OF_NAMES = ("matmul", "mm", "einsum", "tensordot", "inner", "softmax", "dot_product")

    def __init__(self) -> None:
        super().__init__()
        self.found = set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if any(part in name for part in self.PARTS_OF_NAMES):
            self.found.add(name.strip("_"))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _launches(*, carried_out: bool = True) -> Iterator[list[Any]]:
    """List the kernels that are launched inside; their launches do nothing if they are not `carried_out`."""
    kind = runtime.triton.runtime.interpreter.InterpretedFunction if INTERPRETED else runtime.triton.JITFunction
    run, found = kind.run, list[Any]()

    def noted(kernel: Any, *args: Any, warmup: bool, **kwargs: Any) -> Any:
        if not warmup:
            found.append(kernel)
        return run(kernel, *args, warmup=warmup, **kwargs) if carried_out else None

    kind.run = noted
    try:
        yield found
    finally:
        kind.run = run


def launched(triton_forward: LearnerFunction, *given: Any) -> Launched:
    """Return what the answer returns on this machine's device, and what it did for that."""
    *tensors, is_causal = given
    tensors = [x.to(DEVICE) for x in tensors]
    with runtime.launching(tensors[0]):
        # before the real call: memory that is used again cannot hold its result yet
        idle = _without_launches(triton_forward, *tensors, is_causal) if INTERPRETED else None  # a tuner would time it
        with TorchProducts() as products, _launches() as launches:
            returned = triton_forward(*tensors, is_causal)
    return Launched(returned, sorted(products.found), len(launches), _alike(idle, returned))


def _without_launches(function: Callable[..., Any], *args: Any) -> Any:
    """Return what comes of a call whose launches do nothing, None if it fails."""
    with contextlib.suppress(Exception), _launches(carried_out=False):
        return function(*args)
    return None


def _alike(idle: Any, returned: Any) -> bool:
    """Tell whether two results are the same finite numbers."""
    try:
        pairs = [(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(idle, returned, strict=True)]
        return all(_same(*pair) for pair in pairs)
    except Exception:  # whatever the answer returned
        return False


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(a.isfinite().all()) and torch.equal(a, b)
