"""Where the memory of a training run goes, by arithmetic alone: `qlab.measure` measures what this module predicts.

States (weights, gradients, optimizer) follow from parameters and recipe; activations follow from the shape and the
batch. The activations are those of `qlab.model.Decoder` with a fused attention; nothing is rounded to allocator blocks.
"""

import math
from dataclasses import dataclass, replace

from qlab.config import ModelConfig, count_parameters

BytesEach = int | float
GB = 10**9
GiB = 2**30
NF4_DOUBLE_QUANTIZED_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # Dettmers et al. 2023, arXiv:2305.14314, section 3
ADAM_8BIT_BYTES = 2 * (1 + 4 / 256)  # two states: a code each, and one FP32 absmax for 256 codes (bitsandbytes)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How weights are kept and trained, in bytes per parameter.

    With `adapter_rank` above 0 the base is frozen, and master, gradient and optimizer are the adapters' own.
    Units:   bytes per parameter; `matrix_bytes` for the layers' matrices, `other_bytes` for embeddings, norms, head.
    """

    name: str
    matrix_bytes: BytesEach
    other_bytes: BytesEach
    master_bytes: BytesEach
    gradient_bytes: BytesEach
    optimizer_bytes: BytesEach
    adapter_rank: int = 0
    adapter_bytes: BytesEach = 0

    @property
    def trained_bytes(self) -> BytesEach:
        """Bytes that each trained parameter costs beyond its weight."""
        return self.master_bytes + self.gradient_bytes + self.optimizer_bytes


FP32_ADAM = Recipe(name="fp32-adam", matrix_bytes=4, other_bytes=4, master_bytes=0, gradient_bytes=4, optimizer_bytes=8)
# Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1: 2 + 2 + (4 + 4 + 4) = 16 bytes a parameter.
MIXED_ADAM = Recipe(
    name="mixed-adam", matrix_bytes=2, other_bytes=2, master_bytes=4, gradient_bytes=2, optimizer_bytes=8
)
SGD_MOMENTUM = replace(FP32_ADAM, name="sgd-momentum", optimizer_bytes=4)
ADAM_8BIT = replace(MIXED_ADAM, name="adam-8bit", optimizer_bytes=ADAM_8BIT_BYTES)
# Adapters in FP32 beside frozen 16-bit weights (Hu et al. 2021, arXiv:2106.09685), or beside NF4 ones.
LORA = replace(FP32_ADAM, name="lora", matrix_bytes=2, other_bytes=2, adapter_rank=16, adapter_bytes=4)
QLORA = replace(LORA, name="qlora", matrix_bytes=NF4_DOUBLE_QUANTIZED_BYTES)
RECIPES = {recipe.name: recipe for recipe in (FP32_ADAM, MIXED_ADAM, SGD_MOMENTUM, ADAM_8BIT, LORA, QLORA)}


def named_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Errors:  ValueError if no recipe has that name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; the names are {', '.join(RECIPES)}")
    return RECIPES[name]


@dataclass(frozen=True)
class StateBytes:
    """What is held from step to step, whatever the batch."""

    weights: int
    master: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All states together."""
        return self.weights + self.master + self.gradients + self.optimizer


def model_state_bytes(parameters: int, recipe: Recipe, *, adapters: int = 0, others: int = 0) -> StateBytes:
    """Count the states of a model; `others` of its `parameters` sit outside the layers' matrices.

    Units:   bytes; `adapters` counts trained adapter parameters, and is used where the recipe freezes the base.
    Errors:  ValueError if a count is negative, or `others` is above `parameters`.
    """
    for name, count in (("parameters", parameters), ("adapters", adapters), ("others", others)):
        if count < 0:
            raise ValueError(f"{name} must be at least 0, got {count}")
    if others > parameters:
        raise ValueError(f"others must be at most parameters, got {others} and {parameters}")
    adapters = adapters if recipe.adapter_rank else 0
    trained = adapters if recipe.adapter_rank else parameters
    base = (parameters - others) * recipe.matrix_bytes + others * recipe.other_bytes
    return StateBytes(
        weights=math.ceil(base + adapters * recipe.adapter_bytes),
        master=math.ceil(trained * recipe.master_bytes),
        gradients=math.ceil(trained * recipe.gradient_bytes),
        optimizer=math.ceil(trained * recipe.optimizer_bytes),
    )


