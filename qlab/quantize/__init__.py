"""Quantization: real numbers as small integers with a scale, at any granularity, and what may be computed on them."""

from qlab.quantize.errors import error_in_steps, sqnr_db
from qlab.quantize.grid import (
    Grid,
    Quantized,
    affine_grid,
    affine_grid_of,
    code_range,
    quantize_affine,
    quantize_symmetric,
    quantize_with,
    symmetric_grid,
    symmetric_grid_of,
    value_range,
)
from qlab.quantize.linear import QuantizedLinear, quantize_linears, replace_linears
from qlab.quantize.products import int8_linear, int8_matmul
from qlab.quantize.tiles import PER_COLUMN, PER_ROW, PER_TENSOR, TILES, Tile, per_block, per_group

__all__ = [
    "PER_COLUMN",
    "PER_ROW",
    "PER_TENSOR",
    "TILES",
    "Grid",
    "Quantized",
    "QuantizedLinear",
    "Tile",
    "affine_grid",
    "affine_grid_of",
    "code_range",
    "error_in_steps",
    "int8_linear",
    "int8_matmul",
    "per_block",
    "per_group",
    "quantize_affine",
    "quantize_linears",
    "quantize_symmetric",
    "quantize_with",
    "replace_linears",
    "sqnr_db",
    "symmetric_grid",
    "symmetric_grid_of",
    "value_range",
]
