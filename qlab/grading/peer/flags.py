"""What torch's global settings were where a call came from, put in place while it runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from qlab.grading.peer.tensors import DTYPES

AUTOCAST = {name: DTYPES[name] for name in ("bfloat16", "float16")}
DEFAULTS = {name: DTYPES[name] for name in ("float32", "float64", "float16", "bfloat16")}


def present() -> tuple[Any, ...]:
    """Return the settings: grad mode, inference mode, autocast and its type, the default type."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        str(torch.get_autocast_dtype("cpu"))[6:],
        str(torch.get_default_dtype())[6:],
    )


@contextlib.contextmanager
def as_there(flags: Any) -> Iterator[None]:
    """Run what is inside under the other side's settings."""
    here = present()
    if flags == here or type(flags) is not tuple or len(flags) != len(here):
        yield
        return
    grad, inference, cast, cast_to, default = flags
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if inference is True:
            stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.set_grad_enabled(grad is True))
        if cast is True and cast_to in AUTOCAST:
            stack.enter_context(torch.autocast("cpu", AUTOCAST[cast_to]))
        elif here[2]:
            stack.enter_context(torch.autocast("cpu", enabled=False))
        torch.set_default_dtype(DEFAULTS.get(default, before))
        try:
            yield
        finally:
            torch.set_default_dtype(before)
