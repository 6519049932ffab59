"""Pruning, students, soups and the Pareto picture of the whole course; `--record` keeps them for lesson 11.

The peer is the FP32 model in the same run. Targets: half the feed-forward units take less than 0.9 of its time,
and a distilled student beats a plain one after as many steps (at 300 steps it does not: the plain one learns faster).
`--part NAME` runs one part: rounding, remedies, trained, recovery, students, or gpu where there is one.
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import torch
from _peer import keep_recording
from torch import nn

from qlab import smaller_runs as runs
from qlab.corpus import load_corpus
from qlab.ledger import held_out_quality
from qlab.measure import median_ms
from qlab.model import Decoder, load_course_model
from qlab.smaller_runs import FEWER, FLOATS, DecoderRecipe, Point, Way
from qlab.soups import uniform_soup
from qlab.sparsity import two_four_mask

STEM, COMMAND = "11_smaller_models", "python benchmarks/smaller_models.py --record"
SEEDS = (0, 1, 2)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="smallest sizes: proves that it runs, measures nothing")
parser.add_argument("--record", action="store_true", help="keep the result in lessons/recorded/")
parser.add_argument("--part", default="", help="one part instead of all")
options = parser.parse_args()
if options.record and options.tiny:
    sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
torch.set_num_threads(1)
corpus, model = load_corpus(), load_course_model()
window = corpus.validation[:512].long()[None]
seeds = SEEDS[:1] if options.tiny else SEEDS


def quality(network: nn.Module) -> float:
    if options.tiny:
        return 0.0
    return held_out_quality(network)


def points(ways: Iterator[Way], *, seed: int | None = None) -> Iterator[Point]:
    for point in runs.take_points(ways, peer=model, tokens=window, quality=quality, seed=seed):
        print(
            f"{point.topic} {point.name}: {point.file_bytes / 1e6:.3f} MB, {point.bits_per_byte:.4f} bits per byte,"
            f" {point.forward_ms:.1f} ms, FP32 {point.fp32_ms:.1f} ms: {point.relative_time:.2f} of its time",
            flush=True,
        )
        yield point


def stored(network: Decoder, encode=runs.in_bf16) -> tuple[nn.Module, dict]:
    kept = runs.rounded_as_stored(network)
    return kept, runs.stored_tensors(kept, encode)


def recovery() -> None:
    """Prune, score; train on for a few steps, score again; and stir the seeds' results into a soup."""
    recipe = DecoderRecipe(steps=1 if options.tiny else 40, batch=4, sequence=256, learning_rate=1e-3)
    cuts = {
        "352 of 704 units": (lambda m: (runs.narrowed(m, units=352), None), runs.in_bf16, FEWER),
        "2:4": (partial(runs.pruned, pruning=runs.two_of_four), runs.as_two_four, FLOATS),
        "70% per layer": (partial(runs.pruned, pruning=runs.layer_by_layer(0.7)), runs.as_bitmap, FLOATS),
        "50% per layer": (partial(runs.pruned, pruning=runs.layer_by_layer(0.5)), runs.as_bitmap, FLOATS),
        "176 of 704 units": (lambda m: (runs.narrowed(m, units=176), None), runs.in_bf16, FEWER),
    }
    found = []
    for name, (cut, encode, arithmetic) in list(cuts.items())[: 1 if options.tiny else None]:
        cut_model, masks = cut(model)
        make = partial(stored, cut_model, encode)
        found += points([Way("11", f"pruned: {name}", arithmetic, make)])
        trained = []
        for seed in seeds:
            trial = copy.deepcopy(cut_model).train()
            runs.train_decoder(trial, corpus.train, replace(recipe, seed=seed), masks=masks)
            trained.append(trial.eval())
            found += points([Way("11", f"recovered: {name}", arithmetic, partial(stored, trial, encode))], seed=seed)
        soup = copy.deepcopy(cut_model)
        soup.load_state_dict(uniform_soup([one.state_dict() for one in trained]))
        found += points([Way("11", f"soup of the recovered: {name}", arithmetic, partial(stored, soup, encode))])
        keep("recovery", found, steps=recipe.steps, learning_rate=recipe.learning_rate)


def students() -> None:
    """Train students of half the depth and width: from the text alone, from a teacher, and without the factor T²."""
    recipe = DecoderRecipe(steps=1 if options.tiny else 300, batch=4, sequence=128, learning_rate=1.5e-3)
    told = {"temperature": 2.0, "weight": 0.9}
    losses = {
        "plain": runs.next_byte,
        "distilled": runs.from_teacher(model, **told),
        "distilled, T² forgotten": runs.without_square(model, **told),
    }
    found = []
    for seed in seeds:
        for name, loss in losses.items():
            student = runs.new_student(seed=seed)
            runs.train_decoder(student, corpus.train, replace(recipe, seed=seed), loss=loss)
            way = Way("11", f"student: {name}", FEWER, partial(stored, student.eval()))
            found += points([way], seed=seed)
        keep("students", found, steps=recipe.steps, learning_rate=recipe.learning_rate, **told)


def rounding() -> None:
    """Take every family of topic 03 at five widths, and the weights that stay packed, as one point each."""
    ways = runs.rounding_ways(model, widths=(8,) if options.tiny else (8, 6, 4, 3, 2))
    keep("rounding", list(points(islice(ways, 3 if options.tiny else None))))


def remedies() -> None:
    """Take topic 05's remedies on the planted model, and topic 04's layers in int8."""
    windows = corpus.train[: 4 * 512].view(4, 512).long()
    ways = chain(runs.int8_ways(model, windows), runs.remedy_ways(model, windows))
    keep("remedies", list(points(islice(ways, 3 if options.tiny else None))))


def trained() -> None:
    """Train weights on coarse grids with a learned step, as topic 04 does."""
    steps = 1 if options.tiny else 100
    ways = runs.trained_ways(model, corpus.train, steps=steps, seed=0)
    keep("trained", list(points(islice(ways, 1 if options.tiny else None), seed=0)), steps=steps, seed=0)


@dataclass(frozen=True)
class Product:
    """A square FP16 product of 2:4 weights with both kinds of kernels."""

    width: int
    dense_ms: float
    sparse_ms: float


def gpu() -> None:
    """Time PyTorch's 2:4 kernels against dense ones, where there is a GPU that has them."""
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        print("gpu: not measured, 2:4 kernels need a CUDA GPU of compute capability 8.0 or more")
        return
    found = []
    for width in (1024,) if options.tiny else (1024, 2048, 4096, 8192):
        dense = torch.randn(width, width, device="cuda", dtype=torch.float16)
        dense = dense * two_four_mask(dense)
        sparse, x = torch.sparse.to_sparse_semi_structured(dense), torch.randn_like(dense)
        slow, fast = (
            median_ms(partial(nn.functional.linear, x, w), repeats=15, device="cuda") for w in (dense, sparse)
        )
        found.append(Product(width, slow, fast))
        print(f"{width}: dense {slow:.3f} ms, 2:4 {fast:.3f} ms: {slow / fast:.2f} times as fast")
    if options.record:
        keep_recording(STEM, "gpu", found, command=f"{COMMAND} --part gpu", device="cuda")


def keep(part: str, found: list, **told) -> None:
    if options.record:
        keep_recording(STEM, part, found, command=f"{COMMAND} --part {part}", device="cpu", **told)


PARTS = {f.__name__: f for f in (rounding, remedies, trained, recovery, students, gpu)}
if options.part and options.part not in PARTS:
    sys.exit(f"parts are {', '.join(PARTS)}, got {options.part}")
for part in [options.part] if options.part else PARTS:
    PARTS[part]()
