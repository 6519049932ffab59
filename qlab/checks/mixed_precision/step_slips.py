"""Every way to take a training step with a scaled loss, the right one among them, in FP64."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.checks.mixed_precision.step_runs import RATE, Plan

# of what was added up: clip_grad_norm_ adds 1e-6 to a norm of at least 1, and each of norm, quotient, product and sum
# rounds to 6e-8
ROUNDING = 4e-6


@dataclass(frozen=True)
class Case:
    """Gradients of each step before any rounding, one tensor for a parameter, and how the scaler is set."""

    steps: tuple[tuple[Tensor, ...], ...]
    scale: float
    max_norm: float
    growth_interval: int = 100
    silent: bool = False

    @property
    def plan(self) -> Plan:
        """What the steps are told, without the gradients."""
        return Plan(len(self.steps), self.scale, self.max_norm, self.growth_interval, self.silent)

    def narrow_gradients(self, step: int, upstream: Tensor) -> list[Tensor]:
        """Return the gradients of one step, scaled by what reaches the loss, as the FP16 grid holds them.

        Errors:  ValueError if `upstream` is not one number.
        """
        if not isinstance(upstream, Tensor) or upstream.shape or upstream.dtype != torch.float32:
            raise ValueError(f"the loss is one FP32 number, and so is its gradient, got {str(upstream)[:60]}")
        return [(upstream * gradient).half().float() for gradient in self.steps[step]]


@dataclass(frozen=True)
class Outcome:
    """All weights after each step, as (steps, weights), which steps were taken, and the scale after each."""

    parameters: Tensor
    stepped: tuple[bool, ...]
    scales: tuple[float, ...]

    @property
    def flat(self) -> Tensor:
        numbers = torch.tensor([*map(float, self.stepped), *self.scales], dtype=torch.float64)
        return torch.cat([self.parameters.flatten(), numbers])


@dataclass(frozen=True)
class Way:
    """What a step does: each field is one of its decisions, and the values here are the right ones."""

    scales: bool = True
    divides_by: float = 1.0  # the power of the scale that gradients are divided by
    clips: str = "all together"
    clips_first: bool = False
    skips: bool = True
    steps: bool = True
    clears: bool = True
    tells: str = "found_inf"
    tells_first: bool = False
    returns: str = "stepped"


RIGHT = Way()


def norm_of(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()


def near(got: Outcome, outcome: Outcome) -> Tensor:
    """Return what a way gives, but what was got wherever rounding the sum of its steps may have made that of it."""
    steps = outcome.parameters.diff(dim=0, prepend=torch.zeros(1, outcome.parameters.shape[1]))
    allowed = torch.zeros(len(outcome.flat), dtype=torch.float64)
    allowed[: steps.numel()] = ROUNDING * steps.abs().cumsum(0).flatten()
    return torch.where((got.flat - outcome.flat).abs() <= allowed, got.flat, outcome.flat)


def told(case: Case) -> str:
    """Say in words what a case gives to the steps."""
    norms = ", ".join(f"{norm_of(g).item():.4g}" for g in case.steps)
    return f"steps with gradient norms {norms}, max_norm {case.max_norm:.4g}, scale {case.scale:g} at first"


def simulated(case: Case, way: Way) -> Outcome:
    """Return what training in one way gives."""
    weights = [torch.zeros(g.shape, dtype=torch.float64) for g in case.steps[0]]
    left: list[Tensor] = [torch.zeros_like(w) for w in weights]
    scale, good, seen, stepped, scales = case.scale, 0, [], [], []
    for gradients in case.steps:
        used = scale if way.scales else 1.0
        new = [old + (g * used).half().double() for old, g in zip(left, gradients, strict=True)]
        found = not all(bool(g.isfinite().all()) for g in new)
        after, good = _told(case, way, scale, good, found)
        divisor = (after if way.tells_first else scale) ** way.divides_by
        clipped = _clipped(new, case.max_norm, way.clips) if way.clips_first else new
        new = [g / divisor for g in clipped]
        new = new if way.clips_first else _clipped(new, case.max_norm, way.clips)
        taken = not (found and way.skips)
        if taken and way.steps:
            weights = [w - RATE * g for w, g in zip(weights, new, strict=True)]
        left = [torch.zeros_like(w) for w in weights] if way.clears else new
        scale = after
        seen.append(torch.cat([w.flatten() for w in weights]))
        stepped.append({"stepped": taken, "found_inf": found, "always": True}[way.returns])
        scales.append(scale)
    return Outcome(torch.stack(seen), tuple(stepped), tuple(scales))


def _told(case: Case, way: Way, scale: float, good: int, found: bool) -> tuple[float, int]:
    """Return scale and good steps after the scaler was told what the way tells it."""
    by_name = {
        "found_inf": [found],
        "twice": [found] * 2,
        "stepped": [not found],
        "always good": [False],
        "good steps only": [] if found else [False],
        "bad steps only": [True] if found else [],
        "nothing": [],
    }
    for told in by_name[way.tells]:
        if told:
            scale, good = scale / 2, 0
        else:
            scale, good = (scale * 2, 0) if good + 1 == case.growth_interval else (scale, good + 1)
    return scale, good


def _clipped(gradients: list[Tensor], max_norm: float, how: str) -> list[Tensor]:
    def factor(some: list[Tensor]) -> Tensor:
        return max_norm / (norm_of(some) + 1e-6)

    if how == "values":
        return [g.clamp(-max_norm, max_norm) for g in gradients]
    if how == "largest":
        largest = max(g.abs().max() for g in gradients)
        return [g * (max_norm / (largest + 1e-6)).clamp(max=1.0) for g in gradients]
    if how == "each":
        return [g * factor([g]).clamp(max=1.0) for g in gradients]
    if how == "always":
        return [g * max_norm / norm_of(gradients) for g in gradients]
    return [g * factor(gradients).clamp(max=1.0) for g in gradients] if how == "all together" else gradients


def _slips() -> Iterator[tuple[str, str, Way]]:
    order = "Scaled gradients have a norm that is `scale` times as large: divide by the scale first, then clip."
    yield "clips-before-unscaling", order, Way(clips_first=True)
    for clips in ("each", "values", "always"):
        yield "clips-before-unscaling", order, Way(clips_first=True, clips=clips)
    divide = "The gradients are `scale` times too large: divide each of them by the scale before the step."
    yield "forgets-to-unscale", divide, Way(divides_by=0)
    yield "forgets-to-unscale", divide, Way(divides_by=0, clips="nothing")
    yield "forgets-to-unscale", divide, Way(divides_by=0, clips="each")
    multiplied = "Scaling multiplied by the scale, so unscaling divides: by the same scale, once."
    yield "unscales-wrongly", multiplied, Way(divides_by=2)
    yield "unscales-wrongly", multiplied, Way(divides_by=-1)
    survive = "Small gradients became zero: the *loss* is multiplied by the scale before `backward`, not later."
    for divides_by in (0, 1, -1):
        yield "forgets-to-scale", survive, Way(scales=False, divides_by=divides_by)
    yield "forgets-to-scale", survive, Way(scales=False, clips_first=True)
    norm = "Where the norm of all gradients together is above max_norm, all of them shrink by one factor."
    yield "never-clips", norm, Way(clips="nothing")
    yield "clips-each-tensor", norm, Way(clips="each")
    yield "clips-values", f"{norm} `clip_grad_value_` cuts single values.", Way(clips="values")
    yield "clips-by-the-largest", f"{norm} The norm is Euclidean, not the largest value.", Way(clips="largest")
    yield "always-at-max-norm", "A norm below max_norm stays as it is: the factor is at most 1.", Way(clips="always")


def _slips_of_order() -> Iterator[tuple[str, str, Way]]:
    again = "`backward` adds to the gradients that are there: clear them once per step, also after a skipped one."
    yield "never-clears", again, Way(clears=False)
    early = "The scaler was told before the gradients were divided: they were made with the *old* scale."
    yield "updates-before-unscaling", early, Way(tells_first=True)
    told = "At the end of every step, taken or skipped, call `scaler.update(found_inf)`, once."
    yield "never-updates", told, Way(tells="nothing")
    yield "updates-twice", told, Way(tells="twice")
    turned = "The argument of `update` is `found_inf`: True after a step that was skipped."
    yield "tells-the-opposite", turned, Way(tells="stepped")
    hidden = "A skipped step is told as well, `scaler.update(True)`: otherwise the scale never falls."
    yield "hides-the-overflow", hidden, Way(tells="always good")
    yield "hides-the-overflow", hidden, Way(tells="good steps only")
    yield "hides-the-good-steps", told, Way(tells="bad steps only")
    inf = "A weight that takes in an inf or a NaN is lost: leave `optimizer.step()` out."
    yield "steps-on-inf", inf, Way(skips=False)
    still = "No weight moved: is the step taken, and do the gradients still stand when it is?"
    yield "never-steps", still, Way(steps=False)
    result = "Return True if the step was taken, and False if it was skipped."
    yield "returns-the-skip", result, Way(returns="found_inf")
    yield "returns-always-true", result, Way(returns="always")


SLIPS = (*_slips(), *_slips_of_order())
