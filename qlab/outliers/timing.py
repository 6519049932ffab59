"""What decomposition takes on a device: milliseconds and bytes of one layer, against the same layer in BF16."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.measure import PeakBytes, median_ms
from qlab.outliers.remedies import decomposed_int8_linear
from qlab.quantize import PER_ROW, quantize_symmetric

OUTLIERS, STRENGTH, THRESHOLD = 6, 60.0, 6.0


@dataclass(frozen=True)
class DecompositionTiming:
    """One square layer, both ways.

    Units:   medians in milliseconds; peak bytes beyond weights and input; `relative_error` against FP64.
    """

    width: int
    tokens: int
    bf16_ms: float
    decomposition_ms: float
    bf16_bytes: int
    decomposition_bytes: int
    relative_error: float


def measure_decomposition(
    *, widths: Sequence[int], tokens: int = 512, device: str = "cuda", seed: int = 0, repeats: int = 20
) -> list[DecompositionTiming]:
    """Time a layer of each width on tokens with six outlier columns.

    Errors:  ValueError if a width or `tokens` is below 1.
    """
    if min([*widths, tokens]) < 1:
        raise ValueError(f"widths and tokens must be at least 1, got {list(widths)} and {tokens}")
    found = []
    for width in widths:
        x, weight = _layer(width, tokens, device, torch.Generator().manual_seed(seed))
        x16, weight16, weight8 = x.bfloat16(), weight.bfloat16(), quantize_symmetric(weight, bits=8, tile=PER_ROW)
        ways = (
            lambda x16=x16, weight16=weight16: x16 @ weight16.T,
            lambda x16=x16, weight8=weight8: decomposed_int8_linear(x16, weight8, threshold=THRESHOLD),
        )
        exact = x.double() @ weight.double().T
        error = ((ways[1]().double() - exact).norm() / exact.norm()).item()
        milliseconds = [median_ms(way, repeats=repeats, device=device) for way in ways]
        peaks = []
        for way in ways:
            with PeakBytes(device=device) as peak:
                way()
            peaks.append(peak.bytes)
        found.append(DecompositionTiming(width, tokens, *milliseconds, *peaks, error))
    return found


def _layer(width: int, tokens: int, device: str, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw an input with a few outlier columns, and a square weight."""
    weight = torch.randn(width, width, generator=draw) / width**0.5
    x = torch.randn(tokens, width, generator=draw)
    x[:, torch.randperm(width, generator=draw)[:OUTLIERS]] *= STRENGTH
    return x.to(device), weight.to(device)
