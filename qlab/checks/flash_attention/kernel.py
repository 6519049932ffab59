"""Check of `triton_forward`: a Triton kernel, interpreted on a CPU and compiled on a CUDA GPU, held to FP64."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from qlab.attention_triton import HOW_TO_GET, INSTALLED, forward
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.flash_attention.exact import TOPIC, Attention
from qlab.checks.flash_attention.forward_slips import log_sum_exp_slips, output_slips
from qlab.checks.flash_attention.launching import Launched, launched
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import check, part, require

CALL = "triton_forward(q, k, v, is_causal)"
BLOCKS = (32, 32)  # those of the task's skeleton
LOST = (
    "The maximum was taken over hidden scores as well, and all that is seen vanished under it: put −inf in their place"
)


@check(
    TOPIC,
    "triton-kernel",
    forward.walk_over_keys.fn,
    forward.flash_forward,
    points=5,
    forbids=(
        "torch.nn.functional.scaled_dot_product_attention",
        "torch.nn.functional.multi_head_attention_forward",
        "torch.nn.MultiheadAttention",
        "torch.nn.attention",
        "torch.ops.aten",
        "qlab.attention.flash_attention",
        "qlab.attention.flash_forward",
        "qlab.attention_triton.flash_attention",
    ),
)
def check_triton_kernel(triton_forward: LearnerFunction, draw: torch.Generator) -> None:
    """Check `triton_forward(q, k, v, is_causal) -> (output, log_sum_exp)`, which launches the learner's kernel."""
    with part("whole tiles, several of queries and several of keys"):
        _outputs(triton_forward, _case(draw, 64, 96))
    with part("ragged ends: neither queries nor keys fill their last tile"):
        _outputs(triton_forward, _case(draw, drawn(33, 63, draw), drawn(65, 95, draw)))
        _outputs(triton_forward, _case(draw, drawn(1, 31, draw), drawn(1, 31, draw)))
    with part("causal: query i sees keys 0 to i"):
        for rows, columns in ((64, 64), (drawn(65, 95, draw), drawn(33, 63, draw)), (32, drawn(65, 95, draw))):
            _outputs(triton_forward, _case(draw, rows, columns, is_causal=True))
    with part("scores of hundreds: nothing overflows, and a hidden score far above the others has no say"):
        _finite(triton_forward, _case(draw, 20, 70, spread=12.0))
        _hidden_above(triton_forward, draw)
    with part("the log-sum-exp of every row, in natural logarithms"):
        _log_sum_exps(triton_forward, _case(draw, 40, 40, is_causal=True, spread=4.0))
        _log_sum_exps(triton_forward, _case(draw, 20, drawn(65, 95, draw)))


def _case(draw: torch.Generator, rows: int, columns: int, *, is_causal: bool = False, spread: float = 1.7) -> Attention:
    """Draw a head of width 16; q and k of size `spread` make scores of about 4 · spread²."""
    q, k, v = (torch.randn(n, 16, generator=draw) for n in (rows, columns, columns))
    return Attention(spread * q, spread * k, v, is_causal)


def _results(triton_forward: LearnerFunction, case: Attention) -> tuple[Tensor, Tensor]:
    """Launch the learner's kernel on this machine's device and read what it stored."""
    require(
        INSTALLED,
        f"{HOW_TO_GET}.",
        misconception="triton-is-missing",
        thought="Every other exercise of this lab can be won without it.",
    )
    found = triton_forward.beside(launched, case.q, case.k, case.v, case.is_causal)
    output, log_sum_exp = unpacked(_by_a_kernel(found), ("output", "log_sum_exp"), call=CALL)
    return (
        as_tensor(output, tuple(case.q.shape), call=f"{CALL}[0]").double(),
        as_tensor(log_sum_exp, (len(case.q),), call=f"{CALL}[1]").double(),
    )


def _by_a_kernel(found: Launched) -> Any:
    """Return what the answer returned, if a kernel made it."""
    thought = "triton_forward only allocates and launches: tl.dot in forward_kernel does the work."
    for is_kernels, message in (
        (not found.products, f"torch computed {', '.join(found.products)} here: all products belong into the kernel"),
        (found.launches or found.returned is None, "no kernel was launched: all products belong into one"),
        (not found.in_vain, "the same came out where the launches did nothing: all products belong into the kernel"),
    ):
        require(is_kernels, message, misconception="not-a-kernel", thought=thought)
    return found.returned


def _told(case: Attention, what: str) -> Callable[[int], str]:
    by_row = case.q.shape[1] if what == "output" else 1
    return lambda i: f"{case.told} (the {what} of query {i // by_row})"


