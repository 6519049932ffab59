"""Answers to `fake_quantize`."""

import numpy as np
import torch

from qlab import calibrate
from qlab.quantize import PER_ROW, PER_TENSOR, Grid
from tests.answers.bank import Answer, Bank

BANK = Bank("fake-quantize")


def largest_of(bits):
    return 2 ** (bits - 1) - 1


def on_grid(x, scale, bits):
    return torch.round(x / scale).clamp(-largest_of(bits), largest_of(bits)) * scale


def function_with(backward):
    """An autograd function: rounds forward, and backward does `backward(gradient, steps, largest, scale)`."""

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale, bits):
            ctx.save_for_backward(x / scale, scale)
            ctx.largest = largest_of(bits)
            return on_grid(x, scale, bits)

        @staticmethod
        def backward(ctx, gradient):
            steps, scale = ctx.saved_tensors
            return backward(gradient, steps, ctx.largest, scale), None, None

    return Rounding.apply


BANK.add("autograd_function", function_with(lambda g, steps, largest, scale: g * (steps.round().abs() <= largest)))
BANK.add("clipped_from_the_last_code_on", function_with(lambda g, steps, largest, s: g * (steps.abs() < largest)))
BANK.add(
    "masks_with_where", function_with(lambda g, steps, largest, s: torch.where(steps.abs() > largest + 0.5, 0.0, g))
)


@BANK.right
def detach_trick(x, scale, bits):
    limit = scale * largest_of(bits)
    inside = torch.minimum(torch.maximum(x, -limit), limit)
    return inside + (on_grid(x, scale, bits) - inside).detach()


@BANK.right
def clamps_codes_then_detaches_the_rounding(x, scale, bits):
    steps = (x / scale).clamp(-largest_of(bits), largest_of(bits))
    return (steps + (steps.round() - steps).detach()) * scale


@BANK.right
def rounds_first(x, scale, bits):
    steps = x / scale
    return (steps + (steps.round() - steps).detach()).clamp(-largest_of(bits), largest_of(bits)) * scale


@BANK.right
def of_torch(x, scale, bits):
    largest = largest_of(bits)
    if scale.ndim == 0:
        return torch.fake_quantize_per_tensor_affine(x, scale.item(), 0, -largest, largest)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, scale.flatten(), zeros, 0, -largest, largest)


@BANK.right
def with_where(x, scale, bits):
    rounded = on_grid(x.detach(), scale, bits)
    clipped = (x.detach() / scale).abs() > largest_of(bits) + 0.5
    return torch.where(clipped, rounded, x + (rounded - x).detach())


@BANK.right
def masked_difference(x, scale, bits):
    mask = ((x / scale).round().abs() <= largest_of(bits)).to(x.dtype)
    rounded = on_grid(x, scale, bits).detach()
    return rounded + (x - x.detach()) * mask


@BANK.right
def in_double(x, scale, bits):
    return detach_trick(x.double(), scale.double(), bits)


@BANK.right
def with_a_hook(x, scale, bits):
    straight = x.clone()
    if straight.requires_grad:
        straight.register_hook(lambda gradient: gradient * ((x / scale).abs() <= largest_of(bits)))
    return straight + (on_grid(x, scale, bits) - straight).detach()


@BANK.right
def row_by_row(x, scale, bits):
    scales = scale.expand(len(x), 1) if scale.ndim else scale.repeat(len(x), 1)
    return torch.stack(
        [clamps_codes_then_detaches_the_rounding(row, s, bits) for row, s in zip(x, scales, strict=True)]
    )


@BANK.right
def forward_in_numpy(x, scale, bits):
    steps = np.rint(x.detach().numpy().astype(np.float64) / scale.numpy())
    codes = torch.from_numpy(steps.clip(-largest_of(bits), largest_of(bits)))
    return (
        x * (torch.from_numpy(steps) == codes)
        + ((codes * scale).float() - x * (torch.from_numpy(steps) == codes)).detach()
    )


@BANK.right
def half_up(x, scale, bits):
    steps = (x / scale).clamp(-largest_of(bits), largest_of(bits))
    return (steps + (torch.floor(steps + 0.5) - steps).detach()) * scale


@BANK.right
def in_place(x, scale, bits):
    steps = x.div_(scale).clamp_(-largest_of(bits), largest_of(bits))
    return steps.add_((steps.round() - steps).detach()).mul_(scale)


@BANK.right
def from_qlab(x, scale, bits):
    tile = PER_ROW if scale.ndim else PER_TENSOR
    return calibrate.fake_quantize(x, Grid(scale.view(-1, 1), None, bits, tile))


BANK.wrong("no-straight-through")(on_grid)


@BANK.wrong("no-straight-through")
def detached(x, scale, bits):
    return on_grid(x.detach(), scale, bits)


@BANK.wrong("no-straight-through")
def through_integers(x, scale, bits):
    codes = (x / scale).round().clamp(-largest_of(bits), largest_of(bits)).to(torch.int8)
    return codes * scale


@BANK.wrong("no-straight-through")
def returns_numpy(x, scale, bits):
    return on_grid(x, scale, bits).detach().numpy()


