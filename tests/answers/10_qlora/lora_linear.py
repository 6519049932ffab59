"""Answers to `LoRALinear`, exercise `lora_linear`."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from qlab.lora import LoRALinear
from tests.answers.bank import Bank

BANK = Bank("lora-linear")
BANK.add("by_qlab", lambda linear, rank, alpha: LoRALinear(linear, rank=rank, alpha=alpha))


class Base(nn.Module):
    """The plain answer: what the answers below change one thing of."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scaling = self.scale(rank, alpha)
        self.lora_a = nn.Parameter(self.start_a(rank, linear.in_features))
        self.lora_b = nn.Parameter(self.start_b(linear.out_features, rank))

    def scale(self, rank, alpha):
        return alpha / rank

    def start_a(self, rank, inputs):
        return nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5))

    def start_b(self, out, rank):
        return torch.zeros(out, rank)

    def forward(self, x):
        return self.linear(x) + self.scaling * (x @ self.lora_a.T) @ self.lora_b.T


@BANK.right
class KaimingAndZeros(Base):
    pass


@BANK.right
class NormalStart(Base):
    def start_a(self, rank, inputs):
        return torch.randn(rank, inputs) / rank


@BANK.right
class AddsToTheWeight(Base):
    def forward(self, x):
        return F.linear(x, self.linear.weight + self.scaling * self.lora_b @ self.lora_a, self.linear.bias)


