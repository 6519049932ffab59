"""Where the weights live between steps: FP32 masters, or a narrow format whose updates must not be swallowed."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qlab.formats import BF16, FP16, FloatFormat, stochastic_round

FORMAT_OF = {torch.bfloat16: BF16, torch.float16: FP16}


class MasterWeights:
    """FP32 copies of narrow weights: the optimizer updates the copies, and the model computes with their rounding.

    `parameters` are what an optimizer gets. `dtype` is the narrow type, that of each weight itself unless it is
    named; naming it serves weights that are stored in FP32 and only rounded.
    Source:  Micikevicius et al. 2018, section 3.1, arXiv:1710.03740.
    Errors:  ValueError if there is no weight.
    """

    def __init__(self, weights: Iterable[nn.Parameter], *, dtype: torch.dtype | None = None):
        self.weights = list(weights)
        if not self.weights:
            raise ValueError("there must be at least one weight, got none")
        self.dtypes = [dtype or weight.dtype for weight in self.weights]
        self.parameters = [nn.Parameter(weight.detach().float().clone()) for weight in self.weights]
        self.round_weights()

    def take_gradients(self) -> None:
        """Move each weight's gradient to its copy, in FP32; a weight without one leaves its copy without."""
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.detach().float()
            weight.grad = None

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round each copy into the weight that the model computes with."""
        for weight, copy, dtype in zip(self.weights, self.parameters, self.dtypes, strict=True):
            weight.copy_(copy.to(dtype))

    def write_back(self) -> None:
        """After a step, round each master into the weight that the model computes with."""
        self.round_weights()


class NarrowWeights(MasterWeights):
    """Weights kept in a narrow type and nowhere else: an update is added to them, and what does not fit is lost.

    The copies that the optimizer updates hold nothing that the weights do not: a kernel would widen in registers.
    """

    def __init__(self, weights: Iterable[nn.Parameter], *, dtype: torch.dtype | None = None):
        super().__init__(weights, dtype=dtype)
        self.narrow = [copy.detach().to(dtype) for copy, dtype in zip(self.parameters, self.dtypes, strict=True)]
        self._widen()

    @torch.no_grad()
    def write_back(self) -> None:
        """After a step, add each update to its narrow weight, and forget what the weight could not take."""
        for index, (weight, copy) in enumerate(zip(self.weights, self.parameters, strict=True)):
            narrow = self.narrow[index]
            self.narrow[index] = self.add(index, narrow, copy - narrow.float())
            weight.copy_(self.narrow[index])
        self._widen()

    def add(self, index: int, weight: Tensor, update: Tensor) -> Tensor:
        """Add an update to the weight at `index`: to the nearest number here, by other rules in subclasses."""
        return nearest_add(weight, update)

    @torch.no_grad()
    def _widen(self) -> None:
        for narrow, copy in zip(self.narrow, self.parameters, strict=True):
            copy.copy_(narrow)


class StochasticWeights(NarrowWeights):
    """Narrow weights that are rounded up or down by chance, so that small updates arrive on average."""

    def __init__(self, weights: Iterable[nn.Parameter], *, dtype: torch.dtype | None = None, seed: int = 0):
        super().__init__(weights, dtype=dtype)
        self.generator = torch.Generator(self.weights[0].device).manual_seed(seed)

    def add(self, index: int, weight: Tensor, update: Tensor) -> Tensor:
        """Add an update to the weight at `index`, rounding by chance."""
        return stochastic_add(weight, update, generator=self.generator)


class KahanWeights(NarrowWeights):
    """Narrow weights beside a second narrow number each, which remembers what the last additions lost."""

    def __init__(self, weights: Iterable[nn.Parameter], *, dtype: torch.dtype | None = None):
        super().__init__(weights, dtype=dtype)
        self.lost = [torch.zeros_like(narrow) for narrow in self.narrow]

    def add(self, index: int, weight: Tensor, update: Tensor) -> Tensor:
        """Add an update to the weight at `index` together with what earlier ones left over."""
        total, self.lost[index] = kahan_add(weight, self.lost[index], update)
        return total


def nearest_add(weights: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Add `update` and round to the nearest number that the type of `weights` has: what is under half a step is lost.

    Shapes:  all alike; `update` in FP32, the result in the type of `weights`.
    """
    return (weights.float() + update.float()).to(weights.dtype)


def stochastic_add(
    weights: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Add `update` and round up or down by chance, with the odds that keep the sum right on average.

    Shapes:  all alike; `update` in FP32, the result in the type of `weights`.
    Errors:  ValueError if the type of `weights` is neither bfloat16 nor float16.
    Source:  Zamirai et al. 2020, arXiv:2010.06192.
    """
    total = weights.float() + update.float()
    return stochastic_round(total, format_of(weights.dtype), generator=generator).to(weights.dtype)


def kahan_add(
    weights: Float[Tensor, "*shape"], compensation: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Add `update` and what earlier additions lost; return the new weights and what this one loses.

    Shapes:  all alike; `update` in FP32, both results in the type of `weights`: four bytes a weight in BF16.
    Source:  Kahan 1965; for BF16 training Zamirai et al. 2020, arXiv:2010.06192.
    """
    wanted = update.float() + compensation.float()
    total = (weights.float() + wanted).to(weights.dtype)
    return total, (wanted - (total.float() - weights.float())).to(weights.dtype)


def swallowed_fraction(
    weights: Float[Tensor, "*shape"], updates: Float[Tensor, "*shape"], *, dtype: torch.dtype
) -> float:
    """Return the share of the nonzero updates after which a weight kept in `dtype` is what it was.

    In FP16 an update under 2⁻¹²|w| is always swallowed, and one above 2⁻¹¹|w| never if w is normal; between them it
    depends on where in its binade w lies. The share of no updates is 0.
    Errors:  ValueError if `weights` and `updates` differ in shape.
    """
    if weights.shape != updates.shape:
        raise ValueError(f"weights have shape {tuple(weights.shape)}, updates {tuple(updates.shape)}")
    narrow = weights.to(dtype)
    meant = updates != 0
    same = nearest_add(narrow, updates) == narrow
    return int((same & meant).sum()) / max(1, int(meant.sum()))


def format_of(dtype: torch.dtype) -> FloatFormat:
    """Return the format of a 16-bit type.

    Errors:  ValueError if `dtype` is neither bfloat16 nor float16.
    """
    if dtype not in FORMAT_OF:
        raise ValueError(f"the narrow type must be torch.bfloat16 or torch.float16, got {dtype}")
    return FORMAT_OF[dtype]
