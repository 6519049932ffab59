"""Checks of topic 04: observers and clips, static and dynamic layers, and training that sees its rounding."""

from qlab.checks.calibration.clip import check_mse_clip
from qlab.checks.calibration.dynamic import check_dynamic_linear
from qlab.checks.calibration.moving_average import check_moving_average_range
from qlab.checks.calibration.percentile import check_percentile_range
from qlab.checks.calibration.prepared import check_prepare_for_qat
from qlab.checks.calibration.repairs import check_repairs
from qlab.checks.calibration.rounding_gradient import check_fake_quantize
from qlab.checks.calibration.static import check_static_linear
from qlab.checks.calibration.training import check_train_3_bits

__all__ = [
    "check_dynamic_linear",
    "check_fake_quantize",
    "check_moving_average_range",
    "check_mse_clip",
    "check_percentile_range",
    "check_prepare_for_qat",
    "check_repairs",
    "check_static_linear",
    "check_train_3_bits",
]
