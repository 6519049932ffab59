"""Probes of the computer itself: Python, CPU, memory, disk."""

import importlib
import os
import platform
import re
import shutil
from pathlib import Path

from qlab.doctor.machine import Finding, Machine

# what Linux calls the instructions that multiply 8- and 16-bit numbers; the last two are Arm's
LOW_PRECISION = ("avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_fp16", "amx_int8")
LOW_PRECISION += ("bf16", "i8mm")


def python(machine: Machine) -> Finding:
    """Name this Python and its system."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", "ok", found)


def cpu(machine: Machine) -> Finding:
    """Count the cores of this process and name the kernels that PyTorch picks for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kernels = machine.torch().backends.cpu.get_cpu_capability()
    return Finding("CPU", "ok", f"{cores} cores for this process, PyTorch uses its {kernels} kernels")


def low_precision(machine: Machine) -> Finding:
    """Name the CPU's instructions for 8- and 16-bit products, where the system lists them."""
    topic = "CPU low precision"
    try:
        listed = machine.read("/proc/cpuinfo")
    except OSError:
        return Finding(topic, "unknown", f"{platform.system()} has no readable /proc/cpuinfo that lists instructions")
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", listed, re.MULTILINE)
    if line is None:
        return Finding(topic, "unknown", "/proc/cpuinfo has no line of flags")
    found = [name for name in LOW_PRECISION if name in line[1].split()]
    if not found:
        return Finding(topic, "missing", "the CPU lists no instructions for products of 8- or 16-bit numbers")
    return Finding(topic, "ok", f"the CPU multiplies 8- or 16-bit numbers with {', '.join(found)}")


def memory(machine: Machine) -> Finding:
    """Measure the RAM, and the limit that a container sets.

    Units:   1 GiB = 2³⁰ bytes.
    """
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        total_bytes = importlib.import_module("psutil").virtual_memory().total
    sentence = f"{total_bytes / 2**30:.1f} GiB of RAM"
    try:
        limit = machine.read("/sys/fs/cgroup/memory.max").strip()
    except OSError:  # no container, or not Linux
        limit = "max"
    if limit.isdecimal() and int(limit) < total_bytes:
        sentence += f", of which this container may use {int(limit) / 2**30:.1f} GiB"
    return Finding("Memory", "ok", sentence)


def disk(machine: Machine) -> Finding:
    """Measure the free disk of the current folder."""
    return Finding("Disk", "ok", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free in the current folder")
