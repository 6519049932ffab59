"""Slips of a `QuantizedLinear`, each by the weight it stands for."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from qlab.checks.expect import Suspect


def step_of(weight: Tensor) -> Tensor:
    """Return the step of each row of a weight, (out, 1)."""
    return weight.abs().amax(1, keepdim=True) / 127


def weight_suspects(weight: Tensor, got: Tensor) -> Iterable[Suspect]:
    """Yield the slips whose own rule gives every weight, to a hundredth of a step; where steps are whole, to one."""
    if weight.shape[0] != weight.shape[1]:  # most slips stop there, or have stopped at the square weight before
        return
    step, steps = step_of(weight), _steps(weight, step_of(weight))
    room = torch.where((steps - steps.round()).abs() < 1e-4, 1.01, 0.01) * step + 1e-6 * got.abs()
    room = torch.where(step.T > 0, room, torch.inf)  # who puts scales on columns has some scale for the row of zeros
    for misconception, thought, rule in SLIPS:
        if ((rule(weight, step) - got).abs() <= room).all():
            yield Suspect(misconception, thought, got.flatten())


def _steps(weight: Tensor, scale: Tensor) -> Tensor:
    return weight / torch.where(scale > 0, scale, 1.0)


def _rounded(weight: Tensor, scale: Tensor, to_integer: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    return to_integer(_steps(weight, scale)) * scale


AXIS = "A row of the weight makes one output: its scale comes from the largest magnitude along dim 1, (out, 1)."
CUT = "`.to(torch.int8)` cuts toward zero: round first."
SLIPS: tuple[tuple[str, str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("outputs-zeros", "Every weight came back as zero: does `forward` read the codes?", lambda w, s: 0 * w),
    ("transposes", "nn.Linear's weight is (out, in), and y = x Wᵀ: transpose once.", lambda w, s: _rounded(w, s).T),
    ("one-scale-for-all", f"{AXIS} One for all leaves small rows no codes.", lambda w, s: _rounded(w, s.max())),
    ("scale-on-the-wrong-axis", AXIS, lambda w, s: _rounded(w, step_of(w.T).T)),
    ("scale-on-the-wrong-axis", AXIS, lambda w, s: _steps(w, s).round() * s.T),
    ("scale-on-the-wrong-axis", AXIS, lambda w, s: _rounded(w, s.T, lambda steps: steps.round().clamp(-127, 127))),
    ("scale-on-the-wrong-axis", AXIS, lambda w, s: _rounded(w, s.T, lambda steps: steps.round().clamp(-128, 127))),
    ("truncates", CUT, lambda w, s: _rounded(w, s, torch.trunc)),
    (
        "forgets-the-scale",
        "These are the codes: times the row's scale they are weights.",
        lambda w, s: _steps(w, s).round(),
    ),
)
