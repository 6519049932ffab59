"""Codebooks: codes whose levels are not evenly spaced, known in advance or fitted, and tensors coded block by block."""

from qlab.codebooks.blockwise import BlockwiseCodes, quantize_blockwise
from qlab.codebooks.double_quantized import DoublyQuantizedCodes, double_quantize
from qlab.codebooks.fitted import kmeans_codebook, quantile_codebook
from qlab.codebooks.maps import FP4, NF4, dynamic_map, format_map, linear_map, normal_map
from qlab.codebooks.nearest import nearest_codes

__all__ = [
    "FP4",
    "NF4",
    "BlockwiseCodes",
    "DoublyQuantizedCodes",
    "double_quantize",
    "dynamic_map",
    "format_map",
    "kmeans_codebook",
    "linear_map",
    "nearest_codes",
    "normal_map",
    "quantile_codebook",
    "quantize_blockwise",
]
