"""Check of `adam_step`: the moments, the first step, later steps, and gradients as small as ε."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import optimizers
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.optimizers_8bit.rules import RIGHT, Moments, Rule, Settings, explains, slips
from qlab.checks.optimizers_8bit.topic import TOPIC
from qlab.checks.quantization.codes import uniform, unpacked
from qlab.checks.report import check, part

NAMES = ("parameter", "exp_avg", "exp_avg_sq")
VALUES = 8
NO_EPS = 1e-15  # so small that its place decides nothing
# of an update: 1 − β₂ᵗ in FP32 loses up to four of seven digits in the first steps; the slips change a hundredth
UPDATE_ROUNDING = 1e-4
ROUNDING = 1e-6  # of a moment or a parameter: FP32 rounds each operation to 6e-8


@dataclass(frozen=True)
class Case:
    """One call."""

    moments: Moments
    gradient: Tensor
    step: int
    settings: Settings

    @property
    def call(self) -> str:
        return f"adam_step(…, step={self.step}, {self.settings.told})"

    def by(self, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        after = rule(self.moments, self.gradient, self.step, self.settings)
        return after.parameter, after.exp_avg, after.exp_avg_sq

    def room(self, name: str) -> Tensor:
        """Return by how much rounding may move each value."""
        m, g = self.moments.exp_avg.abs(), self.gradient
        if name == "exp_avg":
            return ROUNDING * (m + g.abs()).double()
        if name == "exp_avg_sq":
            return ROUNDING * self.by(RIGHT)[2]
        before, after = self.moments.parameter.double(), self.by(RIGHT)[0]
        return ROUNDING * before.abs() + UPDATE_ROUNDING * (after - before).abs()


@check(
    TOPIC,
    "adam-step",
    optimizers.adam_update,
    points=4,
    forbids=(
        "torch.optim",
        "torch._fused_adam_",
        "qlab.optimizers.Adam8bit",
        "qlab.optimizers.AdamW8bit",
        "qlab.optimizers.MappedAdam",
    ),
)
def check_adam_step(adam_step: LearnerFunction, draw: torch.Generator) -> None:
    """Check `adam_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas, eps)`."""
    cases = [_later(draw, drawn(*steps, draw)) for steps in ((2, 4), (10, 30), (200, 900), (4_000, 9_000))]
    with part("both moments: averages of g and of g²"):
        _compare(adam_step, cases, NAMES[1:])
    with part("the first step, from moments of zero"):
        _compare(adam_step, [_first(draw) for _ in range(3)], NAMES[:1])
    with part("later steps"):
        _compare(adam_step, cases, NAMES[:1])
    with part("gradients as small as ε, where its place decides"):
        _compare(adam_step, [_tiny(draw, drawn(1, 9, draw)) for _ in range(4)], NAMES[:1])


def _settings(draw: torch.Generator, eps: float = NO_EPS) -> Settings:
    """Draw settings, no beta being the usual one."""
    beta1, beta2 = uniform(0.8, 0.89, (), draw).item(), uniform(0.99, 0.998, (), draw).item()
    return Settings(uniform(0.02, 0.2, (), draw).item(), (beta1, beta2), eps)


def _signed(low: float, high: float, draw: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (VALUES,), generator=draw) * 2 - 1
    return signs * uniform(low, high, (VALUES,), draw)


def _later(draw: torch.Generator, step: int) -> Case:
    moments = Moments(torch.randn(VALUES, generator=draw), _signed(0.3, 3, draw), uniform(0.1, 9, (VALUES,), draw))
    return Case(moments, _signed(0.3, 3, draw), step, _settings(draw))


def _first(draw: torch.Generator) -> Case:
    zeros = torch.zeros(VALUES)
    return Case(Moments(torch.randn(VALUES, generator=draw), zeros, zeros), _signed(0.3, 30, draw), 1, _settings(draw))


def _tiny(draw: torch.Generator, step: int) -> Case:
    """Draw an ε that no one has as a habit, and gradients and moments of its size, as `step` such gradients leave."""
    settings = _settings(draw, uniform(1e-4, 1e-3, (), draw).item())
    shares = [1 - beta ** (step - 1) for beta in settings.betas]
    exp_avg = shares[0] * settings.eps * _signed(0.3, 3, draw)
    exp_avg_sq = shares[1] * settings.eps**2 * uniform(0.1, 9, (VALUES,), draw)
    moments = Moments(torch.randn(VALUES, generator=draw), exp_avg, exp_avg_sq)
    return Case(moments, settings.eps * _signed(0.3, 3, draw), step, settings)


def _compare(adam_step: LearnerFunction, cases: Sequence[Case], names: Sequence[str]) -> None:
    got, room = _read(adam_step, cases, names), torch.cat([case.room(name) for case in cases for name in names])
    first = VALUES * len(names)

    def snapped(values: Tensor) -> Tensor:
        return torch.where((got - values).abs() <= room + ROUNDING * values.abs(), got, values)

    def suspects() -> Iterable[Suspect]:
        for misconception, thought, rule in slips():
            few = _of(rule, cases[:1], names)
            if explains(few, got[:first], room[:first] + ROUNDING * few.abs()):  # most are dismissed by one case
                yield Suspect(misconception, thought, snapped(_of(rule, cases, names)))

    places = [(case, name, i) for case in cases for name in names for i in range(VALUES)]
    require_values(got, snapped(_of(RIGHT, cases, names)), given=lambda i: _told(*places[i]), suspects=suspects)


def _told(case: Case, name: str, i: int) -> str:
    m = case.moments
    return (
        f"parameter {m.parameter[i]:.6g}, gradient {case.gradient[i]:.6g}, exp_avg {m.exp_avg[i]:.6g}, exp_avg_sq"
        f" {m.exp_avg_sq[i]:.6g} in `{case.call}`, the new {name}"
    )


def _read(adam_step: LearnerFunction, cases: Sequence[Case], names: Sequence[str]) -> Tensor:
    read = []
    for case in cases:
        m, s = case.moments, case.settings
        result = adam_step(m.parameter, case.gradient, m.exp_avg, m.exp_avg_sq, case.step, s.lr, s.betas, s.eps)
        returned = dict(zip(NAMES, unpacked(result, NAMES, call=case.call), strict=True))
        read += [as_tensor(returned[name], (VALUES,), call=f"{case.call}, {name}").double() for name in names]
    return torch.cat(read)


def _of(rule: Rule, cases: Sequence[Case], names: Sequence[str]) -> Tensor:
    after = [dict(zip(NAMES, case.by(rule), strict=True)) for case in cases]
    return torch.cat([values[name] for values in after for name in names])
