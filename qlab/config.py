"""The shape of a decoder-only transformer, and the named public ones.

Nothing here allocates: a shape is a dozen integers, and most bytes of the course follow from them.
"""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a pre-norm decoder; refuses, with a sentence, one that cannot be built.

    Units:   `sequence` is in tokens; widths, heads and vocabulary are counts.
    Errors:  ValueError if a size is below 1, heads do not divide width, or kv_heads do not divide heads.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn_width: int
    vocabulary: int
    sequence: int
    norm: Literal["rmsnorm", "layernorm"]
    positions: Literal["rotary", "learned"]
    gated: bool
    biases: bool
    tied_embeddings: bool

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{field.name} must be a whole number of at least 1, got {value!r}")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be True or False, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} and {self.heads}")
        if self.norm not in ("rmsnorm", "layernorm"):
            raise ValueError(f"norm must be 'rmsnorm' or 'layernorm', got {self.norm!r}")
        if self.positions not in ("rotary", "learned"):
            raise ValueError(f"positions must be 'rotary' or 'learned', got {self.positions!r}")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.width} / {self.heads}")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True)
class ParameterCount:
    """The parameters of a decoder by where they sit; `per_layer` times `layers` is the stack."""

    embeddings: int
    attention_per_layer: int
    ffn_per_layer: int
    norms_per_layer: int
    layers: int
    final_norm: int
    head: int

    @property
    def per_layer(self) -> int:
        """Parameters of one decoder layer."""
        return self.attention_per_layer + self.ffn_per_layer + self.norms_per_layer

    @property
    def total(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        return self.embeddings + self.layers * self.per_layer + self.final_norm + self.head


def parameter_parts(config: ModelConfig) -> ParameterCount:
    """Count the parameters of `config`, part by part."""
    width, kv_width, ffn_width = config.width, config.kv_width, config.ffn_width
    bias = int(config.biases)
    norm = 2 * width if config.norm == "layernorm" else width  # LayerNorm has a weight and a bias, RMSNorm a weight
    inward = 2 if config.gated else 1  # a gated block has a second matrix of the same shape beside the first
    positions = config.sequence * width if config.positions == "learned" else 0
    return ParameterCount(
        embeddings=config.vocabulary * width + positions,
        attention_per_layer=2 * width * width + 2 * width * kv_width + bias * (2 * width + 2 * kv_width),
        ffn_per_layer=(inward + 1) * width * ffn_width + bias * (inward * ffn_width + width),
        norms_per_layer=2 * norm,
        layers=config.layers,
        final_norm=norm,
        head=0 if config.tied_embeddings else config.vocabulary * width,
    )


def count_parameters(config: ModelConfig) -> int:
    """Count the parameters of `config`, tied embeddings once."""
    return parameter_parts(config).total


def llama(
    name: str, *, shape: tuple[int, int, int, int], ffn_width: int, vocabulary: int, sequence: int
) -> ModelConfig:
    """Describe a Llama by `shape` (layers, width, heads, kv_heads) and what its family shares.

    Source:  Touvron et al. 2023, arXiv:2302.13971, section 2.2 (RMSNorm before each block, SwiGLU, rotary).
    """
    layers, width, heads, kv_heads = shape
    return ModelConfig(
        name=name,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        ffn_width=ffn_width,
        vocabulary=vocabulary,
        sequence=sequence,
        norm="rmsnorm",
        positions="rotary",
        gated=True,
        biases=False,
        tied_embeddings=False,
    )


# 1 557 611 200 parameters. Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2
# (48 layers, width 1600, "1542M"), with 25 heads and vocabulary 50 257 from the released `hparams.json`.
GPT2_XL = ModelConfig(
    name="gpt2-xl",
    layers=48,
    width=1600,
    heads=25,
    kv_heads=25,
    ffn_width=6400,
    vocabulary=50257,
    sequence=1024,
    norm="layernorm",
    positions="learned",
    gated=False,
    biases=True,
    tied_embeddings=True,
)
# 6 738 415 616 and 68 976 648 192 parameters. Touvron et al. 2023, arXiv:2307.09288, table 1 (4k context, grouped
# queries for 70B); layer shapes from the released `params.json` and `config.json`.
LLAMA_2_7B = llama("llama-2-7b", shape=(32, 4096, 32, 32), ffn_width=11008, vocabulary=32000, sequence=4096)
LLAMA_2_70B = llama("llama-2-70b", shape=(80, 8192, 64, 8), ffn_width=28672, vocabulary=32000, sequence=4096)
# 8 030 261 248 and 405 853 388 800 parameters. Llama Team 2024, arXiv:2407.21783, table 3; vocabulary 128 256 from
# the released `config.json` (128 000 tokens and 256 reserved ones); 8k context before the long-context stage.
LLAMA_3_8B = llama("llama-3-8b", shape=(32, 4096, 32, 8), ffn_width=14336, vocabulary=128256, sequence=8192)
LLAMA_3_405B = llama("llama-3-405b", shape=(126, 16384, 128, 8), ffn_width=53248, vocabulary=128256, sequence=8192)
COURSE_MODEL = ModelConfig(
    name="course-model",
    layers=4,
    width=256,
    heads=4,
    kv_heads=4,
    ffn_width=704,
    vocabulary=256,
    sequence=512,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    biases=False,
    tied_embeddings=True,
)
NAMED_CONFIGS = {
    config.name: config for config in (GPT2_XL, LLAMA_2_7B, LLAMA_2_70B, LLAMA_3_8B, LLAMA_3_405B, COURSE_MODEL)
}


def named_config(name: str) -> ModelConfig:
    """Return the public config called `name`.

    Errors:  ValueError if no config has that name.
    """
    if name not in NAMED_CONFIGS:
        raise ValueError(f"no model is called {name!r}; the names are {', '.join(NAMED_CONFIGS)}")
    return NAMED_CONFIGS[name]
