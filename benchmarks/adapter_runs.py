"""The course model fine-tuned on the new domain four ways, with many ranks; `--record` keeps it for lesson 10.

The peer is full fine-tuning of the same model on the same text. The target for QLoRA: nearer to full fine-tuning than
to none, with less than half of its peak bytes beside the activations, and a file of less than a tenth.
With `--gpu` only the part that needs a CUDA GPU is run: a shape of 1.1 billion parameters, its bytes and its speed.
"""

import math
import sys
from dataclasses import dataclass, replace

import torch
from _peer import arguments, keep_recording
from torch import Tensor, nn

from qlab import qat
from qlab.adapter_runs import (
    ATTENTION,
    FULL,
    LINEARS,
    LORA,
    WAYS,
    AdapterRecipe,
    AdapterRun,
    Way,
    energy_share,
    fine_tune,
    model_bytes,
    prepare,
    trained_file_bytes,
    training_peak_bytes,
    update_spectrum,
)
from qlab.config import llama
from qlab.corpus import load_corpus
from qlab.lora import adapted_layers, trainable
from qlab.measure import median_ms
from qlab.model import Decoder, load_course_model
from qlab.scoring import held_out_bits

STEM, COMMAND = "10_qlora", "python benchmarks/adapter_runs.py --record"
SHARE_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
LAYER_SHOWN = "layers.1."
# Zhang et al. 2024, arXiv:2401.02385, table 1: 22 layers, width 2048, 32 heads, 5632 in between, 4 key heads
BILLION = llama("1.1-billion", shape=(22, 2048, 32, 4), ffn_width=5632, vocabulary=32000, sequence=2048)


@dataclass(frozen=True)
class WayRun:
    """One way and seed; `behind_full` is the paired difference to full fine-tuning of that seed, with its error."""

    way: str
    seed: int
    learning_rate: float
    losses: list[float]
    start_bits: float
    held_out_bits: float
    behind_full: float
    standard_error: float
    trainable_parameters: int
    model_bytes: int
    peak_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class RankRun:
    """LoRA with one rank, in all linear layers or in attention only."""

    rank: int
    alpha: float
    modules: str
    held_out_bits: float
    behind_full: float
    standard_error: float
    trainable_parameters: int
    file_bytes: int


@dataclass(frozen=True)
class Spectrum:
    """What full fine-tuning added to one weight: shares of its energy by rank, and of some the singular values."""

    weight: str
    relative_update: float
    shares: dict[int, float]
    singular_values: list[float]


@dataclass(frozen=True)
class Truncation:
    """The fully fine-tuned model with the update of each linear layer cut to one rank."""

    rank: int
    held_out_bits: float


@dataclass(frozen=True)
class MergeTrial:
    """A trained adapter merged: into floating point, or rounded to 4 bits again in each of the layers."""

    way: str
    kind: str
    held_out_bits: float
    behind_apart: float
    standard_error: float
    relative_error: float
    codes_changed: float


@dataclass(frozen=True)
class Cost:
    """One way on a large shape with random weights in BF16: bytes at the peak of a step, and tokens a second."""

    way: str
    parameters: int
    trainable_parameters: int
    model_bytes: int
    peak_bytes: int
    file_bytes: int
    tokens_per_s: float


def main() -> None:
    gpu = "--gpu" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--gpu"]
    options = arguments(__doc__, record=True)
    if options.record and options.tiny:
        sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
    if gpu and not (torch.cuda.is_available() or options.tiny):
        sys.exit("nothing measured: --gpu needs a CUDA GPU, and none is there")
    parts = gpu_part(tiny=options.tiny) if gpu else cpu_parts(tiny=options.tiny)
    for part, results, told in parts:
        if options.record:
            keep_recording(STEM, part, results, command=COMMAND + " --gpu" * gpu, **told)


