"""Answers to `master_weights`: classes, each made from FP16 parameters."""

import torch
from torch import nn

from qlab import loss_scaling
from tests.answers.bank import Answer, Bank

BANK = Bank("master-weights")
BANK.add("qlab", loss_scaling.MasterWeights)


class Base:
    """What the answers below change one thing of."""

    def __init__(self, weights):
        self.weights = list(weights)
        self.parameters = [nn.Parameter(w.detach().float()) for w in self.weights]

    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.float()

    def write_back(self):
        with torch.no_grad():
            for weight, copy in zip(self.weights, self.parameters, strict=True):
                weight.copy_(copy)


class ThroughData(Base):
    def __init__(self, weights):
        self.weights = weights
        self.parameters = tuple(w.data.to(torch.float32, copy=True).requires_grad_() for w in weights)

    def write_back(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            weight.data = copy.data.half()


class ClearsTheGradients(Base):
    def take_gradients(self):
        for copy in self.parameters:
            copy.grad = None
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            if weight.grad is not None:
                copy.grad = weight.grad.to(copy.dtype)
                weight.grad = None


class InPlaceGradients(Base):
    def __init__(self, weights):
        super().__init__(weights)
        for copy in self.parameters:
            copy.grad = torch.zeros_like(copy)

    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            if weight.grad is None:
                copy.grad = None
                continue
            copy.grad = torch.empty_like(copy) if copy.grad is None else copy.grad
            copy.grad.copy_(weight.grad)


class InAParameterList(Base):
    def __init__(self, weights):
        self.weights = weights
        self.parameters = nn.ParameterList([nn.Parameter(w.data.float()) for w in weights])


class InAModule(nn.Module):
    """A module whose `parameters` is a list on purpose."""

    def __init__(self, weights):
        super().__init__()
        self.pairs = [(w, torch.nn.Parameter(w.detach().clone().float())) for w in weights]
        self.parameters = nn.ParameterList([copy for _, copy in self.pairs])

    def take_gradients(self):
        for weight, copy in self.pairs:
            copy.grad = weight.grad if weight.grad is None else weight.grad.detach().float().clone()

    @torch.no_grad()
    def write_back(self):
        for weight, copy in self.pairs:
            weight.set_(copy.detach().half())


class WithoutGradients(Base):
    """Copies that do not ask for a gradient: an optimizer takes them all the same."""

    def __init__(self, weights):
        self.weights = list(weights)
        self.parameters = [torch.tensor(w.tolist(), dtype=torch.float32) for w in self.weights]


for right in (Base, ThroughData, ClearsTheGradients, InPlaceGradients, InAParameterList, InAModule, WithoutGradients):
    BANK.add(right.__name__, right)


def wrong(misconception):
    def keep(answer):
        BANK.add(answer.__name__, answer, misconception=misconception)
        return answer

    return keep


@wrong("updates-the-fp16-copy")
class HalfCopies(Base):
    def __init__(self, weights):
        self.weights = list(weights)
        self.parameters = [nn.Parameter(w.detach().clone()) for w in self.weights]

    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.grad = weight.grad


@wrong("updates-the-fp16-copy")
class NoCopies(Base):
    def __init__(self, weights):
        self.weights = self.parameters = list(weights)

    def take_gradients(self):
        pass


@wrong("updates-the-fp16-copy")
class ReadsTheWeightsAnew(Base):
    def take_gradients(self):
        super().take_gradients()
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.data = weight.data.float()


@wrong("rounds-the-master")
class RoundsTheMaster(Base):
    def write_back(self):
        super().write_back()
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.data.copy_(weight.data)


@wrong("keeps-the-graph")
class KeepsTheGraph(Base):
    def __init__(self, weights):
        self.weights = list(weights)
        self.parameters = [w.float() for w in self.weights]


@wrong("takes-no-gradient")
class TakesNoGradient(Base):
    def take_gradients(self):
        pass


@wrong("adds-up-gradients")
class AddsUpGradients(Base):
    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            if weight.grad is not None:
                copy.grad = weight.grad.float() + (0 if copy.grad is None else copy.grad)


@wrong("keeps-an-old-gradient")
class SkipsNone(Base):
    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            if weight.grad is not None:
                copy.grad = weight.grad.float()


@wrong("zeros-for-none")
class ZerosForNone(Base):
    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.grad = torch.zeros_like(copy) if weight.grad is None else weight.grad.float()


@wrong("forgets-to-write-back")
class ReplacesTheWeights(Base):
    def __init__(self, weights):
        super().__init__(weights)
        self.weights = weights

    def write_back(self):
        for number, copy in enumerate(self.parameters):
            self.weights[number] = nn.Parameter(copy.detach().half())


@wrong("freezes-the-weights")
class FreezesTheWeights(Base):
    def write_back(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            weight.requires_grad_(False).copy_(copy.detach())


@wrong("wrong-value")
class RoundsThroughBF16(Base):
    def write_back(self):
        with torch.no_grad():
            for weight, copy in zip(self.weights, self.parameters, strict=True):
                weight.copy_(copy.bfloat16())


@wrong("forgets-to-write-back")
class ForgetsToWriteBack(Base):
    def write_back(self):
        pass


@wrong("forgets-to-write-back")
class MakesNewTensors(Base):
    def write_back(self):
        self.weights = [copy.detach().half() for copy in self.parameters]

    def take_gradients(self):
        if not hasattr(self, "given"):
            self.given = self.weights
        for weight, copy in zip(self.given, self.parameters, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.float()


@wrong("widens-the-weights")
class WidensTheWeights(Base):
    def write_back(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            weight.data = copy.data.clone()


@wrong("wrong-gradient")
class FlipsTheGradient(Base):
    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.grad = None if weight.grad is None else -weight.grad.float()


@wrong("wrong-copy")
class CopiesOfRandomNumbers(Base):
    def __init__(self, weights):
        super().__init__(weights)
        for copy in self.parameters:
            copy.data += 1e-3


@wrong("wrong-value")
class WritesTheMean(Base):
    def write_back(self):
        with torch.no_grad():
            for weight, copy in zip(self.weights, self.parameters, strict=True):
                weight.copy_((weight + copy) / 2)


@wrong("returns-nothing")
class KeepsNothing(Base):
    def __init__(self, weights):
        super().__init__(weights)
        self.parameters = None


@wrong("wrong-dtype")
class InDouble(Base):
    def __init__(self, weights):
        self.weights = list(weights)
        self.parameters = [nn.Parameter(w.detach().double()) for w in self.weights]


class Crashes(Base):
    def take_gradients(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            copy.grad = weight.grad


class CopiesInPlace(Base):
    def write_back(self):
        for weight, copy in zip(self.weights, self.parameters, strict=True):
            weight.copy_(copy)


for crashing in (Crashes, CopiesInPlace):
    BANK.answers.append(Answer("master-weights", crashing.__name__, (crashing,), outcome="crashed"))
