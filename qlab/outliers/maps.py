"""Where outliers live in any model: the largest magnitude in each dimension of what its linear layers read."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from qlab.calibrate import watched_inputs
from qlab.outliers.finding import PAPER_RULE, OutlierRule, outliers_by_count


@dataclass(frozen=True)
class OutlierMap:
    """What linear layers read, dimension by dimension, under the name of the first that reads it, and its outliers.

    Only inputs of the most common width are in it. That of an attention's output projection is one of them, as in the
    paper, although its dimensions are those of the heads.
    """

    model: str
    readers: tuple[str, ...]
    largest: Float[Tensor, "readers width"]
    outliers: Int[Tensor, " outliers"]
    rule: OutlierRule


@torch.no_grad()
def map_outliers(
    model: nn.Module, batches: Iterable[Integer[Tensor, "_ _"]], rule: OutlierRule = PAPER_RULE, *, name: str
) -> OutlierMap:
    """Run `model`, called `name`, on the batches, and map what its linear layers read.

    Shapes:  each batch is (batch, sequence), of any length.
    Errors:  ValueError if no linear layer runs, or an input is empty or holds NaN or infinity.
    """
    inputs = _Inputs(rule.magnitude)
    with watched_inputs(model, inputs.see):
        for batch in batches:
            model(batch)
    if not inputs.largest:
        raise ValueError(f"{name} must have linear layers and a batch to run on, and none of them ran")
    width, _ = Counter(len(row) for row in inputs.largest.values()).most_common(1)[0]
    readers = tuple(reader for reader, row in inputs.largest.items() if len(row) == width)
    large, tokens = torch.stack([inputs.large[reader] for reader in readers]), sum(map(inputs.tokens.get, readers))
    largest = torch.stack([inputs.largest[reader] for reader in readers])
    return OutlierMap(name, readers, largest, outliers_by_count(large, rule, tokens=tokens), rule)


class _Inputs:
    """The largest magnitude in each dimension of an input, and how many of its tokens are large there."""

    def __init__(self, magnitude: float) -> None:
        self.magnitude = magnitude
        self.largest: dict[str, Tensor] = {}
        self.large: dict[str, Tensor] = {}
        self.tokens: Counter[str] = Counter()
        self._seen = WeakIdKeyDictionary()

    def see(self, reader: str, x: Tensor) -> None:
        """Count `x`, unless another layer has read it too: queries, keys and values come from one tensor."""
        if x in self._seen:
            return
        self._seen[x] = None
        magnitudes = x.reshape(-1, x.shape[-1]).abs()
        if not (magnitudes.numel() and magnitudes.isfinite().all()):
            raise ValueError(f"what {reader} reads must be finite and not empty, got shape {tuple(x.shape)}")
        largest, large = magnitudes.amax(0).float().cpu(), (magnitudes >= self.magnitude).sum(0).cpu()
        self.largest[reader] = torch.maximum(largest, self.largest.get(reader, largest))
        self.large[reader] = large + self.large.get(reader, 0)
        self.tokens[reader] += len(magnitudes)
