"""The one small decoder of the course: bytes in, logits over the next byte out.

Attention and the way a layer is run are arguments, so that later topics can put their own in place:
`Decoder(config, attention=my_attention)`, `Decoder(config, run_layer=checkpointed)`.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qlab.config import ModelConfig
from qlab.corpus import CorpusRecord
from qlab.measure import Provenance

NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0  # Su et al. 2021, arXiv:2104.09864, section 3.3
INITIAL_STD = 0.02
COURSE_CHECKPOINT = Path(__file__).parent / "data" / "course_model.safetensors"
REBUILD = "check the file out again, or rebuild both with `python -m qlab.train_course_model`"

Attention = Callable[..., Float[Tensor, "batch heads sequence head_width"]]
RunLayer = Callable[[nn.Module, Tensor], Tensor]
fused = F.scaled_dot_product_attention


def run_plainly(layer: nn.Module, x: Tensor) -> Tensor:
    """Run `layer` on `x`; autograd keeps what the backward pass will need."""
    return layer(x)


def run_checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """Run `layer` on `x`, keep only `x`, and run the layer again in the backward pass."""
    return checkpoint(layer, x, use_reentrant=False)


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square and scale each channel.

    Source:  Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalize the last axis of `x`."""
        wide = x.float()  # a mean of squares overflows FP16 and loses digits in BF16
        return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + NORM_EPSILON) * self.weight).to(x.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    """Build the normalization that `config` names."""
    return RMSNorm(config.width) if config.norm == "rmsnorm" else nn.LayerNorm(config.width, eps=NORM_EPSILON)


def rotary_table(config: ModelConfig) -> Float[Tensor, "2 sequence half"]:
    """Tabulate cosine and sine of position times frequency, one frequency for each pair of channels."""
    half = config.head_width // 2
    frequencies = ROTARY_BASE ** -(torch.arange(half) / half)
    angles = torch.arange(config.sequence)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(
    x: Float[Tensor, "batch sequence heads head_width"], table: Float[Tensor, "2 longest half"]
) -> Float[Tensor, "batch sequence heads head_width"]:
    """Rotate channel pairs (i, i + half) of `x` by their position's angles, in FP32.

    Source:  Su et al. 2021, arXiv:2104.09864, equation 34, with the pairs laid out as in GPT-NeoX and Llama.
    """
    cosine, sine = table[:, : x.shape[1], None]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


class SelfAttention(nn.Module):
    """Causal multi-head attention; several query heads share a key head where `kv_heads` is smaller than `heads`."""

    def __init__(self, config: ModelConfig, attention: Attention):
        super().__init__()
        self.config, self.attention = config, attention
        self.query = nn.Linear(config.width, config.width, bias=config.biases)
        self.key = nn.Linear(config.width, config.kv_width, bias=config.biases)
        self.value = nn.Linear(config.width, config.kv_width, bias=config.biases)
        self.output = nn.Linear(config.width, config.width, bias=config.biases)

    def forward(
        self, x: Float[Tensor, "batch sequence width"], table: Float[Tensor, "2 longest half"] | None
    ) -> Float[Tensor, "batch sequence width"]:
        """Mix each position with the ones before it; `table` rotates queries and keys if given."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.config.head_width)) for project in (self.query, self.key, self.value)
        )
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        if self.config.kv_heads < self.config.heads:
            repeats = self.config.heads // self.config.kv_heads
            k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # views: kernels that keep this layout save one copy less
        mixed = self.attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two matrices with a nonlinearity between: SwiGLU if gated, else GELU.

    Source:  Shazeer 2020, arXiv:2002.05202 (SwiGLU).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.ffn_width, bias=config.biases)
        self.gate = nn.Linear(config.width, config.ffn_width, bias=config.biases) if config.gated else None
        self.down = nn.Linear(config.ffn_width, config.width, bias=config.biases)

    def forward(self, x: Float[Tensor, "batch sequence width"]) -> Float[Tensor, "batch sequence width"]:
        """Transform each position by itself."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalized copy and added back to the stream."""

    def __init__(self, config: ModelConfig, attention: Attention):
        super().__init__()
        self.attention_norm, self.ffn_norm = make_norm(config), make_norm(config)
        self.attention, self.ffn = SelfAttention(config, attention), FeedForward(config)
        table = rotary_table(config) if config.positions == "rotary" else None
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Float[Tensor, "batch sequence width"]) -> Float[Tensor, "batch sequence width"]:
        """Add what attention and feed-forward find to `x`."""
        x = x + self.attention(self.attention_norm(x), self.table)
        return x + self.ffn(self.ffn_norm(x))


