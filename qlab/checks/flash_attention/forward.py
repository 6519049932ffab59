"""Check of `tiled_forward`: exact output and log-sum-exp tile by tile, and never more than a few tiles at once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab import attention
from qlab.checks import probe
from qlab.checks.beside import require_right_too, roughly
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.budget import BLOCK, WIDTH, require_no_square_in_python, require_tiles_only
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.flash_attention.exact import TOPIC, WHOLE_ATTENTION, Attention
from qlab.checks.flash_attention.forward_slips import log_sum_exp_slips, output_slips
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import check, part, require

CALL = "tiled_forward(q, k, v, is_causal, blocks)"
Blocks = tuple[int, int]


@check(
    TOPIC,
    "tiled-forward",
    attention.flash_forward,
    points=7,
    forbids=WHOLE_ATTENTION,
)
def check_tiled_forward(tiled_forward: LearnerFunction, draw: torch.Generator) -> None:
    """Check `tiled_forward(q, k, v, is_causal, blocks) -> (output, log_sum_exp)`."""
    with part("blocks that divide the queries and the keys, of which there are not as many"):
        _outputs(tiled_forward, _case(draw, 12, 20), (6, 5))
        _outputs(tiled_forward, _case(draw, 8, 4), (2, 2))
    with part("ragged ends, blocks of one and blocks larger than all there is"):
        _outputs(tiled_forward, _case(draw, 11, 17), (4, 5))
        _outputs(tiled_forward, _case(draw, 7, 9), (drawn(8, 30, draw), 1))
        _outputs(tiled_forward, _case(draw, 5, 9), (1, drawn(10, 30, draw)))
    with part("causal: query i sees keys 0 to i, whatever the blocks"):
        for blocks in ((4, 4), (5, 3), (3, 7)):
            _outputs(tiled_forward, _case(draw, 14, 14, is_causal=True), blocks)
    with part("scores of hundreds: no exponential overflows"):
        _large(tiled_forward, _case(draw, 13, 11, spread=15.0), (4, 5))
        _far_below(tiled_forward, _case(draw, 9, 11), (4, 5))
    with part("a hidden score far above those a query sees has no say"):
        for blocks in ((5, 5), (4, 7), (30, 30)):
            _hidden(tiled_forward, _with_hidden(draw), blocks)
        _hidden_by_a_number(tiled_forward, _case(draw, 11, 11, is_causal=True), (4, 5))
    with part("the log-sum-exp of every row, in natural logarithms"):
        for case, blocks in (
            (_case(draw, 9, 13), (4, 5)),
            (_case(draw, 14, 14, is_causal=True), (4, 3)),
            (_case(draw, 10, 10, is_causal=True, spread=15.0), (3, 4)),
        ):
            _log_sum_exps(tiled_forward, case, blocks)
    with part("a few tiles of memory at a time, and nothing that grows with queries times keys"):
        _memory(tiled_forward, draw)


def _case(draw: torch.Generator, rows: int, columns: int, *, is_causal: bool = False, spread: float = 1.7) -> Attention:
    """Draw a head of width 6; q and k of size `spread` make scores of about spread² · √6."""
    q, k, v = (torch.randn(n, 6, generator=draw) for n in (rows, columns, columns))
    return Attention(spread * q, spread * k, v, is_causal)


def _with_hidden(draw: torch.Generator) -> Attention:
    """Draw two keys whose score is above all others by 300 and by 600, for every query."""
    case = _case(draw, 15, 15, is_causal=True)
    case.q[:, 0] = 5.0
    case.k[:, 0] = 0.0
    for key, above in ((8, 300.0), (14, 600.0)):
        case.k[key, 0] = above / (5.0 * case.scale)
    return case


def _results(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> tuple[Tensor, Tensor]:
    found = unpacked(
        tiled_forward(case.q, case.k, case.v, case.is_causal, blocks), ("output", "log_sum_exp"), call=CALL
    )
    return (
        as_tensor(found[0], tuple(case.q.shape), call=f"{CALL}[0]").double(),
        _as_column(found[1], len(case.q)),
    )


def _as_column(value: object, rows: int) -> Tensor:
    """Read one number for each row, from (rows,) or (rows, 1)."""
    column = getattr(value, "shape", ()) and tuple(value.shape) == (rows, 1)
    return as_tensor(value, (rows, 1) if column else (rows,), call=f"{CALL}[1]").double().flatten()


def _told(case: Attention, blocks: Blocks, what: str) -> Callable[[int], str]:
    by_row = case.q.shape[1] if what == "output" else 1
    return lambda i: f"{case.told}, blocks of {blocks[0]} × {blocks[1]} (the {what} of query {i // by_row})"


def _outputs(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> None:
    _require_output(case, blocks, _results(tiled_forward, case, blocks)[0])


def _require_output(case: Attention, blocks: Blocks, got: Tensor, *, named: bool = True) -> None:
    """Compare outputs; where one weight of a row is 1 and the others 0, slips look alike and are not `named`."""
    require_near(
        got,
        case.output,
        case.allowed_output,
        given=_told(case, blocks, "output"),
        slips=lambda: output_slips(case, blocks) if named else (),
    )


def _large(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> None:
    got = _results(tiled_forward, case, blocks)[0]
    require(
        bool(got.isfinite().all()),
        f"given {case.told}, scores to {case.scores.max():.0f}: {int((~got.isfinite()).sum())} outputs are not finite",
        misconception="no-maximum",
        thought="exp overflows beyond 88: subtract the running maximum of the row before every exp.",
    )
    _require_output(case, blocks, got, named=False)


def _far_below(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> None:
    """Move all scores down by 300, which changes no weight."""
    _move_down(case)
    got = _results(tiled_forward, case, blocks)[0]
    require(
        bool((got.isfinite() & (got != 0)).all()),
        f"given {case.told}, scores of {case.scores.min():.0f} to {case.scores.max():.0f}: some outputs are 0 or NaN",
        misconception="maximum-starts-too-high",
        thought="All scores may be far below 0: a running maximum that starts at 0 stays there, and exp(s − 0)"
        " vanishes. Start at −∞.",
    )
    _require_output(case, blocks, got, named=False)


def _move_down(case: Attention) -> None:
    case.q[:, 0], case.k[:, 0] = 5.0, -300.0 / (5.0 * case.scale)


def _hidden_by_a_number(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> None:
    """With all scores near -300, a hidden one that was set to -100 is far above the others."""
    _move_down(case)
    stops = (torch.arange(len(case.q)) // blocks[0] + 1) * blocks[0]
    last_tiles = torch.ceil(stops.clamp(max=len(case.k)) / blocks[1]) * blocks[1]
    keys = torch.arange(len(case.k))
    thought = "A number such as −100 hides nothing from scores of −300: put −inf in the place of what is hidden."

    def slips() -> Iterator[Slip]:
        for read in (torch.full_like(last_tiles, len(keys)), last_tiles):  # all tiles, or those that are seen in part
            alike = ((keys > torch.arange(len(keys))[:, None]) & (keys < read[:, None])).double()
            alike = torch.where(alike.any(1, keepdim=True), alike, case.probabilities)
            yield "masks-with-a-number", thought, alike @ case.v.double() / alike.sum(1, keepdim=True)
        start = "All scores may be far below 0: a running maximum that starts at 0 stays there. Start at −∞."
        yield "maximum-starts-too-high", start, torch.full_like(case.output, torch.nan)
        yield from output_slips(case, blocks)

    require_near(
        _results(tiled_forward, case, blocks)[0],
        case.output,
        case.allowed_output,
        given=_told(case, blocks, "output"),
        slips=slips,
    )


def _hidden(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> None:
    got = _results(tiled_forward, case, blocks)[0]
    lost = got.isnan().any(1) | (got == 0).all(1)
    above = (case.raw_scores.amax(1) - case.scores.amax(1)) > 250
    require(
        not bool(lost[1:].any() and above[lost].all()),  # query 0 alone: its own key was hidden
        f"given {case.told}, blocks of {blocks[0]} × {blocks[1]}, with keys 8 and 14 scored 300 and 600 above the"
        f" others, queries {lost.nonzero().flatten().tolist()}, which do not see all of them, got zeros or NaN",
        misconception="masks-after-the-max",
        thought="The maximum was taken over hidden scores as well, and all that is seen vanished under it: put −inf"
        " in place of what is hidden first, then take the maximum.",
    )
    _require_output(case, blocks, got, named=False)


def _log_sum_exps(tiled_forward: LearnerFunction, case: Attention, blocks: Blocks) -> None:
    require_near(
        _results(tiled_forward, case, blocks)[1],
        case.log_sum_exp,
        case.allowed_log_sum_exp,
        given=_told(case, blocks, "log-sum-exp"),
        slips=lambda: log_sum_exp_slips(case, blocks),
    )


def _memory(tiled_forward: LearnerFunction, draw: torch.Generator) -> None:
    def bytes_of(measured: Callable[..., tuple[Any, int]], rows: int, columns: int, is_causal: bool) -> int:
        q, k, v = (torch.randn(n, WIDTH, generator=draw) for n in (rows, columns, columns))
        returned, most = measured(tiled_forward, q, k, v, is_causal, (BLOCK, BLOCK))
        got, _ = unpacked(returned, ("output", "log_sum_exp"), call=CALL)
        require_right_too(roughly(got, Attention(q, k, v, is_causal).output))
        return most

    _outputs(tiled_forward, _case(draw, 5, 5), (2, 2))  # what returns nothing holds nothing
    # in FP64: q or k and v twice, the output twice, maximum, sum and log-sum-exp, at 8 to 16 bytes each
    require_tiles_only(partial(bytes_of, probe.result_and_peak_bytes), per_row=192, per_column=160)
    require_no_square_in_python(lambda n: bytes_of(probe.result_and_python_bytes, n, n, False))
