"""Answers to `prepare_for_qat`; what uses `torch.ao` warns of its deprecation."""

import copy

import torch
from torch import nn
from torch.ao import quantization as eager
from torch.nn.utils import parametrize

from qlab import calibrate, qat, quantize
from tests.answers.bank import Bank

BANK = Bank("prepare-for-qat")
WEIGHTS_ONLY = eager.QConfig(activation=nn.Identity, weight=eager.default_per_channel_weight_fake_quant)


def rounded(weight, *, bits=8, dim=1):
    largest = 2 ** (bits - 1) - 1
    scale = (weight.detach().abs().amax(dim, keepdim=True) / largest).clamp(min=1e-12)
    return (weight.detach() / scale).round() * scale


def straight_through(weight, **how):
    return weight + (rounded(weight, **how) - weight).detach()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def as_copied(model, qconfig, prepare):
    model.qconfig = qconfig
    return prepare(model)


@BANK.right
def prepare_qat_warns(model):
    model = copy.deepcopy(model).train()
    model.qconfig = WEIGHTS_ONLY
    return eager.prepare_qat(model)


@BANK.right
def prepare_qat_in_place_warns(model):
    model.qconfig = WEIGHTS_ONLY
    eager.prepare_qat(model, inplace=True)
    return model


@BANK.right
def one_scale_for_the_tensor_warns(model):
    return as_copied(model, eager.QConfig(nn.Identity, eager.default_weight_fake_quant), eager.prepare_qat)


@BANK.right
def by_qlab(model):
    return qat.prepare(model, lambda weight: calibrate.FakeQuantize(bits=8))


@BANK.right
def one_scale_by_qlab(model):
    return qat.prepare(model, lambda weight: calibrate.FakeQuantize(bits=8, tile=quantize.PER_TENSOR))


class Rounded(nn.Module):
    def forward(self, weight):
        return straight_through(weight)


@BANK.right
def parametrized(model):
    for layer in layers_of(model):
        parametrize.register_parametrization(layer, "weight", Rounded())
    return model


class RoundedLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, straight_through(self.weight), self.bias)


@BANK.right
def changes_the_class_of_layers(model):
    for layer in layers_of(model):
        layer.__class__ = RoundedLinear
    return model


