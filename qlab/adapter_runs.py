"""The same fine-tuning four ways: every weight, LoRA, QLoRA, and QLoRA without double quantization."""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save
from torch import Tensor, nn

from qlab import qat
from qlab.lora import LoRALinear, QLoRALinear, adapter_state, inject, trainable
from qlab.measure import PeakBytes
from qlab.scoring import held_out_bits

LINEARS = r"attention\.|ffn\."  # of a `Decoder`: all linear layers but the head, which is the embedding
ATTENTION = r"attention\."
MEASURED_STEPS = 2  # an optimizer's states come with the first step: the second has all there will be


@dataclass(frozen=True)
class Way:
    """What is trained, how the rest is held, and at which rate it learns best on the new domain.

    Without `adapters` every weight is trained; with `quantized` the frozen ones are in NF4, their constants in 8 bits
    if `double`.
    """

    name: str
    learning_rate: float
    adapters: bool = True
    quantized: bool = False
    double: bool = False


# Rates by the last 20 losses of 200 steps with seed 0: for full among 1e-4, 3e-4, 1e-3 and 3e-3, for LoRA of rank 8
# among 1e-3, 2e-3, 4e-3, 8e-3 and 1.6e-2; QLoRA takes LoRA's.
FULL = Way("full", 1e-3, adapters=False)
LORA = Way("LoRA", 8e-3)
QLORA = Way("QLoRA", 8e-3, quantized=True, double=True)
QLORA_SINGLE = Way("QLoRA without double quantization", 8e-3, quantized=True)
WAYS = (FULL, LORA, QLORA, QLORA_SINGLE)


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """How long, on how much text at a time, how fast, and which adapters; a rate of None is the way's own.

    Errors:  ValueError if a count is below 1, or a rate, `alpha` or `max_norm` is not above 0 and finite.
    """

    steps: int = 200
    batch: int = 4
    sequence: int = 128
    learning_rate: float | None = None
    rank: int = 8
    alpha: int | float = 16
    pattern: str = LINEARS
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "sequence", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "alpha", "max_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")

    def training(self, way: Way, *, steps: int | None = None) -> qat.QatRecipe:
        """Return the training loop's own recipe for `way`."""
        return qat.QatRecipe(
            steps=steps or self.steps,
            batch=self.batch,
            sequence=self.sequence,
            learning_rate=self.learning_rate or way.learning_rate,
            max_norm=self.max_norm,
            seed=self.seed,
        )


@dataclass(frozen=True)
class AdapterRun:
    """What a run took and left.

    `losses` are those of its batches, `start_bits` and `held_out_bits` those of the held-out text before and after, all
    in bits per byte; the latter are the mean of `held_out_windows`. The three are None without held-out text.
    Units:   `model_bytes` are all parameters and buffers; `peak_bytes` those and the most that one training step holds
             beside them (gradients, optimizer, activations, a weight made from its codes), as `PeakBytes` sees it.
             `file_bytes` is a safetensors file of what was trained.
    """

    way: str
    losses: list[float]
    start_bits: float | None
    held_out_bits: float | None
    held_out_windows: list[float] | None
    trainable_parameters: int
    model_bytes: int
    peak_bytes: int
    file_bytes: int


def prepare(model: nn.Module, way: Way, recipe: AdapterRecipe) -> nn.Module:
    """Make `model` ready to be trained in this way: adapters in, the rest frozen, and in codes if quantized.

    LoRA and QLoRA start from the same A. Returns `model`.
    Errors:  ValueError as `inject`, and if the rank does not fit a layer.
    """
    if not way.adapters:
        return model.requires_grad_(True)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(recipe.seed)
    told = {"rank": recipe.rank, "alpha": recipe.alpha, "generator": generator}
    if way.quantized:
        inject(model, recipe.pattern, lambda linear: QLoRALinear(linear, double=way.double, **told))
    else:
        inject(model, recipe.pattern, lambda linear: LoRALinear(linear, **told))
    return model


def fine_tune(
    model: nn.Module,
    text: UInt8[Tensor, " n"],
    way: Way,
    recipe: AdapterRecipe,
    *,
    held_out: UInt8[Tensor, " m"] | None = None,
) -> AdapterRun:
    """Prepare `model`, train it on windows drawn from `text`, and score it on `held_out` before and after.

    The same recipe draws the same text for every way. The peak is that of the first two steps, taken by a copy.
    Errors:  ValueError as `prepare` and `qat.train`.
    """
    prepare(model, way, recipe)
    start = _windows(model, held_out, recipe)
    peak = training_peak_bytes(model, text, recipe.training(way, steps=MEASURED_STEPS))
    losses = qat.train(model.train(), text, recipe.training(way))
    end = _windows(model, held_out, recipe)
    return AdapterRun(
        way=way.name,
        losses=losses,
        start_bits=_mean(start),
        held_out_bits=_mean(end),
        held_out_windows=end,
        trainable_parameters=sum(parameter.numel() for parameter in trainable(model)),
        model_bytes=model_bytes(model),
        peak_bytes=model_bytes(model) + peak,
        file_bytes=trained_file_bytes(model, way),
    )


def training_peak_bytes(model: nn.Module, text: UInt8[Tensor, " n"], recipe: qat.QatRecipe) -> int:
    """Train a copy of `model` and return the most bytes that were held at a time beside its weights."""
    trial = copy.deepcopy(model).train()
    random_state = torch.get_rng_state()
    with PeakBytes(device=next(model.parameters()).device) as peak:
        qat.train(trial, text, recipe)
    torch.set_rng_state(random_state)  # dropout draws from it
    return peak.bytes


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared storages counted once."""
    held = (*model.parameters(), *model.buffers())
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def trained_file_bytes(model: nn.Module, way: Way) -> int:
    """Return the bytes of a safetensors file of what was trained: the adapters, or all of the model."""
    tensors = adapter_state(model) if way.adapters else dict(model.named_parameters())
    return len(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def update_spectrum(
    before: Float[Tensor, "outputs inputs"], after: Float[Tensor, "rows columns"]
) -> Float[Tensor, " smaller_side"]:
    """Return the singular values of what training added to a weight, largest first, in FP64.

    Errors:  ValueError if the two differ in shape, or nothing was added.
    """
    if before.shape != after.shape:
        raise ValueError(f"both weights must have one shape, got {tuple(before.shape)} and {tuple(after.shape)}")
    update = after.detach().double() - before.detach().double()
    if not update.any():
        raise ValueError(f"the two weights of shape {tuple(before.shape)} are equal: an update of zero has no spectrum")
    return torch.linalg.svdvals(update)


def energy_share(singular_values: Float[Tensor, " n"], rank: int) -> float:
    """Return the share of the squared Frobenius norm that the best approximation of `rank` keeps.

    Source:  Eckart and Young 1936, doi:10.1007/BF02288367.
    """
    energies = singular_values.square()
    return (energies[:rank].sum() / energies.sum()).item()


def _windows(model: nn.Module, text: Tensor | None, recipe: AdapterRecipe) -> list[float] | None:
    if text is None:
        return None
    return held_out_bits(model.eval(), text, sequence=2 * recipe.sequence).tolist()


def _mean(values: list[float] | None) -> float | None:
    return None if values is None else sum(values) / len(values)
