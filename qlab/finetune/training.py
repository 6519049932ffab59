"""The loop: windows in seeded order, the mean over all tokens of a step, AdamW on the adapters alone."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn

from qlab.finetune.data import IGNORED, Windows
from qlab.finetune.load import evaluating, trained
from qlab.finetune.settings import Settings
from qlab.finetune.skeleton import summed_nats

WARMUP_SHARE = 0.03
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Quality:
    """What a held-out text costs.

    Units:   natural logarithms for each token, and bits for each byte of its UTF-8.
    """

    nats_per_token: float
    bits_per_byte: float


@dataclass
class Interrupt:
    """Whether somebody asked the loop to stop."""

    asked: bool = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, so that the step under way ends well; a second one stops at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn Ctrl-C and SIGTERM into a note while a loop runs; signals reach the main thread alone."""
    note = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield note
        return
    before = {number: signal.signal(number, note.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield note
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Trainer:
    """A model, its optimizer, and how far they are; `step()` is the whole of the training.

    Errors:  ValueError from `step` if a loss is NaN or infinite.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    windows: Windows
    settings: Settings
    micro_batch: int
    losses: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def step(self) -> float:
        """Take one step and return its loss in nats per token."""
        rows = window_order(len(self.windows), self.settings, self.done)
        device = next(self.model.parameters()).device
        inputs, targets = self.windows.inputs[rows].to(device), self.windows.targets[rows].to(device)
        learned, total = int((targets != IGNORED).sum()), 0.0
        for x, y in zip(inputs.split(self.micro_batch), targets.split(self.micro_batch), strict=True):
            loss = summed_nats(self.model, x, y) / learned
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise ValueError(f"the loss must stay finite, got {total} at step {self.done + 1}: lower --learning-rate")
        torch.nn.utils.clip_grad_norm_(trained(self.model).values(), GRADIENT_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.done)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(total)
        return total


def window_order(count: int, settings: Settings, step: int) -> list[int]:
    """Return which windows a step reads: all of them in a seeded order, then all again in another.

    It follows from the step alone, so that a resumed run reads what the killed one would have.
    """
    rows = []
    for place in range(step * settings.batch, (step + 1) * settings.batch):
        turn, index = divmod(place, count)
        if not rows or index == 0:
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + turn)
            order = torch.randperm(count, generator=generator).tolist()
        rows.append(order[index])
    return rows


def learning_rate(settings: Settings, step: int) -> float:
    """Return the learning rate of a step: a short rise, then a straight fall to zero."""
    warmup = max(1, round(WARMUP_SHARE * settings.steps))
    rising, falling = (step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup + 1)
    return settings.learning_rate * min(1.0, rising, falling)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return AdamW on the adapters, its moments in FP32 or, as `qlab.optimizers` keeps them, in 8 bits."""
    parameters = list(trained(model).values())
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    from qlab.optimizers import AdamW8bit  # noqa: PLC0415 - only for those who ask for it

    return AdamW8bit(parameters, lr=settings.learning_rate, weight_decay=0.0)


@torch.no_grad()
def quality(model: nn.Module, held_out: Windows, *, micro_batch: int) -> Quality:
    """Measure what the held-out windows cost."""
    device = next(model.parameters()).device
    pairs = zip(held_out.inputs.split(micro_batch), held_out.targets.split(micro_batch), strict=True)
    with evaluating(model):
        nats = sum(summed_nats(model, x.to(device), y.to(device)).item() for x, y in pairs)
    per_token = nats / int((held_out.targets != IGNORED).sum())
    return Quality(per_token, per_token / math.log(2) / held_out.bytes_per_target)


def shown_quality(found: dict[str, Any] | Quality) -> str:
    """Write a quality in both its units."""
    q = found if isinstance(found, Quality) else Quality(**found)
    return f"{q.nats_per_token:.4f} nats per token, {q.bits_per_byte:.4f} bits per byte"
