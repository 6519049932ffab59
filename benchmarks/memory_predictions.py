"""Predicted against measured bytes: activations on the CPU, and the peak of a step; `--record` keeps a GPU's."""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from _peer import arguments, keep_recording

from qlab.activations import BF16, BF16_AUTOCAST, FP32, Run, activation_bytes
from qlab.budget import training_bill
from qlab.config import COURSE_MODEL, GPT2_XL, ModelConfig, count_parameters, llama
from qlab.measure import PeakBytes, saved_bytes
from qlab.memory import FP32_ADAM, GB, Recipe
from qlab.model import Decoder, run_checkpointed, run_plainly
from qlab.scoring import bits_per_token

SEED = 0
COMMAND = "python benchmarks/memory_predictions.py --record"
ACTIVATIONS_TARGET, PEAK_TARGET = 0.05, 0.10
FEWEST_RECORDED = 12
SHARE_OF_MEMORY = 0.9  # the rest is for blocks that the allocator keeps and cannot use
PLAIN_BF16_ADAM = replace(
    FP32_ADAM, name="bf16-adam", matrix_bytes=2, other_bytes=2, gradient_bytes=2, optimizer_bytes=4
)
STEPS = ((FP32, FP32_ADAM), (BF16_AUTOCAST, FP32_ADAM), (BF16, PLAIN_BF16_ADAM))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One configuration: what was predicted, what was measured, and measured over predicted."""

    name: str
    parameters: int
    recipe: str
    precision: str
    checkpointed: bool
    batch: int
    sequence: int
    predicted_bytes: int
    measured_bytes: int
    ratio: float


def course_shapes(*, tiny: bool) -> dict[str, ModelConfig]:
    """Vary depth, width, grouping and the kind of layer of the course model."""
    course = replace(COURSE_MODEL, sequence=64 if tiny else 256)
    narrow = replace(course, name="narrow", width=128, ffn_width=352)
    gpt2 = {"norm": "layernorm", "positions": "learned", "gated": False, "biases": True, "tied_embeddings": False}
    shapes = [
        course,
        narrow,
        replace(course, name="wide", width=384, heads=6, kv_heads=6, ffn_width=1024),
        replace(narrow, name="deep", layers=8),
        replace(course, name="grouped", kv_heads=1),
        replace(course, name="gpt2-like", ffn_width=1024, **gpt2),
    ]
    return {config.name: config for config in (shapes[1:2] if tiny else shapes)}


def gpu_shapes() -> dict[str, ModelConfig]:
    """Decoders from 124 million to a billion parameters."""
    small = replace(GPT2_XL, name="gpt2-small", layers=12, width=768, heads=12, kv_heads=12, ffn_width=3072)
    medium = replace(GPT2_XL, name="gpt2-medium", layers=24, width=1024, heads=16, kv_heads=16, ffn_width=4096)
    billion = llama("llama-1b", shape=(16, 2048, 16, 16), ffn_width=5632, vocabulary=32000, sequence=1024)
    grouped = llama("llama-grouped", shape=(12, 1024, 16, 4), ffn_width=2816, vocabulary=32000, sequence=1024)
    return {config.name: config for config in (small, medium, grouped, billion)}


def training_step(config: ModelConfig, run: Run, device: str) -> tuple[Decoder, Callable[[], torch.Tensor]]:
    """Build a decoder on `device` and the loss of one batch of random tokens."""
    torch.manual_seed(SEED)
    run_layer = run_checkpointed if run.checkpointed else run_plainly
    with torch.device(device):
        decoder = Decoder(config, run_layer=run_layer)
        inputs, targets = torch.randint(0, config.vocabulary, (2, run.batch, run.sequence)).unbind()
    decoder = decoder.bfloat16() if run.precision == BF16 else decoder

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=run.precision.casts):
            logits = decoder(inputs)
        return bits_per_token(logits, targets).mean()

    return decoder, loss


def compare_activations(config: ModelConfig, recipe: Recipe, run: Run, device: str) -> Comparison:
    """Compare the bytes that autograd saves in one forward pass."""
    measured = saved_bytes(training_step(config, run, device)[1])
    return compared(config, recipe, run, predicted=activation_bytes(config, run).total, measured=measured)


def compare_peaks(config: ModelConfig, recipe: Recipe, run: Run, device: str) -> Comparison:
    """Compare the most that is allocated during a step, weights and optimizer among it.

    On CUDA the measured figure is `max_memory_allocated` of the second step; what the device held before the model
    was made (workspaces of earlier configurations) is taken off.
    """
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    decoder, loss = training_step(config, run, device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimizer makes its states, the libraries their workspaces
    held = torch.cuda.memory_allocated() - before if device == "cuda" else held_bytes(decoder, optimizer)
    with PeakBytes(device=device) as peak:
        step()
    return compared(config, recipe, run, predicted=training_bill(config, recipe, run).peak, measured=held + peak.bytes)


def held_bytes(decoder: Decoder, optimizer: torch.optim.Optimizer) -> int:
    """Sum what stays from step to step: weights, tables, and the optimizer's states."""
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in (*decoder.parameters(), *decoder.buffers(), *states))


