"""4-bit weights on a CUDA GPU, in Triton: dequantized, and multiplied straight from their codes.

`dequantize` and `products` hold the kernels, `linear` chooses among them, `border` says what they accept: the codes of
`qlab.codebooks`, doubly quantized or not. Without a GPU the kernels run in Triton's interpreter, without Triton not.
"""

from qlab.codebooks_triton.border import accepts
from qlab.codebooks_triton.dequantize import dequantize_4bit
from qlab.codebooks_triton.linear import linear_4bit, linear_4bit_backward

__all__ = ["accepts", "dequantize_4bit", "linear_4bit", "linear_4bit_backward"]
