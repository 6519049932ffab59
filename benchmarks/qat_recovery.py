"""What quantization-aware training wins back of the quality that rounding costs; `--record` keeps it for lesson 04.

The peer is the same grid without training. The target at 3 bits, one scale for a tensor: at least half is won back.
"""

import math
import sys
from dataclasses import dataclass

import torch
from _peer import arguments, keep_recording
from torch import nn

from qlab import qat
from qlab.calibrate import FakeQuantize, LearnedStep
from qlab.corpus import load_corpus
from qlab.damage import rounded_copy, uniform
from qlab.model import load_course_model
from qlab.quantize import TILES
from qlab.scoring import held_out_bits

SEQUENCE, SEED = 512, 0
COMMAND = "python benchmarks/qat_recovery.py --record"


@dataclass(frozen=True)
class Recovery:
    """Bits per byte lost: by rounding alone, after training with the largest magnitude's step, and a learned one."""

    bits: int
    granularity: str
    ptq: float
    qat: float
    learned_step: float
    standard_error: float


options = arguments(__doc__, record=True)
if options.record and options.tiny:
    sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
windows, steps = (2, 1) if options.tiny else (64, 100)
grids = [("per tensor", bits) for bits in (8, 4, 3, 2)] + [("per row", bits) for bits in (3, 2)]
grids = grids[2:3] if options.tiny else grids
# the coarser the grid, the further the weights must move; a step learned with them needs less
LEARNING_RATES = {FakeQuantize: {8: 1e-4, 4: 3e-4, 3: 1e-3, 2: 1e-3}, LearnedStep: {8: 1e-4, 4: 3e-4, 3: 3e-4, 2: 1e-3}}
corpus, model = load_corpus(), load_course_model()
text = corpus.validation[: windows * SEQUENCE + 1]
before = held_out_bits(model, text, sequence=SEQUENCE)


def lost(trial: nn.Module) -> torch.Tensor:
    return held_out_bits(trial, text, sequence=SEQUENCE) - before


def trained(kind: type[nn.Module], *, bits: int, granularity: str) -> torch.Tensor:
    torch.manual_seed(SEED)
    trial, tile = load_course_model().train(), TILES[granularity]
    make = (lambda w: kind(w, bits=bits, tile=tile)) if kind is LearnedStep else (lambda _: kind(bits=bits, tile=tile))
    recipe = qat.QatRecipe(steps=steps, learning_rate=LEARNING_RATES[kind][bits], seed=SEED)
    qat.train(qat.prepare(trial, make, keep=(trial.head,)), corpus.train, recipe)
    return lost(qat.convert(trial).eval())


found = []
for granularity, bits in grids:
    rounded, _ = rounded_copy(model, uniform(TILES[granularity], bits=bits), keep=(model.head,))
    ptq = lost(rounded)
    plain, learned = (trained(kind, bits=bits, granularity=granularity) for kind in LEARNING_RATES)
    error = learned.std().item() / math.sqrt(windows)
    one = Recovery(bits, granularity, *(x.mean().item() for x in (ptq, plain, learned)), error)
    found.append(one)
    print(
        f"{bits} bits {granularity}: rounding costs {one.ptq:+.4f} bits per byte,"
        f" after {steps} steps {one.qat:+.4f}, with a learned step {one.learned_step:+.4f} ± {error:.4f}",
        flush=True,
    )
if options.record:
    told = {"windows": windows, "steps": steps, "seed": SEED}
    keep_recording("04_calibration", "qat", found, command=COMMAND, **told)
