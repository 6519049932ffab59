"""Peak bytes and step time with and without checkpointing as the batch grows until memory ends; `--record` keeps it."""

import gc
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from _peer import arguments, keep_recording
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from qlab.checkpointing import checkpoint, checkpoint_selectively, segmented
from qlab.config import COURSE_MODEL, ModelConfig, count_parameters
from qlab.measure import PeakBytes, median_ms
from qlab.model import Decoder, run_plainly
from qlab.scoring import bits_per_token

SEED = 0
COMMAND = "python benchmarks/checkpoint_memory.py --record"
KEPT, EACH, ROOT, SELECTIVE, TORCH = (
    "everything kept",
    "each layer checkpointed",
    "√n segments",
    "each layer, products kept",
    "each layer, torch.utils.checkpoint",
)
FEW = 64  # sequences: a step of more takes seconds, and one is timed
REFINEMENTS = 3  # halvings between the last batch that fits and the first that does not
LARGE = replace(COURSE_MODEL, name="deep", layers=24, width=1024, heads=16, kv_heads=16, ffn_width=2816, sequence=1024)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step of one way of keeping activations; None where the batch does not fit."""

    way: str
    batch: int
    sequence: int
    parameters: int
    peak_bytes: int | None
    step_ms: float | None


def ways(config: ModelConfig) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Return the ways to run the same model."""
    run_with = {KEPT: run_plainly, EACH: checkpoint, SELECTIVE: checkpoint_selectively}
    run_with[TORCH] = partial(torch_checkpoint, use_reentrant=False)
    each = {name: partial(segmented, segments=config.layers, run=run) for name, run in run_with.items()}
    return each | {ROOT: partial(segmented, segments=math.isqrt(config.layers))}


def measured(config: ModelConfig, way: str, batch: int, *, device: str, repeats: int) -> Step:
    """Take a few training steps in BF16 autocast on random bytes; everything the device holds counts for the peak."""
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    torch.manual_seed(SEED)
    with torch.device(device):
        model = Decoder(config)
        text = torch.randint(256, (batch, config.sequence + 1))
    network = ways(config)[way](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = network(text[:, :-1])
        bits_per_token(logits, text[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimizer makes its states, the libraries their workspaces
    held = torch.cuda.memory_allocated() - before if device == "cuda" else 16 * count_parameters(config)
    with PeakBytes(device=device) as peak:
        step()
    ms = median_ms(step, repeats=repeats if batch <= FEW else 1, warmup=0, device=device)
    return Step(
        way=way,
        batch=batch,
        sequence=config.sequence,
        parameters=count_parameters(config),
        peak_bytes=held + peak.bytes,
        step_ms=ms,
    )


def attempted(config: ModelConfig, way: str, batch: int, *, device: str, repeats: int) -> Step:
    """Measure a batch, or say that it does not fit."""
    gc.collect()
    try:
        found = measured(config, way, batch, device=device, repeats=repeats)
    except torch.OutOfMemoryError:
        found = Step(
            way=way,
            batch=batch,
            sequence=config.sequence,
            parameters=count_parameters(config),
            peak_bytes=None,
            step_ms=None,
        )
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    said = "does not fit" if found.peak_bytes is None else f"{found.peak_bytes:,} bytes, {found.step_ms:.1f} ms"
    print(f"{way}, batch {batch}: {said}", flush=True)
    return found


def until_memory_ends(config: ModelConfig, way: str, *, device: str) -> Iterator[Step]:
    """Double the batch until it no longer fits, then close in on the largest that does."""
    fits, batch = 0, 1
    while (step := attempted(config, way, batch, device=device, repeats=5)).peak_bytes is not None:
        yield step
        fits, batch = batch, 2 * batch
    yield step
    for _ in range(REFINEMENTS):
        middle = (fits + batch) // 2
        if middle in (fits, batch):
            return
        step = attempted(config, way, middle, device=device, repeats=5)
        yield step
        fits, batch = (fits, middle) if step.peak_bytes is None else (middle, batch)


def summarize(steps: list[Step]) -> None:
    """Print, against everything kept and against PyTorch's own, what checkpointing saves and costs."""
    by_way: dict[str, dict[int, Step]] = {}
    for step in steps:
        if step.peak_bytes is not None:
            by_way.setdefault(step.way, {})[step.batch] = step
    for way, found in by_way.items():
        for peer in (KEPT, TORCH):
            if way == peer or peer not in by_way:
                continue
            batch = max(found.keys() & by_way[peer].keys())
            ours, theirs = found[batch], by_way[peer][batch]
            print(
                f"{way} at batch {batch}: {ours.peak_bytes / theirs.peak_bytes:.3f} of the bytes and "
                f"{ours.step_ms / theirs.step_ms:.3f} of the time of {peer}; largest batch {max(found)}, "
                f"{max(by_way[peer])} there"
            )


def main() -> None:
    """Grow the batch: on a GPU until its memory ends, on a CPU a few times."""
    options = arguments(__doc__, record=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.record and device == "cpu":
        sys.exit("nothing recorded: this machine has no CUDA GPU, and the lesson measures CPUs itself")
    if options.record and options.tiny:
        sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
    if device == "cuda" and not options.tiny:
        steps = [step for way in ways(LARGE) for step in until_memory_ends(LARGE, way, device=device)]
    else:
        config = replace(COURSE_MODEL, layers=4 if options.tiny else 16, sequence=32 if options.tiny else 256)
        batches, repeats = ((1, 2), 1) if options.tiny else ((1, 2, 4), 5)
        steps = [
            attempted(config, way, batch, device=device, repeats=repeats) for way in ways(config) for batch in batches
        ]
    summarize(steps)
    if options.record:
        keep_recording("07_checkpointing", "gpu", steps, command=COMMAND, seed=SEED, device=device)


if __name__ == "__main__":
    main()
