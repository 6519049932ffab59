"""Checkpointing and accumulation: run a function again instead of keeping what it saved, and add up micro-batches."""

from qlab.checkpointing.accumulation import accumulate
from qlab.checkpointing.replay import Replay, checkpoint
from qlab.checkpointing.schedules import (
    Action,
    Moment,
    Schedule,
    Timeline,
    best_split,
    binomial,
    even_segments,
    fewest_runs,
    in_segments,
    keep_all,
    keep_none,
    simulate,
)
from qlab.checkpointing.segments import (
    FUSED_ATTENTION,
    MATRIX_PRODUCTS,
    checkpoint_binomially,
    checkpoint_segments,
    checkpoint_selectively,
    segmented,
)

__all__ = [
    "FUSED_ATTENTION",
    "MATRIX_PRODUCTS",
    "Action",
    "Moment",
    "Replay",
    "Schedule",
    "Timeline",
    "accumulate",
    "best_split",
    "binomial",
    "checkpoint",
    "checkpoint_binomially",
    "checkpoint_segments",
    "checkpoint_selectively",
    "even_segments",
    "fewest_runs",
    "in_segments",
    "keep_all",
    "keep_none",
    "segmented",
    "simulate",
]
