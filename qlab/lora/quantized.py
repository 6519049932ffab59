"""QLoRA: the frozen weight is held in 4-bit codes, and turned into floating point only while a product needs it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qlab.codebooks import NF4, BlockwiseCodes, DoublyQuantizedCodes, double_quantize, quantize_blockwise
from qlab.codebooks.double_quantized import ABSMAX_MAP
from qlab.codebooks.linear import codes_linear, codes_linear_backward
from qlab.lora.adapted import AdaptedLinear

Codes = BlockwiseCodes | DoublyQuantizedCodes
Product = Callable[[Tensor, Codes], Tensor]
SECOND_BLOCK_SIZE = 256
CONSTANTS = ("packed", "absmax", "absmax_codes", "absmax_scales", "absmax_mean", "codebook")


def linear_through_codes(
    x: Float[Tensor, "*batch inputs"], codes: Codes, bias: Float[Tensor, " outputs"] | None = None
) -> Float[Tensor, "*batch outputs"]:
    """Return x Wᵀ + bias for the weight that `codes` stand for, in the type of `x` or of autocast.

    The gradient passes through the weight to `x` and ends there. Nothing is saved for it: the weight is made again
    from the codes (on a CPU a few rows at a time), and the codes must not change in between.
    Errors:  ValueError as `qlab.codebooks.linear.codes_linear`.
    Source:  Dettmers et al. 2023, equations 5 and 6, arXiv:2305.14314.
    """
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    out = ThroughCodes.apply(x, codes)
    return out if bias is None else out + bias.to(out.dtype)


class ThroughCodes(torch.autograd.Function):
    """The product and its gradient, both from the codes."""

    @staticmethod
    def forward(x: Tensor, codes: Codes) -> Tensor:
        """Multiply by the weight, and keep nothing of it."""
        times_transposed, _ = products_for(x, codes)
        return times_transposed(x, codes)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep the codes, which are there anyway."""
        ctx.codes = inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        """Return the gradient of x: the weight once more, from the other side."""
        _, times_weight = products_for(gradient, ctx.codes)
        return times_weight(gradient, ctx.codes), None


def products_for(x: Tensor, codes: Codes) -> tuple[Product, Product]:
    """Return x Wᵀ and its backward: Triton's kernels on a GPU if they take these codes, else torch's, tile by tile."""
    if x.is_cuda:
        from qlab import codebooks_triton  # noqa: PLC0415 - Triton only where it can run

        if codebooks_triton.accepts(codes, dtype=x.dtype):
            return codebooks_triton.linear_4bit, codebooks_triton.linear_4bit_backward
    return codes_linear, codes_linear_backward


@dataclass(frozen=True)
class MergedToCodes:
    """An update added to a weight of 4 bits and rounded to 4 bits again, and what that cost.

    `update_norm` and `error_norm` are Frobenius norms: of what was to be added, and of what the rounding put beside it.
    `changed` is the share of codes that are no longer what they were.
    """

    codes: Codes
    update_norm: float
    error_norm: float
    changed: float

    @property
    def relative_error(self) -> float:
        """The rounding error over the update: above 1, the merge does more harm than the update is large."""
        return self.error_norm / self.update_norm if self.update_norm else math.inf


