"""What an optimizer keeps between steps, wherever it keeps it."""

import contextlib
import gc
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlab.checks import probe
from qlab.measure import DispatchedStorages

DEEPEST = 8
LARGE, OBJECTS = 2_048, 16_384  # bytes: smaller blocks are objects of Python, and some larger ones its tables


def kept_bytes(make: Callable[[], Any], parameters: nn.ParameterList, at_most: float) -> int:
    """Run `make`, which returns an optimizer that took steps, and return the bytes that live on because of it.

    Counted is every tensor that an operation made and that something still holds, whatever the optimizer's own
    attributes lead to, and what Python and NumPy keep elsewhere; the parameters and their gradients are left out.
    """
    with DispatchedStorages() as mode, _traced() as grown:
        optimizer = make()
        total = _total(mode, optimizer, parameters, grown())
        if total > at_most >= optimizer_bytes(optimizer, parameters):
            gc.collect()  # what only waits to be collected is not kept
            total = _total(mode, optimizer, parameters, grown())
    return total


@contextlib.contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes in large blocks that Python and NumPy have taken since, and hold."""
    with probe.traced():
        before = _large_blocks()
        yield lambda: _large_blocks() - before


def _large_blocks() -> int:
    return sum(trace.size for trace in tracemalloc.take_snapshot().traces if trace.size >= LARGE)


def tensor_bytes(state_dict: Any) -> int:
    """Count the bytes of the tensors and arrays in a state dict."""
    return sum(_storages(_reached(state_dict, set(), DEEPEST), frozenset()).values())


def optimizer_bytes(optimizer: Any, parameters: nn.ParameterList) -> int:
    """Count the bytes that the optimizer's own attributes lead to."""
    return sum(_storages(_reached(vars(optimizer), set(), DEEPEST), _own(parameters)).values())


def _total(mode: DispatchedStorages, optimizer: Any, parameters: nn.ParameterList, grown: int) -> int:
    own = _own(parameters)
    mode.storages.live_bytes  # noqa: B018 - reading it drops what has been freed
    live = {cdata: size for cdata, (_, size) in mode.storages.seen.items() if cdata not in own}
    held = {**_storages(_reached(vars(optimizer), set(), DEEPEST), own), **live}
    of_tensors = sum(size for key, size in held.items() if not isinstance(key, tuple))
    return max(sum(held.values()), of_tensors + grown - OBJECTS)


def _own(parameters: Iterable[Tensor]) -> frozenset[int]:
    tensors = [t for p in parameters for t in (p, p.grad) if t is not None]
    return frozenset(tensor.untyped_storage()._cdata for tensor in tensors)


def _storages(values: Iterable[Any], own: frozenset[int]) -> dict[Any, int]:
    sizes = {}
    for value in values:
        if isinstance(value, Tensor):
            if value.untyped_storage()._cdata not in own:
                sizes[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        else:
            sizes["array", value.__array_interface__["data"][0]] = value.nbytes
    return sizes


def _reached(value: Any, seen: set[int], depth: int) -> Iterator[Any]:
    """Yield the tensors and arrays that a value leads to through containers and attributes."""
    if id(value) in seen or depth == 0 or isinstance(value, str | int | float | type(None) | type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, bytes | bytearray):
        yield np.frombuffer(value, dtype=np.uint8)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _reached(inner, seen, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _reached(inner, seen, depth - 1)
    elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, torch.Generator):
        yield from _reached(vars(value), seen, depth - 1)
