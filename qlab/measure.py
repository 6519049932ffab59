"""Measures: bytes saved for backward, peak bytes, time, and the provenance that every number needs.

`qlab.memory` predicts; this module measures. Joules are in `qlab.energy`.
"""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import qlab


class LiveStorages:
    """The storages seen so far that are still alive, each counted once however many tensors view it."""

    def __init__(self):
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    def add(self, tensor: Tensor) -> None:
        """Count `tensor`'s storage unless it is counted already."""
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # while it lives, no new storage can take the same address
        if reference.cdata in self.seen and not self.seen[reference.cdata][0].expired():
            return
        self.seen[reference.cdata] = (reference, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    @property
    def live_bytes(self) -> int:
        """Bytes of the storages that something still holds."""
        self.seen = {key: entry for key, entry in self.seen.items() if not entry[0].expired()}
        return sum(size for _, size in self.seen.values())


class SavedForBackward:
    """Count the bytes that autograd saves inside a `with`; parameters are left out, shared storages count once.

    It nests: the outer one counts what the inner one counts. Inputs count where autograd saves them, and so do the
    narrow copies of parameters that autocast makes. What a checkpointed function saves and drops is not seen, nor
    what selective checkpointing caches. `live_bytes` falls when the graph is freed.
    Units:   bytes of whole storages, since a view keeps all of its storage alive.
    """

    active: list["SavedForBackward"] = []  # noqa: RUF012 - shared on purpose: autograd calls the innermost hook only

    def __init__(self, *, excluding: Iterable[Tensor] = ()):
        self.storages = LiveStorages()
        self.excluded = [StorageWeakRef(tensor.untyped_storage()) for tensor in excluding]
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def __enter__(self) -> "SavedForBackward":
        self.hooks.__enter__()
        self.active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self.active.remove(self)
        self.hooks.__exit__(*exception)

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves, here and in every measure around this one."""
        for measure in self.active:
            measure.note(tensor)
        return tensor.detach()  # an operation that saves its own output would hold itself, and never be freed

    def note(self, tensor: Tensor) -> None:
        """Count `tensor` unless it is, or views, a parameter or an excluded tensor."""
        owner = tensor._base if tensor._is_view() and tensor._base is not None else tensor
        address = tensor.untyped_storage()._cdata
        if not isinstance(owner, nn.Parameter) and all(address != other.cdata for other in self.excluded):
            self.storages.add(tensor)

    @property
    def live_bytes(self) -> int:
        """Bytes saved and not yet freed."""
        return self.storages.live_bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes saved at one time so far."""
        return self.storages.peak_bytes


def saved_bytes(f: Callable, *args: object, excluding: Iterable[Tensor] = ()) -> int:
    """Run `f(*args)` and return the bytes that its result keeps alive for the backward pass."""
    with SavedForBackward(excluding=excluding) as saved:
        result = f(*args)
    kept = saved.live_bytes
    del result  # held until here: freeing it frees what was saved
    return kept


class DispatchedStorages(TorchDispatchMode):
    """Count the storages of every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.storages = LiveStorages()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and count what it made."""
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self.storages.add(tensor)
        return result


class PeakBytes:
    """Measure, inside a `with`, the most bytes allocated at one time beyond what was there at its start.

    CUDA: the allocator's own peak. CPU: storages of the tensors that operations return; a kernel's inner scratch
    space is not seen. It nests; inner measures do not disturb outer ones.
    """

    active: list["PeakBytes"] = []  # noqa: RUF012 - shared on purpose: the allocator keeps a single peak

    def __init__(self, *, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.on_cuda = self.device.type == "cuda"
        self.bytes = self.start = self.highest = 0
        self.mode = DispatchedStorages()

    def __enter__(self) -> "PeakBytes":
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
            self.collect()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = self.highest = torch.cuda.memory_allocated(self.device)
        else:
            self.mode.__enter__()
        self.active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
            self.collect()
            self.bytes = self.highest - self.start
        else:
            self.mode.__exit__(*exception)
            self.bytes = self.mode.storages.peak_bytes
        self.active.remove(self)

    def collect(self) -> None:
        """Hand the allocator's present peak to every measure that is under way on this device."""
        peak = torch.cuda.max_memory_allocated(self.device)
        for measure in self.active:
            if measure.device == self.device:
                measure.highest = max(measure.highest, peak)


def synchronize(device: torch.device | str) -> None:
    """Wait until `device` has done what it was asked; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(
    f: Callable[[], object], *, repeats: int = 5, warmup: int = 1, device: torch.device | str = "cpu"
) -> float:
    """Time `f()` `repeats` times after `warmup` unmeasured calls; return the median.

    Units:   milliseconds of wall time.
    Errors:  ValueError if `repeats` is below 1 or `warmup` below 0.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}")
    for _ in range(warmup):
        f()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        f()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@dataclass(frozen=True)
class Provenance:
    """What must stand beside a measured number for someone else to judge it."""

    device: str
    driver: str
    processor: str
    threads: int
    torch: str
    python: str
    qlab: str
    seed: int | None
    date: str


def provenance(*, seed: int | None = None, device: torch.device | str | None = None) -> Provenance:
    """Record machine, versions, `seed` and today's date; `device` is the first CUDA GPU where there is one."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Provenance(
        device=torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen),
        driver=nvidia_driver() if chosen.type == "cuda" else "none",
        processor=processor_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        qlab=qlab.__version__,
        seed=seed,
        date=datetime.date.today().isoformat(),
    )


def processor_name() -> str:
    """Name the CPU as its maker does, or by its architecture where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def nvidia_driver() -> str:
    """Return the version of NVIDIA's driver, or "unknown" where the system does not say."""
    version = Path("/proc/driver/nvidia/version")
    words = version.read_text().split() if version.exists() else []
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "unknown")