def cpu_parts(*, tiny: bool):
    """Yield name, results and circumstances of each part as soon as it is there."""
    recipe = AdapterRecipe(steps=2, batch=1, sequence=32) if tiny else AdapterRecipe()
    bench = Bench(recipe, windows=2 if tiny else 64)
    told = {"device": "cpu", "seed": recipe.seed, "steps": recipe.steps, "windows": bench.windows}
    batch = {"batch": recipe.batch, "sequence": recipe.sequence}
    adapters = {"rank": recipe.rank, "alpha": recipe.alpha}
    ways = [bench.way(way, 0) for way in WAYS]
    yield "ways", ways, told | batch | adapters
    yield "spectrum", bench.spectra(), told
    yield "truncations", bench.truncations((8,) if tiny else (*SHARE_RANKS, 256)), told
    yield "merges", [trial for way in WAYS[2:] for trial in bench.merges(way)], told
    ranks = [bench.rank(rank, "all linears") for rank in ((4,) if tiny else (1, 2, 4, 8, 16, 32, 64))]
    narrow = [bench.rank(rank, "attention only") for rank in ((4,) if tiny else (8, 32))]
    yield "ranks", ranks + narrow, told | batch
    for seed in () if tiny else (1, 2):
        ways += [bench.way(way, seed) for way in WAYS]
        yield "ways", ways, told | batch | adapters