@BANK.right
class BaseInBuffers(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().clone())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.lora_a = nn.Parameter(0.01 * torch.rand(rank, linear.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(linear.out_features, rank))
        self.rank, self.alpha = rank, alpha

    def forward(self, x):
        low = torch.einsum("...i,ri->...r", x, self.lora_a)
        return F.linear(x, self.weight, self.bias) + torch.einsum("...r,or->...o", low, self.lora_b).mul(
            self.alpha / self.rank
        )


@BANK.right
class CopyOfTheBase(Base):
    def __init__(self, linear, rank, alpha):
        super().__init__(copy.deepcopy(linear), rank, alpha)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.startswith("lora")


@BANK.right
class InALinear(nn.Linear):
    """The layer itself, with an adapter beside its own weight."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.requires_grad_(False)
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.lora_a = nn.Parameter(torch.randn(rank, linear.in_features))
        self.scaling = torch.tensor(alpha / rank)

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x * self.scaling, self.lora_a), self.lora_b)


@BANK.wrong("scale-rounded-down")
class WholeScale(Base):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha // rank * rank)


@BANK.wrong("b-is-random")
class BothRandom(Base):
    def start_b(self, out, rank):
        return torch.randn(out, rank) / rank


@BANK.wrong("b-is-random")
class BNearlyZero(Base):
    def start_b(self, out, rank):
        return 1e-3 * torch.randn(out, rank)


@BANK.wrong("a-is-zero")
class BothZero(Base):
    def start_a(self, rank, inputs):
        return torch.zeros(rank, inputs)


@BANK.wrong("a-and-b-swapped")
class AZeroAndBRandom(Base):
    def start_a(self, rank, inputs):
        return torch.zeros(rank, inputs)

    def start_b(self, out, rank):
        return torch.randn(out, rank)


@BANK.wrong("a-is-not-random")
class AIsOnes(Base):
    def start_a(self, rank, inputs):
        return torch.ones(rank, inputs) / inputs


@BANK.wrong("scale-missing")
class WithoutScale(Base):
    def scale(self, rank, alpha):
        return 1.0


@BANK.wrong("scale-by-alpha")
class ScaledByAlpha(Base):
    def scale(self, rank, alpha):
        return alpha


@BANK.wrong("scale-by-the-root")
class RankStabilized(Base):
    def scale(self, rank, alpha):
        return alpha / math.sqrt(rank)


@BANK.wrong("scale-upside-down")
class ScaleUpsideDown(Base):
    def scale(self, rank, alpha):
        return rank / alpha


@BANK.wrong("scale-by-the-rank-alone")
class OverTheRank(Base):
    def scale(self, rank, alpha):
        return 1 / rank


@BANK.wrong("scale-twice")
class ScaledTwice(Base):
    def scale(self, rank, alpha):
        return (alpha / rank) ** 2


@BANK.wrong("base-trainable")
class TrainsTheBase(Base):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.linear.requires_grad_(True)


@BANK.wrong("base-trainable")
class TrainsACopyOfTheWeight(Base):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.weight = nn.Parameter(linear.weight.detach().clone())

    def forward(self, x):
        return F.linear(x, self.weight, self.linear.bias) + self.scaling * (x @ self.lora_a.T) @ self.lora_b.T


@BANK.wrong("bias-trainable")
class FreezesTheWeightAlone(Base):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        if linear.bias is not None:
            linear.bias.requires_grad_(True)


@BANK.wrong("adapter-frozen")
class FreezesEverything(Base):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.requires_grad_(False)


@BANK.wrong("not-a-parameter")
class PlainTensors(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_a = torch.randn(rank, linear.in_features)
        self.lora_b = torch.zeros(linear.out_features, rank)
        self.scaling = alpha / rank

    forward = Base.forward


@BANK.wrong("wrong-shape")
class Transposed(Base):
    def start_a(self, rank, inputs):
        return torch.randn(inputs, rank)

    def forward(self, x):
        return self.linear(x) + self.scaling * (x @ self.lora_a) @ self.lora_b.T


@BANK.wrong("forgets-the-bias")
class WithoutBias(Base):
    def forward(self, x):
        return x @ self.linear.weight.T + self.scaling * (x @ self.lora_a.T) @ self.lora_b.T


@BANK.wrong("bias-twice")
class BiasTwice(Base):
    def forward(self, x):
        out = super().forward(x)
        return out if self.linear.bias is None else out + self.linear.bias


@BANK.wrong("base-not-used")
class AdapterAlone(Base):
    def forward(self, x):
        return self.scaling * (x @ self.lora_a.T) @ self.lora_b.T


@BANK.wrong("scales-the-base")
class ScalesAll(Base):
    def forward(self, x):
        return self.scaling * (self.linear(x) + (x @ self.lora_a.T) @ self.lora_b.T)


@BANK.wrong("adapter-not-used")
class TheBaseAlone(Base):
    def forward(self, x):
        return self.linear(x)


@BANK.wrong("detaches")
class ThroughData(Base):
    def forward(self, x):
        return self.linear(x) + self.scaling * (x @ self.lora_a.data.T) @ self.lora_b.data.T


@BANK.wrong("base-cuts-the-gradient")
class BaseWithoutGradient(Base):
    def forward(self, x):
        with torch.no_grad():
            base = self.linear(x)
        return base + self.scaling * (x @ self.lora_a.T) @ self.lora_b.T


@BANK.wrong("adapter-cuts-the-gradient")
class AdapterReadsADetachedInput(Base):
    def forward(self, x):
        return self.linear(x) + self.scaling * (x.detach() @ self.lora_a.T) @ self.lora_b.T


@BANK.wrong("wrong-value")
class ReluBetween(Base):
    def forward(self, x):
        return self.linear(x) + self.scaling * F.relu(x @ self.lora_a.T) @ self.lora_b.T


@BANK.wrong("wrong-value")
class Halved(Base):
    def scale(self, rank, alpha):
        return alpha / (2 * rank)


@BANK.wrong("not-a-module")
def a_function_of_x(linear, rank, alpha):
    return linear.forward


@BANK.wrong("returns-nothing")
def returns_nothing(linear, rank, alpha):
    Base(linear, rank, alpha)


@BANK.crashes
class MultipliesInTheWrongOrder(Base):
    def forward(self, x):
        return self.linear(x) + self.scaling * x @ self.lora_a @ self.lora_b
