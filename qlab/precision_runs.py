"""The same training run in different precisions: real FP16 and BF16 on CUDA, emulated ones on a CPU."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from qlab.loss_scaling import (
    EVERYTHING,
    PRODUCTS,
    CastPolicy,
    Emulated,
    KahanWeights,
    LossScaler,
    MasterWeights,
    NarrowWeights,
    StaticScaler,
    StochasticWeights,
)
from qlab.recipes import TextRecipe
from qlab.scoring import bits_per_token

UNSCALED = StaticScaler(1.0)


@dataclass(frozen=True)
class Regime:
    """Which arithmetic a run uses, and which cures.

    `policy` names the operations that compute in `dtype`. Weights stay in FP32 unless `weights` says how narrow ones
    take their updates. `all_narrow` puts weights, optimizer and its states in `dtype` too, as `model.half()` does.
    """

    name: str
    dtype: torch.dtype
    policy: CastPolicy = PRODUCTS
    scaler: Callable[[], StaticScaler] = lambda: UNSCALED
    weights: Callable[..., MasterWeights] | None = None
    all_narrow: bool = False


FP32_RUN = Regime("FP32", torch.float32)
FP16_BARE = Regime("FP16 bare", torch.float16, EVERYTHING, all_narrow=True)
FP16_SCALED = Regime("FP16 scaled", torch.float16, scaler=LossScaler)
BF16_MIXED = Regime("BF16", torch.bfloat16)
REGIMES = (FP32_RUN, FP16_BARE, FP16_SCALED, BF16_MIXED)

FP16_NO_MASTERS = Regime("FP16 scaled, FP16 weights", torch.float16, scaler=LossScaler, weights=NarrowWeights)
BF16_NEAREST = Regime("BF16 weights, nearest", torch.bfloat16, weights=NarrowWeights)
BF16_STOCHASTIC = Regime("BF16 weights, stochastic", torch.bfloat16, weights=StochasticWeights)
BF16_KAHAN = Regime("BF16 weights, Kahan", torch.bfloat16, weights=KahanWeights)
NARROW_WEIGHTS = (FP16_NO_MASTERS, BF16_NEAREST, BF16_STOCHASTIC, BF16_KAHAN)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecipe(TextRecipe):
    """How long, on how much text at a time, and how fast."""

    learning_rate: float = 1e-4


@dataclass
class PrecisionRun:
    """What a run left: the loss of each step in bits per byte, the scale it used, and which steps were skipped.

    `failed_at` is the first step whose loss was NaN or infinite, where the run ended.
    """

    regime: str
    losses: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    failed_at: int | None = None


def run(model: nn.Module, text: UInt8[Tensor, " n"], regime: Regime, recipe: PrecisionRecipe) -> PrecisionRun:
    """Train `model` on windows drawn from `text` with Adam and a rate that falls to zero; stop if the loss is lost.

    On a CPU narrow arithmetic is emulated (`qlab.loss_scaling.Emulated`), and `model` keeps FP32 tensors; on CUDA it is
    real. The same recipe draws the same text for every regime.
    Errors:  ValueError if `text` is too short for one window.
    """
    batches = recipe.batches(text.to(next(model.parameters()).device))
    trainee = _Trainee(model, regime, recipe)
    for step, windows in enumerate(batches):
        with trainee.arithmetic():
            loss = bits_per_token(model(windows[:, :-1]), windows[:, 1:]).mean() * math.log(2)
            if not trainee.notes(loss, step):
                break
            trainee.scaler.scaled(loss).backward()
        trainee.update(step, learning_rate=recipe.rate(step))
    return trainee.told


class _Trainee:
    """A model with its weights where the regime wants them, and with what updates them."""

    def __init__(self, model: nn.Module, regime: Regime, recipe: PrecisionRecipe):
        self.regime, self.recipe, self.scaler = regime, recipe, regime.scaler()
        weights = list(model.parameters())
        self.on_cuda = weights[0].is_cuda
        if regime.all_narrow and self.on_cuda:
            model.to(regime.dtype)
        elif regime.all_narrow:
            NarrowWeights(weights, dtype=regime.dtype)  # rounds them
        self.store = regime.weights(weights, dtype=regime.dtype) if regime.weights else None
        self.parameters = self.store.parameters if self.store else weights
        # one tensor at a time: the operations that `Emulated` rounds
        self.optimizer = torch.optim.Adam(self.parameters, lr=recipe.learning_rate, betas=(0.9, 0.95), foreach=False)
        self.told = PrecisionRun(regime.name)

    def arithmetic(self) -> contextlib.AbstractContextManager:
        """Return what makes a forward and backward pass compute as the regime says."""
        if self.regime.dtype == torch.float32 or (self.on_cuda and self.regime.all_narrow):
            return contextlib.nullcontext()
        if self.on_cuda:
            return torch.autocast("cuda", self.regime.dtype)
        return Emulated(self.regime.dtype, self.regime.policy)

    def notes(self, loss: Tensor, step: int) -> bool:
        """Keep the step's loss and scale; return whether the run can go on."""
        self.told.losses.append(loss.item() / math.log(2))
        self.told.scales.append(self.scaler.scale)
        if math.isfinite(self.told.losses[-1]):
            return True
        self.told.failed_at = step
        return False

    def update(self, step: int, *, learning_rate: float) -> None:
        """Take the optimizer's step unless a gradient overflowed, and let the scaler know."""
        if self.store:
            self.store.take_gradients()
        scaled = not self.regime.all_narrow  # where all is narrow the loss is bare
        found_inf = scaled and self.scaler.unscale(self.parameters)
        if found_inf:
            self.told.skipped.append(step)
        else:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            with self.arithmetic() if self.regime.all_narrow else contextlib.nullcontext():
                torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_norm, foreach=False)
                self.optimizer.step()
            if self.store:
                self.store.write_back()
        self.optimizer.zero_grad()
        self.scaler.update(found_inf)
