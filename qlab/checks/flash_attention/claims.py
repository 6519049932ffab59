"""Check of `attention_flops` and `relative_error`: the two numbers that two popular claims are held to."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import attention
from qlab.checks.expect import Suspect, as_number
from qlab.checks.flash_attention.exact import TOPIC, Attention
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.quantization.codes import uniform, unpacked
from qlab.checks.report import check, part

FLOPS, ERROR = "attention_flops(length, width, block_columns)", "relative_error(output, q, k, v)"
# dividing by the rms of the output, or by n - 1 values, changes less than 0.5 %; the slips change 5 % and more
WITHIN = 0.01
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Measured:
    """An output to be judged, and the inputs it came from."""

    output: Tensor
    inputs: Attention
    told: str

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the answer is called with, all of one type."""
        kind = self.output.dtype
        return self.output, self.inputs.q.to(kind), self.inputs.k.to(kind), self.inputs.v.to(kind)

    @property
    def error(self) -> Tensor:
        return self.output.double() - self.inputs.output

    @property
    def share(self) -> float:
        """The root of the mean square of the error, over that of the exact output."""
        return (self.error.square().mean() / self.inputs.output.square().mean()).sqrt().item()


@check(TOPIC, "attention-claims", attention.flash_flops, attention.standard_flops, points=4)
def check_attention_claims(
    attention_flops: LearnerFunction, relative_error: LearnerFunction, draw: torch.Generator
) -> None:
    """Check `attention_flops(length, width, block_columns)` and `relative_error(output, q, k, v)`."""
    with part("FLOPs of the standard passes: six products"):
        _compare_flops(attention_flops, draw, 0)
    with part("FLOPs of the tiled passes: seven products, and the rescaling"):
        _compare_flops(attention_flops, draw, 1)
    with part("the error of an FP32 output, measured against FP64"):
        _compare_errors(relative_error, [_measured(draw, torch.float32, noise) for noise in (1e-3, 1e-5)])
        _compare_errors(relative_error, [_measured(draw, torch.float32, 0.0, above=32.0)])
    with part("the error of an FP16 and of a BF16 output"):
        _compare_errors(relative_error, [_measured(draw, kind, 0.0) for kind in (torch.float16, torch.bfloat16)])


def _compare_flops(attention_flops: LearnerFunction, draw: torch.Generator, place: int) -> None:
    sizes = [(drawn(300, 3_000, draw), 8 * drawn(4, 16, draw), drawn(30, 100, draw)) for _ in range(4)]
    name = ("standard", "tiled")[place]
    pairs = [unpacked(attention_flops(*s), ("standard", "tiled"), call=FLOPS) for s in sizes]
    found = [pair[place] for pair in pairs]

    def suspects() -> Iterator[Suspect]:
        if place and [float(pair[0]) for pair in pairs] == [float(_tiled(*s)) for s in sizes]:
            order = "Return the standard one first, then the tiled one."
            yield Suspect("standard-for-tiled", order, doubles([_standard(*s) for s in sizes]))
        for slips in zip(*((_standard_slips, _tiled_slips)[place](*s) for s in sizes), strict=True):
            yield Suspect(*slips[0][:2], doubles([value for _, _, value in slips]))

    require_numbers(
        found,
        [_standard(*s) if place == 0 else _tiled(*s) for s in sizes],
        calls=[f"attention_flops({n}, {d}, {b}), {name}" for n, d, b in sizes],
        within=1e-6,  # FP32 rounds a product of whole numbers three times
        suspects=suspects,
    )


def _product(length: int, width: int) -> int:
    return 2 * length * length * width


def _standard(length: int, width: int, _: int) -> int:
    return 6 * _product(length, width)


def _tiled(length: int, width: int, columns: int) -> int:
    return 7 * _product(length, width) + math.ceil(length / columns) * length * width


def _standard_slips(length: int, width: int, columns: int) -> Iterator[tuple[str, str, float]]:
    product = _product(length, width)
    yield "counts-a-multiply-add-once", "A multiply-add is two FLOPs.", 3 * product
    for products in (2, 4, 1, 3):
        yield "forgets-a-product", "Two products forward and four backward.", products * product
    yield "tiled-for-standard", "Return the standard one first.", _tiled(length, width, columns)
    yield "recomputes-without-tiles", "The standard backward pass has kept its weights.", 7 * product
    linear = "A product of (N, d) and (d, N) takes 2 · N · N · d."
    yield "not-quadratic", linear, 12 * length * width**2
    yield "not-quadratic", linear, 12 * length * width


