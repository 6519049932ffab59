"""Checks of topic 11: weights, units and models that go, teachers that help, and models that are averaged."""

from qlab.checks.smaller_models.distilling import check_distillation_loss
from qlab.checks.smaller_models.global_pruning import check_global_masks
from qlab.checks.smaller_models.greedy import check_greedy_soup
from qlab.checks.smaller_models.soups import check_uniform_soup
from qlab.checks.smaller_models.stored import check_stored_bytes
from qlab.checks.smaller_models.ticket import check_find_ticket
from qlab.checks.smaller_models.two_four import check_two_four
from qlab.checks.smaller_models.units import check_remove_units

__all__ = [
    "check_distillation_loss",
    "check_find_ticket",
    "check_global_masks",
    "check_greedy_soup",
    "check_remove_units",
    "check_stored_bytes",
    "check_two_four",
    "check_uniform_soup",
]
