"""Checks of topic 02: counting parameters, states and saved tensors, and what fits into a budget."""

from qlab.checks.memory.activations import check_activation_bytes
from qlab.checks.memory.batches import check_largest_batch
from qlab.checks.memory.placement import check_first_fit
from qlab.checks.memory.saving import check_count_saved_bytes
from qlab.checks.memory.shapes import check_count_parameters
from qlab.checks.memory.states import check_model_state_bytes
from qlab.checks.memory.weights import check_weight_gib

__all__ = [
    "check_activation_bytes",
    "check_count_parameters",
    "check_count_saved_bytes",
    "check_first_fit",
    "check_largest_batch",
    "check_model_state_bytes",
    "check_weight_gib",
]
