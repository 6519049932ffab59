"""Every tensor that an object holds, under whatever name."""

import copy
from typing import Any

from torch import Tensor

from qlab.checks.learner import Crashed, LearnerFunction
from qlab.checks.report import Refused


def held_by(thing: Any) -> list[Tensor]:
    """Return the tensors in a deep copy of `thing`: the copy's memo lists what it met.

    Errors:  Refused, with the misconception `keeps-the-graph`, if one of them is the result of an operation.
    """
    memo: dict[Any, Any] = {}
    try:
        LearnerFunction(lambda: copy.deepcopy(thing, memo))()
    except Crashed as crash:
        if "deepcopy protocol" not in str(crash):
            raise
        raise Refused(
            f"it cannot be copied: {crash}",
            misconception="keeps-the-graph",
            thought="What is computed from a weight holds on to it for the backward pass: `weight.detach()`.",
        ) from None
    return [value for value in memo.values() if isinstance(value, Tensor)]


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of the whole storage under a tensor."""
    return tensor.untyped_storage().nbytes()
