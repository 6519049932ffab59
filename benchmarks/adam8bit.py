"""A step of Adam8bit against bitsandbytes' and against torch's 32-bit Adam: time and bytes; `--record` keeps them.

All start from the same parameters and gradients. The first step of each is held to 32-bit Adam's, since no moment has
been rounded before it. On a GPU the peak is what a step takes beyond parameters, gradients and state.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _peer import arguments, keep_recording, medians_ms, report

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes as bnb  # noqa: E402 - the logger must be quiet first

from qlab.attention_triton import INSTALLED, INTERPRETED, triton  # noqa: E402
from qlab.measure import PeakBytes  # noqa: E402
from qlab.optimizers import Adam8bit, state_bytes  # noqa: E402

SEED = 0
COMMAND = "python benchmarks/adam8bit.py --record"
OURS, PEER, WIDE = "this course, Adam8bit", "bitsandbytes, Adam8bit", "torch, Adam in 32 bits"
MAKERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    OURS: Adam8bit,
    PEER: bnb.optim.Adam8bit,
    WIDE: torch.optim.Adam,
}
FARTHEST = {torch.float32: 1e-6, torch.bfloat16: 2**-7}  # of a parameter about 1, one rounding


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """One optimizer on one set of parameters.

    Units:   `ms` is the median of one step, on a CPU of the time that its one thread had;
             `state_bytes` are kept between steps, `peak_bytes` taken during one, on a GPU alone: inside bitsandbytes'
             operations a CPU's are not seen;
             `bytes_per_s` counts parameters and state, read and written, and gradients, read.
    """

    optimizer: str
    parameters: int
    tensors: int
    dtype: str
    ms: float
    state_bytes: int
    state_bytes_per_parameter: float
    peak_bytes: int | None
    bytes_per_s: float


def parameters(count: int, tensors: int, dtype: torch.dtype, device: str) -> list[torch.nn.Parameter]:
    """Draw parameters and their gradients, the same each time."""
    draw = torch.Generator(device).manual_seed(SEED)
    drawn = []
    for _ in range(tensors):
        values, slopes = (torch.randn(count // tensors, generator=draw, device=device).to(dtype) for _ in range(2))
        drawn.append(torch.nn.Parameter(values))
        drawn[-1].grad = slopes * 1e-2
    return drawn


def check(dtype: torch.dtype, device: str) -> None:
    """Hold the first step to that of 32-bit Adam.

    Errors:  SystemExit if it differs by more than a rounding.
    """
    given = parameters(2**16, 2, dtype, device)
    wide = [torch.nn.Parameter(p.detach().float()) for p in given]
    for p, exact in zip(given, wide, strict=True):
        exact.grad = p.grad.float()
    Adam8bit(given).step()
    torch.optim.Adam(wide).step()
    distance = max(((p - exact).abs() / exact.abs().clamp_min(1)).max() for p, exact in zip(given, wide, strict=True))
    if not distance <= FARTHEST[dtype]:
        sys.exit(f"our first step in {dtype} is {distance:.2g} from Adam's: nothing is timed")


def measured(count: int, tensors: int, dtype: torch.dtype, device: str, *, tiny: bool) -> list[StepTiming]:
    """Time one step of each optimizer and print how ours compares."""
    check(dtype, device)
    optimizers, peaks = {}, {}
    for name, make in MAKERS.items():
        optimizers[name] = make(parameters(count, tensors, dtype, device))
        optimizers[name].step()  # makes the state, and tunes
        with PeakBytes(device=device) as peak:
            optimizers[name].step()
        peaks[name] = peak.bytes if device == "cuda" else None
    steps = [optimizer.step for optimizer in optimizers.values()]
    if device == "cuda" and not tiny:
        times = [triton.testing.do_bench(step, warmup=25, rep=300, return_mode="median") for step in steps]
    else:
        times = medians_ms(*steps, repeats=1 if tiny else 9, clock=time.process_time)
    ms = dict(zip(optimizers, times, strict=True))
    what = f"{count:,} parameters in {tensors} tensors, {str(dtype)[6:]}, one step"
    for name in (PEER, WIDE):
        report(what, ours=ms[OURS], peer=ms[name], peer_name=name, target="1" if name == PEER else "none")
    held = {name: state_bytes(optimizer) for name, optimizer in optimizers.items()}
    for name, kept in held.items():
        more = "" if peaks[name] is None else f", and at most {peaks[name] / count:.3f} more during a step"
        print(f"  {name}: {kept / count:.3f} bytes of state a parameter{more}")
    return [
        StepTiming(
            optimizer=name,
            parameters=count,
            tensors=tensors,
            dtype=str(dtype).removeprefix("torch."),
            ms=ms[name],
            state_bytes=held[name],
            state_bytes_per_parameter=held[name] / count,
            peak_bytes=peaks[name],
            bytes_per_s=(3 * count * dtype.itemsize + 2 * held[name]) / (ms[name] / 1e3),
        )
        for name in optimizers
    ]


def main() -> None:
    """Measure, print, and record where asked."""
    options = arguments(__doc__, record=True)
    device = "cuda" if torch.cuda.is_available() and INSTALLED and not INTERPRETED else "cpu"
    if options.tiny:
        sizes = [(2**14, 2)]
    else:
        sizes = [(2**27, 32), (2**27, 1), (2**30, 128)] if device == "cuda" else [(2**20, 8), (2**24, 4)]
    found = []
    for count, tensors in sizes:
        for dtype in FARTHEST:
            found += measured(count, tensors, dtype, device, tiny=options.tiny)
    if options.record:
        part = "gpu" if device == "cuda" else "step_time"
        told = {"bitsandbytes": bnb.__version__}
        keep_recording("09_optimizers_8bit", part, found, command=COMMAND, seed=SEED, device=device, **told)


main()
