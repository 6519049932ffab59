"""FP32, FP16 and BF16 training of the course model: what is lost, and at what cost; `--record` keeps it for lesson 06.

On a CPU narrow arithmetic is emulated and only the quality counts. With a CUDA GPU the precisions are real, and tokens
per second, peak bytes and joules a step are measured. The peer is FP32 in the same run; the target for scaled FP16 is a
final loss within 1 % of it.
"""

import sys
from dataclasses import dataclass, replace

import torch
from _peer import arguments, keep_recording
from torch import nn

from qlab.corpus import load_corpus
from qlab.loss_scaling import StaticScaler
from qlab.model import Decoder, load_course_model
from qlab.precision_runs import FP16_SCALED, NARROW_WEIGHTS, REGIMES, PrecisionRecipe, PrecisionRun, Regime, run
from qlab.precision_timing import step_cost
from qlab.scoring import held_out_bits

COMMAND = "python benchmarks/precision_runs.py --record"
LAST = 20  # steps whose mean is the final loss


@dataclass(frozen=True)
class Curve:
    """One regime: the finite losses of its run in bits per byte, and what the model is then worth on held-out text."""

    regime: str
    losses: list[float]
    failed_at: int | None
    skipped: list[int]
    final_scale: float
    held_out: float | None


@dataclass(frozen=True)
class ScaleTrial:
    """The end of a short run with a static loss scale of 2 to some power."""

    log2_scale: int
    final_loss: float
    skipped: int


options = arguments(__doc__, record=True)
if options.record and options.tiny:
    sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
corpus = load_corpus()
text, held_out = corpus.new_domain_train, corpus.new_domain_validation[: 16 * 256 + 1]
device = "cuda" if torch.cuda.is_available() else "cpu"
recipe = PrecisionRecipe(steps=2) if options.tiny else PrecisionRecipe(steps=200, seed=0)
regimes = REGIMES[:3] if options.tiny else (*REGIMES, *NARROW_WEIGHTS)


def trained(regime: Regime, recipe: PrecisionRecipe) -> tuple[PrecisionRun, nn.Module]:
    model: Decoder = load_course_model().train().to(device)
    return run(model, text, regime, recipe), model.eval().float()


def final(told: PrecisionRun) -> float:
    return sum(told.losses[-LAST:]) / len(told.losses[-LAST:])


curves, peer = [], None
for regime in regimes:
    told, model = trained(regime, recipe)
    worth = None if told.failed_at is not None else held_out_bits(model, held_out, sequence=256).mean().item()
    one = Curve(regime.name, told.losses[: told.failed_at], told.failed_at, told.skipped, told.scales[-1], worth)
    curves.append(one)
    peer = peer or final(told)
    end = f"{final(told):.4f} bits per byte, {final(told) / peer - 1:+.2%} of {regimes[0].name}'s"
    lost = f"lost at step {told.failed_at}"
    print(
        f"{regime.name} on {device}: {end if told.failed_at is None else lost}, scale {one.final_scale:g}", flush=True
    )

trials = []
for exponent in (8,) if options.tiny else range(-16, 25, 4):
    regime = replace(FP16_SCALED, name=f"2^{exponent}", scaler=lambda k=exponent: StaticScaler(2.0**k))
    told, _ = trained(regime, replace(recipe, steps=min(40, recipe.steps)))
    trials.append(ScaleTrial(exponent, final(told), len(told.skipped)))
    print(f"static loss scale {regime.name}: {trials[-1].final_loss:.4f}, {trials[-1].skipped} skipped", flush=True)

costs = step_cost(device, tiny=options.tiny) if device == "cuda" or options.tiny else []
for cost in costs:
    print(f"{cost.precision} on {device}: {cost.tokens_per_s:,.0f} tokens/s, peak {cost.peak_bytes:,} bytes")

if options.record:
    told = {"seed": recipe.seed, "device": device}
    where = "_cuda" if device == "cuda" else ""
    keep_recording("06_mixed_precision", "runs" + where, curves, command=COMMAND, steps=recipe.steps, **told)
    keep_recording("06_mixed_precision", "scales" + where, trials, command=COMMAND, **told)
    if device == "cuda":
        keep_recording("06_mixed_precision", "gpu", costs, command=COMMAND, **told)
