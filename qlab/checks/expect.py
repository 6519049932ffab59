"""Reading what a learner's function returned, and naming the misconception behind a wrong value."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.checks.report import Refused


@dataclass(frozen=True)
class Suspect:
    """A misconception together with the values an answer that holds it would give."""

    misconception: str
    thought: str
    values: Tensor


def as_number(value: Any, *, call: str) -> float:
    """Read a number from a Python or NumPy number, or from a tensor or array of one element.

    Errors:  Refused, with the misconception `returns-nothing` or `returns-wrong-type`.
    """
    return float(value) if type(value) in (int, float) else as_tensor(value, (), call=call).item()


def as_tensor(value: Any, shape: tuple[int, ...], *, call: str) -> Tensor:
    """Read a tensor of the given shape, on the CPU, from anything that holds plain numbers.

    Errors:  Refused, with the misconception `returns-nothing`, `returns-wrong-type` or `wrong-shape`.
    """
    _refuse_nothing(value, call)
    try:
        tensor = value.detach().cpu().to_dense() if isinstance(value, Tensor) else _from_plain(value)
    except Exception:  # an object of the learner's own may raise anything when it is read
        raise Refused(
            f"`{call}` returned {_shown(value)}, which holds no plain numbers",
            misconception="returns-wrong-type",
            thought="Return a tensor, or a plain number where the task says so.",
        ) from None
    if tensor.is_complex():
        raise Refused(
            f"`{call}` returned complex numbers",
            misconception="returns-wrong-type",
            thought="Every value here is real: where does the imaginary part come from?",
        )
    if tuple(tensor.shape) == shape or (math.prod(shape) == 1 and tensor.numel() == 1):
        return tensor.reshape(shape)
    raise Refused(
        f"`{call}` returned shape {tuple(tensor.shape)}, expected {shape}",
        misconception="wrong-shape",
        thought="Compare the shape you return with the one in the task's signature.",
    )


def require_values(
    got: Tensor, expected: Tensor, *, given: Callable[[int], str], suspects: Callable[[], Iterable[Suspect]] = tuple
) -> None:
    """Refuse the part unless `got` equals `expected`, NaN for NaN, and name the suspect that fits.

    `given` describes the input at an index. `suspects` is asked only about a wrong answer, and one is named only if it
    gives what was got on every input: a part whose inputs cannot tell two suspects apart names the first.
    """
    wrong = _differs(got, expected)
    if not wrong.any():
        return
    first = int(wrong.nonzero()[0])
    message = (
        f"given {given(first)}, got {_shown(got[first].item())}, expected {_shown(expected[first].item())}"
        f" (wrong on {int(wrong.sum())} of {len(expected)} inputs)"
    )
    for suspect in suspects():
        if not _differs(got, suspect.values).any():
            raise Refused(message, misconception=suspect.misconception, thought=suspect.thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Work this one input out by hand, step by step, and print what your function has at each step.",
    )


def _differs(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return (a != b) & ~(a.isnan() & b.isnan())


def _refuse_nothing(value: Any, call: str) -> None:
    if value is None:
        raise Refused(
            f"`{call}` returned None",
            misconception="returns-nothing",
            thought="Your function computes something but does not hand it back: does it end in `return`?",
        )


def _from_plain(value: Any) -> Tensor:
    if isinstance(value, list | tuple):
        value = [item.tolist() if isinstance(item, Tensor) else item for item in value]
    array = np.asarray(value)
    if array.dtype.kind in "OUSMm":  # objects, text and dates, which NumPy would read digits out of
        raise TypeError(f"{array.dtype} is not a number")
    if array.dtype.kind not in "biuc":
        array = array.astype(np.float64)  # exact for every float type, the ones of ml_dtypes too
    return torch.as_tensor(array.astype(np.int64) if array.dtype.kind == "u" else array)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        value += 0.0  # no task asks for the sign of zero
        return repr(value) if 0 < abs(value) < 1e-4 or abs(value) >= 1e6 or math.isnan(value) else f"{value:.9g}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
