"""Checks of topic 03: uniform codes, their granularity and cost, and what is computed on them."""

from qlab.checks.quantization.affine import check_quantize_affine

__all__ = [
    "check_quantize_affine",
]
