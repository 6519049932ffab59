"""Check of `MasterWeights`: FP32 copies that take the gradients, take the steps, and are rounded back."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qlab import loss_scaling
from qlab.checks.beside import reports, require_right_too
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.masters_runs import made, stepped, taken
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.numbers import drawn
from qlab.checks.report import check, part, require

TINY = 2.0**-13  # of a weight: FP16 swallows what is below 2⁻¹² of it
STEPS = 48  # together 48 · 2⁻¹³ of a weight, some twelve steps of FP16 in the lower half of a binade, six in the upper


@check(TOPIC, "master-weights", loss_scaling.MasterWeights, points=4)
def check_master_weights(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `MasterWeights(weights)` as its task documents it."""
    with part("FP32 copies, one for each weight, that an optimizer takes"):
        _require_copies(master_weights, draw)
    with part("gradients arrive in FP32, each new one in place of the old; none where there is none"):
        _require_gradients(master_weights, draw)
    with part("after a step the weights are the copies, rounded, and the copies are not"):
        _require_rounded_back(master_weights, draw)
    with part(f"{STEPS} updates, each too small for FP16, add up"):
        _require_tiny_updates(master_weights, draw)


def _weights(draw: torch.Generator) -> list[Tensor]:
    """Draw FP16 weights."""
    shapes = ((drawn(2, 4, draw), 5), (drawn(3, 7, draw),), (2, drawn(2, 4, draw)))
    return [torch.randn(shape, generator=draw).half() for shape in shapes]


def _require_copies(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    gradients = [torch.randn(w.shape, generator=draw) for w in weights]
    found = reports(master_weights, made, weights, gradients)
    copies = next(found)
    require_right_too(all(copy.dtype == torch.float32 for copy in copies))
    _same(copies, weights, "the copy of weights[{}]", "wrong-copy", "Copy the values as they are.")
    _require_stepped(next(found), weights, gradients)
    list(found)


def _require_stepped(got: Iterable[Tensor], weights: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Refuse copies that an optimizer did not move down their gradients, at a rate of 1."""
    pairs = zip(weights, gradients, strict=True)
    expected = [w.float() if g is None else w.float() - g.float() for w, g in pairs]
    holds = "An optimizer holds the tensors of `.parameters`, and changes them in place: they are all the copies."
    _same(got, expected, "after a step of an optimizer the copy of weights[{}]", "wrong-copy", holds)


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


def _require_gradients(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    silent = drawn(0, len(weights) - 1, draw)
    first, second = ([torch.randn(w.shape, generator=draw).half() for w in weights] for _ in range(2))
    second = [g if i != silent else None for i, g in enumerate(second)]
    found = reports(master_weights, taken, weights, [first, second])
    for step, given in enumerate((first, second)):
        numbered = enumerate(zip(next(found), given, strict=True))
        for number, (got, gradient) in sorted(numbered, key=lambda n: n[1][1] is None):
            _require_gradient(got, gradient, number, again=bool(step))
    told = "after take_gradients the copy of weights[{}]"
    _same(*next(found), told, "moves-too-soon", "Only gradients move here.")
    _require_stepped(next(found), weights, second)


def _require_gradient(got: Tensor | None, gradient: Tensor | None, number: int, *, again: bool) -> None:
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


def _require_rounded_back(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    gradients = [(0.01 * torch.randn(w.shape, generator=draw)).half() for w in weights]
    expected = [w.float() - g.float() for w, g in zip(weights, gradients, strict=True)]
    found = reports(master_weights, stepped, weights, gradients, 1)
    after = next(found)
    written = any(not torch.equal(w.float(), b.float()) for w, b in zip(after, weights, strict=True))
    require(
        written,
        "after a step and `write_back` the weights are what they were",
        misconception="forgets-to-write-back",
        thought="The model computes with the FP16 weights: round each copy into its weight, `weight.copy_(…)`,"
        " so that the same tensor has new values.",
    )
    half = [e.half() for e in expected]
    _same(after, half, "weights[{}]", "wrong-value", "A weight is its copy, rounded to the nearest FP16 number.")
    rounds = "What FP16 cannot hold must stay in the FP32 copy: round on the way out, never the copy itself."
    copies = next(found)
    rounded = all(torch.equal(c.detach(), h.float()) for c, h in zip(copies, half, strict=True))
    _same(copies, expected, "the copy of weights[{}]", "rounds-the-master" if rounded else "wrong-copy", rounds)


def _require_tiny_updates(master_weights: LearnerFunction, draw: torch.Generator) -> None:
    weights = _weights(draw)
    start = torch.cat([w.flatten() for w in weights])
    gradients = [(TINY * w.float()).half() for w in weights]
    after = next(reports(master_weights, stepped, weights, gradients, STEPS))
    change = torch.cat([g.flatten() for g in gradients])
    copy, swallowed, once = start.float(), start, (start.float() - STEPS * change.float()).half()
    for _ in range(STEPS):
        copy, swallowed = copy - change.float(), swallowed - change
    lost = (
        "Each update was rounded away: the optimizer must step the FP32 copies, which keep what FP16 has no room for."
    )
    require_values(
        torch.cat([w.flatten() for w in after]).float(),
        copy.half().float(),
        given=lambda i: f"the weight {start[i]:.6g} and {STEPS} times the gradient {change[i]:.4g}, rate 1",
        suspects=lambda: [
            Suspect("updates-the-fp16-copy", lost, swallowed.float()),
            Suspect("forgets-to-write-back", "The FP16 weights never changed.", start.float()),
            Suspect("wrong-value", "All steps at once is not what was asked.", once.float()),
        ],
    )
