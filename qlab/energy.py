"""Joules, where the machine can tell; "not measured" where it cannot, and never a guess."""

import ctypes
import functools
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
NEVER_WRAPS = float("inf")


class Energy:
    """Measure joules inside a `with`: `joules` is None, and `source` "not measured", where the machine cannot tell.

    Source:  NVML, nvmlDeviceGetTotalEnergyConsumption (whole GPU); Linux powercap, energy_uj (CPU packages).
    """

    def __init__(self, *, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.joules: float | None = None
        self.source = "not measured"

    def __enter__(self) -> "Energy":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.before = self.read()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        after = self.read()
        if self.before and self.before.keys() == after.keys():
            self.joules = sum((now - self.before[name][0]) % span for name, (now, span) in after.items())
            self.source = " + ".join(after)

    def joules_each(self, runs: int) -> float | None:
        """Return the joules of one of `runs` equal runs that were measured together, or None if not measured.

        Errors:  ValueError if `runs` is below 1.
        """
        if runs < 1:
            raise ValueError(f"runs must be at least 1, got {runs}")
        return None if self.joules is None else self.joules / runs

    def read(self) -> dict[str, tuple[float, float]]:
        """Read every counter of the device as (joules so far, joules at which it starts again from 0)."""
        return nvml_joules(self.device) if self.device.type == "cuda" else rapl_joules()


def rapl_joules(powercap: Path = POWERCAP) -> dict[str, tuple[float, float]]:
    """Read the energy counters of the CPU packages; nothing where they are missing or not ours to read."""
    counters = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:
            continue  # a part of a package, counted there already
        try:
            name, used, span = (
                (zone / file).read_text().strip() for file in ("name", "energy_uj", "max_energy_range_uj")
            )
        except OSError:  # readable by root only on most systems
            return {}
        counters[f"RAPL {name}"] = (int(used) / 1e6, int(span) / 1e6)
    return counters


@functools.cache
def nvml() -> ctypes.CDLL | None:
    """Open NVIDIA's management library, or return None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def nvml_joules(device: torch.device) -> dict[str, tuple[float, float]]:
    """Read the GPU's energy since its driver was loaded; nothing where NVML does not answer."""
    library = nvml()
    if library is None or not torch.cuda.is_available():
        return {}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) != 0:
        return {}
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
        return {}
    return {"NVML": (millijoules.value / 1e3, NEVER_WRAPS)}
