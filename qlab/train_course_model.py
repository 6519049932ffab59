"""Rebuild the course model's checkpoint: `python -m qlab.train_course_model`, an hour on a core with BF16 instructions.

The shipped one was made with `--compile`, which needs a C++ compiler and saves a fifth of the time. One thread,
BF16 autocast, AdamW, a cosine in steps. A run that is killed goes on from its last saved state when the same command
is given again; its batches are drawn from (seed, step), so it sees the text it would have seen.
"""

import argparse
import hashlib
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save as save_safetensors
from torch import Tensor

from qlab.config import COURSE_MODEL, ModelConfig, count_parameters
from qlab.corpus import Corpus, load_corpus
from qlab.measure import provenance
from qlab.model import COURSE_CHECKPOINT, Card, Decoder
from qlab.scoring import bits_per_token, generate, held_out_bits

COMMAND = "python -m qlab.train_course_model"
SAMPLE_PROMPT = b'The "with" statement\n********************\n\nThe "with" statement '


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Everything that decides what is learned; the card repeats it."""

    steps: int = 7500
    batch: int = 8
    sequence: int = COURSE_MODEL.sequence
    learning_rate: float = 2e-3
    final_share: float = 0.02  # of the learning rate, at the last step
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_norm: float = 1.0
    documentation_share: float = 0.125  # of the windows; by bytes it would be 0.07
    seed: int = 2


def learning_rate(step: int, recipe: TrainingRecipe) -> float:
    """Rise for the warm-up steps, then fall along half a cosine."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 + 0.5 * math.cos(math.pi * progress)
    return recipe.learning_rate * (recipe.final_share + (1 - recipe.final_share) * cosine)


def draw_batch(corpus: Corpus, recipe: TrainingRecipe, *, step: int) -> Int[Tensor, "batch longer"]:
    """Draw windows of sequence + 1 bytes; a fixed share of them starts inside the documentation."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    longest = recipe.sequence + 1
    documentation = round(recipe.batch * recipe.documentation_share)
    ends = [corpus.record.train_documentation_bytes, len(corpus.train)]
    counts = [documentation, recipe.batch - documentation]
    starts = [torch.randint(end - longest, (n,), generator=generator) for end, n in zip(ends, counts, strict=True)]
    return torch.stack([corpus.train[s : s + longest] for s in torch.cat(starts).tolist()]).long()


def matmul_attention(
    q: Float[Tensor, "batch heads n width"],
    k: Float[Tensor, "batch heads n width"],
    v: Float[Tensor, "batch heads n width"],
    is_causal: bool = True,
) -> Float[Tensor, "batch heads n width"]:
    """Attend with two matrix products and a softmax: what PyTorch's fused kernel computes, faster on a CPU in BF16."""
    n, width = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) / math.sqrt(width)
    if is_causal:
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


class Trainer:
    """A model, its optimizer and the step it has come to; saved and resumed as one."""

    def __init__(self, config: ModelConfig, recipe: TrainingRecipe, *, compiled: bool):
        torch.manual_seed(recipe.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.recipe, self.step, self.seconds = recipe, 0, 0.0
        attention = matmul_attention if self.device.type == "cpu" else F.scaled_dot_product_attention
        self.model = Decoder(config, attention=attention).to(self.device)
        self.forward = torch.compile(self.model) if compiled else self.model
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=recipe.betas, fused=True)

    def train_step(self, windows: Int[Tensor, "batch longer"]) -> float:
        """Take one optimizer step; return the batch's bits per byte."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        windows = windows.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.forward(windows[:, :-1])
        loss = bits_per_token(logits, windows[:, 1:]).mean()
        (loss * math.log(2)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        value = loss.item()
        self.seconds += time.perf_counter() - start
        return value

    def save(self, path: Path) -> None:
        """Write the state beside `path` and move it there in one go."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(parts | {"step": self.step, "seconds": self.seconds}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def resume(self, path: Path) -> None:
        """Take up the state at `path`, if one is there."""
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]


