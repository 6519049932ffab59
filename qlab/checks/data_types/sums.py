"""Check of `kahan_sum`: its error bound in three dtypes, and that it stays in its own."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qlab import summation
from qlab.checks.data_types.decoding import TOPIC
from qlab.checks.expect import as_number
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part, require

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


@check(TOPIC, "kahan-sum", summation.kahan_sum, points=4)
def check_kahan_sum(kahan_sum: LearnerFunction, draw: torch.Generator) -> None:
    """Check `kahan_sum(x)` in FP16, BF16 and FP32."""
    with part("FP16: small terms added to a large one are not lost"):
        _require_bound(kahan_sum, lambda: _between_two_large(2e-4, 4e-4, draw).half())
    with part("BF16: the sum grows past where single terms count"):
        _require_bound(kahan_sum, lambda: torch.empty(700).uniform_(1.0, 1.25, generator=draw).bfloat16())
    with part("every addition happens in the dtype of x: it overflows as that dtype does"):
        x = torch.tensor([40_000.0] * 4 + [-40_000.0] * 3).half()
        got = as_number(kahan_sum(x), call="kahan_sum(x)")
        require(
            not math.isfinite(got),
            f"given four times 40 000 and three times −40 000 in FP16, got {got:g};"
            " 80 000 does not exist in FP16, so no sum made of FP16 additions is finite here",
            misconception="accumulates-wider",
            thought="The running sum is kept in a wider type: keep it, and the correction, in `x.dtype`.",
        )
    with part("FP32: the same with terms of 5e-8, just under what a plain sum can see"):
        _require_bound(kahan_sum, lambda: _between_two_large(4e-8, 5.5e-8, draw))


def _between_two_large(smallest: float, largest: float, draw: torch.Generator) -> Tensor:
    """Return 1, then 400 small terms, then 0.5, which a sum that stops early would miss."""
    small = torch.empty(400).uniform_(smallest, largest, generator=draw)
    return torch.cat([torch.ones(1), small, torch.full((1,), 0.5)])


def _require_bound(kahan_sum: LearnerFunction, draw_terms: Callable[[], Tensor]) -> None:
    x = draw_terms()
    got = as_number(kahan_sum(x), call="kahan_sum(x)")
    exact, size, u = math.fsum(x.tolist()), math.fsum(x.abs().tolist()), UNIT_ROUNDOFF[x.dtype]
    # Higham 1993: Kahan 2u + O(n u²), eq. 3.11, with 4 n u² for its last term; a tree of sums ⌈log₂ n⌉ u, eq. 3.6
    allowed = (math.ceil(math.log2(len(x))) * u + 4 * len(x) * u**2) * size
    if abs(got - exact) <= allowed:
        return
    misconception, thought = _diagnose(kahan_sum, draw_terms)
    require(
        False,
        f"given {len(x)} terms in {str(x.dtype)[6:]}, got {got:.9g}, exact sum {exact:.9g},"
        f" error {abs(got - exact):.2g}, at most {allowed:.2g}"
        f" (a plain running sum gives {summation.running_sum(x)[-1].item():.9g})",
        misconception=misconception,
        thought=thought,
    )


def _diagnose(kahan_sum: LearnerFunction, draw_terms: Callable[[], Tensor]) -> tuple[str, str]:
    """Call the function again on terms for which the known slips give different sums."""
    for _ in range(20):
        x = draw_terms()
        plain, added = summation.running_sum(x)[-1].item(), _correction_added(x)
        if plain != added:
            break
    got = as_number(kahan_sum(x), call="kahan_sum(x)")
    if got == plain:
        return "no-compensation", "This is the plain running sum: carry what each addition rounded away."
    if got == added:
        return "adds-the-correction", "What was rounded away is subtracted from the next term, not added."
    if not math.isfinite(got):
        return "not-finite", "A term was divided by zero, or the sum ran away."
    return "loses-low-bits", "Compute (total + term) − total − term: that is what the next term must repay."


def _correction_added(x: Tensor) -> float:
    total = lost = torch.zeros((), dtype=x.dtype)
    for value in x:
        corrected = value + lost
        grown = total + corrected
        lost, total = (grown - total) - corrected, grown
    return total.item()
