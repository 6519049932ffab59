"""Check of `prepare_for_qat`: what the forward pass multiplies by, and whether training moves what it rounds."""

from typing import Any

import torch
from torch import Tensor

from qlab import calibrate, qat
from qlab.checks.beside import reports
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.calibration.prepared_runs import ROWS, Call, Step, plain_output, run
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part, require

WIDTH = 384  # of a row: more than the 256 values that 8 bits have, so that a row of floats shows
FAR = 0.6  # of a step of the tensor's largest magnitude: half of one, with codes to 127 or 127.5, or one scale for all
MOST = 0.97  # of the weights: a grid to 127.5 clips a row's largest, and passes it no gradient
SMALL_STEPS, SMALL = 8, 1 / 5  # so many steps of a fifth of a code move a weight by 1.6 codes


@check(TOPIC, "prepare-for-qat", qat.prepare, calibrate.FakeQuantize, points=4)
def check_prepare_for_qat(prepare_for_qat: LearnerFunction, draw: torch.Generator) -> None:
    """Check `prepare_for_qat(model)`, which returns a model that computes with rounded weights and trains."""
    with part("in training mode the forward pass multiplies by weights of 8 bits"):
        weight = torch.randn(ROWS, WIDTH, generator=draw)
        x = _inputs(draw)
        found = reports(prepare_for_qat, run, [(weight, None)], [Call(x)])
        _require_rounded(_seen(next(found), x), weight, what="the only layer")
    with part("in every linear layer; biases and activations stay as they are"):
        _every_layer(prepare_for_qat, draw)
    with part("the gradient reaches the weights, and what it makes of them is rounded anew"):
        weight = torch.randn(ROWS, WIDTH, generator=draw)
        change = 0.3 * weight + 0.1 * torch.randn(weight.shape, generator=draw)
        x, y = _inputs(draw), _inputs(draw)
        found = reports(prepare_for_qat, run, [(weight, None)], [Call(x), Step(change), Call(y)])
        before = _seen(next(found), x)
        _require_rounded(before, weight, what="the layer to be trained")
        _require_trained(before, _seen(next(found), y), weight, change)
    with part("small steps add up: the weights that are trained stay floats"):
        _small_steps(prepare_for_qat, draw)


def _inputs(draw: torch.Generator) -> Tensor:
    """Draw four inputs, after zeros and the identity."""
    return torch.cat([torch.zeros(1, WIDTH), torch.eye(WIDTH), 3 * torch.rand(4, WIDTH, generator=draw)])


def _seen(output: Any, inputs: Tensor) -> Tensor:
    """Return the weight that a forward pass used, from the outputs for the identity, and refuse other roundings.

    One call, since a prepared model in training mode may move its scales at each.
    """
    x, outputs = inputs[-4:], plain_output(output, len(inputs))
    still, weight, got = outputs[0], (outputs[1:-4] - outputs[0]).T, outputs[-4:]
    expected = x.double() @ weight.T + still
    allowed = 2e-5 * (x.double() @ weight.abs().T + still.abs())  # FP32 sums: 384 · 2⁻²⁴ at the very worst
    require(
        ((got - expected).abs() <= allowed).all(),
        f"the outputs are not those of any weight: off by up to {(got - expected).abs().max():.3g}",
        misconception="rounds-activations",
        thought="Inputs or outputs were rounded. Here only weights are: keep `activation=nn.Identity`.",
    )
    return weight


def _distinct(row: Tensor) -> int:
    """Count values that differ by more than a hundredth of a code."""
    gaps = row.sort().values.diff()
    return 1 + int((gaps > row.abs().max() / 12_700).sum())


