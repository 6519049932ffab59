"""Outliers: the few dimensions that stretch every scale; how to find them, plant them, and live with them."""

from qlab.outliers.finding import COURSE_MODEL_RULE, PAPER_RULE, OutlierRule, find_outliers, plant_outliers
from qlab.outliers.maps import OutlierMap, map_outliers
from qlab.outliers.on_disk import outlier_map
from qlab.outliers.readers import NormWithReaders, divide_channels, norm_outputs, norms_with_readers
from qlab.outliers.remedies import (
    Decomposed,
    decomposed_int8_linear,
    hadamard_transform,
    mixed_decomposition_matmul,
    smooth,
    smoothing_scales,
)
from qlab.outliers.trials import REMEDIES, apply_remedy, clipped, decomposed, rotated, rounded, smoothed

__all__ = [
    "COURSE_MODEL_RULE",
    "PAPER_RULE",
    "REMEDIES",
    "Decomposed",
    "NormWithReaders",
    "OutlierMap",
    "OutlierRule",
    "apply_remedy",
    "clipped",
    "decomposed",
    "decomposed_int8_linear",
    "divide_channels",
    "find_outliers",
    "hadamard_transform",
    "map_outliers",
    "mixed_decomposition_matmul",
    "norm_outputs",
    "norms_with_readers",
    "outlier_map",
    "plant_outliers",
    "rotated",
    "rounded",
    "smooth",
    "smoothed",
    "smoothing_scales",
]
