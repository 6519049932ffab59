"""Check of `safe_softmax`: any scores, a row of nothing but -inf among them, and FP16 summed in FP32."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qlab import attention
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import require_near
from qlab.checks.flash_attention.exact import TOPIC, UNIT
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part, require

CALL = "safe_softmax(scores)"
HALF_UNIT = 2.0**-11  # what one rounding to FP16 changes at most, as a share; below 2⁻¹⁴, 2⁻²⁵ at most


@check(TOPIC, "safe-softmax", attention.safe_softmax, points=4)
def check_safe_softmax(safe_softmax: LearnerFunction, draw: torch.Generator) -> None:
    """Check `safe_softmax(scores)` along the last axis."""
    side = drawn(5, 9, draw)  # two equal axes: a slip of axes is a wrong value, not a wrong shape
    with part("scores of any number of axes: each row of the last axis adds up to 1"):
        for shape in ((side, side), (2, side, side), (drawn(3, 9, draw),)):
            _compare(safe_softmax, 3 * torch.randn(shape, generator=draw))
    with part("scores of thousands, of either sign, far apart in a row or between rows: nothing overflows or vanishes"):
        offsets = torch.tensor([-9e3, -300.0, -120.0, 0.0, 120.0, 300.0, 9e3])[:, None]
        _compare(safe_softmax, offsets + 3 * torch.randn(7, side, generator=draw))
        wide = torch.zeros(2, side)
        wide[0, : side // 2], wide[1, 1:] = -140.0, -400.0  # above 88 over the minimum, then over the mean as well
        _compare(safe_softmax, wide + 2 * uniform(-1.0, 1.0, (2, side), draw))
    with part("-inf has no weight, and a row of nothing but -inf gives zeros"):
        scores = 3 * torch.randn(2, side, side, generator=draw)
        scores = scores.masked_fill(uniform(0.0, 1.0, (2, side, side), draw) < 0.4, -torch.inf)
        scores[:, 0], scores[:, 1] = 3 * torch.randn(side, generator=draw), -torch.inf  # a whole row, and none
        _compare(safe_softmax, scores)
    with part("FP16 scores: rounded to FP16 at most once, at the end"):
        spread = uniform(-10.0, 10.0, (24, 48), draw) + torch.tensor([0.0, 40.0, -40.0])[:, None].repeat(8, 1)
        _compare(safe_softmax, spread.half())


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax of FP64 scores, zeros for a row without any."""
    return torch.softmax(scores, -1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)


def _allowed(scores: Tensor, expected: Tensor) -> Tensor:
    """Each share may change by the roundings of a difference, an exponential, a sum and a quotient, all in FP32.

    Scores of thousands are rounded by u times their size where a logarithm of the sum is subtracted.
    """
    largest = scores.double().masked_fill(scores == -torch.inf, 0.0).abs().amax(-1, keepdim=True)
    once = expected * UNIT * (8 * largest + scores.shape[-1] + 16) + 1e-37  # FP32 ends at 1.2e-38
    return once if scores.dtype == torch.float32 else 1.01 * (once + HALF_UNIT * expected + 2.0**-25)