def _require_rounded(seen: Tensor, weight: Tensor, *, what: str) -> None:
    """Refuse weights that are not those given, rounded to 8 bits."""
    given, step = weight.double(), weight.abs().max().item() / 127
    scaled = (seen * given).sum() / given.square().sum()  # by the other layer: its ones may be the code 127 of 127.5
    seen = seen / scaled if abs(scaled - 1) < 0.005 else seen
    off = (seen - given).abs().max().item()
    require(
        off > 1e-5 * step,
        f"given weights up to {given.abs().max():.4g}, {what} multiplies by exactly these floats",
        misconception="never-sees-rounding",
        thought="`prepare` only inserts observers, made for calibration. Which function makes a model ready for QAT?",
    )
    most = max(map(_distinct, seen))
    require(
        most <= 256,
        f"{what} multiplies by a row of {most} different values; 8 bits have 256",
        misconception="too-many-values",
        thought="Round each weight to a whole number of steps, and multiply by the step again.",
    )
    require(
        off <= FAR * step,
        f"a weight of {what} is off by {off / step:.2f} codes, at most {FAR} are due to rounding",
        misconception="wrong-value",
        thought="A code's step is a row's largest magnitude over 127: compare the weights before and after rounding.",
    )


def _every_layer(prepare_for_qat: LearnerFunction, draw: torch.Generator) -> None:
    """Let the other layer be the identity: it has one code beside zero, and scales all outputs alike."""
    weight, bias = torch.randn(ROWS, WIDTH, generator=draw), torch.randn(ROWS, generator=draw)
    x, layers = _inputs(draw), [(torch.eye(WIDTH), torch.zeros(WIDTH)), (weight, bias)]
    found = reports(prepare_for_qat, run, layers, [Call(x), Call(torch.zeros(1, WIDTH))])
    _require_rounded(_seen(next(found), x), weight, what="the last layer")
    got = plain_output(next(found), 1)[0]
    require(
        (got - bias).abs().max() <= 1e-6 * bias.abs().max(),
        f"given the bias {bias[0]:.6g}, got the output {got[0]:.6g} for zeros",
        misconception="rounds-the-bias",
        thought="Only weights are rounded: a bias is added to the sums as it is.",
    )
    positive = torch.rand(ROWS, WIDTH, generator=draw)
    x, layers = _inputs(draw), [(positive, torch.zeros(ROWS)), (torch.eye(ROWS), torch.zeros(ROWS))]
    found = reports(prepare_for_qat, run, layers, [Call(x)])
    _require_rounded(_seen(next(found), x), positive, what="the first layer")


def _require_trained(before: Tensor, after: Tensor, weight: Tensor, change: Tensor) -> None:
    step = weight.abs().max().item() / 127
    moved = (after - before).abs() > step
    require(
        moved.any(),
        "after a step along a gradient of about a third of each weight, the forward pass uses the same weights",
        misconception="no-gradient",
        thought="A staircase is flat, its true gradient 0: pass the gradient straight through to the float weight.",
    )
    expected = (weight - change).double()
    arrived = ((after - expected).abs() <= 2 * FAR * step).double().mean().item()
    require(
        arrived >= MOST,
        f"after a step, {arrived:.1%} of the weights are where the straight-through gradient leads, not 97 %",
        misconception="wrong-gradient",
        thought="Inside the grid the gradient is 1: it reaches each weight as if nothing had been rounded.",
    )
    most = max(map(_distinct, after))
    require(
        most <= 256,
        f"after a step the forward pass multiplies by a row of {most} different values; 8 bits have 256",
        misconception="rounds-once",
        thought="After a step the weights are floats again: round *in* the forward pass, at each call.",
    )


def _small_steps(prepare_for_qat: LearnerFunction, draw: torch.Generator) -> None:
    weight = torch.randn(ROWS, WIDTH, generator=draw)
    step = weight.abs().max().item() / 127
    direction = weight.sign()  # toward zero: no range grows
    x, y, small = _inputs(draw), _inputs(draw), Step(SMALL * step * direction)
    found = reports(prepare_for_qat, run, [(weight, None)], [Call(x), *[small] * SMALL_STEPS, Call(y)])
    before = _seen(next(found), x)
    _require_rounded(before, weight, what="the layer to be trained")
    way = ((before - _seen(next(found), y)) * direction).mean().item() / step
    whole = SMALL_STEPS * SMALL
    require(
        0.8 * whole <= way <= 1.2 * whole,
        f"{SMALL_STEPS} steps of a fifth of a code moved the weights by {way:.2f} codes, expected about {whole:g}",
        misconception="loses-small-steps" if abs(way) < 0.6 * whole else "wrong-gradient",
        thought="A step smaller than half a code is lost if the stored weight is rounded: keep it as a float, and"
        " round a copy of it at each call.",
    )
