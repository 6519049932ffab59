"""Reading codes and scales that an answer returned, and which codes a value may have: near a tie, either neighbor."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab.checks.expect import Suspect, require_values
from qlab.checks.report import Refused, require

TOPIC = "03_quantization"
SCALE_TOLERANCE = 1e-6  # FP32 rounds each operation to 6e-8, and a scale takes at most five
HAIR = 1e-4  # x / S + Z is up to 255 and takes at most six roundings of 6e-8 in FP32, the one of S among them

Rule = Callable[[Tensor], Tensor]


def unpacked(value: Any, names: tuple[str, ...], *, call: str) -> tuple[Any, ...]:
    """Return the results of a function that hands back several, or refuse what is not so many."""
    require(
        value is not None,
        f"`{call}` returned None",
        misconception="returns-nothing",
        thought="Your function computes something but does not hand it back: does it end in `return`?",
    )
    if not isinstance(value, tuple | list) or len(value) != len(names):
        count = f"{len(value)} results" if isinstance(value, tuple | list) else f"one {type(value).__name__}"
        raise Refused(
            f"`{call}` returned {count}, expected {len(names)}: {', '.join(names)}",
            misconception="returns-wrong-type",
            thought=f"End in `return {', '.join(names)}`.",
        )
    return tuple(value)


def dtype_of(value: Any) -> str:
    """Return the name of the type of each value: "int8" for tensors and NumPy arrays alike."""
    return str(getattr(value, "dtype", f"Python {type(value).__name__}")).removeprefix("torch.")


def uniform(low: float, high: float, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Draw FP32 values between `low` and `high`."""
    return torch.empty(shape).uniform_(low, high, generator=draw)


def clamped(low: float | Tensor, high: float | Tensor, to_integer: Rule = torch.round) -> Rule:
    """Return the rule that makes steps whole and keeps them between two codes."""
    return lambda steps: to_integer(steps).clamp(low, high)


def near(rule: Rule, steps: Tensor, got: Tensor) -> Tensor:
    """Return `rule(steps)`, but what was got wherever steps that differ by a hair give that."""
    values = rule(steps)
    for hair in (-HAIR, HAIR):
        values = torch.where(rule(steps + hair) == got, got, values)
    return values


@dataclass(frozen=True)
class Coded:
    """What one call returned: its codes, where they lie before rounding, the rule that rounds, and the slips."""

    got: Tensor
    steps: Tensor
    rule: Rule
    slips: tuple[tuple[str, str, Rule], ...]
    given: Callable[[int], str]

    def by(self, rule: Rule) -> Tensor:
        """Return the codes by a rule, to a hair."""
        return near(rule, self.steps.double().flatten(), self.got.double().flatten())


def require_codes(calls: Sequence[Coded]) -> None:
    """Refuse the part unless each code is what its rule makes of its steps; a slip must fit in all calls."""
    places = [(coded, i) for coded in calls for i in range(coded.got.numel())]
    require_values(
        torch.cat([coded.got.double().flatten() for coded in calls]),
        torch.cat([coded.by(coded.rule) for coded in calls]),
        given=lambda i: places[i][0].given(places[i][1]),
        suspects=lambda: [
            Suspect(*slips[0][:2], torch.cat([coded.by(slip[2]) for coded, slip in zip(calls, slips, strict=True)]))
            for slips in zip(*(coded.slips for coded in calls), strict=True)
        ],
    )


def with_an_epsilon(expected: Tensor, got: Tensor) -> Iterable[Suspect]:
    """Yield the scales with an epsilon added, or raised to one, if the smallest of them was returned too large."""
    smallest = int(expected.argmin())
    if got[smallest] > expected[smallest]:
        thought = "An epsilon that is added or clamped to changes small scales: replace a scale only if it is 0."
        for values in (expected + got[smallest] - expected[smallest], expected.clamp(min=got[smallest].item())):
            yield Suspect("changes-small-scales", thought, values)


def close(values: Tensor, got: Tensor, span: Tensor | None = None) -> Tensor:
    """Return `values`, but what was got wherever that is within a millionth of the value, or of `span`."""
    span = values.abs() if span is None else values.abs().maximum(span)
    return torch.where((got - values).abs() <= SCALE_TOLERANCE * span, got, values)


def require_close(
    got: Tensor,
    expected: Tensor,
    *,
    given: Callable[[int], str],
    suspects: Iterable[Suspect] = (),
    span: Tensor | None = None,
) -> None:
    """Refuse the part unless each value is within a millionth of the expected one, or of `span`; suspects as well."""
    got, expected = got.double().flatten(), expected.double().flatten()
    require_values(
        got,
        close(expected, got, span),
        given=given,
        suspects=lambda: [
            Suspect(s.misconception, s.thought, close(s.values.double().flatten(), got, span)) for s in suspects
        ],
    )
