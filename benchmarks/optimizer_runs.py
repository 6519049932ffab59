"""Adam with 32-bit and 8-bit moments on the course model, new-domain text; `--record` keeps it for lesson 09.

The peer is FP32 Adam on the same text; the target for 8-bit Adam is a final loss within 1 % of it. At three times the
rate a second moment on a linear map is trained too: there its zeros are seen.
"""

import statistics
import sys
from dataclasses import dataclass, replace

from _peer import arguments, keep_recording

from qlab.corpus import load_corpus
from qlab.model import load_course_model
from qlab.optimizer_runs import WAYS, run
from qlab.recipes import TextRecipe
from qlab.scoring import held_out_bits

COMMAND = "python benchmarks/optimizer_runs.py --record"
PEER = "FP32 Adam"
AT_A_HIGH_RATE = (PEER, "8-bit Adam", "linear map for the second moment")


@dataclass(frozen=True)
class Curve:
    """One run: its finite losses in bits per byte, the bytes it kept, and what the model is then worth held out."""

    way: str
    seed: int
    learning_rate: float
    losses: list[float]
    failed_at: int | None
    final_loss: float | None
    held_out: float | None
    state_bytes: int
    parameters: int


options = arguments(__doc__, record=True)
if options.record and options.tiny:
    sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
corpus = load_corpus()
text, held_out = corpus.new_domain_train, corpus.new_domain_validation[: 16 * 256 + 1]
recipe = TextRecipe(steps=2 if options.tiny else 200, batch=2, learning_rate=1e-3)
seeds = range(1 if options.tiny else 3)
trials = [(way, replace(recipe, seed=seed)) for seed in seeds for way in list(WAYS)[: 2 if options.tiny else None]]
high_rate = [(way, replace(recipe, learning_rate=3e-3)) for way in AT_A_HIGH_RATE]
trials = trials if options.tiny else trials[: len(WAYS)] + high_rate + trials[len(WAYS) :]


def trained(way: str, recipe: TextRecipe) -> Curve:
    model = load_course_model().train()
    told = run(model, text, WAYS[way], recipe)
    lost = told.failed_at is not None
    worth = None if lost else held_out_bits(model.eval(), held_out, sequence=256).mean().item()
    final = None if lost else told.final_loss()
    kept = {"state_bytes": told.state_bytes, "parameters": told.parameters}
    losses = [round(loss, 5) for loss in told.losses[: told.failed_at]]
    return Curve(way, recipe.seed, recipe.learning_rate, losses, told.failed_at, final, worth, **kept)


curves: list[Curve] = []
for way, trial in trials:
    one = trained(way, trial)
    curves.append(one)
    ending = f"lost at step {one.failed_at}" if one.final_loss is None else f"{one.final_loss:.4f} bits per byte"
    size = one.state_bytes / one.parameters
    print(f"{way}, seed {one.seed}, rate {one.learning_rate:g}: {ending}, {size:.3f} bytes a parameter", flush=True)
    if options.record:  # all runs so far: a recording that is broken off keeps what it has
        told = {"steps": recipe.steps, "batch": recipe.batch, "sequence": recipe.sequence, "device": "cpu", "seed": 0}
        keep_recording("09_optimizers_8bit", "runs", curves, command=COMMAND, **told)

peers = {one.seed: one.final_loss for one in curves if one.way == PEER and one.learning_rate == recipe.learning_rate}
for way in WAYS:
    same = [one for one in curves if one.way == way and one.learning_rate == recipe.learning_rate and one.final_loss]
    if gaps := [one.final_loss / peers[one.seed] - 1 for one in same]:
        spread = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
        mean = statistics.mean(gaps)
        print(f"{way}: {mean:+.3%} of {PEER}'s final loss, spread {spread:.3%} (target for 8-bit Adam: within 1 %)")
