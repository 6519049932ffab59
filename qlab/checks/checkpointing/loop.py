"""Check of `accumulation_step`: a copied training loop over padded micro-batches, repaired."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qlab import checkpointing
from qlab.checks.checkpointing.stepping import RATE, MicroBatch, Scorer, stepped
from qlab.checks.checkpointing.topic import TOPIC
from qlab.checks.expect import as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.report import Refused, check, part, require

IGNORED = -100
WIDTH, VOCABULARY, SEQUENCE = 9, 7, 11
# of the largest value: sums of a hundred FP64 terms in another order give 1e-14; one padded position more in the
# divisor gives 5e-3
CLOSE = 1e-9
Share = Callable[[Tensor, int, list[MicroBatch]], Tensor]


@dataclass(frozen=True)
class Stepped:
    """What a call left: by how much each parameter moved over the rate, steps taken, and the loss it told."""

    moved: Tensor
    steps: int
    told: Any

    @property
    def loss(self) -> float:
        return as_number(self.told, call="accumulation_step(…)")


@check(TOPIC, "accumulation-loop", checkpointing.accumulate, points=4)
def check_accumulation_step(accumulation_step: LearnerFunction, draw: torch.Generator) -> None:
    """Check `accumulation_step(model, optimizer, micro_batches)`."""
    with part("no padding, equal lengths: the step of the big batch"):
        _require_step(accumulation_step, draw, [SEQUENCE * 3] * drawn(3, 5, draw))
    with part("padding: every token that counts weighs the same"):
        _require_step(accumulation_step, draw, _counts(draw))
    with part("the loss it returns is the mean over the tokens that count"):
        _require_loss(accumulation_step, draw, _counts(draw))
    with part("an earlier gradient, and a micro-batch that is all padding"):
        _require_step(accumulation_step, draw, _counts(draw), earlier=True)
        _require_step(accumulation_step, draw, [*_counts(draw), 0])


def _counts(draw: torch.Generator) -> list[int]:
    """Draw how many of the positions of each micro-batch count: few, most, and some numbers between."""
    return [drawn(3, 6, draw), drawn(25, 32, draw), *(drawn(7, 24, draw) for _ in range(drawn(1, 3, draw)))]


def _batches(counts: list[int], draw: torch.Generator) -> list[MicroBatch]:
    """Draw three rows for each micro-batch, of whose targets so many are not padding."""
    batches = []
    for count in counts:
        x = torch.randn(3, SEQUENCE, WIDTH, generator=draw, dtype=torch.float64) + torch.randn(WIDTH, generator=draw)
        targets = torch.randint(drawn(2, VOCABULARY, draw), (3 * SEQUENCE,), generator=draw)
        padding = torch.randperm(3 * SEQUENCE, generator=draw)[count:]
        batches.append((x, targets.index_fill(0, padding, IGNORED).view(3, SEQUENCE)))
    return batches


def _drawn_scorer(draw: torch.Generator) -> Scorer:
    sizes = (WIDTH, WIDTH), (WIDTH, VOCABULARY)
    return Scorer(*(torch.randn(size, generator=draw, dtype=torch.float64) / size[0] ** 0.5 for size in sizes))


def _row(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _stepped(step: LearnerFunction, model: Scorer, batches: list[MicroBatch], earlier: Tensor | None) -> Stepped:
    weights = [parameter.detach() for parameter in model.parameters()]
    after, steps, told = step.beside(stepped, weights, batches, earlier)
    return Stepped((_row(weights) - _row(after)) / RATE, steps, told)


def _losses(model: Scorer, batch: MicroBatch) -> Tensor:
    logits, targets = model(batch[0]).flatten(0, 1), batch[1].flatten()
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)


def _counted(batches: list[MicroBatch]) -> int:
    return sum(int((targets != IGNORED).sum()) for _, targets in batches)


def _loss(model: Scorer, batches: list[MicroBatch], share: Share) -> Tensor:
    return sum(share(_losses(model, batch), _counted([batch]), batches) for batch in batches)


def _right(losses: Tensor, own: int, batches: list[MicroBatch]) -> Tensor:
    return losses.sum() / _counted(batches)


def _gradient(model: Scorer, loss: Tensor) -> Tensor:
    return _row(torch.autograd.grad(loss, list(model.parameters())))


DIVIDE = "`backward` adds: undivided, more micro-batches make a longer step."
AVERAGES = "Each micro-batch's mean divides by its own count: few tokens then weigh as much as many."
PADDING = "Padded positions have no loss and must not be in the divisor: count the targets that are not −100."
SHARES: tuple[tuple[str, str, Share], ...] = (
    ("forgets-to-divide", DIVIDE, lambda losses, own, batches: losses.sum() / own),
    ("forgets-to-divide", DIVIDE, lambda losses, own, batches: losses.sum()),
    ("averages-averages", AVERAGES, lambda losses, own, batches: losses.sum() / own / len(batches)),
    (
        "counts-padding",
        PADDING,
        lambda losses, own, batches: losses.sum() / sum(targets.numel() for _, targets in batches),
    ),
    ("counts-padding", PADDING, lambda losses, own, batches: losses.sum() / len(losses) / len(batches)),
    ("counts-padding", PADDING, lambda losses, own, batches: losses.sum() / len(losses)),
    (
        "divides-twice",
        "One division is enough.",
        lambda losses, own, batches: losses.sum() / _counted(batches) / len(batches),
    ),
    (
        "divides-by-micro-batches",
        "A sum over tokens is divided by tokens.",
        lambda losses, own, batches: losses.sum() / len(batches),
    ),
)


def _require_step(step: LearnerFunction, draw: torch.Generator, counts: list[int], *, earlier: bool = False) -> None:
    model, batches = _drawn_scorer(draw), _batches(counts, draw)
    size = sum(parameter.numel() for parameter in model.parameters())
    left = torch.randn(size, generator=draw, dtype=torch.float64) if earlier else None
    got = _stepped(step, model, batches, left)
    told = f"micro-batches with {', '.join(map(str, counts))} tokens that count"
    require(
        bool(got.moved.isfinite().all()) and (0 not in counts or math.isfinite(got.loss)),
        f"{told}: the parameters or the loss are NaN or infinite",
        misconception="nan-on-padding-only",
        thought="A mean of no tokens is 0 / 0: take sums, and divide by the tokens of all micro-batches.",
    )
    require(
        got.steps == 1,
        f"{told}: the optimizer took {got.steps} steps, expected 1",
        misconception="steps-in-the-loop" if got.steps > 1 else "never-steps",
        thought="One step for all micro-batches, after the last of them.",
    )
    want = _gradient(model, _loss(model, batches, _right))
    if _same(got.moved, want):
        return
    length = got.moved.norm() / want.norm()
    message = f"{told}: your step is {length:.4g} times as long as the big batch's, expected 1"
    for misconception, thought, gradient in _slips(model, batches, left):
        if _same(got.moved, gradient):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Compare with one call on all rows joined: `cross_entropy` of them, `backward`, `step`.",
    )


def _slips(model: Scorer, batches: list[MicroBatch], left: Tensor | None) -> Iterator[tuple[str, str, Tensor]]:
    """List the gradients that each slip steps along."""
    batches = [batch for batch in batches if _counted([batch])]
    right = _gradient(model, _loss(model, batches, _right))
    if left is not None:
        yield "never-zeroes", "Zero the gradients before the first micro-batch: an old step left its own.", right + left
    every: tuple[tuple[str, str, Share], ...] = (("", "", _right), *SHARES)
    for misconception, thought, share in SHARES:
        gradient = _gradient(model, _loss(model, batches, share))
        yield misconception, thought, gradient
        if left is not None:
            yield misconception, thought, gradient + left
    zero = "Zeroing belongs before the loop: inside it, the last micro-batch's gradient alone survives."
    for _, _, share in every:
        one = batches[-1]
        alone = _gradient(model, share(_losses(model, one), _counted([one]), batches))
        yield "zeroes-in-the-loop", zero, alone
    if left is not None:
        yield "never-zeroes", "Zero the gradients before the first micro-batch: an old step left its own.", left


def _require_loss(step: LearnerFunction, draw: torch.Generator, counts: list[int]) -> None:
    model, batches = _drawn_scorer(draw), _batches(counts, draw)
    got = _stepped(step, model, batches, None).loss
    with torch.no_grad():
        want = _loss(model, batches, _right).item()
        others = [(name, thought, _loss(model, batches, share).item()) for name, thought, share in SHARES]
        last = batches[-1]
        alone = [share(_losses(model, last), _counted([last]), batches).item() for _, _, share in SHARES]
        alone.append(_right(_losses(model, last), 0, batches).item())
    if abs(got - want) <= CLOSE * abs(want):
        return
    message = f"it returned a loss of {got:.6g}, expected {want:.6g}"
    for misconception, thought, value in others:
        if abs(got - value) <= CLOSE * abs(value):
            raise Refused(message, misconception=misconception, thought=thought)
    every = "Add up the sums of all micro-batches, then divide once: the last one's loss is not the batch's."
    if any(abs(got - value) <= CLOSE * abs(value) for value in alone):
        raise Refused(message, misconception="last-loss-only", thought=every)
    raise Refused(message, misconception="wrong-value", thought=every)


def _same(got: Tensor, want: Tensor) -> bool:
    return bool(((got - want).abs() <= CLOSE * want.abs().max()).all())
