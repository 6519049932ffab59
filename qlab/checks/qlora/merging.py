"""Check of `merge_adapter`: the update added to the weight, B before A, in FP32 and rounded once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import lora
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.codes import dtype_of
from qlab.checks.report import check, part, require

UNIT = 2.0**-24  # half the distance of FP32 numbers at 1
BF16_BITS = 8  # of the significand, the leading one among them: half a step at 1 is 2⁻⁹ above it
CALL = "merge_adapter(weight, lora_a, lora_b, scaling)"


@dataclass(frozen=True)
class Case:
    """One call, in the order of the arguments."""

    weight: Tensor
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, float]:
        return self.weight, self.a, self.b, self.scaling

    @property
    def wide(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight.double(), self.a.double(), self.b.double()

    def exact(self) -> Tensor:
        """Return the merged weight in FP64."""
        weight, a, b = self.wide
        return weight + self.scaling * b @ a

    def rounding(self) -> Tensor:
        """Return what FP32 may lose: Higham 1993, u · terms · size."""
        weight, a, b = (t.abs() for t in self.wide)
        return UNIT * (len(a) + 4) * (weight + abs(self.scaling) * b @ a)

    def told(self, index: int) -> str:
        out, inputs = self.weight.shape
        kind = str(self.weight.dtype)[6:]
        return f"{out} × {inputs} {kind} weight, rank {len(self.a)}, at [{index // inputs}, {index % inputs}]"


@check(TOPIC, "merge-adapter", lora.AdaptedLinear.merged_weight, lora.AdaptedLinear.update, points=3)
def check_merge_adapter(merge_adapter: LearnerFunction, draw: torch.Generator) -> None:
    """Check `merge_adapter(weight, lora_a, lora_b, scaling)`."""
    with part("square weights of any rank: B A, in this order"):
        _require_order(merge_adapter, draw, torch.float32)
    with part("weights that are not square, and scales of any size"):
        _require_order(merge_adapter, draw, torch.float32)  # another order may not fit a weight that is not square
        for out, inputs in ((drawn(5, 9, draw), drawn(14, 20, draw)), (drawn(14, 20, draw), drawn(5, 9, draw))):
            _compare(merge_adapter, _case(draw, out, inputs, drawn(2, 4, draw)))
    with part("a BF16 weight: added in FP32, rounded once, returned in BF16"):
        _require_order(merge_adapter, draw, torch.bfloat16)
        _compare(merge_adapter, _case(draw, drawn(24, 30, draw), drawn(34, 40, draw), 5, torch.bfloat16))


def _case(draw: torch.Generator, out: int, inputs: int, rank: int, dtype: torch.dtype = torch.float32) -> Case:
    scaling = 0.25 * drawn(5, 15, draw)
    weight = torch.randn(out, inputs, generator=draw).to(dtype)
    a, b = torch.randn(rank, inputs, generator=draw), torch.randn(out, rank, generator=draw)
    return Case(weight, a / 2, b / 2, scaling)


def _require_order(merge_adapter: LearnerFunction, draw: torch.Generator, dtype: torch.dtype) -> None:
    side = drawn(7, 11, draw)
    for rank in (side, 1):  # where the sides are equal, A B adds up as well; at rank 1 it is one number for all
        _compare(merge_adapter, _case(draw, side, side, rank, dtype))


def _compare(merge_adapter: LearnerFunction, case: Case) -> None:
    returned = merge_adapter(*case.arguments)
    got = as_tensor(returned, tuple(case.weight.shape), call=CALL).double()
    want, allowed = case.exact(), case.rounding()
    narrow = case.weight.dtype == torch.bfloat16
    if narrow:
        # half a step of BF16 at the value, which rounds a sum that FP32 may have moved already
        allowed = allowed + torch.exp2(torch.floor(torch.log2(want.abs() + allowed)) - BF16_BITS)
    require_near(got, want, allowed, given=case.told, slips=lambda: _slips(case))
    if narrow:
        kind = dtype_of(returned)
        require(
            kind == "bfloat16",
            f"`{CALL}` returned {kind} for a BF16 weight",
            misconception="widens-the-weight",
            thought="The merged weight takes the place of the old one: end in `.to(weight.dtype)`.",
        )


def _slips(case: Case) -> Iterator[Slip]:
    weight, a, b = case.wide
    scaling, low = case.scaling, b @ a
    order = "h = W x + s · B (A x): the update is B @ A, (out, rank) times (rank, in)."
    scale = "The update is `scaling` times B A, once."
    if weight.shape[0] == weight.shape[1]:
        for factor in (scaling, 1.0):
            yield "wrong-order", order, weight + factor * low.T
            if len(a) in (1, len(weight)):
                yield "wrong-order", order, weight + factor * a @ b
                yield "wrong-order", order, weight + factor * (a @ b).T
            if len(a) == len(weight):
                yield "wrong-order", order, weight + factor * b @ a.T
                yield "wrong-order", order, weight + factor * b.T @ a
        yield "transposes-the-weight", "The weight is (out, in) already, as B A is.", weight.T + scaling * low
    yield "scale-missing", scale, weight + low
    yield "scale-twice", scale, weight + scaling**2 * low
    yield "scales-the-weight", scale, scaling * (weight + low)
    yield "divides-by-the-rank-again", "`scaling` is alpha / rank already.", weight + scaling / len(a) * low
    yield "subtracts-the-update", "Merging adds; taking the adapter out again subtracts.", weight - scaling * low
    yield "returns-the-update", "Add the update to the weight.", scaling * low
    yield "returns-the-weight", "Add the update to the weight.", weight
    if case.weight.dtype == torch.bfloat16:
        yield from _narrow_slips(case)


def _narrow_slips(case: Case) -> Iterator[Slip]:
    """List what comes of rounding to BF16 before the sum."""
    once = "Compute in FP32, `weight.float() + scaling * (lora_b @ lora_a)`, and round the sum alone."
    low, narrow_low = case.b @ case.a, case.b.bfloat16() @ case.a.bfloat16()
    scaled_b, scaled_a = (case.scaling * case.b).bfloat16(), (case.scaling * case.a).bfloat16()
    updates = (
        (case.scaling * low).bfloat16(),
        case.scaling * low.bfloat16(),
        case.scaling * narrow_low,
        (case.scaling * narrow_low.float()).bfloat16(),
        scaled_b @ case.a.bfloat16(),
        case.b.bfloat16() @ scaled_a,
        (case.scaling * case.b.bfloat16()) @ case.a.bfloat16(),
        case.b.bfloat16() @ (case.scaling * case.a.bfloat16()),
    )
    for update in updates:
        yield "rounds-before-adding", once, (case.weight + update).double()
    wide = (low.bfloat16().float(), narrow_low.float())
    for update in (case.scaling * wide[0], case.scaling * wide[1], (case.scaling * low).bfloat16().float()):
        yield "rounds-before-adding", once, (case.weight.float() + update).bfloat16().double()
