"""What a training step costs in each precision: time, peak bytes and joules, on one machine in one run."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from qlab.config import COURSE_MODEL, ModelConfig, llama
from qlab.energy import Energy
from qlab.loss_scaling import LossScaler, StaticScaler, training_step
from qlab.measure import PeakBytes, median_ms
from qlab.model import Decoder
from qlab.scoring import bits_per_token

# large enough to be bound by its products
GPU_MODEL = llama("0.6 billion, bytes", shape=(12, 2048, 16, 16), ffn_width=5632, vocabulary=256, sequence=2048)


@dataclass(frozen=True)
class StepCost:
    """What one training step takes.

    Units:   `joules` of one step, None where the machine cannot tell.
    """

    precision: str
    parameters: int
    tokens: int
    step_ms: float
    tokens_per_s: float
    peak_bytes: int
    joules: float | None
    joules_source: str


PRECISIONS = {"FP32": None, "TF32": None, "FP16 with loss scaling": torch.float16, "BF16": torch.bfloat16}


def step_cost(device: torch.device | str, *, tiny: bool = False, repeats: int = 10) -> list[StepCost]:
    """Measure a step of Adam in FP32, FP32 by TF32 products, FP16 with loss scaling and BF16, the last two by autocast.

    The model has 0.6 billion parameters, or is the course's own if `tiny`. A CPU has no TF32, and its narrow products
    may be slow: the figures say what they are, not what a GPU's would be.
    Units:   as in `StepCost`; times are medians.
    """
    config, batch, sequence = (COURSE_MODEL, 1, 16) if tiny else (GPU_MODEL, 4, 2048)
    tokens = torch.randint(256, (batch, sequence + 1), device=device, generator=torch.Generator(device).manual_seed(0))
    found = []
    for name, dtype in PRECISIONS.items():
        with _products_in_tf32(name == "TF32"):
            found.append(_cost(name, dtype, config, tokens, repeats=1 if tiny else repeats))
    return found


def _cost(name: str, dtype: torch.dtype | None, config: ModelConfig, tokens: torch.Tensor, *, repeats: int) -> StepCost:
    torch.manual_seed(0)
    device = tokens.device
    model = Decoder(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    scaler = LossScaler() if dtype == torch.float16 else StaticScaler(1.0)

    def arithmetic() -> AbstractContextManager:
        return torch.autocast(device.type, dtype) if dtype else nullcontext()

    def step() -> None:
        with arithmetic():
            loss = bits_per_token(model(tokens[:, :-1]), tokens[:, 1:]).mean() * math.log(2)
        training_step(loss, model.parameters(), optimizer, scaler=scaler, max_norm=1.0)

    step()  # the first step makes the optimizer's states
    with PeakBytes(device=device) as peak:
        step()
    resident = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with Energy(device=device) as energy:
        milliseconds = median_ms(step, repeats=repeats, warmup=0, device=device)
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return StepCost(
        precision=name,
        parameters=sum(p.numel() for p in model.parameters()),
        tokens=count,
        step_ms=milliseconds,
        tokens_per_s=1e3 * count / milliseconds,
        peak_bytes=resident + peak.bytes,
        joules=energy.joules_each(repeats),
        joules_source=energy.source,
    )


@contextmanager
def _products_in_tf32(allowed: bool) -> Iterator[None]:
    """Let CUDA's FP32 products round their inputs to TF32, or not; the setting before is restored."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