def _tiled_slips(length: int, width: int, columns: int) -> Iterator[tuple[str, str, float]]:
    product, blocks = _product(length, width), math.ceil(length / columns)
    rescaling = blocks * length * width
    once = "The scores are computed again in the backward pass: five products, not four."
    yield "computes-no-scores-again", once, 6 * product + rescaling
    yield "computes-no-scores-again", once, 6 * product
    yield "forgets-the-rescaling", "After each block of keys N · d values are rescaled.", 7 * product
    yield "counts-a-multiply-add-once", "A multiply-add is two FLOPs.", 3.5 * product + rescaling
    yield "counts-a-multiply-add-once", "A multiply-add is two FLOPs.", 3.5 * product
    yield (
        "counts-rescaling-as-multiply-add",
        "A rescaled value is multiplied, nothing added.",
        7 * product + 2 * rescaling,
    )
    up = "A last block that is shorter is a block as well: round their number up."
    yield "rounds-blocks-down", up, 7 * product + length // columns * length * width
    yield "rounds-blocks-down", up, 7 * product + length / columns * length * width
    yield "rescales-once", "The output is rescaled after each block of keys.", 7 * product + length * width
    forward = "Both passes count: two products forward, five backward."
    yield "forgets-a-product", forward, 2 * product + rescaling
    yield "forgets-a-product", forward, 5 * product + rescaling
    yield "forgets-a-product", forward, 5 * product


def _measured(draw: torch.Generator, kind: torch.dtype, noise: float, *, above: float = 0.0) -> Measured:
    """Draw inputs that `kind` holds exactly, and round what comes of them, with noise, to it.

    A first channel of `above` in every query and key moves all scores up, which changes no weight, and makes whoever
    does not multiply in FP64 lose digits.
    """
    rows, columns, width = drawn(14, 18, draw), drawn(24, 30, draw), 12
    q, k, v = (torch.randn(n, width, generator=draw) for n in (rows, columns, columns))
    if above:
        q[:, 0] = k[:, 0] = above
    inputs = Attention(*(t.to(kind).float() for t in (1.2 * q, 1.2 * k, v)))
    # not symmetric about 0, and larger in some places: a mean, a maximum and a root of squares differ
    errors = noise * uniform(-1.0, 2.0, (rows, width), draw) ** 3
    output = (inputs.output + errors).to(kind)
    return Measured(output, inputs, f"output in {str(kind)[6:]}, {rows} queries, {columns} keys, width {width}")


def _compare_errors(relative_error: LearnerFunction, cases: list[Measured]) -> None:
    calls = [f"{ERROR} with {case.told}" for case in cases]
    found = [relative_error(*case.arguments) for case in cases]
    got = [as_number(value, call=call) for value, call in zip(found, calls, strict=True)]

    def suspects() -> Iterator[Suspect]:
        for slips in zip(*map(_error_slips, cases), strict=True):
            yield Suspect(*slips[0][:2], doubles([value for _, _, value in slips]))
        yield from _coarse(got, cases)

    require_numbers(got, [c.share for c in cases], calls=calls, within=WITHIN, suspects=suspects)


def _coarse(got: list[float], cases: list[Measured]) -> Iterator[Suspect]:
    """Yield what was got if it is the error of the reference: FP64 finds only one rounding in such an output."""
    fits = [case.share * 1.5 < value < 1e-2 for value, case in zip(got, cases, strict=True)]
    if all(fits) and cases[0].output.dtype == torch.float32:
        thought = "The reference errs more than what it judges: take q, k and v to FP64 before the first product."
        yield Suspect("reference-not-in-fp64", thought, doubles(got))


def _error_slips(case: Measured) -> Iterator[tuple[str, str, float]]:
    error, exact = case.error, case.inputs.output
    rms = error.square().mean().sqrt().item()
    root = "The root of the mean of the squares: of the error, over that of the exact output."
    yield "not-relative", root, rms
    yield "forgets-the-root", root, case.share**2
    yield "forgets-the-root", root, error.square().mean().item()
    yield "forgets-the-root", root, rms / exact.square().mean().item()
    yield "maximum-for-rms", root, error.abs().max().item()
    yield "maximum-for-rms", root, (error.abs().max() / exact.abs().max()).item()
    yield "maximum-for-rms", root, (error.abs() / exact.abs()).max().item()
    yield "mean-for-rms", root, error.abs().mean().item()
    yield "mean-for-rms", root, (error.abs().mean() / exact.abs().mean()).item()
    yield "mean-for-rms", root, (error.abs() / exact.abs()).mean().item()
    yield "errors-cancel", root, error.mean().item()
    yield "errors-cancel", root, abs(error.mean().item())
    yield "errors-cancel", root, (error.mean() / exact.mean()).item()
    of_type = "Rounding the reference to the output's type rounds the difference away: take the output to FP64."
    rounded = case.output.double() - exact.to(case.output.dtype).double()
    yield "rounds-the-reference", of_type, (rounded.square().mean() / exact.square().mean()).sqrt().item()
    for scale, name in (
        (math.sqrt(case.inputs.q.shape[1]), "scale-forgotten"),
        (case.inputs.scale, "scale-by-the-width"),
    ):
        other = torch.softmax(scale * case.inputs.scores, 1) @ case.inputs.v.double()
        share = (case.output.double() - other).square().mean() / other.square().mean()
        yield name, "Scores are q·k / √width, once.", share.sqrt().item()
