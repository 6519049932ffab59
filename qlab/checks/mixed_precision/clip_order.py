"""Check of `clipped_step`: a copied training loop with torch's GradScaler, repaired."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from qlab import loss_scaling
from qlab.checks.beside import reports
from qlab.checks.expect import Suspect, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.mixed_precision.reading import TOPIC
from qlab.checks.mixed_precision.step import drawn_case, overflowing
from qlab.checks.mixed_precision.step_runs import trained_by_clipped_step
from qlab.checks.mixed_precision.step_slips import RIGHT, SLIPS, Case, Outcome, near, simulated, told
from qlab.checks.report import check, part


@check(TOPIC, "clip-order", loss_scaling.training_step, points=3)
def check_clip_order(clipped_step: LearnerFunction, draw: torch.Generator) -> None:
    """Check `clipped_step(loss, parameters, optimizer, scaler, max_norm)`, where scaler is torch's own."""
    with part("below max_norm the step is as long as without a scale"):
        _compare(clipped_step, drawn_case(draw, norms=(1e-4, 0.3, 0.6)))
    with part("above it the true gradients are clipped to max_norm, at any scale"):
        _compare(clipped_step, replace(drawn_case(draw, norms=(3.0, 1e-7, 0.5, 5.0)), growth_interval=1, silent=True))
    with part("a step that overflows is skipped, and the scale falls"):
        _compare(clipped_step, overflowing(draw))


def _compare(clipped_step: LearnerFunction, case: Case) -> None:
    got = _run(clipped_step, case)
    steps, count = got.parameters.shape

    def given(i: int) -> str:
        if i < steps * count:
            return f"{told(case)} (a weight after step {i // count + 1})"
        return f"{told(case)} (the scale after step {i - steps * count + 1})"

    expected = near(got, _silenced(simulated(case, RIGHT)))
    require_values(got.flat, expected, given=given, suspects=lambda: _suspects(got, case))


def _silenced(outcome: Outcome) -> Outcome:
    """Leave out what each step returned: here nothing is asked for."""
    return replace(outcome, stepped=())


def _suspects(got: Outcome, case: Case) -> Iterator[Suspect]:
    for misconception, thought, way in SLIPS:
        yield Suspect(misconception, thought, near(got, _silenced(simulated(case, way))))


def _run(clipped_step: LearnerFunction, case: Case) -> Outcome:
    found = reports(clipped_step, trained_by_clipped_step, case.plan, case.narrow_gradients)
    seen, scales = zip(*found, strict=True)
    return Outcome(torch.stack(seen), (), scales)
