"""Attention of one head in FP64, to which every answer of topic 08 is held, and how far FP32 may be from it."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TOPIC = "08_flash_attention"
WHOLE_ATTENTION = (  # what may not stand in for an answer in tiles
    "torch.nn.functional.scaled_dot_product_attention",
    "torch.nn.functional.multi_head_attention_forward",
    "torch.nn.MultiheadAttention",
    "torch.nn.attention",
    "torch.ops.aten",
    "qlab.attention.flash_attention",
    "qlab.attention_triton",
)
UNIT = 2.0**-24  # half a step of FP32 at 1: what one rounding changes at most, as a share


@dataclass(frozen=True)
class Attention:
    """Queries (rows, width), keys and values (columns, width) in FP32; causal: query i sees keys 0 to i."""

    q: Tensor
    k: Tensor
    v: Tensor
    is_causal: bool = False

    @property
    def told(self) -> str:
        """What was given, in words."""
        causal = "causal" if self.is_causal else "not causal"
        return f"{len(self.q)} queries, {len(self.k)} keys, width {self.q.shape[1]}, {causal}"

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.q.shape[1])

    @cached_property
    def visible(self) -> Tensor:
        """Which key each query sees."""
        seen = torch.ones(len(self.q), len(self.k), dtype=torch.bool)
        return seen.tril() if self.is_causal else seen

    @cached_property
    def raw_scores(self) -> Tensor:
        """q·k/√width, hidden ones too."""
        return self.scale * (self.q.double() @ self.k.double().T)

    @cached_property
    def scores(self) -> Tensor:
        return self.raw_scores.masked_fill(~self.visible, -math.inf)

    @cached_property
    def log_sum_exp(self) -> Tensor:
        return self.scores.logsumexp(1)

    @cached_property
    def probabilities(self) -> Tensor:
        return (self.scores - self.log_sum_exp[:, None]).exp()

    @cached_property
    def output(self) -> Tensor:
        return self.probabilities @ self.v.double()

    @cached_property
    def share(self) -> Tensor:
        """By what share FP32 may change exp(score - anything of the row's size), for each row.

        A score is a scaled sum of `width` products (Higham 1993: terms · u · sum of magnitudes); the maximum, or
        the log-sum-exp, is subtracted, perhaps in units of ln 2, perhaps in many small steps of rescaling.
        """
        columns, width = self.k.shape
        sizes = self.scale * (self.q.double().abs() @ self.k.double().abs().T) * self.visible
        largest = self.scores.abs().masked_fill(~self.visible, 0.0).amax(1)
        return UNIT * ((width + 8) * sizes.amax(1) + 8 * largest + columns + 16)

    @property
    def allowed_output(self) -> Tensor:
        """What FP32 may change in the output: numerators and their sum each by `share`, the sums of products too."""
        return 2 * self.share[:, None] * (self.probabilities @ self.v.double().abs()) + 1e-30

    @property
    def allowed_log_sum_exp(self) -> Tensor:
        return self.share + 4 * UNIT * self.log_sum_exp.abs()
