"""Reading what an answer hands to a function that it was given: shape and type first, then the numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def handed(value: Any, shape: tuple[int, ...], *, what: str, floating: bool = True) -> Tensor:
    """Return a tensor of that shape from a tensor, an array or a list; nothing else is computed with or kept.

    Errors:  ValueError for another shape, for what is no floating tensor where it must be, and for complex numbers.
    """
    got = _shape_of(value)
    if got != shape:
        raise ValueError(f"{what} has shape {got}, expected {shape}")
    tensor = torch.as_tensor(value).detach()
    if tensor.is_complex() or tensor.is_quantized or (floating and not tensor.is_floating_point()):
        raise ValueError(f"{what} is of {tensor.dtype}, expected {'a floating type' if floating else 'plain numbers'}")
    return tensor


def handed_named(
    values: Any, shapes: Mapping[str, tuple[int, ...]], *, what: str, floating: bool = True
) -> dict[str, Tensor]:
    """Return a tensor of its shape for each name, from a dict that has these names.

    Errors:  ValueError as for one tensor, for what is no dict, and for a name that is not there.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be a dict of tensors, got a {type(values).__name__}")
    for name in shapes:
        if name not in values:
            raise ValueError(f"{what} has no {name!r}")
    return {n: handed(values[n], shape, what=f"{n!r} of {what}", floating=floating) for n, shape in shapes.items()}


def _shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, an array or nested lists, of which the first element of each is looked at."""
    shape = list[int]()
    while isinstance(value, list | tuple) and len(shape) < 8:
        shape.append(len(value))
        value = value[0] if value else None
    return (*shape, *getattr(value, "shape", ()))