@BANK.wrong("passes-gradient-where-clipped")
def detaches_everything(x, scale, bits):
    return x + (on_grid(x, scale, bits) - x).detach()


def wrong_function(misconception, name, backward):
    BANK.add(name, function_with(backward), misconception=misconception)


wrong_function("passes-gradient-where-clipped", "backward_returns_the_gradient", lambda g, steps, last, scale: g)
wrong_function("blocks-the-end-codes", "below_the_last_code", lambda g, s, last, scale: g * (s.round().abs() < last))
wrong_function("gradient-scaled", "times_the_scale", lambda g, s, last, scale: g * scale * (s.round().abs() <= last))
wrong_function("gradient-scaled", "over_the_scale", lambda g, s, last, scale: g / scale * (s.round().abs() <= last))
wrong_function("gradient-scaled", "times_the_scale_everywhere", lambda g, s, last, scale: g * scale)
wrong_function("ignores-what-comes-from-above", "returns_the_mask", lambda g, s, last, scale: (s.abs() <= last).float())
wrong_function("ignores-what-comes-from-above", "returns_ones", lambda g, s, last, scale: torch.ones_like(g))
wrong_function("gradient-only-where-clipped", "the_wrong_way_round", lambda g, s, last, scale: g * (s.abs() > last))
wrong_function("clipped-at-one-end-only", "above_only", lambda g, s, last, scale: g * (s.round() <= last))
wrong_function("clipped-at-one-end-only", "below_only", lambda g, s, last, scale: g * (s.round() >= -last))
wrong_function("mask-in-the-wrong-units", "x_against_codes", lambda g, s, last, scale: g * ((s * scale).abs() <= last))
wrong_function("mask-in-the-wrong-units", "one_step", lambda g, s, last, scale: g * (s.abs() <= 1))
wrong_function("wrong-value", "half_the_gradient", lambda g, s, last, scale: g / 2 * (s.abs() <= last))
wrong_function("wrong-value", "a_step_too_far", lambda g, s, last, scale: g * (s.abs() <= last + 1))


@BANK.wrong("truncates")
def cuts(x, scale, bits):
    steps = (x / scale).clamp(-largest_of(bits), largest_of(bits))
    return (steps + (steps.trunc() - steps).detach()) * scale


@BANK.wrong("truncates")
def casts(x, scale, bits):
    codes = (x / scale).clamp(-largest_of(bits), largest_of(bits)).to(torch.int32)
    return x + (codes * scale - x).detach()


@BANK.wrong("truncates")
def floors(x, scale, bits):
    steps = (x / scale).clamp(-largest_of(bits), largest_of(bits))
    return (steps + (steps.floor() - steps).detach()) * scale


@BANK.wrong("no-clamp")
def never_clamps(x, scale, bits):
    return x + ((x / scale).round() * scale - x).detach()


@BANK.wrong("uses-the-lowest-code")
def one_code_more(x, scale, bits):
    steps = (x / scale).clamp(-largest_of(bits) - 1, largest_of(bits))
    return (steps + (steps.round() - steps).detach()) * scale


@BANK.wrong("wrong-number-of-codes")
def always_eight_bits(x, scale, bits):
    return detach_trick(x, scale, 8)


@BANK.wrong("wrong-number-of-codes")
def unsigned_count(x, scale, bits):
    return detach_trick(x, scale, bits + 1)


@BANK.wrong("returns-codes")
def forgets_the_way_back(x, scale, bits):
    steps = (x / scale).clamp(-largest_of(bits), largest_of(bits))
    return steps + (steps.round() - steps).detach()


@BANK.wrong("not-rounded")
def clamps_only(x, scale, bits):
    limit = scale * largest_of(bits)
    return torch.minimum(torch.maximum(x, -limit), limit)


@BANK.wrong("not-rounded")
def trick_the_wrong_way_round(x, scale, bits):
    rounded = on_grid(x, scale, bits)
    return rounded + (x - rounded).detach()


@BANK.wrong("ignores-the-scale")
def its_own_scale(x, scale, bits):
    return detach_trick(x, x.detach().abs().max() / largest_of(bits), bits)


@BANK.wrong("ignores-the-scale")
def one_scale_for_all_rows(x, scale, bits):
    return detach_trick(x, scale.max(), bits)


@BANK.wrong("mask-in-the-wrong-units")
def clamps_before_dividing(x, scale, bits):
    inside = x.clamp(-largest_of(bits), largest_of(bits))
    return inside + ((inside / scale).round() * scale - inside).detach()


@BANK.wrong("returns-nothing")
def forgets_to_return(x, scale, bits):
    detach_trick(x, scale, bits)


@BANK.wrong("wrong-shape")
def flattens(x, scale, bits):
    return detach_trick(x, scale, bits).flatten()


@BANK.crashes
def matrix_product_with_the_scale(x, scale, bits):
    return on_grid(x, scale, bits) @ scale


@BANK.crashes
def backward_forgets_two_gradients(x, scale, bits):
    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale, bits):
            return on_grid(x, scale, bits)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    return Rounding.apply(x, scale, bits)


def stub(x, scale, bits):
    raise NotImplementedError("replace this line with your answer")


BANK.answers.append(Answer(BANK.exercise, "the_stub", (stub,), outcome="empty"))
