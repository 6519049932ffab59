"""Check of `MasterWeights`: FP32 copies that take the gradients, take the steps, and are rounded back."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab import loss_scaling
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.numbers import drawn
from qlab.checks.report import check, part, require

CALL = "MasterWeights(weights)"
TINY = 2.0**-13  # of a weight: FP16 swallows what is below 2⁻¹² of it
STEPS = 48  # together 48 · 2⁻¹³ of a weight, some twelve steps of FP16 in the lower half of a binade, six in the upper


@check(TOPIC, "master-weights", loss_scaling.MasterWeights, points=4)
def check_master_weights(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `MasterWeights(weights)` as its task documents it."""
    with part("FP32 copies, one for each weight, that an optimizer takes"):
        weights = _weights(draw)
        copies = _copies(_made(master_weights, weights), weights)
        _same(
            copies,
            [w.detach() for w in weights],
            "the copy of weights[{}]",
            "wrong-copy",
            "Copy the values as they are.",
        )
        LearnerFunction(lambda: torch.optim.SGD(copies, lr=1.0))()
    with part("gradients arrive in FP32, each new one in place of the old; none where there is none"):
        _require_gradients(master_weights, draw)
    with part("after a step the weights are the copies, rounded, and the copies are not"):
        _require_rounded_back(master_weights, draw)
    with part(f"{STEPS} updates, each too small for FP16, add up"):
        _require_tiny_updates(master_weights, draw)


def _weights(draw: torch.Generator) -> nn.ParameterList:
    """Draw FP16 weights; a ParameterList, unlike a list, reaches the answer as it is and not as copies."""
    shapes = ((drawn(2, 4, draw), 5), (drawn(3, 7, draw),), (2, drawn(2, 4, draw)))
    return nn.ParameterList([nn.Parameter(torch.randn(shape, generator=draw).half()) for shape in shapes])


def _made(master_weights: LearnerFunction, weights: nn.ParameterList) -> Any:
    masters = master_weights(weights)
    require(
        masters is not None,
        f"`{CALL}` gave None",
        misconception="returns-nothing",
        thought="`MasterWeights` is a class: calling it makes an object with `parameters`.",
    )
    _copies(masters, weights)
    return masters


def _copies(masters: Any, weights: Sequence[Tensor] | nn.ParameterList) -> list[Tensor]:
    """Return the copies themselves, once they are FP32 tensors of the right shapes."""
    held = LearnerFunction(lambda: _held(masters.parameters))()
    held = list(held) if isinstance(held, Iterator) else held
    given = isinstance(held, Sequence | nn.ParameterList) and all(isinstance(p, Tensor) for p in held)
    require(
        given and len(held) == len(weights),
        f"`masters.parameters` is a {type(held).__name__}, expected a list of {len(weights)} tensors",
        misconception="returns-nothing" if held is None else "returns-wrong-type",
        thought="Keep a list with one tensor for each weight as `self.parameters`.",
    )
    for number, (copy, weight) in enumerate(zip(held, weights, strict=True)):
        require(
            copy.dtype == torch.float32,
            f"`masters.parameters[{number}]` is {copy.dtype}, expected torch.float32",
            misconception="updates-the-fp16-copy" if copy.dtype == torch.float16 else "wrong-dtype",
            thought="The optimizer must add its updates to FP32 numbers: `.float()` gives a copy of a float16 tensor.",
        )
        as_tensor(copy, tuple(weight.shape), call=f"masters.parameters[{number}]")
        require(
            copy.is_leaf,
            f"`masters.parameters[{number}]` is the result of an operation, which no optimizer takes",
            misconception="keeps-the-graph",
            thought="`weight.float()` is recorded by autograd: `.detach()` first, and clone.",
        )
    return list(held)


def _held(parameters: Any) -> Any:
    """Call `parameters` where it is a method; a ParameterList only looks like one."""
    return parameters() if callable(parameters) and not isinstance(parameters, nn.Module) else parameters


def _same(got: Iterable[Tensor], expected: Iterable[Tensor], what: str, misconception: str, thought: str) -> None:
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        require(
            torch.equal(one.detach().double(), other.detach().double()),
            f"{what.format(number)} has {_first(one)}, expected {_first(other)}",
            misconception=misconception,
            thought=thought,
        )


def _first(x: Tensor) -> str:
    return ", ".join(f"{value:.8g}" for value in x.detach().flatten()[:3].tolist()) + ", …"