class QLoRALinear(AdaptedLinear):
    """A frozen weight in 4-bit codes and its adapter; no floating-point weight is kept, and none is saved for backward.

    The codes are buffers: `to(dtype)` leaves them and their constants alone, `state_dict` holds them. A `base` that
    nothing else refers to is freed. Its bias is kept, frozen, in its own type.
    Errors:  ValueError as `AdaptedLinear`, or if the codes cannot be made (`quantize_blockwise`, `double_quantize`).
    """

    def __init__(  # noqa: PLR0913 - the adapter's choices and the codes'
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: int | float,
        codebook: Float[Tensor, " levels"] = NF4,
        block_size: int = 64,
        double: bool = True,
        dropout: int | float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__(base.weight, rank=rank, alpha=alpha, dropout=dropout)
        self.double, self.block_size = double, block_size
        for name in CONSTANTS:
            self.register_buffer(name, None)
        codes = quantize_blockwise(base.weight, codebook, block_size=block_size)
        self._keep(double_quantize(codes, block_size=SECOND_BLOCK_SIZE) if double else codes)
        # one for all layers, which share it: not in the state dict, whose loading would write into it
        levels = ABSMAX_MAP.to(base.weight.device) if double else None
        self.register_buffer("absmax_map", levels, persistent=False)
        self.register_buffer("bias", None if base.bias is None else base.bias.detach().clone())
        self.register_buffer("like_base", base.weight.new_empty(0), persistent=False)  # follows `to(dtype)`
        self._draw(generator)

    def _keep(self, codes: Codes) -> None:
        self.packed, self.codebook = codes.packed, codes.codebook.clone()  # not the constant that others read
        if isinstance(codes, BlockwiseCodes):
            self.absmax = codes.absmax
            return
        second = codes.absmax_codes
        self.absmax_codes, self.absmax_scales = second.packed, second.absmax
        self.absmax_mean = codes.absmax_mean

    @property
    def codes(self) -> Codes:
        """The codes of the frozen weight, over the layer's own buffers."""
        shape = torch.Size((self.out_features, self.in_features))
        if not self.double:
            return BlockwiseCodes(self.packed, self.absmax, self.codebook, self.block_size, shape)
        blocks = torch.Size((self.absmax_codes.numel(),))
        second = BlockwiseCodes(self.absmax_codes, self.absmax_scales, self.absmax_map, SECOND_BLOCK_SIZE, blocks)
        return DoublyQuantizedCodes(self.packed, second, self.absmax_mean, self.codebook, self.block_size, shape)

    @property
    def frozen_bias(self) -> Tensor | None:
        """The base's bias, if it had one."""
        return self.bias

    @property
    def dtype(self) -> torch.dtype:
        """The type that the base's weight had, or would have after `to(dtype)`."""
        return self.like_base.dtype

    def frozen(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return x Wᵀ + bias, straight from the codes."""
        return linear_through_codes(x, self.codes, self.bias)

    def frozen_weight(self) -> Float[Tensor, "outputs inputs"]:
        """Return what the codes stand for, in FP32 or the adapter's wider type."""
        return self.codes.dequantize().to(torch.promote_types(self.lora_a.dtype, torch.float32))

    @torch.no_grad()
    def merge_to_codes(self) -> MergedToCodes:
        """Round weight plus update to codes of the same kind again; the layer itself stays as it is.

        The result is not the merged weight: where the update is under half a step of a code it is lost, and where it
        falls on the largest value of a block it moves all of the block.
        """
        before, update = self.codes, self.update()
        exact = self.merged_weight()
        single = quantize_blockwise(exact, self.codebook, block_size=self.block_size)
        codes = double_quantize(single, block_size=SECOND_BLOCK_SIZE) if self.double else single
        error = (codes.dequantize() - exact).norm().item()
        changed = (codes.codes != before.codes).float().mean().item()
        return MergedToCodes(codes, update.norm().item(), error, changed)

    @torch.no_grad()
    def take_codes(self, codes: Codes) -> None:
        """Make `codes` the frozen weight, and set the adapter's update to zero.

        Errors:  ValueError if they are of another kind, shape or block size.
        """
        ours = self.codes
        if type(codes) is not type(ours) or (codes.shape, codes.block_size) != (ours.shape, ours.block_size):
            told = f"{type(codes).__name__} of {tuple(codes.shape)} in blocks of {codes.block_size}"
            raise ValueError(
                f"codes must be like the layer's, {type(ours).__name__} of {tuple(ours.shape)}, got {told}"
            )
        self.unmerge()
        self._keep(codes)
        self.lora_b.zero_()

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        """Move as any module does, and keep each constant in its own type: half of them would be other weights."""
        before = {name: self._buffers[name] for name in (*CONSTANTS, "absmax_map")}
        super()._apply(fn, recurse)
        for name, constant in before.items():
            moved = self._buffers[name]
            if constant is not None and moved.dtype != constant.dtype:
                self._buffers[name] = constant.to(moved.device)
        return self
