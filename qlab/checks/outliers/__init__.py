"""Checks of topic 05: outliers found, planted, kept apart, moved into the weights, and spread over all channels."""

from qlab.checks.outliers.decomposition import check_mixed_decomposition_matmul
from qlab.checks.outliers.finding import check_find_outliers
from qlab.checks.outliers.planting import check_plant_outliers
from qlab.checks.outliers.smoothing import check_smooth

__all__ = [
    "check_find_outliers",
    "check_mixed_decomposition_matmul",
    "check_plant_outliers",
    "check_smooth",
]
