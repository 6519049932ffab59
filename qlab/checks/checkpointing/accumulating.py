"""Check of `accumulate`: the big batch's gradient from micro-batches, added to what was there, one graph at a time."""

import torch
from torch import Tensor

from qlab import checkpointing
from qlab.checks import probe
from qlab.checks.beside import require_right_too
from qlab.checks.checkpointing.accumulating_runs import MicroBatch, TokenLosses, accumulated
from qlab.checks.checkpointing.batches import (
    drawn_model,
    gradient,
    joined,
    lengths,
    mean_of_all,
    slips,
)
from qlab.checks.checkpointing.batches import micro_batches as drawn_batches
from qlab.checks.checkpointing.topic import TOPIC
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import Refused, check, part, require

# of the largest value: sums of some hundred FP64 terms in another order differ by 1e-14; one token of 400 too many in
# the divisor is 2.5e-3. A loss that passed through FP32 would be 1e-7 off, and is not what the task asks for.
CLOSE = 1e-10
ALONG = 0.1  # of the lengths: what leads nowhere near the gradient was not computed
GRAPHS = 1.5  # times the graph of the largest micro-batch; two of the shortest ones would still be seen


@check(TOPIC, "accumulate", checkpointing.accumulate, points=4)
def check_accumulate(accumulate: LearnerFunction, draw: torch.Generator) -> None:
    """Check `accumulate(model, micro_batches)`, which leaves the gradient in the model's parameters."""
    with part("micro-batches of equal length: the gradient of the big batch"):
        _compare(accumulate, drawn_model(draw), drawn_batches(lengths(draw, ragged=False), draw))
    with part("micro-batches of different lengths: every token counts the same"):
        _compare(accumulate, drawn_model(draw), drawn_batches(lengths(draw, ragged=True), draw))
    with part("what was in the gradients stays: yours is added"):
        model, batches = drawn_model(draw), drawn_batches(lengths(draw, ragged=True), draw)
        _compare(accumulate, model, batches, earlier=torch.randn(_size(model), generator=draw, dtype=torch.float64))
    with part("one micro-batch's graph at a time"):
        _require_one_graph(accumulate, drawn_model(draw), drawn_batches(lengths(draw, ragged=False), draw))


def _size(model: TokenLosses) -> int:
    return sum(weight.numel() for weight in model.weights)


def _compare(
    accumulate: LearnerFunction, model: TokenLosses, batches: list[MicroBatch], *, earlier: Tensor | None = None
) -> None:
    want = gradient(model, mean_of_all(batches))
    pieces = None if earlier is None else earlier.split([weight.numel() for weight in model.weights])
    left = accumulate.beside(accumulated, model.weights, batches, pieces)
    got = _in_a_row(left.gradients)
    require(
        all(map(torch.equal, model.weights, left.weights)),
        "the parameters have changed",
        misconception="changes-the-parameters",
        thought="Leave the gradient in `.grad`: the step is the optimizer's, after the last micro-batch.",
    )
    already = torch.zeros_like(want) if earlier is None else earlier
    _require_gradient(got, want, already, model, batches)


def _in_a_row(grads: list[Tensor | None]) -> Tensor:
    require(
        all(grad is not None for grad in grads),
        "a parameter has no gradient",
        misconception="leaves-no-gradient",
        thought="Call `backward()` on every micro-batch's share: it adds to each parameter's `.grad`.",
    )
    return torch.cat([grad.detach().double().flatten() for grad in grads])


def _require_gradient(
    got: Tensor, want: Tensor, already: Tensor, model: TokenLosses, batches: list[MicroBatch]
) -> None:
    if _same(got, want + already):
        return
    ratio = (got - already).norm() / want.norm()
    sizes = ", ".join(str(len(targets)) for _, targets in batches)
    message = (
        f"micro-batches of {sizes} tokens: your gradient is {ratio:.4g} times as long as the big batch's, expected 1"
    )
    if already.any():
        stays = "`backward` adds to `.grad`; what an earlier call left there is not yours to remove or to scale."
        if _same(got, want):
            raise Refused("the earlier gradient is gone", misconception="overwrites-earlier-gradients", thought=stays)
        if _scaled_too(got - want, already):
            raise Refused("the earlier gradient was scaled", misconception="scales-earlier-gradients", thought=stays)
    if _same(got, already):
        raise Refused(
            "the gradients are as they were before",
            misconception="leaves-no-gradient",
            thought="Call `backward()` on every micro-batch's share: it adds to each parameter's `.grad`.",
        )
    for misconception, thought, loss in slips(batches):
        slip = gradient(model, loss)
        if _same(got, slip + already) or _same(got, slip):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Compare with `model(x, targets).mean().backward()` on all tokens joined.",
    )


def _scaled_too(rest: Tensor, already: Tensor) -> bool:
    factor = (rest @ already) / (already @ already)
    return _same(rest, factor * already) and abs(factor.item() - 1) > CLOSE


def _same(got: Tensor, want: Tensor) -> bool:
    return bool(((got - want).abs() <= CLOSE * want.abs().max()).all())


def _require_one_graph(accumulate: LearnerFunction, model: TokenLosses, batches: list[MicroBatch]) -> None:
    alone = max(probe.saved_bytes(model, *batch) for batch in batches)
    left = accumulate.beside(accumulated, model.weights, batches)
    got, want = _in_a_row(left.gradients), gradient(model, mean_of_all(batches))
    require_right_too(got.shape == want.shape and got @ want > ALONG * got.norm() * want.norm())
    most = max(len(targets) for _, targets in batches)
    together = len(joined(batches)[1])
    require(
        left.longest <= most,
        f"the model was called with {left.longest} tokens at once, the longest micro-batch has {most} of {together}",
        misconception="runs-the-big-batch",
        thought="The big batch does not fit: run the micro-batches one after another.",
    )
    require(
        left.peak_bytes <= GRAPHS * alone,
        f"at most {left.peak_bytes:,} bytes were saved at one time, a micro-batch alone saves {alone:,}",
        misconception="keeps-all-graphs",
        thought="A loss that waits for its `backward` keeps its graph: call it inside the loop, for each micro-batch.",
    )
