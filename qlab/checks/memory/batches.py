"""Check of `largest_batch`: every batch is tried, one after the other, until one does not fit."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import count

import torch

from qlab import budget
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.topic import TOPIC
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One call, in the order of the arguments, all in bytes."""

    budget: int
    lasting: int
    gradients: int
    sequence: int
    layer: int

    def peak(self, batch: int) -> int:
        """Return the larger of the two moments that the task names."""
        return self.lasting + max(batch * self.sequence, self.gradients + batch * self.layer)

    def largest(self) -> int:
        """Return the last batch that fits, by trying."""
        return next(batch for batch in count() if batch and self.peak(batch) > self.budget) - 1


@check(TOPIC, "largest-batch", budget.largest_batch, budget.backward_moments, points=4)
def check_largest_batch(largest_batch: LearnerFunction, draw: torch.Generator) -> None:
    """Check `largest_batch(budget, lasting, gradients, sequence, layer)`."""
    with part("all activations together decide"):
        many = _case(draw, gradients=0.2, batches=drawn(300, 400, draw))
        _compare(largest_batch, [many, *(_case(draw, gradients=0.2) for _ in range(6))])
    with part("all gradients and one layer decide"):
        _compare(largest_batch, [_case(draw, gradients=0.9) for _ in range(6)])
    with part("a batch that fills the budget to the byte fits, one byte less does not"):
        cases = [_case(draw, gradients=share) for share in (0.2, 0.9)]
        full = [_with_budget(case, case.peak(case.largest())) for case in cases]
        _compare(largest_batch, [*full, *(_with_budget(case, case.budget - 1) for case in full)])
    with part("where not even batch 1 fits: 0"):
        case = _case(draw, gradients=0.5)
        short = [case.peak(1) - 1, case.lasting, case.lasting // 2]
        _compare(largest_batch, [_with_budget(case, bytes_given) for bytes_given in short])


def _case(draw: torch.Generator, *, gradients: float, batches: int = 0) -> Case:
    """Draw sizes of which the gradients take the share `gradients` of what the states leave free.

    About `batches` sequences fit beside the states, 12 to 60 if it is 0.
    """
    room = drawn(8_000, 60_000, draw) * MIB + drawn(0, MIB, draw)
    lasting = drawn(2_000, 30_000, draw) * MIB
    sequence = room // (batches or drawn(12, 60, draw)) - drawn(1, 9_999, draw)
    return Case(lasting + room, lasting, round(gradients * room), sequence, sequence // drawn(4, 6, draw))


def _with_budget(case: Case, budget_bytes: int) -> Case:
    return Case(budget_bytes, case.lasting, case.gradients, case.sequence, case.layer)


def _compare(largest_batch: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [largest_batch(*astuple(case)) for case in cases],
        [case.largest() for case in cases],
        calls=[f"largest_batch({', '.join(f'{size:_}' for size in astuple(case))})" for case in cases],
        suspects=lambda: _suspects(cases),
    )


def _suspects(cases: list[Case]) -> Iterator[Suspect]:
    by_case = [list(_slips(case)) for case in cases]
    for same_slip in zip(*by_case, strict=True):
        misconception, thought, _ = same_slip[0]
        values = [value for _, _, value in same_slip]
        yield Suspect(misconception, thought, doubles([max(value, 0) for value in values]))
        yield Suspect(misconception, thought, doubles(values))


def _slips(case: Case) -> Iterator[tuple[str, str, float]]:
    """List what each slip gives for one case, in whole batches."""
    room, right = case.budget - case.lasting, case.largest()
    below_layer = room - case.gradients
    by_all, by_layer = room // case.sequence, below_layer // case.layer
    yield "negative-batch", "Where nothing fits, the answer is 0.", min(by_all, by_layer)
    yield "negative-batch", "Where nothing fits, the answer is 0.", right or -1
    cut = "`int` cuts toward zero, and a negative number of batches stays negative: where nothing fits, return 0."
    yield "negative-batch", cut, int(min(room / case.sequence, below_layer / case.layer))
    yield "at-least-one", "Where not even batch 1 fits, the answer is 0.", max(right, 1)
    together = "Gradients and all activations are never alive together: the peak is the larger moment, not the sum."
    yield "adds-what-never-meets", together, below_layer // case.sequence
    yield "adds-what-never-meets", together, below_layer // (case.sequence + case.layer)
    yield (
        "forgets-the-gradients",
        "At the first layer all gradients are there, beside one layer's activations: that moment must fit too.",
        by_all,
    )
    yield "forgets-the-activations", "While the loss is differentiated all activations are there.", by_layer
    yield (
        "forgets-the-states",
        "Weights and optimizer states are there all the time.",
        min(case.budget // case.sequence, (case.budget - case.gradients) // case.layer),
    )
    more = "This batch does not fit: round down, or return the one before the first that did not."
    yield "one-too-many", more, min(-(-room // case.sequence), -(-below_layer // case.layer))
    yield "one-too-many", more, round(min(room / case.sequence, below_layer / case.layer))
    yield "one-too-many", more, right + 1
    exact = "A batch whose peak is the budget itself fits."
    yield "refuses-an-exact-fit", exact, min((room - 1) // case.sequence, (below_layer - 1) // case.layer)
    yield "one-too-few", "One more would fit.", right - 1
    yield "only-powers-of-two", "Any whole number is a batch.", 2 ** (right.bit_length() - 1) if right else 0
    yield "returns-a-fraction", "A batch is a whole number.", min(room / case.sequence, below_layer / case.layer)
