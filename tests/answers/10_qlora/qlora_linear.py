"""Answers to `qlora_linear`, exercise `qlora_linear`."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from qlab.lora import linear_through_codes
from tests.answers.bank import Answer, Bank

BANK = Bank("qlora-linear")


def through(forward, backward):
    """Make an autograd function of x and codes from two functions of ctx."""
    both = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Through", (torch.autograd.Function,), both)


def keep_codes(ctx, x, codes):
    ctx.codes = codes
    return x @ codes.dequantize().to(x.dtype).T


def weight_again(ctx, grad):
    return grad @ ctx.codes.dequantize().to(grad.dtype), None


ThroughCodes = through(keep_codes, weight_again)


def with_adapter(base):
    """Make an answer of a way to multiply with the base."""

    def answer(x, codes, a, b, scaling):
        return base(x, codes) + scaling * (x @ a.T) @ b.T

    return answer


BANK.add("by_an_autograd_function", with_adapter(ThroughCodes.apply))
BANK.add("by_qlab", with_adapter(linear_through_codes))


@BANK.right
def adapter_by_linear(x, codes, a, b, scaling):
    return torch.add(ThroughCodes.apply(x, codes), F.linear(F.linear(x, a), b), alpha=scaling)


@BANK.right
def by_checkpointing(x, codes, a, b, scaling):
    def product(x):
        return F.linear(x, codes.dequantize().to(x.dtype))

    return checkpoint(product, x, use_reentrant=False) + F.linear(F.linear(x, a), b * scaling)


class AllInOne(torch.autograd.Function):
    """The adapter inside as well, and every gradient by hand."""

    @staticmethod
    def forward(ctx, x, codes, *adapter):
        a, b, scaling = adapter
        low = x @ a.T
        ctx.save_for_backward(x, a, b, low)
        ctx.codes, ctx.scaling = codes, scaling
        return F.linear(x, codes.dequantize().to(x.dtype)) + scaling * low @ b.T

    @staticmethod
    def backward(ctx, grad):
        x, a, b, low = ctx.saved_tensors
        scaled = ctx.scaling * grad
        rows, flat_low = scaled.flatten(0, -2), low.flatten(0, -2)
        of_low = scaled @ b
        of_x = torch.matmul(grad, ctx.codes.dequantize().to(grad.dtype)) + of_low @ a
        return of_x, None, of_low.flatten(0, -2).T @ x.flatten(0, -2), rows.T @ flat_low, None


@BANK.right
def all_in_one(x, codes, a, b, scaling):
    return AllInOne.apply(x.view(-1, x.shape[-1]), codes, a, b, scaling).view(*x.shape[:-1], -1)


def keep_packed(ctx, x, codes):
    ctx.save_for_backward(codes.packed, codes.absmax, codes.codebook)
    ctx.shape, ctx.size = codes.shape, codes.block_size
    return F.linear(x, codes.dequantize().to(x.dtype))


def weight_by_hand(ctx, grad):
    packed, absmax, codebook = ctx.saved_tensors
    levels = codebook[torch.stack([packed >> 4, packed & 15], dim=1).flatten().int()]
    weight = (levels * absmax.repeat_interleave(ctx.size)[: levels.numel()]).view(ctx.shape)
    return grad.matmul(weight.to(grad.dtype)), None


BANK.add("saves_the_packed_codes", with_adapter(through(keep_packed, weight_by_hand).apply))


def row_by_row(ctx, grad):
    weight = ctx.codes.dequantize().to(grad.dtype)
    pieces = [part @ rows for part, rows in zip(grad.split(16, -1), weight.split(16), strict=True)]
    return torch.stack(pieces).sum(0), None


def sliced(x, codes, a, b, scaling):
    """Sum in FP32, and round once."""
    wide = x.float()
    return (ThroughCodes.apply(wide, codes) + scaling * (wide @ a.float().T) @ b.float().T).to(x.dtype)


BANK.add("in_fp32_inside", sliced)


def wrong(name, misconception, answer):
    BANK.add(name, answer, misconception=misconception)


wrong(
    "plain_autograd",
    "saves-the-dequantized-weight",
    with_adapter(lambda x, codes: F.linear(x, codes.dequantize().to(x.dtype))),
)


def save_weight(ctx, x, codes):
    weight = codes.dequantize().to(x.dtype)
    ctx.save_for_backward(weight)
    return x @ weight.T


wrong(
    "saves_the_weight",
    "saves-the-dequantized-weight",
    with_adapter(through(save_weight, lambda ctx, grad: (grad @ ctx.saved_tensors[0], None)).apply),
)


def hang_weight_on_ctx(ctx, x, codes):
    ctx.weight = codes.dequantize().to(x.dtype)
    return x @ ctx.weight.T


wrong(
    "weight_as_an_attribute",
    "saves-the-dequantized-weight",
    with_adapter(through(hang_weight_on_ctx, lambda ctx, grad: (grad @ ctx.weight, None)).apply),
)


def narrow_weight_on_ctx(ctx, x, codes):
    ctx.weight = codes.dequantize().bfloat16()
    ctx.codes = codes
    return x @ codes.dequantize().to(x.dtype).T


wrong(
    "weight_in_bf16_beside_it",
    "saves-the-dequantized-weight",
    with_adapter(through(narrow_weight_on_ctx, weight_again).apply),
)


@BANK.wrong("saves-the-dequantized-weight")
def merges_before_multiplying(x, codes, a, b, scaling):
    weight = ThroughTheWeight.apply(b, a, codes, scaling)
    return F.linear(x, weight.to(x.dtype))


class ThroughTheWeight(torch.autograd.Function):
    """Base plus update, with gradients for the factors that avoid no large product."""

    @staticmethod
    def forward(ctx, b, a, codes, scaling):
        ctx.save_for_backward(b, a)
        ctx.scaling = scaling
        return codes.dequantize() + scaling * b.float() @ a.float()

    @staticmethod
    def backward(ctx, grad):
        b, a = ctx.saved_tensors
        return ctx.scaling * grad @ a.float().T, ctx.scaling * b.float().T @ grad, None, None


BANK.answers[-1] = Answer(
    BANK.exercise, "merges_before_multiplying", (merges_before_multiplying,), "gradient-to-the-base", "wrong"
)


@BANK.wrong("gradient-to-the-base")
def base_that_wants_a_gradient(x, codes, a, b, scaling):
    weight = codes.dequantize().to(x.dtype).requires_grad_()
    return F.linear(x, weight) + scaling * (x @ a.T) @ b.T


class GradientForTheWeight(torch.autograd.Function):
    """The copied linear function, with a gradient for its weight."""

    @staticmethod
    def forward(ctx, x, weight, codes):
        ctx.save_for_backward(x)
        ctx.codes = codes
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        weight = ctx.codes.dequantize().to(grad.dtype)
        return grad @ weight, grad.flatten(0, -2).T @ x.flatten(0, -2), None


@BANK.wrong("gradient-to-the-base")
def the_copied_linear_function(x, codes, a, b, scaling):
    rows = x.view(-1, x.shape[-1])
    base = GradientForTheWeight.apply(rows, codes.dequantize().to(x.dtype), codes)
    return base.view(*x.shape[:-1], -1) + scaling * (x @ a.T) @ b.T


wrong("without_scale", "scale-missing", lambda x, c, a, b, s: ThroughCodes.apply(x, c) + (x @ a.T) @ b.T)
wrong("without_adapter", "adapter-not-used", lambda x, c, a, b, s: ThroughCodes.apply(x, c) + 0 * (x @ a.T) @ b.T)
wrong("without_base", "base-not-used", lambda x, c, a, b, s: s * (x @ a.T) @ b.T)
wrong("scales_both", "scales-the-base", lambda x, c, a, b, s: s * (ThroughCodes.apply(x, c) + (x @ a.T) @ b.T))
wrong(
    "scale_over_the_rank",
    "divides-by-the-rank-again",
    lambda x, c, a, b, s: ThroughCodes.apply(x, c) + s / len(a) * (x @ a.T) @ b.T,
)
wrong(
    "no_gradient_for_x",
    "base-cuts-the-gradient",
    with_adapter(lambda x, codes: x.detach() @ codes.dequantize().to(x.dtype).T),
)
wrong(
    "returns_none_for_x",
    "base-cuts-the-gradient",
    with_adapter(through(keep_codes, lambda ctx, grad: (None, None)).apply),
)
wrong(
    "ones_for_the_upstream",
    "ignores-the-upstream",
    with_adapter(through(keep_codes, lambda ctx, grad: weight_again(ctx, torch.ones_like(grad))).apply),
)
wrong(
    "backward_with_the_sign_turned",
    "subtracts-the-gradient",
    with_adapter(through(keep_codes, lambda ctx, grad: (-weight_again(ctx, grad)[0], None)).apply),
)
wrong(
    "adapter_without_graph",
    "detaches",
    lambda x, c, a, b, s: ThroughCodes.apply(x, c) + s * (x @ a.detach().T) @ b.detach().T,
)
wrong("widened", "widens-the-output", lambda x, c, a, b, s: sliced(x.float(), c, a, b, s))
wrong(
    "codes_for_weights",
    "wrong-value",
    with_adapter(lambda x, codes: F.linear(x, codes.codes.to(x.dtype))),
)
wrong(
    "a_fixed_output_type",
    "widens-the-output",
    with_adapter(
        through(
            lambda ctx, x, codes: keep_codes(ctx, x.float(), codes),
            lambda ctx, grad: (
                (weight_again(ctx, grad.float())[0].bfloat16(), None)
                if grad.dtype != torch.float32
                else weight_again(ctx, grad)
            ),
        ).apply
    ),
)


@BANK.wrong("returns-nothing")
def returns_nothing(x, codes, a, b, scaling):
    with_adapter(ThroughCodes.apply)(x, codes, a, b, scaling)


@BANK.crashes
def backward_with_too_few(x, codes, a, b, scaling):
    broken = through(keep_codes, lambda ctx, grad: grad @ ctx.codes.dequantize())
    return broken.apply(x, codes) + scaling * (x @ a.T) @ b.T


@BANK.crashes
def weight_not_transposed(x, codes, a, b, scaling):
    return x @ codes.dequantize() + scaling * (x @ a.T) @ b.T


@BANK.crashes
def weight_always_in_fp32(x, codes, a, b, scaling):
    fixed = through(
        lambda ctx, x, codes: (setattr(ctx, "codes", codes), x @ codes.dequantize().T)[1],
        lambda ctx, grad: (grad @ ctx.codes.dequantize(), None),
    )
    return fixed.apply(x, codes) + scaling * (x @ a.T) @ b.T
