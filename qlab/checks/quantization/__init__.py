"""Checks of topic 03: uniform codes, their granularity and cost, and what is computed on them."""

from qlab.checks.quantization.affine import check_quantize_affine
from qlab.checks.quantization.codebook import check_kmeans_codebook
from qlab.checks.quantization.granularity import check_quantize_groups
from qlab.checks.quantization.module import check_quantized_linear
from qlab.checks.quantization.products import check_int8_matmul
from qlab.checks.quantization.snippet import check_quantize_min_max
from qlab.checks.quantization.storage import check_bits_per_weight
from qlab.checks.quantization.symmetric import check_quantize_symmetric

__all__ = [
    "check_bits_per_weight",
    "check_int8_matmul",
    "check_kmeans_codebook",
    "check_quantize_affine",
    "check_quantize_groups",
    "check_quantize_min_max",
    "check_quantize_symmetric",
    "check_quantized_linear",
]
