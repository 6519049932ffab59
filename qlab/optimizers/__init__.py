"""Optimizers: Adam from the paper, and Adam that keeps its moments in 8-bit codes."""

from qlab.optimizers.adam import adam_update, momentum_update, sgd_update
from qlab.optimizers.adam8bit import Adam8bit, AdamW8bit
from qlab.optimizers.mapped import MappedAdam
from qlab.optimizers.moments import QuantizedMoment, state_bytes

__all__ = [
    "Adam8bit",
    "AdamW8bit",
    "MappedAdam",
    "QuantizedMoment",
    "adam_update",
    "momentum_update",
    "sgd_update",
    "state_bytes",
]