def compared(config: ModelConfig, recipe: Recipe, run: Run, *, predicted: int, measured: int) -> Comparison:
    """Name the configuration and set the two figures side by side."""
    kept = "checkpointed" if run.checkpointed else "kept"
    name = f"{config.name}, {run.precision.name}, {kept}, batch {run.batch}, sequence {run.sequence}"
    return Comparison(
        name=name,
        parameters=count_parameters(config),
        recipe=recipe.name,
        precision=run.precision.name,
        checkpointed=run.checkpointed,
        batch=run.batch,
        sequence=run.sequence,
        predicted_bytes=predicted,
        measured_bytes=measured,
        ratio=measured / predicted,
    )


def sweep(compare: Callable[..., Comparison], shapes: dict, loads: list, *, device: str) -> list[Comparison]:
    """Compare every shape in every precision, with and without checkpointing, under every load that fits."""
    room = SHARE_OF_MEMORY * torch.cuda.mem_get_info()[0] if device == "cuda" else float("inf")
    found = []
    for config, (precision, recipe), checkpointed, (batch, sequence) in product(
        shapes.values(), STEPS, (False, True), loads
    ):
        run = Run(batch=batch, sequence=sequence, precision=precision, checkpointed=checkpointed)
        needed = training_bill(config, recipe, run).peak
        if needed > room:
            print(f"{config.name}, {precision.name}, batch {batch}: left out, {needed / GB:.1f} GB do not fit here")
            continue
        found.append(compare(config, recipe, run, device))
        one = found[-1]
        print(f"{one.name}: {one.predicted_bytes:,} predicted, {one.measured_bytes:,} measured, ratio {one.ratio:.4f}")
        gc.collect()  # the next one starts from an empty device
    return found


def summarize(what: str, found: list[Comparison], *, target: float) -> None:
    """Print the worst gap of all configurations."""
    worst = max(found, key=lambda one: abs(one.ratio - 1))
    print(
        f"{what}: {len(found)} configurations, the worst gap is {worst.ratio - 1:+.2%} ({worst.name});"
        f" target: at most {target:.0%}"
    )


def main() -> None:
    """Compare on the CPU what autograd saves, and on the best device the peak of a step."""
    options = arguments(__doc__, record=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.record and device == "cpu":
        sys.exit("nothing recorded: this machine has no CUDA GPU, and the lesson measures CPUs itself")
    if options.record and options.tiny:
        sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
    small = course_shapes(tiny=options.tiny)
    saved = sweep(
        compare_activations, small, [(2, 16)] if options.tiny else [(1, 256), (4, 64), (3, 100)], device="cpu"
    )
    summarize("activations on cpu", saved, target=ACTIVATIONS_TARGET)
    large = device == "cuda" and not options.tiny
    loads = [(1, 1024), (8, 1024)] if large else [(2, 16)] if options.tiny else [(3, 64)]
    peaks = sweep(compare_peaks, gpu_shapes() if large else small, loads, device=device)
    summarize(f"peak of a step on {device}", peaks, target=PEAK_TARGET)
    if options.record and len(peaks) < FEWEST_RECORDED:
        sys.exit(f"nothing recorded: {len(peaks)} configurations fit, at least {FEWEST_RECORDED} are needed")
    if options.record:
        keep_recording("02_memory", "gpu", peaks, command=COMMAND, seed=SEED, device="cuda", target=PEAK_TARGET)


if __name__ == "__main__":
    main()
