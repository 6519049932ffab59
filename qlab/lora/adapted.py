"""A linear layer with an adapter: h = W x + (alpha / rank) B A x, where only A and B are trained."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NARROW = (torch.float16, torch.bfloat16)


class AdaptedLinear(nn.Module, ABC):
    """What LoRA and QLoRA share: the adapter, its update of the weight, and the merge.

    `lora_a` starts Kaiming-uniform and `lora_b` at zero, so that the first output is the frozen layer's. Both are in
    FP32 beside a weight of 16 bits; the product runs in the type of the input, or of autocast.
    Shapes:  `lora_a` is (rank, inputs), `lora_b` (outputs, rank).
    Errors:  ValueError if `rank` is not 1 to the smaller side of the weight, `alpha` is not above 0 and finite,
             `dropout` is not from 0 to below 1, or the weight holds no values (device "meta").
    Source:  Hu et al. 2021, section 4.1, arXiv:2106.09685; the start of A as in its code and in PEFT.
    """

    def __init__(self, weight: Tensor, *, rank: int, alpha: int | float, dropout: int | float):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        most = min(weight.shape)
        if not 1 <= rank <= most:
            sides = f"{self.out_features} × {self.in_features}"
            raise ValueError(f"rank must be 1 to {most}, the smaller side of the {sides} weight, got {rank}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout}")
        if weight.is_meta:
            raise ValueError("the weight must hold values, and is on device meta: load it before it gets an adapter")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        like = {"device": weight.device, "dtype": torch.float32 if weight.dtype in NARROW else weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        self.register_buffer("merged_in", None, persistent=False)
        self.register_load_state_dict_pre_hook(_unmerge_first)

    def _draw(self, generator: torch.Generator | None) -> None:
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5), generator=generator)

    @abstractmethod
    def frozen(self, x: Tensor) -> Tensor:
        """Return what the layer gives without its adapter."""

    @abstractmethod
    def frozen_weight(self) -> Tensor:
        """Return the frozen weight as floating-point numbers."""

    @property
    @abstractmethod
    def frozen_bias(self) -> Tensor | None:
        """The frozen layer's bias, if it has one."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of the layer that was given, and of the plain one to come."""

    @property
    def scaling(self) -> float:
        """The factor of the update: alpha over rank."""
        return self.alpha / self.rank

    @property
    def merged(self) -> bool:
        """Whether the layer computes with one weight, the update added in."""
        return self.merged_in is not None

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Add the adapter's output to the frozen layer's; dropout falls on the adapter's input, in training only.

        Errors:  ValueError if `x` does not end in `in_features`, or is on another device than the weights.
        """
        self._require_input(x)
        if self.merged_in is not None:
            bias = self.frozen_bias
            return F.linear(x, self.merged_in.to(x.dtype), None if bias is None else bias.to(x.dtype))
        kept = F.dropout(x, self.dropout, self.training)
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        update = F.linear(F.linear(kept, a), b)
        return torch.add(self.frozen(x), update, alpha=self.scaling)

    def _require_input(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x must end in {self.in_features} features, got shape {tuple(x.shape)}")
        if x.device != self.lora_a.device:
            raise ValueError(f"x is on {x.device} and the adapter on {self.lora_a.device}: move one of them")

    @torch.no_grad()
    def update(self) -> Float[Tensor, "outputs inputs"]:
        """Return the matrix (alpha / rank) B A that the adapter adds to the weight, in FP32 or wider."""
        a, b = (m.float() if m.dtype in NARROW else m for m in (self.lora_a, self.lora_b))
        return (b @ a).mul_(self.scaling)

    @torch.no_grad()
    def merged_weight(self) -> Float[Tensor, "outputs inputs"]:
        """Return the frozen weight plus the update, added in FP32 or wider and rounded once to the weight's type."""
        weight = self.frozen_weight()
        return self.update().add_(weight).to(weight.dtype)

    def merge(self) -> None:
        """Compute with one weight from now on; merging again changes nothing.

        The frozen weight stays beside it, untouched: floats do not return from W + ΔW − ΔW. That takes the bytes of
        one weight more; `merged_linear` keeps only the sum. While merged, the adapter gets no gradient.
        """
        if not self.merged:
            self.merged_in = self.merged_weight()

    def unmerge(self) -> None:
        """Compute with weight and adapter apart again; the frozen weight is bit by bit what it was."""
        self.merged_in = None

    def merged_linear(self) -> nn.Linear:
        """Return a plain linear layer of the base's type, with the merged weight and a copy of the bias."""
        weight, bias = self.merged_weight().to(self.dtype), self.frozen_bias
        plain = nn.Linear(self.in_features, self.out_features, bias=bias is not None, device="meta")
        plain.weight = nn.Parameter(weight)
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach().to(self.dtype, copy=True))
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Return the layer's sizes for `print(model)`."""
        return f"{self.in_features} → {self.out_features}, rank={self.rank}, alpha={self.alpha}, merged={self.merged}"


class LoRALinear(AdaptedLinear):
    """A frozen linear layer and its adapter; `base` is the very layer it was given, and no longer trained.

    Errors:  ValueError as `AdaptedLinear`.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: int | float,
        dropout: int | float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__(base.weight, rank=rank, alpha=alpha, dropout=dropout)
        self.base = base.requires_grad_(False)
        self._draw(generator)

    def frozen(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return what the base gives."""
        return self.base(x)

    def frozen_weight(self) -> Float[Tensor, "outputs inputs"]:
        """Return the base's weight itself."""
        return self.base.weight.detach()

    @property
    def frozen_bias(self) -> Tensor | None:
        """The base's bias, if it has one."""
        return self.base.bias

    @property
    def dtype(self) -> torch.dtype:
        """The type of the base's weight."""
        return self.base.weight.dtype


def _unmerge_first(module: AdaptedLinear, *_: object) -> None:
    """Before a state dict is loaded: a merged weight of other numbers must not stay."""
    module.unmerge()
