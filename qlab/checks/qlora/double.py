"""Check of `double_quantize` and `bits_per_weight`: constants that are coded in turn, and every byte of the bill."""

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from qlab import codebooks
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.bill import compare_bits, drawn_bill
from qlab.checks.qlora.nearest import Rule, admitted, evenly, level_above, level_below, nearest, toward_zero
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.codes import dtype_of, require_close, unpacked
from qlab.checks.report import check, part, require

CALL = "double_quantize(absmax, codebook, block_size)"
MEAN = "Constants are all positive: take their mean away first, so that both halves of the signed map are used."


@dataclass(frozen=True)
class Constants:
    """First-level constants, and how they are to be coded."""

    absmax: Tensor
    size: int

    @property
    def mean(self) -> Tensor:
        return self.absmax.double().mean()

    def rows(self, values: Tensor) -> Tensor:
        """Return values as rows of a block each, the last one filled up with zeros."""
        return F.pad(values.double(), (0, -len(values) % self.size)).view(-1, self.size)

    def scales(self, mean: float | Tensor) -> Tensor:
        """Return the largest magnitude of each block of what is left when a mean is taken away."""
        return self.rows(self.absmax.double() - mean).abs().amax(1)

    def divided(self, mean: Tensor, scales: Tensor) -> Tensor:
        """Return what is left of each constant over its block's scale; 0 where that is 0."""
        rows = self.rows(self.absmax.double() - mean)
        return (rows / torch.where(scales == 0, 1.0, scales)[:, None]).flatten()[: len(self.absmax)]

    def told(self, index: int) -> str:
        return f"{len(self.absmax)} constants in blocks of {self.size}, mean {self.mean:.5g}: constant {index}"


@check(TOPIC, "double-quantization", codebooks.double_quantize, codebooks.DoublyQuantizedCodes, points=5)
def check_double_quantization(quantize: LearnerFunction, bits: LearnerFunction, draw: torch.Generator) -> None:
    """Check `double_quantize(absmax, codebook, block_size)` and `bits_per_weight(weights, block_size, second_size)`."""
    with part("the mean of all constants, and a scale for each block of what is left"):
        for constants in (_drawn(draw), _drawn(draw)):
            _require_constants(constants, *_quantized(quantize, constants))
    with part("each constant's nearest code, of (absmax - mean) / scale"):
        for constants in (_drawn(draw), _drawn(draw)):
            _require_codes(constants, *_quantized(quantize, constants))
    with part("a last block that is shorter, and constants that are all equal"):
        for constants in (_drawn(draw, ragged=True), _equal(draw)):
            found = _quantized(quantize, constants)
            _require_constants(constants, *found)
            _require_codes(constants, *found)
    with part("bits a weight, where blocks divide evenly: codes, both levels of constants, the mean"):
        compare_bits(bits, [drawn_bill(draw, ragged=False) for _ in range(4)])
    with part("bits a weight with a last block that is shorter, at either level"):
        compare_bits(bits, [drawn_bill(draw, ragged=True) for _ in range(5)])


def _drawn(draw: torch.Generator, *, ragged: bool = False) -> Constants:
    size, count = drawn(12, 30, draw), drawn(3, 5, draw)
    rows = (0.02 + torch.rand(count, size, generator=draw) ** 3) * (1 + 4 * torch.rand(count, 1, generator=draw))
    rows[1] = 0.02 + rows[1] / 40  # below the mean, all of it: what is left is negative
    absmax = rows.flatten()
    return Constants(absmax[: len(absmax) - drawn(1, size - 2, draw)] if ragged else absmax, size)


def _equal(draw: torch.Generator) -> Constants:
    """Return equal constants whose sums FP32 holds exactly, so that nothing at all is left of them."""
    size = drawn(6, 9, draw)
    return Constants(torch.full((size * 3,), drawn(1, 15, draw) / 4), size)


def _quantized(quantize: LearnerFunction, constants: Constants) -> tuple[Tensor, Tensor, Tensor]:
    result = quantize(constants.absmax, codebooks.dynamic_map(signed=True), constants.size)
    codes, scales, mean = unpacked(result, ("codes", "scales", "mean"), call=CALL)
    kind = dtype_of(codes)
    require(
        "int" not in kind or kind.endswith("int8") or kind.startswith("Python"),
        f"`{CALL}[0]` is {kind}, expected uint8",
        misconception="wide-codes",
        thought="A code of 256 levels takes one byte: `.to(torch.uint8)`.",
    )
    require(
        not (isinstance(scales, Tensor) and scales.numel() == 1 and len(constants.absmax) > constants.size),
        f"`{CALL}[1]` is one number, expected {ceil(len(constants.absmax) / constants.size)}",
        misconception="one-scale-for-all",
        thought="Constants are coded in blocks too: each has a scale of its own.",
    )
    count = ceil(len(constants.absmax) / constants.size)
    return (
        as_tensor(codes, tuple(constants.absmax.shape), call=f"{CALL}[0]").long() % 256,
        as_tensor(scales, (count,), call=f"{CALL}[1]").double(),
        as_tensor(mean, (), call=f"{CALL}[2]").double(),
    )