class Wrapped(nn.Module):
    """Multiplies by torch's own fake-quantized weight."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        weight = self.linear.weight
        scale = weight.detach().abs().amax(1) / 127
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return nn.functional.linear(
            x, torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127), self.linear.bias
        )


@BANK.right
def builds_a_new_model(model):
    return nn.Sequential(*(Wrapped(layer) if isinstance(layer, nn.Linear) else layer for layer in model))


@BANK.right
def swaps_weights_in_hooks(model):
    """Round a copy before each call, through a weight that is no parameter any more."""
    for layer in layers_of(model):
        weight = layer.weight
        del layer.weight
        layer.register_parameter("kept", weight)

        def swap(module, _):
            module.weight = straight_through(module.kept)

        layer.register_forward_pre_hook(swap)
    return model


@BANK.right
def steps_stay_those_of_the_first_weights(model):
    """Round anew at each call, on steps that are found once, much as the slow averages of `torch.ao` are."""

    class OnGrid(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.step = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127

        def forward(self, weight):
            return weight + ((weight / self.step).round().clamp(-127, 127) * self.step - weight).detach()

    for layer in layers_of(model):
        parametrize.register_parametrization(layer, "weight", OnGrid(layer.weight))
    return model


@BANK.right
def rounds_and_restores_in_hooks(model):
    """Round the stored weight for the time of a call: backward reaches the parameter all the same."""

    def before(layer, _):
        layer.kept = layer.weight.data
        layer.weight.data = rounded(layer.weight)

    def after(layer, _, output):
        layer.weight.data = layer.kept

    for layer in layers_of(model):
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
    return model


class CalledOn(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        weights = {name: p for name, p in self.model.named_parameters() if name.endswith("weight")}
        seen = {name: straight_through(weight) for name, weight in weights.items()}
        return torch.func.functional_call(self.model, seen, (x,))


@BANK.right
def functional_call(model):
    return CalledOn(model)


class CutWeights(nn.Module):
    def forward(self, weight):
        scale = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        return weight + ((weight / scale).trunc() * scale - weight).detach()


@BANK.wrong("never-sees-rounding")
def prepare_warns(model):
    return as_copied(model, WEIGHTS_ONLY, eager.prepare)


@BANK.wrong("never-sees-rounding")
def observers_with_prepare_qat_warns(model):
    return as_copied(model, eager.get_default_qconfig("x86"), eager.prepare_qat)


@BANK.wrong("never-sees-rounding")
def as_it_came(model):
    return model


@BANK.wrong("never-sees-rounding")
def switches_rounding_off_warns(model):
    return prepare_qat_warns(model).apply(eager.disable_fake_quant)


@BANK.wrong("rounds-activations")
def activations_only_warns(model):
    return as_copied(model, eager.get_default_qat_qconfig("x86"), eager.prepare)


@BANK.wrong("rounds-activations")
def activations_too_warns(model):
    return as_copied(model, eager.get_default_qat_qconfig("x86"), eager.prepare_qat)


@BANK.wrong("rounds-activations")
def rounds_the_outputs(model):
    return nn.Sequential(model, Rounded())


@BANK.wrong("left-in-eval")
def prepare_qat_and_eval_warns(model):
    return prepare_qat_warns(model).eval()


@BANK.crashes
def prepare_qat_in_eval_warns(model):
    return as_copied(model.eval(), WEIGHTS_ONLY, eager.prepare_qat)


@BANK.crashes
def converts_warns(model):
    return eager.convert(as_copied(model, eager.default_qconfig, eager.prepare).eval()).train()


@BANK.wrong("rounds-once")
def rounds_once(model):
    for layer in layers_of(model):
        layer.weight.data = rounded(layer.weight)
    return model


@BANK.wrong("rounds-once")
def rounds_only_at_first(model):
    return qat.convert(by_qlab(model))


@BANK.wrong("no-gradient")
def rounded_and_frozen(model):
    rounds_once(model)
    return model.requires_grad_(False)


class Staircase(nn.Module):
    def forward(self, weight):
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale


class Detached(nn.Module):
    def forward(self, weight):
        return rounded(weight)


def with_rounding(rounding):
    def answer(model):
        return qat.prepare(model, lambda weight: rounding())

    return answer


BANK.add("true_staircase", with_rounding(Staircase), misconception="no-gradient")
BANK.add("detached", with_rounding(Detached), misconception="no-gradient")


class RoundsItself(nn.Linear):
    def forward(self, x):
        self.weight.data = rounded(self.weight)
        return super().forward(x)


@BANK.wrong("loses-small-steps")
def rounds_the_stored_weight_at_each_call(model):
    for layer in layers_of(model):
        layer.__class__ = RoundsItself
    return model


@BANK.wrong("never-sees-rounding")
def only_the_last_layer(model):
    parametrize.register_parametrization(layers_of(model)[-1], "weight", Rounded())
    return model


@BANK.wrong("never-sees-rounding")
def only_the_first_layer(model):
    parametrize.register_parametrization(layers_of(model)[0], "weight", Rounded())
    return model


@BANK.wrong("rounds-the-bias")
def rounds_biases_too(model):
    for layer in layers_of(model):
        if layer.bias is not None:
            layer.bias.data = rounded(layer.bias, bits=4, dim=0)
    return parametrized(model)


class FourBits(nn.Module):
    def forward(self, weight):
        return straight_through(weight, bits=4)


BANK.add("cuts_toward_zero", with_rounding(CutWeights), misconception="wrong-value")
BANK.add("four_bits", with_rounding(FourBits), misconception="wrong-value")


class Halves(nn.Module):
    def forward(self, weight):
        return weight + (weight.half().float() - weight).detach()


BANK.add("half_precision", with_rounding(Halves), misconception="too-many-values")


class Doubled(nn.Module):
    """A straight-through estimator whose gradient counts twice."""

    def forward(self, weight):
        return 2 * weight + (rounded(weight) - 2 * weight).detach()


BANK.add("gradient_twice", with_rounding(Doubled), misconception="wrong-gradient")


@BANK.wrong("returns-nothing")
def prepares_in_place_and_returns_nothing_warns(model):
    model.qconfig = WEIGHTS_ONLY
    eager.prepare_qat(model, inplace=True)


@BANK.wrong("not-a-module")
def returns_a_function(model):
    return model.forward


@BANK.crashes
def asks_for_a_weight_warns(model):
    return prepare_qat_warns(model).weight