def _compare(safe_softmax: LearnerFunction, scores: Tensor) -> None:
    got = as_tensor(safe_softmax(scores), tuple(scores.shape), call=CALL).double()
    exact = scores.double()
    expected = _softmax(exact)
    allowed = _allowed(scores, expected)
    if scores.dtype == torch.float16:
        _refuse_half(scores, got, expected, allowed)

    def told(i: int) -> str:
        row = exact.reshape(-1, scores.shape[-1])[i // scores.shape[-1]].tolist()
        shown = ", ".join(f"{value:.4g}" for value in row[:6]) + (", …" if len(row) > 6 else "")
        return f"{str(scores.dtype)[6:]} scores of shape {tuple(scores.shape)}, value {i % len(row)} of row [{shown}]"

    require_near(
        got,
        expected,
        allowed,
        given=told,
        slips=lambda: ((name, thought, rule(scores)) for name, thought, rule in _slips()),
    )


def _refuse_half(scores: Tensor, got: Tensor, expected: Tensor, allowed: Tensor) -> None:
    """Name arithmetic in FP16, which errs by more than one rounding and by no more than its own roundings."""
    error, exact = (got - expected).abs(), scores.double()
    whole = got.sum(-1, keepdim=True) * expected  # a wrong divisor leaves the shares as they were, to FP32
    if bool(((got - whole).abs() <= _allowed(scores.float(), expected)).all()):
        return
    below = exact.amax(-1, keepdim=True) - exact
    of_half = expected * HALF_UNIT * (2 * below + exact.abs().amax(-1, keepdim=True) + 16) + 2.0**-23
    require(
        not bool((error > allowed).any() and (error <= of_half).all()),
        f"given FP16 scores, a probability of {expected.flatten()[(error - allowed).argmax()]:.6g} came as "
        f"{got.flatten()[(error - allowed).argmax()]:.6g}: further off than one rounding to FP16",
        misconception="computes-in-half",
        thought="FP16 holds 11 bits, and each step rounds again: take scores to FP32 first, and round once, if at all.",
    )


def _slips() -> Iterator[tuple[str, str, Callable[[Tensor], Tensor]]]:
    none = "−inf − (−inf) is NaN, and 0 / 0 too: where the maximum is −inf, subtract 0 and divide by 1."
    yield "nan-for-masked-rows", none, lambda s: torch.softmax(s.double(), -1)
    top = "exp overflows beyond 88: subtract the largest score *of the row* first. The result stays what it was."
    yield "no-maximum", top, _without_maximum
    yield (
        "no-maximum",
        f"{top} Zeros put in place of NaN hide the overflow.",
        lambda s: _without_maximum(s).nan_to_num(),
    )
    yield "no-maximum", f"{top} So does a sum of 1 in place of 0.", lambda s: _exp_over_sum(s.float(), instead=1.0)
    one = "One maximum for all rows is far above some of them, and they vanish: each row has its own."
    yield "one-maximum-for-all-rows", one, lambda s: _exp_over_sum(s.float() - s.float().max())
    yield "one-maximum-for-all-rows", one, lambda s: _exp_over_sum(s.float() - s.float().max()).nan_to_num()
    for name, pivot in (("subtracts-the-mean", torch.mean), ("subtracts-the-minimum", torch.amin)):
        yield name, top, lambda s, pivot=pivot: _exp_over_sum(s.float() - pivot(s.float(), -1, keepdim=True))
        yield (
            name,
            top,
            lambda s, pivot=pivot: _exp_over_sum(s.float() - pivot(s.float(), -1, keepdim=True)).nan_to_num(),
        )
    even = "A large negative number is no mask: where all scores have it they are equal, and share 1."
    yield "shares-out-a-masked-row", even, _even
    yield from _other_slips()


def _other_slips() -> Iterator[tuple[str, str, Callable[[Tensor], Tensor]]]:
    rows = "A row lies along the last axis: `dim=-1` in the maximum and in the sum."
    for axis in (0, 1, 2, -2):
        yield "wrong-axis", rows, lambda s, axis=axis: _softmax_along(s, axis)
    yield "wrong-axis", rows, lambda s: _softmax(s.double().flatten()).view(s.shape)
    yield "not-normalized", "Divide by the sum of the row.", lambda s: (s - _top(s)).double().exp()
    each = "Each row has a sum of its own: `dim=-1`, and `keepdim=True`."
    yield "one-sum-for-all-rows", each, lambda s: (s - _top(s)).double().exp() / (s - _top(s)).double().exp().sum()
    yield "no-exponential", "The weights are exp(score).", lambda s: s.double() / s.double().sum(-1, keepdim=True)
    yield "powers-of-two", "The base is e: exp2 wants scores times log2(e).", lambda s: _softmax(s.double() * LN2)
    yield "returns-the-logarithm", "Return the weights.", lambda s: torch.log_softmax(s.double(), -1)
    clamped = "A clamp changes the result: subtract the maximum instead."
    for limit in (80.0, 88.0, 50.0, 100.0):
        yield "clamps-the-scores", clamped, lambda s, limit=limit: _softmax(s.double().clamp(-limit, limit))
        yield "clamps-the-scores", clamped, lambda s, limit=limit: _softmax(s.double().clamp(max=limit))


LN2 = 0.6931471805599453


def _top(scores: Tensor) -> Tensor:
    return scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)


def _exp_over_sum(scores: Tensor, *, instead: float = 0.0) -> Tensor:
    """Return softmax as it is written, with all that FP32 makes of it; a sum of 0 is replaced by `instead`."""
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True)
    return (weights / torch.where(total == 0, instead, total)).double()


def _without_maximum(scores: Tensor) -> Tensor:
    return _exp_over_sum(scores.float())


def _even(scores: Tensor) -> Tensor:
    return torch.softmax(scores.double().clamp(min=-1e30), -1)


def _softmax_along(scores: Tensor, axis: int) -> Tensor:
    if not -scores.ndim <= axis < scores.ndim:
        return torch.full(scores.shape, torch.nan, dtype=torch.float64)
    return _softmax(scores.double().transpose(axis, -1)).transpose(axis, -1)
