"""Answers to `static_linear`."""

import numpy as np
import torch
from torch import nn

from qlab import calibrate, quantize
from tests.answers.bank import Bank

BANK = Bank("static-linear")


def grid_of(batches):
    low = min(0.0, *(x.min().item() for x in batches))
    high = max(0.0, *(x.max().item() for x in batches))
    scale = (high - low) / 255
    return scale, round(-low / scale)


def steps_of(x, scale, zero):
    return (torch.round(x / scale) + zero).clamp(0, 255) - zero


def product(steps, scale, w_codes, w_scale):
    return (steps @ w_codes.float().T) * scale * w_scale.T


@BANK.right
def a_closure(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)

    def linear(x):
        return product(steps_of(x, scale, zero), scale, w_codes, w_scale)

    return linear


@BANK.right
def a_lambda_over_pooled_values(w_codes, w_scale, batches):
    pooled = torch.cat(batches)
    low, high = pooled.min().clamp(max=0), pooled.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).int()
    return lambda x: ((x / scale).round().int() + zero).clamp(0, 255).sub(zero) @ w_codes.int().T * (scale * w_scale.T)


class Layer(nn.Module):
    def __init__(self, w_codes, w_scale, batches):
        super().__init__()
        self.observer = calibrate.MinMax()
        for x in batches:
            self.observer.observe(x)
        self.register_buffer("w_codes", w_codes)
        self.register_buffer("w_scale", w_scale)
        self.grid = self.observer.grid(bits=8)

    def forward(self, x):
        weight = quantize.Quantized(self.w_codes, quantize.Grid(self.w_scale, None, 8, quantize.PER_ROW))
        return quantize.int8_matmul(quantize.quantize_with(x, self.grid), weight)


BANK.add("a_module_of_qlabs_parts", Layer)


@BANK.right
def signed_codes(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)

    def linear(x):
        codes = (torch.round(x / scale) + zero - 128).clamp(-128, 127).to(torch.int8)
        sums = codes.int() @ w_codes.int().T - (zero - 128) * w_codes.sum(1, dtype=torch.int32)
        return sums * scale * w_scale.T

    return linear


@BANK.right
def corrects_the_sums(w_codes, w_scale, batches):
    scale, zero = grid_of([x.double() for x in batches])
    correction = zero * w_codes.int().sum(1)

    def linear(x):
        codes = torch.clamp(torch.round(x / scale + zero), 0, 255).to(torch.uint8)
        return (codes.int() @ w_codes.int().T - correction) * (scale * w_scale.T)

    return linear