def initialize(module: nn.Module) -> None:
    """Draw matrices from a normal of deviation 0.02 and set biases to zero.

    Source:  Radford et al. 2019 (GPT-2), as released.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class Decoder(nn.Module):
    """A pre-norm decoder of any `ModelConfig`; the course's own reads bytes."""

    def __init__(self, config: ModelConfig, *, attention: Attention = fused, run_layer: RunLayer = run_plainly):
        super().__init__()
        self.config, self.run_layer = config, run_layer
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.sequence, config.width) if learned else None
        self.layers = nn.ModuleList(Layer(config, attention) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.apply(initialize)
        for name, parameter in self.named_parameters():
            if name.endswith(("output.weight", "down.weight")):  # 2·layers of these add up in the stream
                nn.init.normal_(parameter, std=INITIAL_STD / math.sqrt(2 * config.layers))

    def forward(self, tokens: Int[Tensor, "batch sequence"]) -> Float[Tensor, "batch sequence vocabulary"]:
        """Return logits over the token that follows each of `tokens`.

        Errors:  ValueError if there are more tokens than the model has positions.
        """
        if tokens.shape[1] > self.config.sequence:
            raise ValueError(f"sequence must be at most {self.config.sequence} tokens, got {tokens.shape[1]}")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = self.run_layer(layer, x)
        return self.head(self.norm(x))


@dataclass(frozen=True, kw_only=True)
class Card:
    """How the checkpoint beside it came to be, and what it is worth; bits per byte are those of the rounded weights."""

    validation_bits_per_byte: float
    validation_standard_error: float
    documentation_bits_per_byte: float
    parameters: int
    checkpoint_bytes: int
    checkpoint_dtype: str
    checkpoint_sha256: str
    command: str
    steps: int
    training_seconds: int
    config: ModelConfig
    recipe: dict[str, object]
    corpus: CorpusRecord
    provenance: Provenance
    sample: str


def read_card(path: Path = COURSE_CHECKPOINT) -> Card:
    """Read the card beside the checkpoint at `path`.

    Errors:  FileNotFoundError if there is no card.
    """
    file = path.with_suffix(".json")
    if not file.exists():
        raise FileNotFoundError(f"the course model's card {file.name} is missing beside {path.name}; {REBUILD}")
    fields = json.loads(file.read_text(encoding="utf-8"))
    records = {"config": ModelConfig, "corpus": CorpusRecord, "provenance": Provenance}
    return Card(**fields | {name: record(**fields[name]) for name, record in records.items()})


def load_course_model(
    path: Path = COURSE_CHECKPOINT, *, attention: Attention = fused, run_layer: RunLayer = run_plainly
) -> Decoder:
    """Load the trained course model in FP32, ready to evaluate, after checking its checksum against its card.

    Errors:  FileNotFoundError if checkpoint or card is missing; ValueError if the checkpoint is not the card's.
    """
    card = read_card(path)
    if not path.exists():
        raise FileNotFoundError(f"the course model's checkpoint {path.name} is missing; {REBUILD}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.checkpoint_sha256:
        expected = card.checkpoint_sha256
        raise ValueError(f"{path.name} has sha256 {digest[:12]}…, but its card says {expected[:12]}…; {REBUILD}")
    model = Decoder(card.config, attention=attention, run_layer=run_layer)
    tensors = {name: tensor.float() for name, tensor in load_safetensors(content).items()}
    if model.config.tied_embeddings:
        tensors["head.weight"] = tensors["embedding.weight"]
    model.load_state_dict(tensors)
    return model.eval()