def _require_constants(constants: Constants, codes: Tensor, scales: Tensor, mean: Tensor) -> None:
    absmax = constants.absmax.double()
    whole_mean = {
        "forgets-the-mean": (MEAN, torch.zeros(())),
        "median-for-mean": (f"{MEAN} The mean, not the median.", absmax.median()),
        "smallest-for-mean": (f"{MEAN} The mean, not the smallest.", absmax.min()),
        "middle-for-mean": (f"{MEAN} The mean, not the middle of the range.", (absmax.min() + absmax.max()) / 2),
    }
    _require_near(
        mean.view(1),
        constants.mean.view(1),
        constants,
        "the mean",
        [Suspect(name, thought, value.view(1)) for name, (thought, value) in whole_mean.items()],
    )
    lost = ~scales.isfinite()
    require(
        not lost.any(),
        f"{int(lost.sum())} scales are not finite",
        misconception="not-finite",
        thought="A scale is the largest magnitude of what is left of a block's constants.",
    )
    want, rows = constants.scales(constants.mean), constants.rows(absmax - constants.mean)
    largest = "The scale of a block is the largest *magnitude* of what is left: it may be negative."
    _require_near(
        scales,
        want,
        constants,
        "scale",
        [
            Suspect("forgets-the-mean", MEAN, constants.scales(0.0)),
            Suspect("one-scale-for-all", "Each block of constants has a scale of its own.", want.max().expand_as(want)),
            Suspect("forgets-the-sign", largest, rows.amax(1)),
            Suspect("step-for-scale", "With a codebook from -1 to 1 the scale is the largest magnitude.", want / 127),
            Suspect(
                "mean-by-block",
                "One mean for all constants is kept, not one for each block.",
                constants.rows(absmax).sub(constants.rows(absmax).mean(1, keepdim=True)).abs().amax(1),
            ),
        ],
    )


def _require_near(got: Tensor, want: Tensor, constants: Constants, what: str, suspects: list[Suspect]) -> None:
    """Compare to a millionth of the largest constant: from such numbers a mean is taken away."""
    size = constants.absmax.double().max().expand_as(got)
    told = f"{len(constants.absmax)} constants in blocks of {constants.size}: {what}"
    require_close(got, want, given=lambda i: f"{told} {i}" if len(got) > 1 else told, suspects=suspects, span=size)


def _require_codes(constants: Constants, codes: Tensor, scales: Tensor, mean: Tensor) -> None:
    """Judge codes by the answer's own mean and scales: in FP32 these differ from ours in the last places."""
    _require_constants(constants, codes, scales, mean)
    levels = codebooks.dynamic_map(signed=True)
    noise = scales.repeat_interleave(constants.size)[: len(codes)] <= 1e-6 * constants.absmax.max()
    values = torch.where(noise, 0.0, constants.divided(mean, scales))
    hair = (3e-7 * constants.absmax.max() / scales.clamp(min=1e-30)).repeat_interleave(constants.size)[: len(codes)]
    near = Near(codes, values, hair)
    want = torch.where(
        noise, codes, near.by(nearest)
    )  # what rounding left of equal constants is worth nothing, whatever its code
    own = "The codes are those of what is left when the mean is taken away."
    raw = constants.divided(torch.zeros(()), scales).clamp(-1, 1)
    raw_by_own = constants.divided(torch.zeros(()), constants.scales(0.0))
    midpoints = "Rounding is to the *nearest* level: compare with the midpoints of neighbors."
    require_values(
        codes,
        want,
        given=constants.told,
        suspects=lambda: [
            *(Suspect("forgets-the-mean", own, admitted(codes, v, levels)) for v in (raw, raw_by_own)),
            *(Suspect("floors", midpoints, near.by(rule)) for rule in (level_below, level_above, toward_zero)),
            Suspect(
                "even-steps",
                "The dynamic map is not even: look for the nearest of its levels.",
                ((values * 127).round() + 127).long(),
            ),
            Suspect(
                "even-steps",
                "The dynamic map is not even: look for the nearest of its levels.",
                ((values * 127).round() + 128).long(),
            ),
            Suspect(
                "even-steps",
                "The dynamic map is not even: look for the nearest of its levels.",
                near.by(evenly),
            ),
            Suspect(
                "one-scale-for-all",
                "Divide by the scale of the constant's own block.",
                admitted(codes, (constants.absmax.double() - mean) / scales.max(), levels),
            ),
        ],
    )


@dataclass(frozen=True)
class Near:
    """The codes that were got, the values they are for, and what FP32 loses there in `absmax - mean`."""

    codes: Tensor
    values: Tensor
    hair: Tensor

    def by(self, rule: Rule) -> Tensor:
        """Return the codes by a rule, but what was got wherever a value that differs by a hair has that code."""
        levels = codebooks.dynamic_map(signed=True)
        want = admitted(self.codes, self.values, levels, rule)
        for shift in (-self.hair, self.hair):
            again = admitted(self.codes, self.values + shift, levels, rule)
            want = torch.where(again == self.codes, self.codes, want)
        return want
