"""Checks of topic 05: outliers found, planted, kept apart, moved into the weights, and spread over all channels."""

from qlab.checks.outliers.choosing import check_choose_remedy
from qlab.checks.outliers.claim import check_decomposition_seconds
from qlab.checks.outliers.decomposition import check_mixed_decomposition_matmul
from qlab.checks.outliers.finding import check_find_outliers
from qlab.checks.outliers.planting import check_plant_outliers
from qlab.checks.outliers.rotation import check_hadamard_transform
from qlab.checks.outliers.smoothing import check_smooth

__all__ = [
    "check_choose_remedy",
    "check_decomposition_seconds",
    "check_find_outliers",
    "check_hadamard_transform",
    "check_mixed_decomposition_matmul",
    "check_plant_outliers",
    "check_smooth",
]
