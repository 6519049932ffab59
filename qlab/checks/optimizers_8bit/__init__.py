"""Checks of topic 09: Adam's step, the dynamic map and its codes, block-wise moments, and an 8-bit Adam."""

from qlab.checks.optimizers_8bit.adam import check_adam_step
from qlab.checks.optimizers_8bit.adam8bit import check_adam8bit
from qlab.checks.optimizers_8bit.maps import check_dynamic_map
from qlab.checks.optimizers_8bit.nearest import check_nearest_codes
from qlab.checks.optimizers_8bit.printed import check_mended_adam
from qlab.checks.optimizers_8bit.state import check_quantize_moments

__all__ = [
    "check_adam8bit",
    "check_adam_step",
    "check_dynamic_map",
    "check_mended_adam",
    "check_nearest_codes",
    "check_quantize_moments",
]
