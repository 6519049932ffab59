"""What a fine-tuning run is asked for, refused at the border if it cannot be done."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

ALL_LINEAR = "all-linear"
LORA, QLORA = "lora", "qlora"
WAYS = {LORA: "LoRA beside 16-bit weights", QLORA: "LoRA beside 4-bit weights (NF4, double quantization)"}
OPTIMIZERS = ("adamw", "adamw8bit")
LEAST = {"rank": 1, "batch": 1, "sequence": 2, "steps": 1, "save_every": 1, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides what a run computes, apart from the device and its budget.

    Units:   `batch` is in sequences a step, `sequence` in tokens, `save_every` in steps.
    Errors:  ValueError that names the setting and its value.
    """

    model: str
    data: Path
    way: str = "auto"
    targets: str = ALL_LINEAR
    rank: int = 16
    alpha: int | float = 32
    dropout: int | float = 0.0
    steps: int = 100
    batch: int = 8
    sequence: int = 512
    learning_rate: int | float = 2e-4  # Dettmers et al. 2023, arXiv:2305.14314, appendix B.2, for 7 B and 13 B
    optimizer: str = "adamw"
    save_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError(f"model must be a folder or a Hub id, got {self.model!r}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("alpha", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, known in (("way", ("auto", *WAYS)), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        try:
            re.compile(self.targets)
        except re.error as error:
            message = f"targets must be {ALL_LINEAR} or a regular expression, got {self.targets!r}: {error}"
            raise ValueError(message) from None

    def as_record(self) -> dict[str, object]:
        """Return the settings as plain values, `data` by its name alone: its content is hashed elsewhere."""
        return asdict(self) | {"data": self.data.name}
