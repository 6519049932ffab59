"""Checks of topic 04: observers and clips, static and dynamic layers, and training that sees its rounding."""

from qlab.checks.calibration.clip import check_mse_clip
from qlab.checks.calibration.dynamic import check_dynamic_linear
from qlab.checks.calibration.moving_average import check_moving_average_range
from qlab.checks.calibration.percentile import check_percentile_range
from qlab.checks.calibration.prepared import check_prepare_for_qat
from qlab.checks.calibration.static import check_static_linear

__all__ = [
    "check_dynamic_linear",
    "check_moving_average_range",
    "check_mse_clip",
    "check_percentile_range",
    "check_prepare_for_qat",
    "check_static_linear",
]
