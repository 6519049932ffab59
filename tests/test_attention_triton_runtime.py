"""Where kernels run: each way a process can come to Triton, in a process of its own."""

import inspect
import os
import subprocess
import sys

import pytest
import torch

from qlab.attention_triton import INTERPRETED, runtime

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU compiles kernels")
KERNEL = """
from qlab.attention_triton import tl, triton
@triton.jit
def double(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(y + at, value + tl.sum(value, 0) * 0 + value, mask=at < n)
def run(x):
    y = torch.empty_like(x)
    double[(triton.cdiv(len(x), 8),)](x, y, len(x), BLOCK=8)
    return y.tolist()
"""
UNANSWERED = """
@triton.jit
def empty(x):
    raise NotImplementedError("replace this line with your answer")
def ask(x):
    empty[(1,)](x)
"""
SPOKEN = """
import torch
from qlab.attention_triton import flash_attention
try:
    flash_attention(*[torch.zeros(1, 4, 64).half()] * 3)
except Exception as error:
    print(type(error).__name__, error)
"""


def told(code: str, **environment: str) -> str:
    """Run Python code in a new process, with warnings as errors, and return what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, env=inherited | environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def as_file(code: str) -> str:
    """Return code that writes `code` into a file and imports it: a kernel's source must be there to be read."""
    lines = ["import pathlib, sys, tempfile, torch", "place = tempfile.mkdtemp()", "sys.path.insert(0, place)"]
    lines += [f"pathlib.Path(place, 'learner.py').write_text({'import torch' + code!r})", "import learner"]
    return "\n".join([*lines, "print(learner.run(torch.tensor([1.0, 2.0, 3.0])))"])


@ON_CPU
@pytest.mark.parametrize("first", ["", "import triton.language\n"])
def test_a_learners_kernel_is_interpreted_whoever_imported_triton_first(first: str):
    pytest.importorskip("triton")
    unchanged = "\nimport os; print(any(name.startswith('TRITON') for name in os.environ))"
    assert told(first + as_file(KERNEL) + unchanged).splitlines() == ["[2.0, 4.0, 6.0]", "False"]


@ON_CPU
def test_a_kernel_in_a_notebooks_cell_is_interpreted():
    pytest.importorskip("triton")
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import torch" + {KERNEL + UNANSWERED!r}).raise_error()
print(shell.run_cell("run(torch.tensor([1.0, 2.0, 3.0]))").raise_error() or shell.user_ns["_"])
shell.run_cell("with attempt(): ask(torch.ones(1))").raise_error()
"""
    said = told(
        f"from qlab.page import attempt\n{code}".replace("instance()", "instance(user_ns=dict(attempt=attempt))")
    )
    assert said.splitlines()[-2:] == ["[2.0, 4.0, 6.0]", "Not answered yet: run this cell again when it is."]


@ON_CPU
@pytest.mark.slow
def test_torch_still_compiles_for_the_cpu_after_it():
    pytest.importorskip("triton")
    code = """
import warnings, torch
from qlab.attention_triton import flash_attention
q = torch.randn(1, 4, 64)
warnings.simplefilter("ignore")
print(torch.allclose(torch.compile(lambda x: x * 2 + 1)(q), q * 2 + 1))
print(flash_attention(q, q, q).isfinite().all().item())
"""
    assert told(code).splitlines() == ["True", "True"]


def test_without_triton_everything_imports_and_a_launch_says_so():
    missing = "import sys; sys.modules['triton'] = None\nimport qlab.attention, qlab.model, qlab.checks.report\n"
    learners = as_file(KERNEL).replace("print(", "try: print(")
    check = """
from qlab.checks.flash_attention.kernel import check_triton_kernel
verdict = check_triton_kernel(learner.run)
print(verdict.points, verdict.misconception, verdict.parts[0].message)
"""
    said = told(f"{missing}{SPOKEN}\n{learners}\nexcept ModuleNotFoundError as error: print(error)\n{check}")
    how = runtime.HOW_TO_GET
    assert said.splitlines() == [f"ModuleNotFoundError {how}", how, f"0 triton-is-missing {how}."]


@ON_CPU
def test_kernels_that_are_not_interpreted_say_what_they_need():
    pytest.importorskip("triton")
    said = told(SPOKEN, TRITON_INTERPRET="0")
    assert said.startswith("ValueError the kernels are compiled for CUDA here, got tensors on cpu: move them")


def test_the_source_of_a_kernel_is_shown_without_its_decorators_object():
    source = runtime.kernel_source("forward", "walk_over_keys")
    assert source.startswith("@triton.jit\n@no_type_check\ndef walk_over_keys(")
    assert "return output, maximum, total" in source and "def forward_kernel" not in source
    with pytest.raises(ValueError, match="forward has no function `nothing`"):
        runtime.kernel_source("forward", "nothing")


def test_a_stand_in_answers_python_truthfully():
    absent = runtime.Absent()
    assert not hasattr(absent, "__wrapped__") and inspect.unwrap(absent) is absent
    assert absent.Config({}, num_warps=4).anything is absent
    with pytest.raises(ModuleNotFoundError, match="make lab EXTRAS=triton"):
        absent[(1,)]


@pytest.mark.parametrize(("length", "bucket"), [(1, 1024), (1024, 1024), (1025, 4096), (4097, 16384), (10**6, 16384)])
def test_lengths_share_a_configuration_by_bucket(length: int, bucket: int):
    assert runtime.length_bucket(length) == bucket


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_the_interpreter_has_one_configuration():
    pytest.importorskip("triton")
    from qlab.attention_triton import backward, forward  # noqa: PLC0415 - kernels are Triton's only where it is

    for kernel in (forward.forward_kernel, backward.keys_kernel, backward.queries_kernel):
        assert len(kernel.configs) == 1
