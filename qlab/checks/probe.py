"""What a check takes around a call because no result shows it: gradients, bytes kept for backward, the most at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qlab import measure
from qlab.checks.learner import LearnerFunction


def saved_bytes(f: Callable[..., Any], *args: Any) -> int:
    """Run `f(*args)`, a `LearnerFunction` or any other, and return the bytes that autograd keeps for its result.

    Parameters are left out; a storage counts once, and whole.
    Errors:  NotAnswered and Crashed for a learner's function, as when it is called.
    """
    return measure.saved_bytes(f, *args)


def peak_bytes(f: Callable[..., Any], *args: Any) -> int:
    """Run `f(*args)`, a `LearnerFunction` or any other, and return the most bytes of its tensors that lived at once.

    What it was given is left out; the copies that a `LearnerFunction` is called on count.
    Errors:  NotAnswered and Crashed for a learner's function, as when it is called.
    """
    with measure.PeakBytes() as peak:
        f(*args)
    return peak.bytes


def gradients(f: Callable[..., Any], *args: Any, upstream: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """Return the gradient of the sum of `f(*args)`, each value weighted by `upstream`, to each floating argument.

    It is None where no graph leads from the result to the argument: the result was detached, or is no tensor.
    Shapes:  `upstream` has the shape of the result; a gradient has the shape of its argument.
    Errors:  NotAnswered and Crashed for a learner's function, as when it is called; Crashed as well if the backward
             pass raises.
    """
    leaves = [_leaf(value) for value in args]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    with torch.enable_grad():
        result = f(*leaves)
        if not isinstance(result, Tensor) or not result.requires_grad:
            return (None,) * len(wanted)
        weights = torch.ones_like(result) if upstream is None else upstream.to(result)
        # an autograd function of the learner's own runs only now, and its errors are the learner's
        return LearnerFunction(lambda: torch.autograd.grad(result, wanted, weights, allow_unused=True))()


def _leaf(value: Any) -> Any:
    """Return a copy of a floating tensor that asks for its gradient, and anything else as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().clone().requires_grad_()
