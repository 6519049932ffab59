"""Checks of topic 06: underflow counted, a loss scaler and its step, master weights, a cast policy, and a run."""

from qlab.checks.mixed_precision.clip_order import check_clip_order
from qlab.checks.mixed_precision.halving import check_training_bytes
from qlab.checks.mixed_precision.masters import check_master_weights
from qlab.checks.mixed_precision.policy import check_cast_policy
from qlab.checks.mixed_precision.run import check_train_fp16
from qlab.checks.mixed_precision.scaler import check_loss_scaler
from qlab.checks.mixed_precision.step import check_training_step
from qlab.checks.mixed_precision.underflow import check_underflow_fraction

__all__ = [
    "check_cast_policy",
    "check_clip_order",
    "check_loss_scaler",
    "check_master_weights",
    "check_train_fp16",
    "check_training_bytes",
    "check_training_step",
    "check_underflow_fraction",
]
