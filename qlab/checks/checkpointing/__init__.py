"""Checks of topic 07: activations computed again, schedules and their price, and batches taken in pieces."""

from qlab.checks.checkpointing.accumulating import check_accumulate
from qlab.checks.checkpointing.choosing import check_choose_segments
from qlab.checks.checkpointing.factor import check_predict_factor
from qlab.checks.checkpointing.loop import check_accumulation_step
from qlab.checks.checkpointing.running import check_checkpoint
from qlab.checks.checkpointing.simulating import check_simulate_schedule

__all__ = [
    "check_accumulate",
    "check_accumulation_step",
    "check_checkpoint",
    "check_choose_segments",
    "check_predict_factor",
    "check_simulate_schedule",
]
