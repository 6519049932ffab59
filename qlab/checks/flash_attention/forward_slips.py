"""What a tiled forward pass with one slip in it returns: the algorithm in FP64, with places to go wrong."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.checks.flash_attention.comparing import Slip
from qlab.checks.flash_attention.exact import Attention


@dataclass(frozen=True)
class Walk:
    """One way to walk over the tiles; as it stands, the right one."""

    keeps_total: bool = False
    keeps_output: bool = False
    divides_each_time: bool = False
    turns_factor: bool = False
    scale_power: float = 1.0
    mask: str = "global"
    rest: str = "shorter"
    ends: str = "all"


def walked(case: Attention, blocks: tuple[int, int], walk: Walk) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output before it is divided, the total and the maximum of each row."""
    rows, width = case.q.shape
    found = torch.zeros(rows, width).double(), torch.zeros(rows).double(), torch.full((rows,), -math.inf).double()
    for row in _starts(rows, blocks[0], walk.rest == "rows-dropped"):
        at = slice(row, min(row + blocks[0], rows))
        output, total, maximum = (t[at] for t in found)
        for column in _starts(len(case.k), blocks[1], walk.rest == "columns-dropped"):
            if case.is_causal and walk.mask == "skips-the-diagonal" and column + blocks[1] > row + 1:
                continue
            scores, values = _tile(case, (row, at.stop), (column, column + blocks[1]), walk)
            top = torch.maximum(maximum, scores.amax(1))
            pivot = top.nan_to_num(neginf=0.0)
            weights, factor = (scores - pivot[:, None]).exp(), (maximum - pivot).exp()
            factor = torch.where(maximum.isfinite(), 1 / factor, 0.0) if walk.turns_factor else factor
            if walk.ends == "last" or (walk.ends == "first" and column):
                factor, weights = (0 * factor, weights) if walk.ends == "last" else (factor / factor, 0 * weights)
            total = total * (1.0 if walk.keeps_total else factor) + weights.sum(1)
            output = output * (1.0 if walk.keeps_output else factor[:, None]) + weights @ values
            output = (output / total[:, None]).nan_to_num() if walk.divides_each_time else output
            maximum = top
        for target, values in zip(found, (output, total, maximum), strict=True):
            target[at] = values
    return found


def _starts(length: int, block: int, dropped: bool) -> range:
    return range(0, length - block + 1 if dropped else length, block)


def _tile(case: Attention, rows: tuple[int, int], columns: tuple[int, int], walk: Walk) -> tuple[Tensor, Tensor]:
    """Return the scores of a tile and its values."""
    k, v = (t[slice(*columns)].double() for t in (case.k, case.v))
    if walk.rest == "padded":
        k, v = (torch.nn.functional.pad(t, (0, 0, 0, columns[1] - columns[0] - len(t))) for t in (k, v))
    scores = case.scale**walk.scale_power * (case.q[slice(*rows)].double() @ k.T)
    if not case.is_causal:
        return scores, v
    i, j = torch.arange(len(scores))[:, None], torch.arange(len(k))
    later = {
        "global": j + columns[0] > i + rows[0],
        "none": torch.zeros(scores.shape, dtype=torch.bool),
        "local": j > i,
        "strict": j + columns[0] >= i + rows[0],
        "turned": j + columns[0] < i + rows[0],
        "one-more": j + columns[0] > i + rows[0] + 1,
        "whole-tiles": torch.full(scores.shape, columns[0] >= rows[1]),
        "skips-the-diagonal": torch.zeros(scores.shape, dtype=torch.bool),
        "zero": j + columns[0] > i + rows[0],
    }[walk.mask]
    return scores.masked_fill(later, 0.0 if walk.mask == "zero" else -math.inf), v


