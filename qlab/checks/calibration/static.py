"""Check of `static_linear`: constants of the input found from calibration batches, and never again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qlab import calibrate
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.calibration.input_grids import (
    WIDTH,
    Call,
    Layer,
    identity,
    outputs_of,
    random_layer,
    require_outputs,
    widened,
)
from qlab.checks.calibration.static_slips import slips_of
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part, require


@check(TOPIC, "static-linear", calibrate.calibrate, calibrate.StaticLinear, points=5)
def check_static_linear(static_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Check `static_linear(w_codes, w_scale, batches)`, which returns a function of x."""
    with part("one scale and one zero point, from the smallest and the largest value of all batches"):
        for _ in range(3):
            batches, inside = _calibration(draw)
            _judge(static_linear, identity(), batches, [inside(5)])
    with part("what lies beyond the calibrated range is clamped to it"):
        # beyond one end only, as a range that grows is not the input's own; Z was rounded down once, and up once
        for right, left, side in ((6.0, 0.3, 1), (0.3, 3.0, -1)):
            batches, inside = _calibration(draw, side)
            x = inside(6)
            _judge(static_linear, identity(), batches, [torch.where(x > 0, right * x, left * x)])
    with part("the range contains zero, though no batch did: 0 gives 0"):
        for sign in (1, -1):
            batches = [sign * uniform(2.0, 3.0, (7, WIDTH), draw) for _ in range(3)]
            batches[1][0, 0] = sign * 3.0  # the end of the range, so that no step is in doubt
            x = sign * (torch.randint(256, (4, WIDTH), generator=draw) + uniform(-0.4, 0.4, (4, WIDTH), draw)) * 3 / 255
            x[:, 0] = 0.0
            _judge(static_linear, identity(), batches, [x])
    with part("frozen: no call changes another, nor does a second layer"):
        _frozen(static_linear, draw)
    with part("a whole product: both scales, and the zero point"):
        for out in (5, WIDTH, 40):
            batches, inside = _calibration(draw)
            _judge(static_linear, random_layer(out, draw), batches, [inside(9)])


def _judge(static_linear: LearnerFunction, layer: Layer, batches: list[Tensor], inputs: Sequence[Tensor]) -> None:
    linear = _made(static_linear, layer, batches)
    _require([_called(linear, x, layer) for x in inputs], layer, batches)


def _require(calls: list[Call], layer: Layer, batches: list[Tensor], others: Sequence[Tensor] = ()) -> None:
    require_outputs(calls, layer, lambda _: widened(*batches), lambda: slips_of(calls, batches, others))


def _made(static_linear: LearnerFunction, layer: Layer, batches: list[Tensor]) -> LearnerFunction:
    """Make a static layer, and refuse what cannot be called."""
    linear = static_linear(layer.codes, layer.scale, batches)
    require(
        callable(linear),
        f"`static_linear(w_codes, w_scale, batches)` returned a {type(linear).__name__}",
        misconception="returns-nothing" if linear is None else "not-a-function",
        thought="Return a function of x: one that you define inside, and that remembers the scale and the zero point.",
    )
    return LearnerFunction(linear)


def _called(linear: LearnerFunction, x: Tensor, layer: Layer) -> Call:
    return Call(x, outputs_of(linear(x), x, layer, call="linear(x)"))


def _calibration(draw: torch.Generator, side: int = 1) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    """Draw four batches of which neither the first nor the last is the widest, and a source of tokens inside.

    S and Z leave no doubt: −low / S is a tenth to three tenths above Z where `side` is 1, below it where −1.
    """
    step, zero = uniform(0.01, 0.5, (), draw).item(), drawn(60, 190, draw)
    shift = side * uniform(0.1, 0.3, (), draw).item()
    low, high = -(zero + shift) * step, (255 - zero - shift) * step
    batches = [share * uniform(low, high, (drawn(3, 9, draw), WIDTH), draw) for share in (0.5, 1.0, 0.9, 0.3)]
    batches[1][0, 0], batches[1][1, 1] = low, high

    def inside(count: int) -> Tensor:
        codes = torch.randint(20, 235, (count, WIDTH), generator=draw)
        return (codes - zero + uniform(-0.4, 0.4, (count, WIDTH), draw)) * step

    return batches, inside


def _frozen(static_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Call one layer with a token alone, with far larger ones around it, and alone again; then make another."""
    batches, inside = _calibration(draw)
    others = [20 * x for x in _calibration(draw)[0]]
    layer, token = identity(), inside(1)
    linear = _made(static_linear, layer, batches)
    calls = [_called(linear, x, layer) for x in (token, torch.cat([5 * inside(3), token]), token, inside(4))]
    _made(static_linear, layer, others)
    _require([*calls, _called(linear, token, layer)], layer, batches, others)
