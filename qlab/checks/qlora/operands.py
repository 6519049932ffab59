"""What operations of torch read and make while a product through codes runs."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qlab.measure import LiveStorages

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear")


class Products(TorchDispatchMode):
    """Note every product whose result has as many values as the weight, and two sides of it."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shapes, self.found = (tuple(shape), tuple(shape)[::-1]), list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS and isinstance(result, Tensor) and tuple(result.shape[-2:]) in self.shapes:
            self.found.append(name)
        return result


class Operands(TorchDispatchMode):
    """Count the storages of all that operations read and make: a weight that was decoded outside of torch as well."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = LiveStorages()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its tensors."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                self.storages.add(tensor)
        return result