class Bench:
    """The model, the text, and the fully fine-tuned runs that all others are compared with."""

    def __init__(self, recipe: AdapterRecipe, *, windows: int):
        corpus = load_corpus()
        self.recipe, self.windows, self.text = recipe, windows, corpus.new_domain_train
        self.held_out = corpus.new_domain_validation[: windows * 2 * recipe.sequence + 1]
        self.full: dict[int, AdapterRun] = {}
        self.models: dict[str, nn.Module] = {}
        self.runs: dict[tuple[Way, AdapterRecipe], AdapterRun] = {}

    def run(self, way: Way, recipe: AdapterRecipe) -> AdapterRun:
        if (way, recipe) in self.runs:
            return self.runs[way, recipe]
        model = load_course_model()
        told = fine_tune(model, self.text, way, recipe, held_out=self.held_out)
        if recipe == self.recipe:
            self.models[way.name] = model
        if way == FULL:
            self.full[recipe.seed] = told
        self.runs[way, recipe] = told
        return told

    def behind(self, windows: list[float], peer: list[float]) -> tuple[float, float]:
        difference = torch.tensor(windows, dtype=torch.float64) - torch.tensor(peer, dtype=torch.float64)
        return difference.mean().item(), difference.std().item() / math.sqrt(len(windows))

    def way(self, way: Way, seed: int) -> WayRun:
        told = self.run(way, replace(self.recipe, seed=seed))
        behind, error = self.behind(told.held_out_windows, self.full[seed].held_out_windows)
        print(
            f"{way.name}, seed {seed}: {told.start_bits:.4f} to {told.held_out_bits:.4f} bits per byte,"
            f" {behind:+.4f} ± {error:.4f} of full; peak {told.peak_bytes:,} bytes,"
            f" {told.peak_bytes / self.full[seed].peak_bytes:.2f} of full; file {told.file_bytes:,}",
            flush=True,
        )
        losses = [round(loss, 4) for loss in told.losses]
        sizes = (told.trainable_parameters, told.model_bytes, told.peak_bytes, told.file_bytes)
        return WayRun(
            way.name, seed, way.learning_rate, losses, told.start_bits, told.held_out_bits, behind, error, *sizes
        )

    def rank(self, rank: int, modules: str) -> RankRun:
        pattern = LINEARS if modules == "all linears" else ATTENTION
        # the update grows as the root of the rank at one rate: Kalajdzievski 2023, arXiv:2312.03732
        alpha = round(self.recipe.alpha * math.sqrt(rank / self.recipe.rank), 4)
        told = self.run(LORA, replace(self.recipe, rank=rank, alpha=alpha, pattern=pattern))
        behind, error = self.behind(told.held_out_windows, self.full[self.recipe.seed].held_out_windows)
        print(f"LoRA rank {rank}, {modules}: {told.held_out_bits:.4f}, {behind:+.4f} ± {error:.4f} of full", flush=True)
        sizes = (told.trainable_parameters, told.file_bytes)
        return RankRun(rank, alpha, modules, told.held_out_bits, behind, error, *sizes)

    def pairs(self):
        """Yield name, weight before and after full fine-tuning, of each linear layer."""
        before = dict(load_course_model().named_modules())
        for name, layer in self.models[FULL.name].named_modules():
            if isinstance(layer, nn.Linear) and name != "head":
                yield name, before[name].weight.detach(), layer.weight.detach()

    def spectra(self) -> list[Spectrum]:
        found = []
        for name, before, after in self.pairs():
            values = update_spectrum(before, after)
            shares = {rank: round(energy_share(values, rank), 4) for rank in SHARE_RANKS}
            relative = ((after - before).norm() / before.norm()).item()
            shown = [round(value, 5) for value in values.tolist()] if name.startswith(LAYER_SHOWN) else []
            found.append(Spectrum(name, relative, shares, shown))
        means = {rank: sum(one.shares[rank] for one in found) / len(found) for rank in SHARE_RANKS}
        print("mean energy share by rank: " + ", ".join(f"{r}: {s:.1%}" for r, s in means.items()), flush=True)
        return found

    def truncations(self, ranks: tuple[int, ...]) -> list[Truncation]:
        model, pairs, found = self.models[FULL.name], list(self.pairs()), []
        wholes = [(model.get_submodule(name).weight, before, after.clone()) for name, before, after in pairs]
        for rank in ranks:
            with torch.no_grad():
                for weight, before, after in wholes:
                    weight.copy_(before + truncated(after - before, rank))
            found.append(Truncation(rank, held_out_bits(model, self.held_out, sequence=self.sequence).mean().item()))
            print(f"full update cut to rank {rank}: {found[-1].held_out_bits:.4f} bits per byte", flush=True)
        with torch.no_grad():
            for weight, _, after in wholes:
                weight.copy_(after)
        return found

    @property
    def sequence(self) -> int:
        return 2 * self.recipe.sequence

    def merges(self, way: Way) -> list[MergeTrial]:
        """Score the trained model of `way` apart, merged in 4 bits, and merged in floating point, in that order."""
        model = self.models[way.name].eval()
        apart = held_out_bits(model, self.held_out, sequence=self.sequence).tolist()
        layers = adapted_layers(model)
        for layer in layers.values():
            layer.merge()
        whole = held_out_bits(model, self.held_out, sequence=self.sequence).tolist()
        merged = {name: layer.merge_to_codes() for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.take_codes(merged[name].codes)
        coded = held_out_bits(model, self.held_out, sequence=self.sequence).tolist()
        error = sum(one.relative_error for one in merged.values()) / len(merged)
        changed = sum(one.changed for one in merged.values()) / len(merged)
        kinds = [("apart", apart, 0.0, 0.0), ("merged in FP32", whole, 0.0, 0.0), ("4 bits", coded, error, changed)]
        trials = []
        for kind, windows, relative, share in kinds:
            behind, standard_error = self.behind(windows, apart)
            bits = sum(windows) / len(windows)
            trials.append(MergeTrial(way.name, kind, bits, behind, standard_error, relative, share))
            print(f"{way.name}, {kind}: {bits:.4f}, {behind:+.4f} ± {standard_error:.4f}", flush=True)
        return trials


def truncated(update: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def gpu_part(*, tiny: bool):
    """Yield the one part that needs a GPU: each way on a large shape; `tiny` shows on any machine that it runs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(BILLION, layers=1, width=64, heads=2, kv_heads=1, ffn_width=96) if tiny else BILLION
    recipe = AdapterRecipe(steps=2, batch=1, sequence=16) if tiny else AdapterRecipe(steps=10, batch=4, sequence=512)
    text = load_corpus().new_domain_train
    costs = [way_cost(way, config, recipe, text.to(device)) for way in WAYS]
    told = {"device": device, "seed": recipe.seed, "shape": config.name, "batch": recipe.batch}
    yield "gpu", costs, told | {"sequence": recipe.sequence, "dtype": "bfloat16"}


def way_cost(way: Way, config, recipe: AdapterRecipe, text: Tensor) -> Cost:
    torch.manual_seed(recipe.seed)
    with torch.device(text.device):
        model = Decoder(config).to(torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prepare(model, way, recipe)
    peak = training_peak_bytes(model, text, recipe.training(way, steps=2))
    training = replace(recipe.training(way), learning_rate=1e-6)  # random weights: nothing to learn
    ms = median_ms(lambda: qat.train(model.train(), text, training), repeats=3, device=text.device)
    tokens = recipe.steps * recipe.batch * recipe.sequence
    held, file_bytes = model_bytes(model), trained_file_bytes(model, way)
    trained = sum(parameter.numel() for parameter in trainable(model))
    cost = Cost(way.name, parameters, trained, held, held + peak, file_bytes, 1e3 * tokens / ms)
    print(f"{way.name}: peak {cost.peak_bytes:,} bytes, {cost.tokens_per_s:,.0f} tokens/s", flush=True)
    return cost


if __name__ == "__main__":
    main()
