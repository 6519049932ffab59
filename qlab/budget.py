"""The bill of one training step, and the largest batch that a budget allows, by arithmetic.

Gradients and activations do not reach their largest size together: while the loss is differentiated all activations
are there and no gradients, at the first layer all gradients and one layer's activations. The peak is the largest of
such moments, in a step that frees its gradients (`zero_grad()`) and whose optimizer works in place (`fused=True`).
"""

from dataclasses import dataclass, replace

from qlab.activations import (
    BF16,
    FP32,
    FP32_BYTES,
    ActivationBytes,
    Precision,
    Run,
    activation_bytes,
    layer_bytes,
    layer_copy_bytes,
    stream_bytes,
)
from qlab.config import ModelConfig, parameter_parts
from qlab.memory import GB, Recipe, StateBytes, layer_matrices, state_bytes


@dataclass(frozen=True)
class Bill:
    """What a training step needs, part by part, and the most that is there at one moment.

    Units:   bytes; the parts do not all live at once. `temporary` has the buffers of the loss and of unpacked
             weights; those inside a layer's backward pass are in `peak` alone. Not counted: rounding to allocator
             blocks, fragmentation, workspaces of matrix libraries, the device's own context.
    """

    states: StateBytes
    activations: ActivationBytes
    temporary: int
    peak: int


@dataclass(frozen=True)
class Moments:
    """Bytes beside weights and optimizer at the moments of the backward pass that can be the peak."""

    loss: int
    last_layer: int
    first_layer: int
    embedding: int


def precision_for(recipe: Recipe) -> Precision:
    """Return the precision of a step that multiplies in the type its weights are kept in, or unpacked to."""
    return BF16 if recipe.other_bytes < FP32_BYTES else FP32


def training_bill(config: ModelConfig, recipe: Recipe, run: Run) -> Bill:
    """Predict what a training step of `qlab.model.Decoder` needs; with adapters, an upper estimate of activations."""
    states, activations = state_bytes(config, recipe), activation_bytes(config, run)
    at = backward_moments(config, recipe, run)
    beside = max(at.loss, at.last_layer, at.first_layer, at.embedding)
    lasting = states.weights + states.master + states.optimizer
    temporary = loss_buffer_bytes(config, run) + dequantized_bytes(config, recipe, run)
    return Bill(states=states, activations=activations, temporary=temporary, peak=lasting + beside)


def backward_moments(config: ModelConfig, recipe: Recipe, run: Run) -> Moments:
    """Add up what is alive, apart from weights and optimizer, at four moments of the backward pass."""
    saved, states, parts = activation_bytes(config, run), state_bytes(config, recipe), parameter_parts(config)
    stream = stream_bytes(config, run)
    log_probabilities = FP32_BYTES * config.vocabulary * run.tokens
    in_layer = (1 + config.gated) * run.precision.matmul_bytes * config.ffn_width * run.tokens + 2 * stream
    working = in_layer + dequantized_bytes(config, recipe, run)
    frozen = recipe.adapter_rank > 0
    table = 0 if frozen else round(recipe.gradient_bytes * config.vocabulary * config.width)
    one_layer = states.gradients // config.layers if frozen else round(recipe.gradient_bytes * parts.per_layer)
    copies = layer_copy_bytes(config) if run.precision.casts else 0
    waiting = one_layer + (0 if config.tied_embeddings else table)  # gradients that come after the first layer's ffn
    return Moments(
        loss=saved.total + loss_buffer_bytes(config, run),
        last_layer=saved.total - log_probabilities + saved.recomputed_layer + working + table,
        first_layer=states.gradients - waiting + layer_bytes(config, run) + copies + working,
        # a tied table's two gradients and their sum are alive together
        embedding=states.gradients + 2 * stream + (2 * table if config.tied_embeddings else 0),
    )


def loss_buffer_bytes(config: ModelConfig, run: Run) -> int:
    """Size the gradients of the log-probabilities and of the logits, in FP32, alive together."""
    return 2 * FP32_BYTES * config.vocabulary * run.tokens


def dequantized_bytes(config: ModelConfig, recipe: Recipe, run: Run) -> int:
    """Size the largest matrix in the width that products are made in, where weights are stored narrower."""
    narrow = recipe.matrix_bytes < min(2, run.precision.matmul_bytes)
    largest = max(inward * outward for inward, outward in layer_matrices(config))
    return largest * run.precision.matmul_bytes if narrow else 0


def largest_batch(budget_bytes: int, config: ModelConfig, recipe: Recipe, run: Run) -> int:
    """Find the largest batch whose step fits into `budget_bytes`; the batch of `run` itself does not matter.

    Errors:  ValueError if not even batch 1 fits, with the bytes that are missing.
    """

    def peak(batch: int) -> int:
        return training_bill(config, recipe, replace(run, batch=batch)).peak

    if peak(1) > budget_bytes:
        missing = peak(1) - budget_bytes
        raise ValueError(
            f"batch 1 needs {peak(1) / GB:.2f} GB, {missing / GB:.2f} GB more than the {budget_bytes / GB:.2f} GB given"
        )
    fits, too_large = 1, 2
    while peak(too_large) <= budget_bytes:
        fits, too_large = too_large, 2 * too_large
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if peak(middle) <= budget_bytes else (fits, middle)
    return fits