RIGHT = Walk()
OLD = "When the maximum rises from m to m', what was summed so far is worth exp(m − m') of what it was: sum and output."
SIGN = "The factor is exp(old maximum − new maximum), at most 1."
SCALE = "Scores are q·k / √width, once."
GLOBAL = "Compare the numbers of query and key in the whole sequence: `row start + i` and `column start + j`."
REST = "The last block may be shorter: a slice to `start + block` ends where the tensor ends."
WALKS: tuple[tuple[str, str, Walk], ...] = (
    ("forgets-to-rescale", OLD, Walk(keeps_total=True)),
    ("forgets-to-rescale", OLD, Walk(keeps_output=True)),
    ("forgets-to-rescale", OLD, Walk(keeps_total=True, keeps_output=True)),
    ("rescales-the-wrong-way", SIGN, Walk(turns_factor=True)),
    ("scale-forgotten", SCALE, Walk(scale_power=0.0)),
    ("scale-by-the-width", SCALE, Walk(scale_power=2.0)),
    ("scale-inverted", SCALE, Walk(scale_power=-1.0)),
    ("ignores-the-mask", "Causal: query i sees keys 0 to i.", Walk(mask="none")),
    ("mask-counts-inside-the-tile", GLOBAL, Walk(mask="local")),
    ("hides-the-diagonal", "Query i sees key i, too: hide j > i only.", Walk(mask="strict")),
    ("sees-one-key-too-many", "Query i sees key i and none after it: hide j > i.", Walk(mask="one-more")),
    ("mask-turned-round", "Query i sees the keys *before* it: hide j > i.", Walk(mask="turned")),
    ("hides-whole-tiles-only", f"A tile on the diagonal is hidden in part. {GLOBAL}", Walk(mask="whole-tiles")),
    ("skips-the-diagonal-tiles", "A tile on the diagonal is seen in part.", Walk(mask="skips-the-diagonal")),
    ("masks-with-zero", "exp(0) is 1: a hidden score is −inf.", Walk(mask="zero")),
    ("drops-the-ragged-end", REST, Walk(rest="rows-dropped")),
    ("drops-the-ragged-end", REST, Walk(rest="columns-dropped")),
    ("counts-the-padding", f"{REST} A padded key has the score 0, and exp(0) counts.", Walk(rest="padded")),
    ("keeps-the-last-tile-only", "Add to what is there.", Walk(ends="last")),
    ("keeps-the-first-tile-only", "The loop over the columns goes on after the first.", Walk(ends="first")),
)


def _divided(output: Tensor, total: Tensor) -> Tensor:
    return output / total[:, None]


def output_slips(case: Attention, blocks: tuple[int, int]) -> Iterator[Slip]:
    """Yield the outputs of every walk that is not the right one, and of the right one not divided."""
    for misconception, thought, walk in WALKS:
        output, total, _ = walked(case, blocks, walk)
        yield misconception, thought, _divided(output, total)
        yield misconception, thought, _divided(output, total).nan_to_num(nan=0.0)
    output, total, _ = walked(case, blocks, RIGHT)
    yield "never-divides", "Divide by the sum, once, after the last tile.", output
    yield "divides-twice", "Divide by the sum once.", _divided(_divided(output, total), total)
    early = "After each tile the output is still a sum: divide it once, by the whole sum, after the last tile."
    for walk in (Walk(divides_each_time=True), Walk(divides_each_time=True, keeps_output=True)):
        output, total, _ = walked(case, blocks, walk)
        yield "divides-too-early", early, output
        yield "divides-too-early", early, _divided(output, total)
    yield from _blocks_apart(case, blocks)


def _blocks_apart(case: Attention, blocks: tuple[int, int]) -> Iterator[Slip]:
    """Yield what comes of tiles that are each divided by their own sum."""
    apart = "A softmax of each tile is not the softmax of the row: the tiles share one maximum and one sum."
    tiles = [slice(start, start + blocks[1]) for start in range(0, len(case.k), blocks[1])]
    weights = torch.cat([torch.softmax(case.scores[:, tile], 1).nan_to_num() for tile in tiles], 1)
    for total in (torch.ones(len(case.q)), (weights > 0).sum(1).double().clamp(min=1) * 0 + len(tiles)):
        yield "softmax-of-each-tile", apart, weights @ case.v.double() / total[:, None]


def log_sum_exp_slips(case: Attention, blocks: tuple[int, int]) -> Iterator[Slip]:
    """Yield what else might be taken for the log-sum-exp."""
    _, total, maximum = walked(case, blocks, RIGHT)
    exact = case.log_sum_exp
    yield "log-sum-exp-in-base-two", "It is a natural logarithm: times ln 2.", exact / math.log(2)
    for mixed in (maximum + total.log2(), maximum / math.log(2) + total.log()):
        yield "log-sum-exp-in-base-two", "Maximum and logarithm of the sum in one base, e.", mixed
    both = "log Σ exp(s) = m + log Σ exp(s − m): the maximum plus the logarithm of the sum."
    for values in (total.log(), total, maximum, exact.exp(), maximum + total, maximum * total.log(), -exact):
        yield "not-the-log-sum-exp", both, values
    yield "not-the-log-sum-exp", both, maximum - total.log()
    top = maximum.clamp(min=0.0)
    start = "All scores may be far below 0: a running maximum that starts at 0 stays there. Start at −∞."
    seen = (case.scores - top[:, None]).float().exp().sum(1).double()
    yield "maximum-starts-too-high", start, top + seen.log()
    for misconception, thought, walk in WALKS:
        _, total, maximum = walked(case, blocks, walk)
        for nothing in (-math.inf, 0.0):
            yield misconception, thought, (maximum + total.log()).nan_to_num(nan=nothing, neginf=nothing)
        if walk.ends == "last":
            yield misconception, thought, walked(case, blocks, RIGHT)[2] + total.log()
