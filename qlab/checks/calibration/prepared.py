"""Check of `prepare_for_qat`: what the forward pass multiplies by, and whether training moves what it rounds."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from qlab import calibrate, qat
from qlab.checks.calibration.batches import TOPIC
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part, require

WIDTH = 384  # of a row: more than the 256 values that 8 bits have, so that a row of floats shows
ROWS = 5
FAR = 0.6  # of a step of the tensor's largest magnitude: half of one, with codes to 127 or 127.5, or one scale for all
MOST = 0.97  # of the weights: a grid to 127.5 clips a row's largest, and passes it no gradient
SMALL_STEPS, SMALL = 8, 1 / 5  # so many steps of a fifth of a code move a weight by 1.6 codes


@check(TOPIC, "prepare-for-qat", qat.prepare, calibrate.FakeQuantize, points=4)
def check_prepare_for_qat(prepare_for_qat: LearnerFunction, draw: torch.Generator) -> None:
    """Check `prepare_for_qat(model)`, which returns a model that computes with rounded weights and trains."""
    with part("in training mode the forward pass multiplies by weights of 8 bits"):
        weight = torch.randn(ROWS, WIDTH, generator=draw)
        _require_rounded(_seen(_prepared(prepare_for_qat, _net(weight)), draw), weight, what="the only layer")
    with part("in every linear layer; biases and activations stay as they are"):
        _every_layer(prepare_for_qat, draw)
    with part("the gradient reaches the weights, and what it makes of them is rounded anew"):
        weight = torch.randn(ROWS, WIDTH, generator=draw)
        model = _prepared(prepare_for_qat, _net(weight))
        change = 0.3 * weight + 0.1 * torch.randn(weight.shape, generator=draw)
        before = _seen(model, draw)
        _require_rounded(before, weight, what="the layer to be trained")
        _take_step(model, change)
        _require_trained(before, _seen(model, draw), weight, change)
    with part("small steps add up: the weights that are trained stay floats"):
        _small_steps(prepare_for_qat, draw)


def _net(*weights: Tensor, biases: bool = False) -> nn.Sequential:
    """Return linear layers with these weights and a ReLU between two, in training mode."""
    layers: list[nn.Module] = []
    for weight in weights:
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=biases)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if biases:
                linear.bias.zero_()
        layers += [nn.ReLU(), linear] if layers else [linear]
    return nn.Sequential(*layers).train()


def _prepared(prepare_for_qat: LearnerFunction, net: nn.Sequential) -> nn.Module:
    model = prepare_for_qat(copy.deepcopy(net))
    require(
        isinstance(model, nn.Module),
        f"`prepare_for_qat(model)` returned a {type(model).__name__}",
        misconception="returns-nothing" if model is None else "not-a-module",
        thought="`prepare_qat` returns the prepared model: hand it back.",
    )
    require(
        model.training,
        "the model came in training mode and left in evaluation mode",
        misconception="left-in-eval",
        thought="What comes next is training: return the model in training mode.",
    )
    return model


def _called(model: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
    """Return what the model gives, as it is and as plain numbers."""
    output = LearnerFunction(model)(x)
    return output, as_tensor(output, (len(x), ROWS), call="prepared(x)").double()


def _seen(model: nn.Module, draw: torch.Generator) -> Tensor:
    """Return the weight that a forward pass used, from the outputs for the identity, and refuse other roundings.

    One call, since a prepared model in training mode may move its scales at each.
    """
    x = 3 * torch.rand(4, WIDTH, generator=draw)
    _, outputs = _called(model, torch.cat([torch.zeros(1, WIDTH), torch.eye(WIDTH), x]))
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
    net = _net(torch.eye(WIDTH), weight, biases=True)
    with torch.no_grad():
        net[2].bias.copy_(bias)
    model = _prepared(prepare_for_qat, net)
    _require_rounded(_seen(model, draw), weight, what="the last layer")
    got = _called(model, torch.zeros(1, WIDTH))[1][0]
    require(
        (got - bias).abs().max() <= 1e-6 * bias.abs().max(),
        f"given the bias {bias[0]:.6g}, got the output {got[0]:.6g} for zeros",
        misconception="rounds-the-bias",
        thought="Only weights are rounded: a bias is added to the sums as it is.",
    )
    positive = torch.rand(ROWS, WIDTH, generator=draw)
    model = _prepared(prepare_for_qat, _net(positive, torch.eye(ROWS), biases=True))
    _require_rounded(_seen(model, draw), positive, what="the first layer")


def _take_step(model: nn.Module, change: Tensor) -> None:
    """Subtract from the weight the gradient of a loss whose gradient is `change`."""
    output, _ = _called(model, torch.eye(change.shape[1]))
    trained = [p for p in model.parameters() if p.requires_grad and p.numel() == change.numel()]
    require(
        trained and isinstance(output, Tensor) and output.requires_grad,
        f"{len(trained)} parameters as large as the weight are trained, and the output depends on none"
        if trained
        else "no parameter as large as the weight is there to be trained",
        misconception="no-gradient",
        thought="A converted or detached weight cannot be trained: prepare the model, and convert it *after* training.",
    )
    LearnerFunction(lambda: (output * change.T).sum().backward())()
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
                parameter.grad = None


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
    model, direction = _prepared(prepare_for_qat, _net(weight)), weight.sign()  # toward zero: no range grows
    before = _seen(model, draw)
    _require_rounded(before, weight, what="the layer to be trained")
    for _ in range(SMALL_STEPS):
        _take_step(model, SMALL * step * direction)
    way = ((before - _seen(model, draw)) * direction).mean().item() / step
    whole = SMALL_STEPS * SMALL
    require(
        0.8 * whole <= way <= 1.2 * whole,
        f"{SMALL_STEPS} steps of a fifth of a code moved the weights by {way:.2f} codes, expected about {whole:g}",
        misconception="loses-small-steps" if abs(way) < 0.6 * whole else "wrong-gradient",
        thought="A step smaller than half a code is lost if the stored weight is rounded: keep it as a float, and"
        " round a copy of it at each call.",
    )
