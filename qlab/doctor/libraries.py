"""Probes of the software: PyTorch, bitsandbytes, Triton, Jupyter, and the runtimes that single pages use."""

import json
import os
import platform
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

from qlab.doctor.gpu import is_rocm
from qlab.doctor.machine import Finding, Machine

IMPORT_SECONDS = 60.0  # four seconds on a warm disk, many more on a cold one
BITSANDBYTES = """
import json, bitsandbytes, bitsandbytes.cextension as native
print(json.dumps([bitsandbytes.__version__, native.BNB_BACKEND, type(native.lib).__name__]))
"""
RUNTIMES = {
    "torchao": ("torchao", ""),
    "ONNX Runtime": ("onnxruntime", ""),
    "LiteRT": ("ai-edge-litert", " EXTRAS=litert"),
}
WITHOUT = "cells that compare with it cannot run, all others do"


def pytorch(machine: Machine) -> Finding:
    """Name PyTorch's version and what it was built for."""
    try:
        torch = machine.torch()
    except ModuleNotFoundError as error:
        return Finding("PyTorch", "missing", f"{error}: `make lab` installs it")
    builds = (("CUDA", "cuda"), ("ROCm", "hip"), ("XPU", "xpu"))
    known = [f"{name} {getattr(torch.version, key)}" for name, key in builds if getattr(torch.version, key, None)]
    return Finding("PyTorch", "ok", f"{torch.__version__}, built for {' and '.join(known) or 'no CUDA, ROCm or XPU'}")


def bitsandbytes(machine: Machine) -> Finding:
    """Import bitsandbytes in a process of its own: that takes seconds, writes to stderr, and can crash Python."""
    topic = "bitsandbytes"
    try:
        status, output, complaints = machine.run([sys.executable, "-c", BITSANDBYTES], IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(topic, "unknown", f"its import did not end within {IMPORT_SECONDS:.0f} s")
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        return Finding(topic, "missing", f"its import crashes Python ({names.get(-status, -status)}): {WITHOUT}")
    if status > 0:
        last = (complaints.strip().splitlines() or [f"exit status {status}"])[-1]
        return Finding(topic, "missing", f"its import fails ({last}): {WITHOUT}")
    version, backend, native = json.loads(output.strip().splitlines()[-1])
    if "ErrorHandler" in native:  # its stand-in for a native library that did not load
        return Finding(topic, "missing", f"{version} imports, but its {backend} library does not load: {WITHOUT}")
    return Finding(topic, "ok", f"{version} with its {backend} library")


def triton(machine: Machine) -> Finding:
    """Say whether Triton's kernels are compiled here, interpreted, or shown from a recorded run.

    Source:  Triton's README, "Compatibility": NVIDIA GPUs of compute capability 8.0 or newer.
    """
    try:
        version = machine.version("triton")
    except PackageNotFoundError:
        extra = ", and `make lab EXTRAS=triton` installs it" if platform.system() == "Linux" else ""
        without = "lesson 08 shows its kernels and does not run them, lab 08 has one exercise that needs it"
        return Finding("Triton", "missing", f"not installed: {without}{extra}")
    torch = machine.torch()
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Finding("Triton", "ok", f"{version}, interpreted on the CPU because TRITON_INTERPRET=1 is set")
    if not torch.cuda.is_available():
        return Finding("Triton", "ok", f"{version}, without a GPU its kernels run in its interpreter only")
    if is_rocm(torch):
        return Finding("Triton", "unknown", f"{version}, but the course's kernels are tried on NVIDIA only")
    if tuple(torch.cuda.get_device_capability(0)) < (8, 0):
        return Finding("Triton", "unknown", f"{version} is made for compute capability 8.0 or newer, this GPU is older")
    return Finding("Triton", "ok", f"{version} compiles its kernels for this GPU")


def other_runtimes(machine: Machine) -> Finding:
    """Name the versions of the libraries that single pages compare with, and what brings those that are not here."""
    here, absent = [], []
    for name, (package, brought_by) in RUNTIMES.items():
        try:
            here.append(f"{name} {machine.version(package)}")
        except PackageNotFoundError:
            absent.append(f"{name} (`make lab{brought_by}`)")
    said = [", ".join(here)] * bool(here) + [f"not installed: {', '.join(absent)}"] * bool(absent)
    return Finding("Other runtimes", "ok" if here else "missing", "; ".join(said))


def jupyter(machine: Machine) -> Finding:
    """Name the versions of JupyterLab and its widgets."""
    try:
        lab, widgets = machine.version("jupyterlab"), machine.version("ipywidgets")
    except PackageNotFoundError as error:
        return Finding("Jupyter", "missing", f"{error.name} is not installed: `make lab` installs it")
    return Finding("Jupyter", "ok", f"JupyterLab {lab} with ipywidgets {widgets}")
