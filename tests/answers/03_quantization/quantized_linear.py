"""Answers to the exercise quantized_linear: classes, each made from an `nn.Linear`."""

import numpy as np
import torch
from torch import nn

from qlab import quantize
from tests.answers.bank import Answer, Bank

BANK = Bank("quantized-linear")


def row_scale(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, scale, 1.0)


class Base(nn.Module):
    """Codes, a scale for each row and the bias, in buffers: what the answers below change one thing of."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", self.scale_of(weight))
        self.register_buffer("codes", self.codes_of(weight, self.scale))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def scale_of(self, weight):
        return row_scale(weight)

    def codes_of(self, weight, scale):
        return (weight / scale).round().to(torch.int8)

    def weight(self):
        return self.codes * self.scale

    def forward(self, x):
        return nn.functional.linear(x, self.weight(), self.bias)


class BiasIsAParameter(Base):
    def __init__(self, linear):
        super().__init__(linear)
        bias = self.bias
        del self.bias
        self.bias = None if bias is None else nn.Parameter(bias)


class CodesAreAParameter(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.data
        self.scale = nn.Parameter(weight.abs().max(dim=1).values.clamp(min=1e-30) / 127, requires_grad=False)
        codes = torch.div(weight.T, self.scale).round().to(torch.int8)
        self.codes = nn.Parameter(codes, requires_grad=False)  # (in, out)
        self.bias = linear.bias

    def forward(self, x):
        y = (x @ self.codes.float()) * self.scale
        return y if self.bias is None else y + self.bias


class GroupsOfSixteen(nn.Module):
    def __init__(self, linear):
        super().__init__()
        groups = linear.weight.detach().unflatten(1, (-1, 16))
        scale = groups.abs().amax(2, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("codes", torch.where(scale > 0, groups / scale, 0.0).round().char())
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, (self.codes * self.scale).flatten(1), self.bias)


class UnsignedAndFlat(Base):
    def codes_of(self, weight, scale):
        return ((weight / scale).round() + 127).to(torch.uint8).flatten()

    def weight(self):
        return (self.codes.float() - 127).view(len(self.scale), -1) * self.scale


class ScalesOfSixteenBits(Base):
    """The codes are made with the scale as it is stored, so that its rounding costs next to nothing."""

    def scale_of(self, weight):
        return row_scale(weight).to(torch.bfloat16)

    def codes_of(self, weight, scale):
        return (weight / scale.float()).round().clamp(-127, 127).to(torch.int8)

    def weight(self):
        return self.codes * self.scale.float()


class InverseScale(Base):
    """The other convention: codes are weight · c with c = 127 / absmax."""

    def scale_of(self, weight):
        return 127 / weight.abs().amax(1, keepdim=True).clamp(min=1e-12)

    def codes_of(self, weight, scale):
        return torch.round(weight * scale).to(torch.int8)

    def weight(self):
        return self.codes / self.scale


class InNumpy(Base):
    def codes_of(self, weight, scale):
        return torch.from_numpy(np.rint(weight.numpy() / scale.numpy()).astype(np.int8))

    def forward(self, x):
        y = np.matmul(x.numpy(), (self.codes.numpy() * self.scale.numpy()).T)
        return y if self.bias is None else y + self.bias.numpy()


class KeepsItsOwnState(nn.Module):
    """All of it in one buffer of bytes."""

    def __init__(self, linear):
        super().__init__()
        weight, self.shape = linear.weight.detach(), linear.weight.shape
        scale, bias = row_scale(weight), linear.bias
        parts = [(weight / scale).round().to(torch.int8), scale] + ([] if bias is None else [bias.detach()])
        self.register_buffer("kept", torch.cat([part.flatten().view(torch.uint8) for part in parts]))

    def forward(self, x):
        out, count = self.shape[0], self.shape.numel()
        codes, rest = self.kept[:count].view(torch.int8), self.kept[count:].view(torch.float32)
        return nn.functional.linear(
            x, codes.view(self.shape) * rest[:out, None], rest[out:] if len(rest) > out else None
        )


class ItsStateIsExtra(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.kept = row_scale(weight), (weight / row_scale(weight)).round().to(torch.int8)
        self.bias = linear.bias

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = state

    def forward(self, x):
        return nn.functional.linear(x, self.kept[0] * self.kept[1], self.bias)


def by_qlab(linear):
    return quantize.QuantizedLinear.from_linear(linear, bits=8)


def by_qlab_in_groups(linear):
    return quantize.QuantizedLinear.from_linear(linear, bits=8, tile=quantize.per_group(16))


class KeepsTheLinearBeside(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.linear = linear


class KeepsTheWeightBeside(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.original = linear.weight.detach().clone()


class KeepsTheLinearInAList(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.source = [linear]


class MultipliesByTheFloatWeight(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.float_weight = linear.weight.detach()

    def forward(self, x):
        return nn.functional.linear(x, self.float_weight, self.bias)


WEIGHTS = []


class KeepsTheWeightInAGlobalList(nn.Module):
    def __init__(self, linear):
        super().__init__()
        WEIGHTS.append((linear.weight.detach().clone(), None if linear.bias is None else linear.bias.detach().clone()))
        self.register_buffer("place", torch.tensor(len(WEIGHTS) - 1))

    def forward(self, x):
        return nn.functional.linear(x, *WEIGHTS[int(self.place)])


class GroupsOfSix(Base):
    """Scales of two bytes, one for each six weights."""

    def scale_of(self, weight):
        scale = weight.unflatten(1, (-1, 6)).abs().amax(2) / 127
        return torch.where(scale > 0, scale, 1.0).half().clamp(min=1e-7)

    def codes_of(self, weight, scale):
        return (weight / scale.float().repeat_interleave(6, 1)).round().clamp(-127, 127).to(torch.int8)

    def weight(self):
        return self.codes * self.scale.float().repeat_interleave(6, 1)


class HidesTheWeightInAClosure(Base):
    def __init__(self, linear):
        super().__init__(linear)
        weight = linear.weight.detach()
        self.multiply = lambda x: x @ weight.T

    def forward(self, x):
        return self.multiply(x) + (0 if self.bias is None else self.bias)


class CachesTheWeight(Base):
    cached = None

    def forward(self, x):
        if self.cached is None:
            self.cached = self.weight()
        return nn.functional.linear(x, self.cached, self.bias)


class CachesAndIsLoaded(Base):
    """The cache is made anew after a load, and is still there."""

    def forward(self, x):
        self.cached = self.weight()
        return nn.functional.linear(x, self.cached, self.bias)


class QuantizesAtEveryCall(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        scale = row_scale(self.linear.weight)
        return nn.functional.linear(x, (self.linear.weight / scale).round() * scale, self.linear.bias)


class RoundedFloats(Base):
    def codes_of(self, weight, scale):
        return (weight / scale).round() * scale

    def weight(self):
        return self.codes


class CodesInFloat(Base):
    def codes_of(self, weight, scale):
        return (weight / scale).round()


class CodesInLong(Base):
    def codes_of(self, weight, scale):
        return (weight / scale).round().long()


class HalfPrecision(Base):
    def codes_of(self, weight, scale):
        return (weight / scale).half()


class PlainAttributes(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scale = row_scale(weight)
        self.codes = (weight / self.scale).round().to(torch.int8)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.codes * self.scale, self.bias)


class ScaleIsAPlainAttribute(Base):
    def __init__(self, linear):
        super().__init__(linear)
        scale = self.scale
        del self.scale
        self.scale = scale


class BiasIsAPlainAttribute(Base):
    def __init__(self, linear):
        super().__init__(linear)
        bias = self.bias
        del self.bias
        self.bias = bias


class BuffersThatAreNotSaved(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.register_buffer("codes", self.codes, persistent=False)


class NamesThatDependOnTheLayer(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.name = f"codes_{int(self.codes.int().sum()) % 997}"
        self.register_buffer(self.name, self.codes)
        del self.codes

    def weight(self):
        return getattr(self, self.name) * self.scale


class ForgetsTheBias(Base):
    def forward(self, x):
        return x @ self.weight().T


class SubtractsTheBias(Base):
    def forward(self, x):
        y = x @ self.weight().T
        return y if self.bias is None else y - self.bias


class OneScaleForAll(Base):
    def scale_of(self, weight):
        return weight.abs().max() / 127


class ScaleOfTheColumns(Base):
    def scale_of(self, weight):
        return weight.abs().amax(0, keepdim=True) / 127


class ScaleWithoutItsAxis(Base):
    """A scale of shape (out,) goes along the columns."""

    def scale_of(self, weight):
        return row_scale(weight).flatten()

    def codes_of(self, weight, scale):
        return (weight / scale).round().clamp(-127, 127).to(torch.int8)


class MultipliesAlongTheColumns(Base):
    def codes_of(self, weight, scale):
        return (weight / row_scale(weight)).round().to(torch.int8)

    def scale_of(self, weight):
        return row_scale(weight).flatten()


class AffineRows(Base):
    """Two constants a row: finer, and a right answer too."""

    def __init__(self, linear):
        super().__init__(linear)
        weight = linear.weight.detach()
        self.register_buffer("low", weight.amin(1, keepdim=True))
        self.scale = ((weight.amax(1, keepdim=True) - self.low) / 255).clamp(min=1e-12)
        self.codes = ((weight - self.low) / self.scale).round().clamp(0, 255).to(torch.uint8)

    def weight(self):
        return self.codes * self.scale + self.low


class Truncates(Base):
    def codes_of(self, weight, scale):
        return (weight / scale).to(torch.int8)


class ForgetsTheScale(Base):
    def weight(self):
        return self.codes.float()


class Zeros(Base):
    def weight(self):
        return torch.zeros(self.codes.shape)


class FourBits(Base):
    def scale_of(self, weight):
        return row_scale(weight) * 127 / 7


class UnsignedCodesInInt8(Base):
    """Codes from 0 to 254 wrap in int8, and nothing brings them back."""

    def codes_of(self, weight, scale):
        return ((weight / scale).round() + 127).to(torch.int8)

    def weight(self):
        return (self.codes.float() - 127) * self.scale


class ZeroTimesInfinity(Base):
    def scale_of(self, weight):
        return 127 / weight.abs().amax(1, keepdim=True)

    def weight(self):
        return self.codes * (1 / self.scale) * (self.scale / self.scale)


class ForgetsToDetach(nn.Module):
    def __init__(self, linear):
        super().__init__()
        scale = row_scale(linear.weight)
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (linear.weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.codes * self.scale, self.bias)


class Transposes(Base):
    def forward(self, x):
        return x @ self.weight()


class KeepsTheCodesTwice(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.register_buffer("transposed", self.codes.T.contiguous())


class ReturnsNothing(Base):
    def forward(self, x):
        super().forward(x)


def forgets_to_return(linear):
    Base(linear)


class IsNoModule:
    def __init__(self, linear):
        self.inner = Base(linear)

    def __call__(self, x):
        return self.inner(x)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class ForgetsSuper(nn.Module):
    def __init__(self, linear):
        self.register_buffer("codes", linear.weight.detach().to(torch.int8))


class RoundsTheInputs(Base):
    def forward(self, x):
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        return super().forward((x / step).round() * step)


class RoundsTheInputsOnce(Base):
    def forward(self, x):
        step = x.abs().max().clamp(min=1e-9) / 127
        return super().forward((x / step).round() * step)


class InBFloat16(Base):
    def forward(self, x):
        bias = None if self.bias is None else self.bias.bfloat16()
        return nn.functional.linear(x.bfloat16(), self.weight().bfloat16(), bias).float()


class ALinearWithoutItsWeight(nn.Linear):
    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        weight = linear.weight.detach()
        del self.weight
        self.register_buffer("scale", row_scale(weight))
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class RowByRow(Base):
    def forward(self, x):
        rows = [x @ row for row in self.weight()]
        y = torch.stack(rows, -1)
        return y if self.bias is None else y + self.bias


class NeedsABias(Base):
    def __init__(self, linear):
        super().__init__(linear)
        self.register_buffer("bias", linear.bias.detach().clone())


RIGHT = (
    *(Base, BiasIsAParameter, CodesAreAParameter, GroupsOfSixteen, UnsignedAndFlat, ScalesOfSixteenBits),
    *(
        ItsStateIsExtra,
        AffineRows,
        InverseScale,
        InNumpy,
        KeepsItsOwnState,
        by_qlab,
        by_qlab_in_groups,
        ALinearWithoutItsWeight,
        RowByRow,
        GroupsOfSix,
    ),
)
WRONG = {
    "keeps-the-float-weight": (
        *(KeepsTheLinearBeside, KeepsTheWeightBeside, KeepsTheLinearInAList, CachesAndIsLoaded),
        *(QuantizesAtEveryCall, RoundedFloats, HalfPrecision),
    ),
    "does-not-survive-load": (
        *(
            MultipliesByTheFloatWeight,
            KeepsTheWeightInAGlobalList,
            HidesTheWeightInAClosure,
            CachesTheWeight,
            PlainAttributes,
        ),
        *(ScaleIsAPlainAttribute, BiasIsAPlainAttribute, BuffersThatAreNotSaved, NamesThatDependOnTheLayer),
    ),
    "wide-codes": (CodesInFloat, CodesInLong),
    "forgets-the-bias": (ForgetsTheBias,),
    "subtracts-the-bias": (SubtractsTheBias,),
    "one-scale-for-all": (OneScaleForAll,),
    "scale-on-the-wrong-axis": (ScaleOfTheColumns,),
    "truncates": (Truncates,),
    "forgets-the-scale": (ForgetsTheScale,),
    "outputs-zeros": (Zeros,),
    "divides-by-zero": (ZeroTimesInfinity,),
    "keeps-the-graph": (ForgetsToDetach,),
    "more-than-codes": (KeepsTheCodesTwice,),
    "wrong-value": (FourBits, UnsignedCodesInInt8, RoundsTheInputs, RoundsTheInputsOnce, InBFloat16),
    "returns-nothing": (ReturnsNothing, forgets_to_return),
    "not-a-module": (IsNoModule,),
}
for made in RIGHT:
    BANK.add(made.__name__, made)
for misconception, answers in WRONG.items():
    for made in answers:
        BANK.add(made.__name__, made, misconception=misconception)
# what a layer that is not square stops: the first part says what is wrong, the others where it crashed
for made, misconception in (
    (Transposes, "transposes"),
    (ScaleWithoutItsAxis, "scale-on-the-wrong-axis"),
    (MultipliesAlongTheColumns, "scale-on-the-wrong-axis"),
):
    BANK.answers.append(Answer(BANK.exercise, made.__name__, (made,), misconception, "crashed"))
BANK.crashes(ForgetsSuper)
BANK.crashes(NeedsABias)