def _give(weights: Sequence[Tensor] | nn.ParameterList, gradients: Sequence[Tensor | None]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if gradient is None else gradient.half()


def _require_gradients(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    masters = _made(master_weights, weights)
    silent = drawn(0, len(weights) - 1, draw)
    for step in range(2):
        gradients = [torch.randn(w.shape, generator=draw).half() for w in weights]
        given = [g if i != silent or not step else None for i, g in enumerate(gradients)]
        _give(weights, given)
        LearnerFunction(masters.take_gradients)()
        numbered = enumerate(zip(_copies(masters, weights), given, strict=True))
        for number, (copy, gradient) in sorted(numbered, key=lambda n: n[1][1] is None):
            _require_gradient(copy, gradient, number, again=bool(step))
    told = "after take_gradients the copy of weights[{}]"
    _same(_copies(masters, weights), weights, told, "moves-too-soon", "Only gradients move here.")


def _require_gradient(copy: Tensor, gradient: Tensor | None, number: int, *, again: bool) -> None:
    got = copy.grad
    if gradient is None:
        zeros = "Adam and momentum move on where a gradient is zero, and not where it is None."
        empty = got is not None and not got.any()
        told = f"weights[{number}] has no gradient, its copy has one of zeros"
        require(not empty, told, misconception="zeros-for-none", thought=zeros)
        require(
            got is None,
            f"weights[{number}] has no gradient any more, its copy still has one",
            misconception="keeps-an-old-gradient",
            thought="Where the weight's gradient is None, the copy's is None: last step's must not be used again.",
        )
        return
    require(
        got is not None,
        f"the copy of weights[{number}] has no gradient",
        misconception="takes-no-gradient",
        thought="Set `copy.grad` for each copy: the optimizer of the copies reads it there.",
    )
    same = torch.equal(got.double(), gradient.double())
    added = again and not same
    require(
        same,
        f"the copy of weights[{number}] has the gradient {_first(got)}, expected {_first(gradient)}",
        misconception="adds-up-gradients" if added else "wrong-gradient",
        thought="Each step has its own gradients: assign them, do not add them to those of the last step."
        if added
        else "The gradient is that of the FP16 weight, each value as it is, in FP32.",
    )


def _step(masters: Any, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Take one step of plain descent, as the loop of the task does: the weights stay what they are."""
    _give(weights, gradients)
    LearnerFunction(masters.take_gradients)()
    copies = _copies(masters, weights)
    LearnerFunction(torch.optim.SGD(copies, lr=1.0).step)()
    LearnerFunction(masters.write_back)()
    for number, weight in enumerate(weights):
        require(
            weight.dtype == torch.float16,
            f"after `write_back` weights[{number}] is {weight.dtype}",
            misconception="widens-the-weights",
            thought="The model's weights stay float16: copy the rounded values into them.",
        )
        require(
            weight.requires_grad,
            f"after `write_back` weights[{number}] asks for no gradient any more",
            misconception="freezes-the-weights",
            thought="The next backward pass needs it as it was: copy under `torch.no_grad()`.",
        )


def _require_rounded_back(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    gradients = [(0.01 * torch.randn(w.shape, generator=draw)).half() for w in weights]
    expected = [w.detach().float() - g.float() for w, g in zip(weights, gradients, strict=True)]
    before = [w.detach().clone() for w in weights]
    masters, weights = _made(master_weights, weights), list(weights)  # what the model holds, whatever replaces it
    _step(masters, weights, gradients)
    written = any(not torch.equal(w.detach().float(), b.float()) for w, b in zip(weights, before, strict=True))
    require(
        written,
        "after a step and `write_back` the weights are what they were",
        misconception="forgets-to-write-back",
        thought="The model computes with the FP16 weights: round each copy into its weight, `weight.copy_(…)`,"
        " so that the same tensor has new values.",
    )
    half = [e.half() for e in expected]
    _same(weights, half, "weights[{}]", "wrong-value", "A weight is its copy, rounded to the nearest FP16 number.")
    rounds = "What FP16 cannot hold must stay in the FP32 copy: round on the way out, never the copy itself."
    copies = _copies(masters, weights)
    rounded = all(torch.equal(c.detach(), h.float()) for c, h in zip(copies, half, strict=True))
    _same(copies, expected, "the copy of weights[{}]", "rounds-the-master" if rounded else "wrong-copy", rounds)


def _require_tiny_updates(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    start = torch.cat([w.detach().flatten() for w in weights])
    gradients = [(TINY * w.detach().float()).half() for w in weights]
    masters, weights = _made(master_weights, weights), list(weights)
    for _ in range(STEPS):
        _step(masters, weights, gradients)
    change = torch.cat([g.flatten() for g in gradients])
    copy, swallowed, once = start.float(), start, (start.float() - STEPS * change.float()).half()
    for _ in range(STEPS):
        copy, swallowed = copy - change.float(), swallowed - change
    lost = (
        "Each update was rounded away: the optimizer must step the FP32 copies, which keep what FP16 has no room for."
    )
    require_values(
        torch.cat([w.detach().flatten() for w in weights]).float(),
        copy.half().float(),
        given=lambda i: f"the weight {start[i]:.6g} and {STEPS} times the gradient {change[i]:.4g}, rate 1",
        suspects=lambda: [
            Suspect("updates-the-fp16-copy", lost, swallowed.float()),
            Suspect("forgets-to-write-back", "The FP16 weights never changed.", start.float()),
            Suspect("wrong-value", "All steps at once is not what was asked.", once.float()),
        ],
    )
