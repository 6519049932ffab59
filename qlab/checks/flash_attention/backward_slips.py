"""What a tiled backward pass with one slip in it returns, in FP64."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qlab.checks.flash_attention.exact import UNIT, Attention

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Saved:
    """What a forward pass kept, in FP32, and the gradient that comes from above."""

    case: Attention
    grad_output: Tensor
    output: Tensor = field(init=False)
    log_sum_exp: Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "output", self.case.output.float())
        object.__setattr__(self, "log_sum_exp", self.case.log_sum_exp.float())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """q, k, v, output and log-sum-exp, as the answer is given them."""
        return self.case.q, self.case.k, self.case.v, self.output, self.log_sum_exp


@dataclass(frozen=True)
class Formula:
    """The backward pass in matrices, with places to go wrong; as it stands, right."""

    row_sum: float = 1.0
    row_sum_of: str = "output"
    scores_scale: float = -0.5
    gradient_scale: float = -0.5
    weights: str = "log-sum-exp"
    mask: str = "visible"
    softmax: bool = True


def gradients(saved: Saved, formula: Formula, blocks: tuple[int, int] = (1, 1)) -> Gradients:
    """Return dq, dk and dv by a formula."""
    case, grad = saved.case, saved.grad_output.double()
    q, k, v = case.q.double(), case.k.double(), case.v.double()
    width = q.shape[1]
    hidden = ~_mask(case, formula.mask, blocks)
    scores = width**formula.scores_scale * (q @ k.T)
    kept = {
        "log-sum-exp": saved.log_sum_exp.double()[:, None],
        "nothing": torch.zeros(len(q), 1).double(),
        "maximum": scores.masked_fill(hidden, -math.inf).amax(1, keepdim=True),
        "base-two": saved.log_sum_exp.double()[:, None] / math.log(2),
    }[formula.weights]
    p = (scores - kept).exp().masked_fill(hidden, 0.0)
    of_p = grad @ v.T
    row_sum = {
        "output": (grad * saved.output.double()).sum(1, keepdim=True),
        "gradient": grad.sum(1, keepdim=True),
        "products": of_p.sum(1, keepdim=True),
        "mean": (grad * saved.output.double()).mean(1, keepdim=True),
        "all": (grad * saved.output.double()).sum(),
        "tile": torch.cat([t.sum(1, keepdim=True).expand_as(t) for t in (p * of_p).split(blocks[1], 1)], 1),
    }[formula.row_sum_of]
    of_scores = of_p - formula.row_sum * row_sum
    of_scores = (
        p * of_scores if formula.softmax else of_scores.masked_fill(hidden, 0.0)
    ) * width**formula.gradient_scale
    return of_scores @ k, of_scores.T @ q, p.T @ grad


def _mask(case: Attention, mask: str, blocks: tuple[int, int]) -> Tensor:
    i, j = torch.arange(len(case.q))[:, None], torch.arange(len(case.k))
    everything = torch.ones(len(case.q), len(case.k), dtype=torch.bool)
    if mask == "visible" or not case.is_causal:
        return case.visible
    return {
        "all": everything,
        "strict": j < i,
        "one-more": j <= i + 1,
        "turned": j >= i,
        "local": j % blocks[1] <= i % blocks[0],
        "whole-tiles": j // blocks[1] * blocks[1] < (i // blocks[0] + 1) * blocks[0],
    }[mask]


RIGHT = Formula()
DELTA = "The softmax's own backward: dS = P ∘ (dP − Δ), where Δ is the row sum of grad_output · output."
SCALE = "S = q kᵀ / √width: the scale stands in S, and once more in what S hands back to q and k."
WEIGHTS = "P = exp(S − L): with the log-sum-exp subtracted, each row of P adds up to 1 again."
MASK = "What is hidden has the weight 0 in the backward pass as well: query i sees keys 0 to i."
FORMULAS: tuple[tuple[str, str, Formula], ...] = (
    ("misses-the-row-sum", DELTA, Formula(row_sum=0.0)),
    ("adds-the-row-sum", DELTA, Formula(row_sum=-1.0)),
    ("wrong-row-sum", DELTA, Formula(row_sum_of="gradient")),
    ("wrong-row-sum", DELTA, Formula(row_sum_of="products")),
    ("wrong-row-sum", f"{DELTA} A sum, not a mean.", Formula(row_sum_of="mean")),
    ("one-row-sum-for-all", f"{DELTA} Each row has its own: `dim=1`.", Formula(row_sum_of="all")),
    ("row-sum-of-one-tile", f"{DELTA} It runs over all keys, not one tile's.", Formula(row_sum_of="tile")),
    ("scale-forgotten", SCALE, Formula(gradient_scale=0.0)),
    ("scale-forgotten", SCALE, Formula(scores_scale=0.0)),
    ("scale-forgotten", SCALE, Formula(scores_scale=0.0, gradient_scale=0.0)),
    ("scale-by-the-width", SCALE, Formula(gradient_scale=-1.0)),
    ("scale-by-the-width", SCALE, Formula(scores_scale=-1.0)),
    ("scale-by-the-width", SCALE, Formula(scores_scale=-1.0, gradient_scale=-1.0)),
    ("log-sum-exp-unused", WEIGHTS, Formula(weights="nothing")),
    ("log-sum-exp-unused", WEIGHTS, Formula(weights="maximum")),
    ("log-sum-exp-in-base-two", f"{WEIGHTS} Both in base e.", Formula(weights="base-two")),
    ("misses-the-weights", DELTA, Formula(softmax=False)),
    ("misses-the-weights", DELTA, Formula(softmax=False, row_sum=0.0)),
    ("ignores-the-mask", MASK, Formula(mask="all")),
    ("hides-the-diagonal", f"{MASK} Key i, too.", Formula(mask="strict")),
    ("sees-one-key-too-many", MASK, Formula(mask="one-more")),
    ("mask-turned-round", MASK, Formula(mask="turned")),
    ("mask-counts-inside-the-tile", f"{MASK} Count in the whole sequence.", Formula(mask="local")),
    ("hides-whole-tiles-only", f"{MASK} A tile on the diagonal is hidden in part.", Formula(mask="whole-tiles")),
)


def slips(saved: Saved, blocks: tuple[int, int]) -> Iterator[tuple[str, str, Gradients]]:
    """Yield the gradients of every formula that is not the right one, and of sums with tiles left out."""
    for misconception, thought, formula in FORMULAS:
        yield misconception, thought, gradients(saved, formula, blocks)
    dq, dk, dv = gradients(saved, RIGHT)
    order = "Return dq, dk and dv in this order."
    yield "gradients-in-another-order", order, (dq, dv, dk)
    if len(dq) == len(dk):
        for three in ((dk, dq, dv), (dv, dk, dq), (dk, dv, dq), (dv, dq, dk)):
            yield "gradients-in-another-order", order, three
    yield "wrong-sign", "dS = P ∘ (dP − Δ).", (-dq, -dk, -dv)
    yield from _apart(saved, blocks)


def _apart(saved: Saved, blocks: tuple[int, int]) -> Iterator[tuple[str, str, Gradients]]:
    """Yield what remains if only some tiles count."""
    rows, columns = _starts(len(saved.case.q), blocks[0]), _starts(len(saved.case.k), blocks[1])
    last_rows, last_columns = _from(rows[-1], len(saved.case.q)), _from(columns[-1], len(saved.case.k))
    whole_rows = _below(len(saved.case.q) // blocks[0] * blocks[0], len(saved.case.q))
    whole_columns = _below(len(saved.case.k) // blocks[1] * blocks[1], len(saved.case.k))
    added = "dq is a sum over blocks of keys, dk and dv are sums over blocks of queries: `+=`, from zeros."
    yield "overwrites-tiles", added, _part(saved, last_rows, last_columns)
    yield "overwrites-tiles", added, _part(saved, _below(rows[-1] and blocks[0], len(saved.case.q)), last_columns)
    rest = "The last block may be shorter: a slice to `start + block` ends where the tensor ends."
    both = _part(saved, whole_rows, whole_columns)
    dq, dk, dv = both
    yield (
        "drops-the-ragged-end",
        rest,
        (dq * whole_rows[:, None], dk * whole_columns[:, None], dv * whole_columns[:, None]),
    )
    yield "drops-the-ragged-end", rest, (gradients(saved, RIGHT)[0] * whole_rows[:, None], dk, dv)
    yield "drops-the-ragged-end", rest, (dq, *(t * whole_columns[:, None] for t in gradients(saved, RIGHT)[1:]))


def _part(saved: Saved, rows: Tensor, columns: Tensor) -> Gradients:
    """Return the gradients with dk and dv summed over some queries only, and dq over some keys."""
    case, grad = saved.case, saved.grad_output.double()
    p = (case.scores - saved.log_sum_exp.double()[:, None]).exp()
    of_p = grad @ case.v.double().T - (grad * saved.output.double()).sum(1, keepdim=True)
    of_scores = case.scale * p * of_p
    dq = (of_scores * columns) @ case.k.double()
    return dq, (of_scores * rows[:, None]).T @ case.q.double(), (p * rows[:, None]).T @ grad


def _starts(length: int, block: int) -> list[int]:
    return list(range(0, length, block))


def _from(start: int, length: int) -> Tensor:
    return torch.arange(length) >= start


def _below(stop: int, length: int) -> Tensor:
    return torch.arange(length) < stop


def allowed(saved: Saved) -> Gradients:
    """Return what FP32 may change in dq, dk and dv.

    P errs by its share, as in the forward pass, and by what FP32 made of L; dP and Δ are sums of `width` products
    (Higham 1993: terms · u · sum of magnitudes), Δ perhaps of P ∘ dP; the gradients are sums over rows or columns.
    """
    case, grad = saved.case, saved.grad_output.double().abs()
    q, k, v = (t.double().abs() for t in (case.q, case.k, case.v))
    rows, columns = len(q), len(k)
    p, share = case.probabilities, (case.share + 4 * UNIT * case.log_sum_exp.abs())[:, None]
    of_p = grad @ v.T
    size = of_p + (p * of_p).sum(1, keepdim=True)
    error = case.scale * p * (2 * share + UNIT * (q.shape[1] + columns + 8)) * size
    sums = UNIT * (rows + columns + 8)
    whole = error + sums * case.scale * p * size
    return whole @ k + 1e-30, whole.T @ q + 1e-30, (p * (share + sums)).T @ grad + 1e-30
