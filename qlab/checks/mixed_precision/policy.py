"""Check of `cast_policy`: which operations may run in FP16, by their measured error."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab import loss_scaling
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision import operations as ops
from qlab.checks.mixed_precision.operations import Operation, emulated, in_fp16
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.report import Refused, check, part

TOLERANCE = 2.0**-8  # twenty times the error of rounding in FP16, and a fifth of what differences near 200 suffer
LOOSE, STRICT = 0.3, 2.0**-15
MARGIN = 1.5  # no operation is drawn whose error is that near to the tolerance: see `_clear`
SUM, LOG, SQUARE = 0, 2, 3  # results overflow, inputs vanish: in each list something must stay in FP32
CALL = "cast_policy(operations, tolerance)"


@check(TOPIC, "cast-policy", loss_scaling.narrow_error, loss_scaling.CastPolicy, points=4)
def check_cast_policy(cast_policy: LearnerFunction, draw: torch.Generator) -> None:
    """Check `cast_policy(operations, tolerance)`."""
    with part("products and operations on single values in FP16, but for what must not be"):
        wide = [*_out_of_range(draw), _drawn(ops.near_a_large_number, draw)[0]]
        _compare(cast_policy, [*ops.products(draw), *ops.elementwise(draw), *wide], TOLERANCE, draw)
    with part("differences of large values: softmax, losses and norms stay in FP32"):
        large = _drawn(ops.near_a_large_number, draw)
        _compare(cast_policy, [*ops.products(draw), *large, *_out_of_range(draw)], TOLERANCE, draw)
    with part("what overflows or vanishes stays in FP32: sums, exponentials, norms, and what becomes NaN"):
        _compare(cast_policy, [*ops.elementwise(draw), *ops.out_of_range(draw)], TOLERANCE, draw)
    with part("the measured error decides, against the tolerance given: no name, no size"):
        large = _drawn(ops.near_a_large_number, draw)[-1]
        unlike = [*ops.unlike_their_names(draw), *ops.mostly_vanishing(draw), large]
        _compare(cast_policy, [*ops.elementwise(draw), *unlike], TOLERANCE, draw)
        loose = [*ops.products(draw), *_drawn(ops.near_a_large_number, draw)[:2], *ops.out_of_range(draw)]
        _compare(cast_policy, loose, LOOSE, draw)
        _compare(cast_policy, [*ops.products(draw), *ops.elementwise(draw)], STRICT, draw)


def _out_of_range(draw: torch.Generator) -> list[Operation]:
    """Draw two operations above the range of FP16, which a wide result has room for, and one below, for BF16."""
    operations = ops.out_of_range(draw)
    return [operations[place] for place in (SUM, LOG, SQUARE)]


def _drawn(some: Callable[[torch.Generator], list[Operation]], draw: torch.Generator) -> list[Operation]:
    """Draw until no operation is near a tolerance, by any reading of what running in FP16 is."""
    while True:
        drawn = some(draw)
        if all(map(_clear, drawn)):
            return drawn


def _clear(operation: Operation) -> bool:
    errors = [operation.error(run) for run in (in_fp16, emulated)]
    return all(e > MARGIN * t or e < t / MARGIN for e in errors for t in (TOLERANCE, LOOSE))


def _compare(
    cast_policy: LearnerFunction, operations: list[Operation], tolerance: float, draw: torch.Generator
) -> None:
    operations = ops.shuffled(operations, draw)
    got = _read(cast_policy([operation.entry for operation in operations], tolerance), operations)
    right = _measured(operations, tolerance)
    if got == right:
        return
    wrongly = [o for o in operations if o.name in got and o.name not in right]
    kept = [o for o in operations if o.name in right and o.name not in got]
    first = (wrongly or kept)[0]
    error = first.error(in_fp16)
    message = (
        f"tolerance {tolerance:.4g}: got {_told(got)} in FP16, expected {_told(right)}; "
        f"the error of {first.name} in FP16 is {error:.3g}"
    )
    for misconception, thought, policy in SLIPS:
        if policy(operations, tolerance) == got:
            raise Refused(message, misconception=misconception, thought=thought)
    misconception = first.spoiled if wrongly else "products-in-fp32" if first.name in PRODUCTS else "wide-for-nothing"
    raise Refused(message, misconception=misconception or "wrong-value", thought=THOUGHTS[bool(wrongly)])


PRODUCTS = ("linear", "scores")
THOUGHTS = {
    True: "Print this operation's error: cast its inputs to FP16, run it, and compare with FP64. NaN is no pass.",
    False: "Its error in FP16 is within the tolerance: in FP32 it takes twice the bytes and misses the tensor cores.",
}


def _told(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _read(value: Any, operations: list[Operation]) -> set[str]:
    """Read a policy: names in any collection, or a truth value for each operation."""
    nothing = "Your function computes something but does not hand it back: does it end in `return`?"
    if value is None:
        raise Refused(f"`{CALL}` returned None", misconception="returns-nothing", thought=nothing)
    if isinstance(value, dict):
        value = [name for name, narrow in value.items() if narrow]
    items = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    items = [items] if isinstance(items, str) else list(items)
    items = [item.item() if hasattr(item, "item") else item for item in items]
    if len(items) == len(operations) and all(isinstance(item, bool) for item in items):
        return {operation.name for operation, narrow in zip(operations, items, strict=True) if narrow}
    strange = [item for item in items if item not in {operation.name for operation in operations}]
    if strange:
        raise Refused(
            f"`{CALL}` returned {str(strange[0])[:60]!r}, which is no name in the list",
            misconception="not-a-name",
            thought="Return the names of the operations that may run in FP16, as they were given.",
        )
    return set(items)


def _measured(operations: list[Operation], tolerance: float, **how: Any) -> set[str]:
    run = how.get("run", in_fp16)
    return {o.name for o in operations if o.error(run) <= tolerance}


Policy = Callable[[list[Operation], float], set[str]]


def _slips() -> Iterator[tuple[str, str, Policy]]:
    every = (
        "Something here overflows or loses its digits in FP16: run each operation in FP16 *and* in FP64, and compare."
    )
    yield "everything-in-fp16", every, lambda some, _: {o.name for o in some}
    nothing = "Products in FP32 run at a sixteenth of the speed of tensor cores, and every result takes four bytes."
    yield "products-in-fp32", nothing, lambda some, _: set()
    turned = "Asked for are the operations that may run in FP16, not those that may not."
    yield "returns-the-wide-ones", turned, lambda some, t: {o.name for o in some} - _measured(some, t)
    nan = (
        "An error that is NaN is no small error: `error <= tolerance` is False for it, `not error > tolerance` is not."
    )
    yield "accepts-nan", nan, lambda some, t: {o.name for o in some if not o.error(in_fp16) > t}
    yield "accepts-nan", nan, lambda some, t: {o.name for o in some if not _error_or_zero(o) > t}
    reference = "The exact result comes from the inputs as they are: rounded ones hide what rounding them costs."
    yield "softmax-in-fp16", f"Softmax of rounded scores. {reference}", _against_rounded
    result = "An operation in FP16 also *reads* FP16: round its inputs, not its result alone."
    yield "softmax-in-fp16", f"Softmax of FP32 scores is no FP16 softmax. {result}", _casts_the_result
    wide = "The result is an FP16 number too: round it, and what is above 65504 becomes infinite."
    yield "keeps-the-result-wide", wide, lambda some, t: _measured(some, t, run=_wide_result)
    bf16 = "BF16 has the range of FP32 and eight bits: ask `torch.float16`."
    yield "asks-bf16", bf16, lambda some, t: _measured(some, t, run=lambda f, x: in_fp16(f, x, torch.bfloat16))
    norms = "The task's norm is Euclidean: neither the largest value nor the sum of magnitudes decides."
    for order in (math.inf, 1):
        yield "another-norm", norms, lambda some, t, p=order: {o.name for o in some if _by_norm(o, p) <= t}
    absolute = "The error is relative: divide its norm by the norm of the exact result."
    yield "absolute-error", absolute, lambda some, t: {o.name for o in some if _absolute(o, largest=True) <= t}
    yield "absolute-error", absolute, lambda some, t: {o.name for o in some if _absolute(o, largest=False) <= t}
    fixed = "The tolerance is an argument."
    yield "ignores-the-tolerance", fixed, lambda some, _: _measured(some, TOLERANCE)
    names = "These are the usual operations, by name. Here the sizes are unusual: measure."
    yield "by-name-not-by-error", names, lambda some, _: {o.name for o in some if o.name in USUAL}
    yield "by-name-not-by-error", names, lambda some, _: {o.name for o in some if o.name in (*USUAL, *UPDATES)}


USUAL = ("linear", "scores", "relu", "residual")
UPDATES = ("update", "small update")


def _error_or_zero(operation: Operation) -> float:
    error = operation.error(in_fp16)
    return 0.0 if math.isnan(error) else error


def _against_rounded(some: list[Operation], tolerance: float) -> set[str]:
    return {o.name for o in some if o.error(in_fp16, o.function(*(x.half().double() for x in o.inputs))) <= tolerance}


def _casts_the_result(some: list[Operation], tolerance: float) -> set[str]:
    return _measured(some, tolerance, run=lambda f, inputs: f(*inputs).half())


def _wide_result(function: ops.Function, inputs: tuple[Tensor, ...]) -> Tensor:
    return function(*(x.half().float() for x in inputs))


def _by_norm(operation: Operation, order: float) -> float:
    exact = operation.function(*(x.double() for x in operation.inputs))
    error = in_fp16(operation.function, operation.inputs).double() - exact
    return (error.flatten().norm(order) / exact.flatten().norm(order)).item()


def _absolute(operation: Operation, *, largest: bool) -> float:
    exact = operation.function(*(x.double() for x in operation.inputs))
    error = (in_fp16(operation.function, operation.inputs).double() - exact).abs()
    return (error.max() if largest else error.norm()).item()


SLIPS = tuple(_slips())
