"""What a check takes around a call because no result shows it: gradients, bytes kept for backward, the most at once.

Each runs beside the learner's function, in its process, and returns plain numbers or tensors.
"""

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
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
    return f.beside(measured_saved_bytes, *args) if isinstance(f, LearnerFunction) else measured_saved_bytes(f, *args)


def measured_saved_bytes(f: Callable[..., Any], *args: Any) -> int:
    """Take `saved_bytes` here."""
    return measure.saved_bytes(f, *args)


def result_and_peak_bytes(f: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """Return the result of `f(*args)` beside `peak_bytes` of the same run."""
    measured = measured_result_and_peak_bytes
    return f.beside(measured, *args) if isinstance(f, LearnerFunction) else measured(f, *args)


def measured_result_and_peak_bytes(f: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """Take `result_and_peak_bytes` here."""
    with measure.PeakBytes() as peak:
        result = f(*args)
    return result, peak.bytes


def peak_bytes(f: Callable[..., Any], *args: Any) -> int:
    """Run `f(*args)`, a `LearnerFunction` or any other, and return the most bytes of its tensors that lived at once.

    What it was given is left out; the copies that a `LearnerFunction` is called on count.
    Errors:  NotAnswered and Crashed for a learner's function, as when it is called.
    """
    return f.beside(measured_peak_bytes, *args) if isinstance(f, LearnerFunction) else measured_peak_bytes(f, *args)


def measured_peak_bytes(f: Callable[..., Any], *args: Any) -> int:
    """Take `peak_bytes` here."""
    with measure.PeakBytes() as peak:
        f(*args)
    return peak.bytes


def result_and_python_bytes(f: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """Return the result of `f(*args)` beside the most bytes that Python and NumPy held at one time for it.

    Their objects are in it, some 50,000 bytes, and whatever was imported on the way; tensors are not.
    """
    measured = measured_result_and_python_bytes
    return f.beside(measured, *args) if isinstance(f, LearnerFunction) else measured(f, *args)


def measured_result_and_python_bytes(f: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """Take `result_and_python_bytes` here."""
    with traced():
        before, _ = tracemalloc.get_traced_memory()
        result = f(*args)
        _, most = tracemalloc.get_traced_memory()
    return result, most - before


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Let Python note the memory that it and NumPy take, from here on."""
    began = not tracemalloc.is_tracing()
    if began:
        tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        yield
    finally:
        if began:
            tracemalloc.stop()


def with_what_is_left(f: LearnerFunction, given: Any, *args: Any) -> tuple[Any, Any]:
    """Return `f(given, *args)`, and what became of `given`: a dict of tensors reaches an answer as it is.

    Errors:  NotAnswered and Crashed, as when it is called.
    """
    return f.beside(called_and_left, given, *args)


def called_and_left(f: Callable[..., Any], given: Any, *args: Any) -> tuple[Any, Any]:
    """Take `with_what_is_left` here."""
    return f(given, *args), given


def gradients(
    f: Callable[..., Any], *args: Any, upstream: Tensor | None = None, to: Sequence[int] | None = None
) -> tuple[Tensor | None, ...]:
    """Return the gradient of the sum of `f(*args)`, each value weighted by `upstream`, to each floating argument.

    `to` names the places of the arguments that are asked for, if not all floating ones are. A gradient is None where no
    graph leads from the result to the argument: the result was detached, or is no tensor.
    Shapes:  `upstream` has the shape of the result; a gradient has the shape of its argument.
    Errors:  NotAnswered and Crashed for a learner's function, as when it is called; Crashed as well if the backward
             pass raises.
    """
    places = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.is_floating_point()]
    wanted = [i for i in places if to is None or i in to]
    if isinstance(f, LearnerFunction):
        return f.beside(gradients_to, args, wanted, upstream)
    return gradients_to(f, args, wanted, upstream)


def gradients_to(
    f: Callable[..., Any], args: Sequence[Any], wanted: Sequence[int], upstream: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Take `gradients` here, to the arguments at the places `wanted`."""
    leaves = [value.detach().clone().requires_grad_() if i in wanted else value for i, value in enumerate(args)]
    asked = [leaves[i] for i in wanted]
    with torch.enable_grad():
        result = f(*leaves)
        if not isinstance(result, Tensor) or not result.requires_grad:
            return (None,) * len(asked)
        weights = torch.ones_like(result) if upstream is None else upstream.to(result)
        # an autograd function of the learner's own runs only now, and its errors are the learner's
        return LearnerFunction(lambda: torch.autograd.grad(result, asked, weights, allow_unused=True))()
