"""Check of `tiled_backward`: three gradients from the log-sum-exp, with the weights computed again tile by tile."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab import attention
from qlab.checks import probe
from qlab.checks.beside import require_right_too, roughly
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.backward_slips import RIGHT, Saved, allowed, gradients, slips
from qlab.checks.flash_attention.budget import BLOCK, WIDTH, require_no_square_in_python, require_tiles_only
from qlab.checks.flash_attention.comparing import require_near
from qlab.checks.flash_attention.exact import TOPIC, WHOLE_ATTENTION, Attention
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import unpacked
from qlab.checks.report import check, part, require

CALL = "tiled_backward(saved, grad_output, is_causal, blocks)"
NAMES = ("dq", "dk", "dv")
Blocks = tuple[int, int]


@check(
    TOPIC,
    "tiled-backward",
    attention.flash_backward,
    points=6,
    forbids=WHOLE_ATTENTION,
)
def check_tiled_backward(tiled_backward: LearnerFunction, draw: torch.Generator) -> None:
    """Check `tiled_backward(saved, grad_output, is_causal, blocks) -> (dq, dk, dv)`."""
    with part("dv: the weights, computed again"):
        _require(tiled_backward, _saved(draw, 12, 20), (6, 5), ("dv",))
    with part("dq and dk: through the softmax and the scale"):
        _require(tiled_backward, _saved(draw, 12, 20), (6, 5), ("dq", "dk"))
    with part("ragged ends, blocks of one and blocks larger than all there is"):
        _require(tiled_backward, _saved(draw, 11, 17), (4, 5), NAMES)
        _require(tiled_backward, _saved(draw, 7, 9), (drawn(8, 30, draw), 2), NAMES)
        _require(tiled_backward, _saved(draw, 5, 9), (1, drawn(10, 30, draw)), NAMES)
    with part("causal: what was hidden gets and gives no gradient"):
        for blocks in ((4, 4), (5, 3), (3, 7)):
            _require(tiled_backward, _saved(draw, 14, 14, is_causal=True), blocks, NAMES)
    with part("scores of hundreds, seen or hidden: no exponential overflows"):
        _large(tiled_backward, _saved(draw, 9, 13, spread=15.0), (4, 5))
        _large(tiled_backward, _moved_down(_saved(draw, 11, 11, is_causal=True)), (4, 5), named=True)
        _large(tiled_backward, _saved(draw, 13, 13, is_causal=True, spread=15.0), (4, 4))
    with part("a few tiles of memory at a time, and nothing that grows with queries times keys"):
        _memory(tiled_backward, draw)


def _saved(draw: torch.Generator, rows: int, columns: int, *, is_causal: bool = False, spread: float = 1.3) -> Saved:
    """Draw a head of width 6 and a gradient, run the forward pass in FP64, and keep what it saves in FP32."""
    q, k, v = (torch.randn(n, 6, generator=draw) for n in (rows, columns, columns))
    return Saved(Attention(spread * q, spread * k, v, is_causal), torch.randn(rows, 6, generator=draw))


def _moved_down(saved: Saved) -> Saved:
    """Move all scores down by 300, which changes no weight: −100 hides nothing from them."""
    case = saved.case
    q, k = case.q.clone(), case.k.clone()
    q[:, 0], k[:, 0] = 5.0, -300.0 / (5.0 * case.scale)
    return Saved(Attention(q, k, case.v, case.is_causal), saved.grad_output)


def _results(tiled_backward: LearnerFunction, saved: Saved, blocks: Blocks) -> dict[str, Tensor]:
    found = unpacked(tiled_backward(saved.tensors, saved.grad_output, saved.case.is_causal, blocks), NAMES, call=CALL)
    return {
        name: as_tensor(value, tuple(like.shape), call=f"{CALL}[{i}]").double()
        for i, (name, value, like) in enumerate(zip(NAMES, found, saved.tensors[:3], strict=True))
    }


def _require(tiled_backward: LearnerFunction, saved: Saved, blocks: Blocks, names: tuple[str, ...]) -> None:
    _compare(saved, blocks, _results(tiled_backward, saved, blocks), names)


def _compare(
    saved: Saved, blocks: Blocks, got: dict[str, Tensor], names: tuple[str, ...], *, named: bool = True
) -> None:
    """Compare gradients; where one weight of a row is 1 and the others 0, slips look alike and are not `named`."""
    told = f"{saved.case.told}, blocks of {blocks[0]} × {blocks[1]}"
    room, exact = (dict(zip(NAMES, three, strict=True)) for three in (allowed(saved), gradients(saved, RIGHT)))
    for name in names:
        require_near(
            got[name],
            exact[name],
            room[name],
            given=lambda i, name=name: f"{told}, {name}[{i // 6}, {i % 6}]",
            slips=lambda name=name: (
                (misconception, thought, values[NAMES.index(name)])
                for misconception, thought, values in (slips(saved, blocks) if named else ())
            ),
        )


def _large(tiled_backward: LearnerFunction, saved: Saved, blocks: Blocks, *, named: bool = False) -> None:
    got = _results(tiled_backward, saved, blocks)
    lost = {name: int((~values.isfinite()).sum()) for name, values in got.items()}
    require(
        not any(lost.values()),
        f"given {saved.case.told}, scores to {saved.case.raw_scores.max():.0f}, values that are not finite: {lost}",
        misconception="overflows",
        thought="exp(S − L) is at most 1 where a key is seen, and may overflow where it is hidden: put −inf there"
        " first, and never take exp(S) alone.",
    )
    _compare(saved, blocks, got, NAMES, named=named)


def _memory(tiled_backward: LearnerFunction, draw: torch.Generator) -> None:
    def bytes_of(measured: Callable[..., tuple[Any, int]], rows: int, columns: int, is_causal: bool) -> int:
        q, k, v = (torch.randn(n, WIDTH, generator=draw) for n in (rows, columns, columns))
        saved = Saved(Attention(q, k, v, is_causal), torch.randn(rows, WIDTH, generator=draw))
        given = saved.tensors, saved.grad_output, is_causal, (BLOCK, BLOCK)
        returned, most = measured(tiled_backward, *given)
        found = unpacked(returned, NAMES, call=CALL)
        require_right_too(all(map(roughly, found, gradients(saved, RIGHT))))
        return most

    _require(tiled_backward, _saved(draw, 5, 5), (2, 2), NAMES)  # what returns nothing holds nothing
    # in FP64: q, output, its gradient and dq, or k, v, dk and dv, each once or twice, at 8 to 16 bytes
    require_tiles_only(partial(bytes_of, probe.result_and_peak_bytes), per_row=224, per_column=192)
    require_no_square_in_python(lambda n: bytes_of(probe.result_and_python_bytes, n, n, False))