def _outputs(triton_forward: LearnerFunction, case: Attention) -> None:
    got = _results(triton_forward, case)[0]
    stored = int((~got.isnan()).any(1).sum())
    near = (got - case.output).abs() <= case.allowed_output
    require(
        not (0 < stored < len(got) and stored % BLOCKS[0] == 0 and near[:stored].all()),
        f"given {case.told}, queries {stored} to {len(got) - 1} are still NaN, as the launcher left them",
        misconception="programs-missing",
        thought="Each program answers 32 queries, and the last one what is left: launch triton.cdiv(rows, 32) of them.",
    )
    _require_output(case, got)


def _require_output(case: Attention, got: Tensor) -> None:
    require_near(got, case.output, case.allowed_output, given=_told(case, "output"), slips=lambda: _output_slips(case))


def _log_sum_exps(triton_forward: LearnerFunction, case: Attention) -> None:
    require_near(
        _results(triton_forward, case)[1],
        case.log_sum_exp,
        case.allowed_log_sum_exp,
        given=_told(case, "log-sum-exp"),
        slips=lambda: _log_sum_exp_slips(case),
    )


def _finite(triton_forward: LearnerFunction, case: Attention) -> None:
    got = _results(triton_forward, case)[0]
    require(
        bool(got.isfinite().all()),
        f"given {case.told}, scores to {case.scores.max():.0f}, {int((~got.isfinite()).sum())} outputs are not finite",
        misconception="no-maximum",
        thought="exp overflows beyond 88: subtract the running maximum of the row before every exp.",
    )
    _require_output(case, got)


def _hidden_above(triton_forward: LearnerFunction, draw: torch.Generator) -> None:
    case = _case(draw, 50, 50, is_causal=True)
    case.q[:, 0], case.k[:, 0], last = 5.0, 0.0, drawn(33, 49, draw)
    case.k[last, 0] = 300.0 / (5.0 * case.scale)
    got = _results(triton_forward, case)[0]
    lost = got.isnan().any(1) | (got == 0).all(1)
    require(
        not bool(lost.any() and not lost[last:].any()),
        f"given {case.told}, key {last} scored 300 above the others, queries before it came out as zeros or NaN",
        misconception="masks-after-the-max",
        thought=f"{LOST} first, then take the maximum.",
    )
    _require_output(case, got)


BASE = "tl.exp2 is a power of two: use tl.exp, or scores times log2(e) and a log-sum-exp times ln 2."
CARRIED = "Only the last tile is left: `maximum` must go on to the next tile, or the old sum is worth exp(−inf) = 0."
TURNED = "Query i sees the keys *before* it and its own: hide j > i."
PADDING = "A key past the last one is loaded as zeros and scores 0, and exp(0) counts: hide `j >= columns` with −inf."


def _in_base_two(case: Attention) -> Attention:
    return Attention(math.log(2) * case.q.double(), case.k, case.v, case.is_causal)


def _padded(case: Attention, extra: int) -> Attention:
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, extra)) for x in (case.k, case.v))
    return Attention(case.q, k, v, case.is_causal)


def _paddings(case: Attention) -> Iterator[Attention]:
    """Yield the case with the keys of a whole last tile, and with one key too many."""
    for extra in {-len(case.k) % BLOCKS[1], min(1, -len(case.k) % BLOCKS[1])} - {0}:
        yield _padded(case, extra)


def _turned_round(case: Attention) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield output and log-sum-exp of queries that see the later keys; one that sees none in the first tile is NaN."""
    for offset in (0, 1):
        seen = torch.ones_like(case.visible).triu(offset)
        scores = case.raw_scores.masked_fill(~seen, -math.inf)
        scores[~seen[:, : BLOCKS[1]].any(1)] = torch.nan
        yield torch.softmax(scores, 1) @ case.v.double(), scores.logsumexp(1)


def _first_thoughts(slips: Iterator[Slip]) -> Iterator[Slip]:
    """Yield the slips of a tiled walk; where a kernel has another reason for one, say that."""
    thoughts = {"keeps-the-last-tile-only": CARRIED, "counts-the-padding": PADDING}
    for misconception, thought, values in slips:
        yield misconception, thoughts.get(misconception, thought), values


def _output_slips(case: Attention) -> Iterator[Slip]:
    for padded in _paddings(case):
        yield "counts-the-padding", PADDING, padded.output
    for output, _ in _turned_round(case) if case.is_causal else ():
        yield "mask-turned-round", TURNED, output
    yield from _first_thoughts(output_slips(case, BLOCKS))
    yield "powers-of-two", BASE, _in_base_two(case).output


def _log_sum_exp_slips(case: Attention) -> Iterator[Slip]:
    for padded in _paddings(case):
        yield "counts-the-padding", PADDING, padded.log_sum_exp
    for _, log_sum_exp in _turned_round(case) if case.is_causal else ():
        yield "mask-turned-round", TURNED, log_sum_exp
    yield from _first_thoughts(log_sum_exp_slips(case, BLOCKS))
    yield "powers-of-two", BASE, _in_base_two(case).log_sum_exp
    yield "powers-of-two", BASE, _in_base_two(case).log_sum_exp / math.log(2)