def state_bytes(config: ModelConfig, recipe: Recipe) -> StateBytes:
    """Count the states of `config` under `recipe`, adapters on every matrix of every layer."""
    matrices = sum(inward * outward for inward, outward in layer_matrices(config)) * config.layers
    parameters = count_parameters(config)
    adapters = adapter_parameters(config, rank=recipe.adapter_rank)
    return model_state_bytes(parameters, recipe, adapters=adapters, others=parameters - matrices)


def layer_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """List the matrices of one layer as (inputs, outputs)."""
    width, kv_width, ffn_width = config.width, config.kv_width, config.ffn_width
    attention = [(width, width), (width, kv_width), (width, kv_width), (width, width)]
    return attention + [(width, ffn_width)] * (1 + config.gated) + [(ffn_width, width)]


def adapter_parameters(config: ModelConfig, *, rank: int) -> int:
    """Count the parameters of LoRA adapters of `rank` on every matrix of every layer."""
    return rank * config.layers * sum(inward + outward for inward, outward in layer_matrices(config))


def zero_state_bytes(states: StateBytes, *, stage: int, devices: int) -> StateBytes:
    """Share states out over `devices`: stage 1 the optimizer and master, 2 also gradients, 3 also weights.

    Errors:  ValueError if `stage` is not 0, 1, 2 or 3, or `devices` is below 1.
    Source:  Rajbhandari et al. 2020, arXiv:1910.02054, figure 1.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage must be 0, 1, 2 or 3, got {stage}")
    if devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    first_stage = {"optimizer": 1, "master": 1, "gradients": 2, "weights": 3}
    shared = {name: -(-getattr(states, name) // devices) for name, first in first_stage.items() if stage >= first}
    return replace(states, **shared)


def gradient_buffer_bytes(parameters: int) -> int:
    """Size the temporary buffer that holds all gradients flattened in FP32, to be reduced in one go.

    Source:  Rajbhandari et al. 2020, arXiv:1910.02054, section 3.2: 6 GB for 1.5 B parameters.
    """
    return 4 * parameters


def rule_of_thumb_activation_bytes(config: ModelConfig, *, batch: int, sequence: int) -> int:
    """Estimate activations as 12 values of 16 bits per channel, layer and token.

    Source:  Rajbhandari et al. 2020, arXiv:1910.02054, section 3.2: 60 GB for GPT-2 1.5 B, sequence 1024, batch 32.
    """
    return 2 * 12 * config.width * config.layers * sequence * batch


def boundaries_and_one_layer_bytes(config: ModelConfig, *, batch: int, sequence: int) -> int:
    """Estimate checkpointed activations as every layer's input, kept, and one layer, live: 6.3 GB for GPT-2 1.5 B."""
    boundaries = 2 * config.width * config.layers * sequence * batch
    return boundaries + rule_of_thumb_activation_bytes(config, batch=batch, sequence=sequence) // config.layers


def square_root_activation_bytes(config: ModelConfig, *, batch: int, sequence: int) -> int:
    """Estimate checkpointed activations as the whole divided by √layers: 8.7 GB for GPT-2 1.5 B.

    Source:  Chen et al. 2016, arXiv:1604.06174; Rajbhandari et al. 2020, section 3.2, "reduce ... to about 8 GB".
    """
    return round(rule_of_thumb_activation_bytes(config, batch=batch, sequence=sequence) / math.sqrt(config.layers))
