"""What a check takes around a call because no result shows it: the bytes that a call leaves for the backward pass."""

from collections.abc import Callable
from typing import Any

from qlab import measure


def saved_bytes(f: Callable[..., Any], *args: Any) -> int:
    """Run `f(*args)`, a `LearnerFunction` or any other, and return the bytes that autograd keeps for its result.

    Parameters are left out; a storage counts once, and whole.
    Errors:  NotAnswered and Crashed for a learner's function, as when it is called.
    """
    return measure.saved_bytes(f, *args)
