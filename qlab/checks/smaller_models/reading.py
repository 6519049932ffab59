"""Reading masks and state dicts from whatever an answer returned."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qlab.checks.expect import as_tensor
from qlab.checks.report import Refused, require

State = dict[str, Tensor]


def copied(state: State) -> State:
    """Return a state dict of copies, so that work in place cannot change what is expected."""
    return {name: tensor.clone() for name, tensor in state.items()}


def as_mask(value: Any, weight: Tensor, *, call: str) -> Tensor:
    """Read a mask of a weight's shape: a bool for each value, from bools or from numbers that are all 0 or 1.

    Errors:  Refused, with the misconception `returns-the-weights`, `returns-no-mask` or one of `as_tensor`'s.
    """
    mask = as_tensor(value, tuple(weight.shape), call=call).double()
    if bool(((mask == 0) | (mask == 1)).all()):
        return mask.bool()
    kept = mask != 0
    if torch.equal(mask[kept].float(), weight.detach().float()[kept]):
        raise Refused(
            f"`{call}` returned weights, expected a mask",
            misconception="returns-the-weights",
            thought="Return where a weight stays, True or False: the caller multiplies.",
        )
    other = mask[(mask != 0) & (mask != 1)][0].item()
    raise Refused(
        f"`{call}` returned {other:.4g}, expected True or False, or 1 or 0, at every place",
        misconception="returns-no-mask",
        thought="A mask only says which weights stay.",
    )


def as_state(value: Any, like: Mapping[str, Tensor], *, call: str) -> State:
    """Read a state dict that has the names and shapes of `like`.

    Errors:  Refused, with the misconception `returns-nothing`, `returns-wrong-type`, `loses-entries` or one of
             `as_tensor`'s.
    """
    require(
        value is not None,
        f"`{call}` returned None",
        misconception="returns-nothing",
        thought="Your function computes something but does not hand it back: does it end in `return`?",
    )
    require(
        isinstance(value, Mapping),
        f"`{call}` returned {type(value).__name__}, expected a dict of tensors",
        misconception="returns-wrong-type",
        thought="Return a dict with the names you were given.",
    )
    lost = sorted(set(like) - set(value))
    require(
        not lost,
        f"`{call}` returned no {lost[0] if lost else ''!r}",
        misconception="loses-entries",
        thought="Every name you were given belongs into what you return.",
    )
    return {name: as_tensor(value[name], tuple(like[name].shape), call=call) for name in like}
