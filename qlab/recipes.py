"""The recipe of a short training run on text: how long, on how much at a time, and how fast."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """How long, on how much text at a time, and how fast; the rate falls to zero in a straight line.

    Units:   `sequence` is in bytes; `max_norm` is the longest gradient that is not clipped.
    Errors:  ValueError if a count is below 1, `learning_rate` is not above 0 and finite, or `max_norm` not above 0.
    """

    steps: int = 40
    batch: int = 4
    sequence: int = 128
    learning_rate: float = 3e-4
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "sequence"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {self.max_norm}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, the first being 0."""
        return self.learning_rate * (1 - step / self.steps)

    def batches(self, text: UInt8[Tensor, " n"]) -> Iterator[Int[Tensor, "batch longer"]]:
        """Return each step's windows of `text` and the byte after each; the same recipe draws the same ones.

        Errors:  ValueError if `text` is too short for one window.
        """
        if len(text) <= self.sequence:
            raise ValueError(f"a window of {self.sequence} needs at least {self.sequence + 1} bytes, got {len(text)}")
        generator = torch.Generator().manual_seed(self.seed)
        return (self._windows(text, generator) for _ in range(self.steps))

    def _windows(self, text: Tensor, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(text) - self.sequence, (self.batch,), generator=generator)
        return torch.stack([text[s : s + self.sequence + 1] for s in starts.tolist()]).long()