def state_path(config: ModelConfig, recipe: TrainingRecipe) -> Path:
    """Name the state file by what is trained, so that another recipe never resumes it."""
    key = hashlib.sha256(repr((config, recipe, load_corpus().record.sha256)).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / "qlab_course_model" / f"{key}.pt"


def train(trainer: Trainer, corpus: Corpus, *, state: Path, save_every: int = 250) -> None:
    """Train to the recipe's last step, saving the state every `save_every` steps."""
    mean = float("nan")
    while trainer.step < trainer.recipe.steps:
        bits = trainer.train_step(draw_batch(corpus, trainer.recipe, step=trainer.step))
        mean = bits if math.isnan(mean) else 0.98 * mean + 0.02 * bits
        if trainer.step % save_every == 0 or trainer.step == trainer.recipe.steps:
            trainer.save(state)
            rate = trainer.step * trainer.recipe.batch * trainer.recipe.sequence / trainer.seconds
            print(f"step {trainer.step}: {mean:.4f} bits/byte, {trainer.seconds:.0f} s, {rate:.0f} bytes/s", flush=True)


def finish(trainer: Trainer, corpus: Corpus, *, path: Path, command: str) -> None:
    """Round the weights to BF16, score what is left on the validation text, write checkpoint and card."""
    rounded = {name: tensor.to(torch.bfloat16).cpu() for name, tensor in trainer.model.state_dict().items()}
    shipped = Decoder(trainer.model.config)
    shipped.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
    if shipped.config.tied_embeddings:
        del rounded["head.weight"]
    content = save_safetensors(rounded)
    card = make_card(trainer, shipped, corpus, content=content, command=command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.with_suffix(".json").write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{card.validation_bits_per_byte} bits/byte on held-out text\n\n{card.sample}")


def make_card(trainer: Trainer, shipped: Decoder, corpus: Corpus, *, content: bytes, command: str) -> Card:
    """Measure the model that ships and record how it was made."""
    config, recipe, record = shipped.config, trainer.recipe, corpus.record
    bits = held_out_bits(shipped, corpus.validation, sequence=config.sequence)
    documentation = corpus.validation[: record.validation_documentation_bytes]
    generator = torch.Generator().manual_seed(recipe.seed)
    sample = generate(shipped, SAMPLE_PROMPT, new_bytes=600, temperature=0.5, generator=generator)
    return Card(
        validation_bits_per_byte=round(bits.mean().item(), 4),
        validation_standard_error=round(bits.std().item() / math.sqrt(len(bits)), 4),
        documentation_bits_per_byte=round(
            held_out_bits(shipped, documentation, sequence=config.sequence).mean().item(), 4
        ),
        parameters=count_parameters(config),
        checkpoint_bytes=len(content),
        checkpoint_dtype="bfloat16",
        checkpoint_sha256=hashlib.sha256(content).hexdigest(),
        command=command,
        steps=trainer.step,
        training_seconds=round(trainer.seconds),
        config=config,
        recipe=asdict(recipe),
        corpus=record,
        provenance=provenance(seed=recipe.seed, device=trainer.device),
        sample=sample.decode(errors="replace"),
    )


def main() -> None:
    """Train, or go on training, and write the checkpoint and its card."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=TrainingRecipe.steps, help="optimizer steps (default: %(default)s)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile: needs a C++ compiler, a fifth faster"
    )
    parser.add_argument("--output", type=Path, default=COURSE_CHECKPOINT, help="where to write the checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus, recipe = load_corpus(), TrainingRecipe(steps=arguments.steps)
    trainer = Trainer(COURSE_MODEL, recipe, compiled=arguments.compile)
    state = state_path(COURSE_MODEL, recipe)
    trainer.resume(state)
    print(f"{count_parameters(COURSE_MODEL)} parameters, from step {trainer.step}, state in {state}", flush=True)
    train(trainer, corpus, state=state)
    flags = f" --steps {recipe.steps}" * (recipe.steps != TrainingRecipe.steps) + " --compile" * arguments.compile
    finish(trainer, corpus, path=arguments.output, command=COMMAND + flags)


if __name__ == "__main__":
    main()
