"""Checks of topic 05: outliers found, planted, kept apart, moved into the weights, and spread over all channels."""

from qlab.checks.outliers.decomposition import check_mixed_decomposition_matmul

__all__ = [
    "check_mixed_decomposition_matmul",
]
