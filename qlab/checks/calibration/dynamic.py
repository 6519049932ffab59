"""Check of `dynamic_linear`: a scale for each token, found at each call."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.calibration.input_grids import (
    WIDTH,
    Call,
    Grid,
    Layer,
    Slip,
    identity,
    of_codes_alone,
    of_steps,
    of_weight_codes,
    outputs_of,
    product,
    random_layer,
    require_outputs,
    symmetric,
    unrounded,
)
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part


@check(TOPIC, "dynamic-linear", calibrate.DynamicLinear, points=3)
def check_dynamic_linear(dynamic_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Check `dynamic_linear(x, w_codes, w_scale)`."""

    def judge(layer: Layer, *inputs: Tensor) -> None:
        calls = []
        for x in inputs:
            returned = dynamic_linear(x, layer.codes, layer.scale)
            calls.append(Call(x, outputs_of(returned, x, layer, call="dynamic_linear(x, w_codes, w_scale)")))
        require_outputs(calls, layer, lambda call: _of_tokens(call.x), lambda: _slips(calls))

    with part("each token on a scale of its own, each value at the nearest of the codes −127 … 127"):
        judge(identity(), *(_tokens(count, draw) for count in (12, 1, 7)))
    with part("the products of codes, times both scales"):
        for out, size in ((5, 1.0), (WIDTH, 0.02), (40, 1.0)):  # small ones, too: no scale has a floor
            judge(random_layer(out, draw), size * _tokens(9, draw))
    with part("a token of zeros gives zeros, and leaves the others alone"):
        x = _tokens(6, draw)
        x[drawn(0, 5, draw)] = 0.0
        judge(random_layer(8, draw), x, torch.zeros(2, WIDTH))


def _tokens(count: int, draw: torch.Generator) -> Tensor:
    """Draw tokens up to a thousand times larger than others, no value near the middle between two codes."""
    steps = torch.randint(-126, 127, (count, WIDTH), generator=draw) + uniform(-0.4, 0.4, (count, WIDTH), draw)
    largest = torch.randint(WIDTH, (count, 1), generator=draw)
    signs = 2.0 * torch.randint(2, (count, 1), generator=draw) - 1
    steps.scatter_(1, largest, 127 * signs)
    return steps * 10 ** uniform(-2.5, 0.5, (count, 1), draw)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax(1, keepdim=True)


def _of_tokens(x: Tensor) -> Grid:
    return symmetric(_largest(x))


def _wrapped(steps: Tensor, grid: Grid, layer: Layer) -> Tensor:
    """Add up in int8."""
    return ((of_codes_alone(steps, grid, layer) + 128) % 256 - 128) * grid.scale * layer.scale.double().T


def _turned(steps: Tensor, grid: Grid, layer: Layer) -> Tensor:
    return product(steps, grid, layer).T


def _slips(calls: Sequence[Call]) -> Iterator[Slip]:
    """Yield what answers with a known misconception give."""
    token = "Each token has a scale of its own: the largest magnitude along dim 1, kept as (tokens, 1)."
    yield Slip("one-scale-for-all", token, lambda _, c: symmetric(c.x.abs().max()))
    yield Slip("scale-on-the-wrong-axis", token, lambda _, c: symmetric(c.x.abs().amax(0, keepdim=True)))
    exact = "These are the products of x as it came: turn x into whole codes first."
    yield Slip("not-quantized", exact, lambda _, c: symmetric(_largest(c.x), to_integer=unrounded))
    cut = "`.to(torch.int8)` cuts toward zero: round first."
    yield Slip("truncates", cut, lambda _, c: symmetric(_largest(c.x), to_integer=torch.trunc))
    sign = "Magnitudes count: a token's largest value may be a negative one."
    yield Slip("forgets-the-sign", sign, lambda _, c: symmetric(c.x.amax(1, keepdim=True)))
    floor = "A scale below yours is a scale, too: only that of a token of zeros is replaced."
    for least in (1e-2, 1e-3, 1e-4):
        yield Slip("scale-has-a-floor", floor, lambda _, c, n=least: symmetric(_largest(c.x).clamp(min=127 * n)))
    wide = "Codes go to ±127: a token's largest magnitude gets code 127."
    for largest in (128, 255, 7):
        yield Slip("wrong-largest-code", wide, lambda _, c, n=largest: symmetric(_largest(c.x), largest=n))
    scales = "Codes are whole numbers without a unit: multiply the sums by the token's scale and by the row's."
    yield Slip("forgets-the-scale-of-x", scales, lambda _, c: _of_tokens(c.x), of_steps)
    yield Slip("forgets-the-scale-of-w", scales, lambda _, c: _of_tokens(c.x), of_weight_codes)
    yield Slip("forgets-both-scales", scales, lambda _, c: _of_tokens(c.x), of_codes_alone)
    narrow = "A product of two codes takes 16 bits, and a sum more: convert the codes to int32 before you multiply."
    yield Slip("sums-in-int8", narrow, lambda _, c: _of_tokens(c.x), _wrapped)
    if all(len(call.x) == call.got.shape[1] for call in calls):
        turned = "The result is (tokens, out): one row for each token."
        yield Slip("transposes", turned, lambda _, c: _of_tokens(c.x), _turned)