@BANK.right
def clamps_the_values_first(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    weight = w_codes * w_scale

    def linear(x):
        x = x.clamp(-zero * scale, (255 - zero) * scale)
        return torch.round(x / scale) * scale @ weight.T

    return linear


@BANK.right
def subtracts_the_zero_in_units_of_x(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: ((x / scale + zero).round().clamp(0, 255) * scale - zero * scale) @ (w_codes * w_scale).T


@BANK.right
def in_numpy(w_codes, w_scale, batches):
    values = np.concatenate([x.numpy().ravel() for x in batches] + [np.zeros(1, np.float32)])
    scale = np.ptp(values) / np.float32(255)
    zero = np.rint(-values.min() / scale)

    def linear(x):
        codes = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255)
        return ((codes - zero) @ w_codes.numpy().T.astype(np.float32)) * scale * w_scale.numpy().T

    return linear


@BANK.right
def by_fake_quantize(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255) @ (w_codes * w_scale).T


@BANK.right
def finds_the_range_at_each_call_from_the_same_batches(w_codes, w_scale, batches):
    def linear(x):
        return a_closure(w_codes, w_scale, batches)(x)

    return linear


class Callable:
    def __init__(self, w_codes, w_scale, batches):
        self.weight, (self.scale, self.zero) = (w_codes, w_scale), grid_of(batches)

    def __call__(self, x):
        return [product(steps_of(row[None], self.scale, self.zero), self.scale, *self.weight)[0] for row in x]


BANK.add("an_object_that_is_called_row_by_row", Callable)


def with_grid(found):
    """Return an answer that takes its grid from `found(x, batches)` at each call."""

    def answer(w_codes, w_scale, batches):
        def linear(x):
            scale, zero = found(x, batches)
            return product(steps_of(x, scale, zero), scale, w_codes, w_scale)

        return linear

    return answer


BANK.add(
    "the_range_of_the_call",
    with_grid(lambda x, batches: grid_of([x, x])),
    misconception="calibrates-on-the-test-batch",
)


@BANK.wrong("calibrates-on-the-test-batch")
def the_range_of_the_first_call(w_codes, w_scale, batches):
    kept = []

    def linear(x):
        kept.append(x)
        scale, zero = grid_of([kept[0], kept[0]])
        return product(steps_of(x, scale, zero), scale, w_codes, w_scale)

    return linear


@BANK.wrong("calibrates-on-the-test-batch")
def symmetric_range_of_the_call(w_codes, w_scale, batches):
    def linear(x):
        scale = x.abs().max() / 127
        return product((x / scale).round(), scale, w_codes, w_scale)

    return linear


@BANK.wrong("one-scale-for-each-token")
def is_dynamic(w_codes, w_scale, batches):
    def linear(x):
        scale = (x.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        return product((x / scale).round(), scale, w_codes, w_scale)

    return linear


@BANK.wrong("keeps-calibrating")
def keeps_calibrating(w_codes, w_scale, batches):
    seen = list(batches)

    def linear(x):
        seen.append(x)
        scale, zero = grid_of(seen)
        return product(steps_of(x, scale, zero), scale, w_codes, w_scale)

    return linear


@BANK.wrong("keeps-calibrating")
def observes_after_each_call(w_codes, w_scale, batches):
    seen = list(batches)

    def linear(x):
        scale, zero = grid_of(seen)
        seen.append(x)
        return product(steps_of(x, scale, zero), scale, w_codes, w_scale)

    return linear


@BANK.wrong("keeps-calibrating")
def appends_to_the_batches(w_codes, w_scale, batches):
    def linear(x):
        batches.append(x)
        return a_closure(w_codes, w_scale, batches)(x)

    return linear


@BANK.wrong("shared-between-layers")
def keeps_its_constants_in_a_global(w_codes, w_scale, batches):
    KEPT["grid"] = grid_of(batches)

    def linear(x):
        scale, zero = KEPT["grid"]
        return product(steps_of(x, scale, zero), scale, w_codes, w_scale)

    return linear


KEPT = {}


@BANK.wrong("last-batch-wins")
def last_batch_wins(w_codes, w_scale, batches):
    for x in batches:
        grid = grid_of([x, x])
    return lambda x: product(steps_of(x, *grid), grid[0], w_codes, w_scale)


@BANK.wrong("first-batch-only")
def first_batch_only(w_codes, w_scale, batches):
    return a_closure(w_codes, w_scale, batches[:1] * 2)


@BANK.wrong("averages-the-batches")
def averages_the_batches(w_codes, w_scale, batches):
    low = min(sum(x.min().item() for x in batches) / len(batches), 0.0)
    high = max(sum(x.max().item() for x in batches) / len(batches), 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return lambda x: product(steps_of(x, scale, zero), scale, w_codes, w_scale)


@BANK.wrong("symmetric-range")
def symmetric_range(w_codes, w_scale, batches):
    scale = torch.cat(batches).abs().max() / 127
    return lambda x: product((x / scale).round().clamp(-127, 127), scale, w_codes, w_scale)


def bare(batches):
    low, high = min(x.min().item() for x in batches), max(x.max().item() for x in batches)
    return (high - low) / 255, low


@BANK.wrong("excludes-zero")
def range_without_zero(w_codes, w_scale, batches):
    scale, low = bare(batches)
    zero = round(-low / scale)
    return lambda x: product(steps_of(x, scale, zero), scale, w_codes, w_scale)


@BANK.wrong("excludes-zero")
def range_without_zero_and_clamped(w_codes, w_scale, batches):
    scale, low = bare(batches)
    zero = min(max(round(-low / scale), 0), 255)
    return lambda x: product(steps_of(x, scale, zero), scale, w_codes, w_scale)


@BANK.wrong("zero-point-not-whole")
def counts_steps_from_the_low_end(w_codes, w_scale, batches):
    low = min(0.0, *(x.min().item() for x in batches))
    scale = (max(0.0, *(x.max().item() for x in batches)) - low) / 255
    return lambda x: (((x - low) / scale).round().clamp(0, 255) * scale + low) @ (w_codes * w_scale).T


@BANK.wrong("zero-point-not-whole")
def leaves_the_zero_point_as_it_is(w_codes, w_scale, batches):
    low, high = min(0.0, *(x.min().item() for x in batches)), max(0.0, *(x.max().item() for x in batches))
    scale = (high - low) / 255
    return lambda x: product(steps_of(x, scale, -low / scale), scale, w_codes, w_scale)


def with_zero_point(to_whole):
    def answer(w_codes, w_scale, batches):
        low, high = min(0.0, *(x.min().item() for x in batches)), max(0.0, *(x.max().item() for x in batches))
        scale = torch.tensor((high - low) / 255)
        zero = to_whole(-low / scale)
        return lambda x: product(steps_of(x, scale, zero), scale, w_codes, w_scale)

    return answer


BANK.add("casts_the_zero_point", with_zero_point(torch.trunc), misconception="zero-point-not-nearest")
BANK.add("zero_point_rounded_up", with_zero_point(torch.ceil), misconception="zero-point-not-nearest")


@BANK.right
def by_a_fake_quantizer_of_torch(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255) @ (w_codes * w_scale).T


@BANK.right
def into_unsigned_bytes_with_a_warning(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: torch.quantize_per_tensor(x, scale, zero, torch.quint8).dequantize() @ (w_codes * w_scale).T


@BANK.wrong("no-clamp")
def forgets_to_clamp(w_codes, w_scale, batches):
    scale, _ = grid_of(batches)
    return lambda x: product((x / scale).round(), scale, w_codes, w_scale)


@BANK.wrong("no-clamp")
def wraps_in_a_byte(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)

    def linear(x):
        codes = ((x / scale).round() + zero).int().to(torch.uint8)
        return product(codes.float() - zero, scale, w_codes, w_scale)

    return linear


@BANK.wrong("clamps-to-127")
def clamps_to_127(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: product((torch.round(x / scale) + zero).clamp(0, 127) - zero, scale, w_codes, w_scale)


@BANK.wrong("truncates")
def truncates(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: product(((x / scale).int() + zero).clamp(0, 255).float() - zero, scale, w_codes, w_scale)


@BANK.wrong("divides-by-256")
def divides_by_256(w_codes, w_scale, batches):
    scale, _ = grid_of(batches)
    scale = scale * 255 / 256
    zero = round(-min(0.0, *(x.min().item() for x in batches)) / scale)
    return lambda x: product(steps_of(x, scale, zero), scale, w_codes, w_scale)


@BANK.wrong("not-quantized")
def multiplies_floats(w_codes, w_scale, batches):
    return lambda x: x @ (w_codes * w_scale).T


@BANK.wrong("not-quantized")
def clamps_and_does_not_round(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: x.clamp(-zero * scale, (255 - zero) * scale) @ (w_codes * w_scale).T


@BANK.wrong("drops-the-zero-point")
def drops_the_zero_point(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: product((torch.round(x / scale) + zero).clamp(0, 255), scale, w_codes, w_scale)


@BANK.wrong("forgets-the-scale-of-x")
def forgets_the_scale_of_x(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: product(steps_of(x, scale, zero), 1.0, w_codes, w_scale)


@BANK.wrong("forgets-the-scale-of-w")
def forgets_the_scale_of_w(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    return lambda x: product(steps_of(x, scale, zero), scale, w_codes, torch.ones_like(w_scale))


@BANK.wrong("wrong-value")
def four_bits(w_codes, w_scale, batches):
    scale, zero = grid_of(batches)
    scale, zero = scale * 17, round(zero / 17)
    return lambda x: product((torch.round(x / scale) + zero).clamp(0, 15) - zero, scale, w_codes, w_scale)


@BANK.wrong("returns-nothing")
def returns_nothing(w_codes, w_scale, batches):
    a_closure(w_codes, w_scale, batches)


@BANK.wrong("returns-nothing")
def its_function_returns_nothing(w_codes, w_scale, batches):
    linear = a_closure(w_codes, w_scale, batches)

    def forgets(x):
        linear(x)

    return forgets


@BANK.wrong("not-a-function")
def returns_the_constants(w_codes, w_scale, batches):
    return grid_of(batches)


@BANK.wrong("not-a-function")
def returns_the_last_output(w_codes, w_scale, batches):
    return a_closure(w_codes, w_scale, batches)(batches[-1])


@BANK.crashes
def stacks_the_batches(w_codes, w_scale, batches):
    return a_closure(w_codes, w_scale, [torch.stack([*batches, batches[0][:1]]), batches[0]])


@BANK.crashes
def its_function_crashes(w_codes, w_scale, batches):
    return lambda x: x.codes @ w_codes
