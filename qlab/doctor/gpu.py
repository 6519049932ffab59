"""Probes of the accelerators: which GPU, which driver, and which data types its tensor cores take."""

import re
import warnings
from functools import partial

from qlab.doctor.machine import Finding, Machine, Status, first_line

FIRST_CAPABILITY = {"FP16": (7, 0), "INT8": (7, 2), "TF32": (8, 0), "BF16": (8, 0), "FP8": (8, 9), "FP4": (10, 0)}
NEWEST_KNOWN = (12, 1)
RECORDED = "rounding runs here on the CPU, tensor-core speed is shown from a recorded run"
SMI_SECONDS = 20.0


def tensor_cores(data_type: str, *, capability: tuple[int, int], name: str) -> tuple[Status, str]:
    """Say whether the tensor cores of an NVIDIA GPU take `data_type`, by its compute capability.

    Source:  NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities", tensor-core input data types; PTX ISA, target
             notes of `mma` and `tcgen05.mma`. GeForce GTX 16 is 7.5 without tensor cores (Turing TU116 and TU117).
    """
    has, needs = (".".join(map(str, pair)) for pair in (capability, FIRST_CAPABILITY[data_type]))
    if capability > NEWEST_KNOWN:
        return "unknown", f"compute capability {has} is newer than the course's table, which ends at 12.1"
    if re.search(r"GTX 16\d\d", name):
        return "missing", f"{name} has no tensor cores: {RECORDED}"
    if capability < FIRST_CAPABILITY[data_type]:
        return "missing", f"it needs compute capability {needs} and this GPU has {has}: {RECORDED}"
    return "ok", f"the tensor cores of compute capability {has} take it: its GPU cells run here"


def ask_driver(machine: Machine, field: str) -> str:
    """Ask NVIDIA's own tool, which works without PyTorch, and return nothing where it sees no GPU."""
    try:
        status, output, _ = machine.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], SMI_SECONDS)
    except FileNotFoundError:
        return ""
    return output.strip().splitlines()[0].strip() if status == 0 and output.strip() else ""


def is_rocm(torch: object) -> bool:
    """Tell whether `torch.cuda` stands for AMD's GPUs, whose capability numbers mean something else."""
    return bool(getattr(torch.version, "hip", None))


def gpu(machine: Machine) -> Finding:
    """Name the GPU that PyTorch uses, or say why it uses none."""
    torch = machine.torch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        why = f" ({first_line(caught[-1].message)})" if caught else ""
        return Finding("GPU", "missing", f"{absent(machine, torch)}{why}: GPU cells show a recorded run")
    found, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
    found += f", {torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GiB"
    found += f", the first of {count}" if count > 1 else ""
    if is_rocm(torch):
        return Finding("GPU", "unknown", f"{found}, through ROCm: the course's GPU cells are tried on NVIDIA only")
    major, minor = torch.cuda.get_device_capability(0)
    return Finding("GPU", "ok", f"{found}, compute capability {major}.{minor}")


def absent(machine: Machine, torch: object) -> str:
    """Say which kind of no GPU it is: none there, or one that this PyTorch cannot use."""
    seen = ask_driver(machine, "name")
    if not seen:
        return "PyTorch finds no CUDA GPU"
    if torch.version.cuda:
        return f"{seen} is there and PyTorch cannot use it"
    return f"{seen} is there and this PyTorch is built without CUDA, so install its CUDA build"


def driver(machine: Machine) -> Finding:
    """Name the version of NVIDIA's driver."""
    version = ask_driver(machine, "driver_version")
    if not version:
        return Finding("NVIDIA driver", "missing", "nvidia-smi is not installed or sees no GPU")
    return Finding("NVIDIA driver", "ok", f"version {version}")


def data_type(machine: Machine, *, name: str) -> Finding:
    """Say what of one data type runs on this machine."""
    torch, topic = machine.torch(), f"{name} tensor cores"
    if not torch.cuda.is_available():
        return Finding(topic, "missing", f"no CUDA GPU: {RECORDED}")
    if is_rocm(torch):
        return Finding(topic, "unknown", "the course's table is of NVIDIA's GPUs and this is one of AMD's")
    capability = tuple(torch.cuda.get_device_capability(0))
    return Finding(topic, *tensor_cores(name, capability=capability, name=torch.cuda.get_device_name(0)))


def other_accelerators(machine: Machine) -> Finding:
    """Say honestly what the course does with accelerators that are not NVIDIA's."""
    torch = machine.torch()
    found = []
    if torch.backends.mps.is_available():
        found.append("Apple's GPU (MPS)")
    if torch.xpu.is_available():
        found.append("Intel's GPU (XPU)")
    if is_rocm(torch) and torch.cuda.is_available():
        found.append("AMD's GPU (ROCm)")
    if not found:
        return Finding("Other accelerators", "missing", "PyTorch finds no GPU of Apple's, Intel's or AMD's")
    sentence = f"PyTorch can use {' and '.join(found)}; the course's GPU cells are written for NVIDIA's"
    return Finding("Other accelerators", "ok", sentence)


DATA_TYPES = tuple((f"{name} tensor cores", partial(data_type, name=name)) for name in FIRST_CAPABILITY)
