"""Linear layers in fewer bits on a real device: time and error of floats, of int8 codes, and of 4-bit weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.measure import median_ms
from qlab.quantize import PER_ROW, QuantizedLinear, int8_linear, per_group, quantize_symmetric

GROUP_SIZE = 64
INNER_K_TILES = 8  # of the packed layout of PyTorch's CUDA kernel; any that divides K / 16 is right
FEWEST_TOKENS_OF_INT_MM = 17  # on CUDA, torch._int_mm wants more than 16 rows


@dataclass(frozen=True)
class LinearTiming:
    """One way to compute a square linear layer, at one number of tokens.

    Units:   `microseconds` is a median; `relative_error` is the Frobenius norm of the error over that of the FP64
             result.
    """

    name: str
    tokens: int
    microseconds: float
    relative_error: float


def measure_linears(
    *, width: int, tokens: tuple[int, ...] = (1, 256), device: str = "cuda", seed: int = 0, repeats: int = 30
) -> list[LinearTiming]:
    """Time every way at every number of tokens, each checked against the product in FP64.

    Errors:  ValueError if `width` is no multiple of 128, which the packed layouts want, or a number of tokens is
             below 1.
    """
    if width % 128 or width < 128:
        raise ValueError(f"width must be a multiple of 128, got {width}")
    if tokens and min(tokens) < 1:
        raise ValueError(f"tokens must be at least 1, got {min(tokens)}")
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(width, width, generator=draw) / width**0.5).to(device)
    found = []
    for count in tokens:
        x = torch.randn(count, width, generator=draw).to(device, torch.bfloat16)
        exact = x.double() @ weight.double().T
        for name, way in _ways(weight).items():
            if name.startswith("int8") and x.is_cuda and count < FEWEST_TOKENS_OF_INT_MM:
                continue
            error = ((way(x).double() - exact).norm() / exact.norm()).item()
            milliseconds = median_ms(lambda way=way, x=x: way(x), repeats=repeats, device=device)
            found.append(LinearTiming(name, count, 1e3 * milliseconds, error))
    return found


def _ways(weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    bf16 = weight.bfloat16()
    int8 = quantize_symmetric(weight, bits=8, tile=PER_ROW)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    unpacked = QuantizedLinear.from_linear(linear, bits=4, tile=per_group(GROUP_SIZE))
    return {
        "FP32": lambda x: x.float() @ weight.T,
        "BF16": lambda x: x @ bf16.T,
        "int8 codes, scales found on the spot": lambda x: int8_linear(x, int8),
        "4-bit weights, dequantized at each call": unpacked,
        "4-bit weights, PyTorch's fused kernel": fused_int4_linear(weight),
    }


def fused_int4_linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Pack `weight` for PyTorch's weight-only kernel, which unpacks 4-bit codes inside its inner loop.

    The kernel takes a value for (code - 8) * scale + zero, with codes 0 to 15; symmetric codes have a zero of 0.
    """
    quantized = quantize_symmetric(weight, bits=4, tile=per_group(GROUP_SIZE))
    codes = quantized.codes.int() + 8
    scales = quantized.scale.T.contiguous().bfloat16()
    constants = torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()
    if weight.is_cuda:
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_K_TILES)
        return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP_SIZE, constants)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP_SIZE, constants)
