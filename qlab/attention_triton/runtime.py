"""Where the kernels run: compiled for a CUDA GPU, in Triton's interpreter on a CPU, or, without Triton, nowhere.

Triton decides when a kernel is decorated, so the choice is made here, once, before any kernel of this package or of a
learner is. Kernels carry `@no_type_check`: they hold tiles, and the checker of annotations knows nothing of those.
"""

import ast
import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

HOW_TO_GET = (
    "Triton is not installed, and this kernel needs it: on Linux `make lab EXTRAS=triton` installs it"
    " (1 GB on disk); nothing else in the course does"
)


class Absent:
    """Stands for Triton where it is not installed: a kernel can be written with it, and says so when it is launched."""

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):  # Python's own questions about an object are answered truthfully
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> "Absent":
        return self

    def __getitem__(self, _: Any) -> Any:
        raise ModuleNotFoundError(HOW_TO_GET)


def load() -> tuple[Any, Any]:
    """Return Triton and its language, set up to interpret where there is no CUDA GPU, or stand-ins for both.

    The environment variable TRITON_INTERPRET, where it is set, is obeyed; where it is not, it is left alone.
    """
    if importlib.util.find_spec("triton") is None:
        return Absent(), Absent()
    triton, language = importlib.import_module("triton"), importlib.import_module("triton.language")
    knobs = triton.knobs
    propagated, knobs.propagate_env = knobs.propagate_env, False  # for this process: a child chooses for itself
    if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
        knobs.runtime.interpret = True
    if knobs.runtime.interpret:
        knobs.compilation.front_end_debugging = True  # an error inside a kernel comes as itself, with its line
        _interpret_functions_of(language, triton.JITFunction)
    knobs.propagate_env = propagated
    return triton, language


def _interpret_functions_of(language: Any, compiled: type) -> None:
    """Decorate the language's own functions anew: Triton was imported before it was to interpret."""
    standard = importlib.reload(importlib.import_module("triton.language.standard"))
    for name, value in vars(language).items():
        if isinstance(value, compiled) and hasattr(standard, name):
            setattr(language, name, getattr(standard, name))


triton, tl = load()
INSTALLED = not isinstance(triton, Absent)
INTERPRETED = INSTALLED and triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED or not INSTALLED else "cuda"


def descriptor(x: torch.Tensor, *, rows: int = 1) -> Any:
    """Describe `x` to a kernel, which then loads and stores tiles of it; what lies outside reads as zero.

    Its tiles have `rows` rows, unless a configuration sets another number. On Hopper the GPU's copy engine moves them.
    Shapes:  `x` is (batch, heads, sequence, head_width).
    """
    tensor_descriptor = importlib.import_module("triton.tools.tensor_descriptor")
    return tensor_descriptor.TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, x.shape[-1]])


def prepared(x: torch.Tensor) -> torch.Tensor:
    """Return `x` as (batch, heads, sequence, head_width), copied only where the copy engine cannot read it as it lies.

    In the interpreter BF16 becomes FP32: its arithmetic on BF16 takes the raw bits for integers, its stores truncate.
    Source:  CUDA driver API, cuTensorMapEncodeTiled: address and strides are multiples of 16 bytes.
    """
    x = x.reshape(-1, *x.shape[-3:])
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()
    steps = [step * x.element_size() for step in x.stride()[:-1]]
    if x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(step > 0 and step % 16 == 0 for step in steps):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def tuned(
    configurations: list[tuple[int, int, int, int]], by_rows: tuple[str, ...], by_columns: tuple[str, ...]
) -> Any:
    """Return Triton's autotuner over (rows, columns, warps, stages), which times each for every kind of input once.

    `by_rows` and `by_columns` name the kernel's descriptors whose tiles have so many rows or columns.
    The interpreter has nothing to tune, and takes the first.
    """

    def set_tiles(arguments: dict[str, Any]) -> None:
        for names, block in ((by_rows, "BLOCK_ROWS"), (by_columns, "BLOCK_COLUMNS")):
            for name in names:
                described = arguments[name]
                described.block_shape = [1, 1, arguments[block], described.shape[-1]]

    chosen = configurations[:1] if INTERPRETED else configurations
    return triton.autotune(
        configs=[
            triton.Config(
                {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns}, num_warps=warps, num_stages=stages, pre_hook=set_tiles
            )
            for rows, columns, warps, stages in chosen
        ],
        key=["WIDTH", "CAUSAL", "length_bucket"],
    )


def length_bucket(length: int) -> int:
    """Return 1 024, 4 096 or 16 384: lengths of one bucket share the configuration that one of them was tuned with."""
    return next((bucket for bucket in (1024, 4096) if length <= bucket), 16_384)


@contextlib.contextmanager
def launching(x: torch.Tensor) -> Iterator[None]:
    """Run kernels on the device of `x`; the interpreter's NumPy does not warn of the infinities that softmax needs."""
    with np.errstate(all="ignore") if INTERPRETED else torch.cuda.device(x.device):
        yield


def kernel_source(module: str, name: str) -> str:
    """Return the source of a kernel in a module of this package, with or without Triton.

    Errors:  ValueError if the module has no such function.
    """
    text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"
    raise ValueError(f"{module} has no function `{name}`")
