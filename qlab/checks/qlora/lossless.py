"""Check of `update_lost` and `largest_useful_rank`: what a merge into few bits costs, and when an adapter is small."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from qlab import codebooks, lora
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.report import check, part

WITHIN = (
    1e-3  # a code within a hair of a tie may go either way: one of 1 000 errors of like size, 1e-3 of their squares
)
Quantize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One call of `update_lost`."""

    base: Tensor
    update: Tensor
    quantize: Quantize
    name: str

    @property
    def merged(self) -> Tensor:
        return self.base + self.update

    def error(self, weight: Tensor) -> Tensor:
        return (self.quantize(weight) - weight).double()


def nf4(weight: Tensor) -> Tensor:
    """Return what is left of a weight after NF4 codes in blocks of 64."""
    return codebooks.quantize_blockwise(weight, codebooks.NF4, block_size=64).dequantize()


def int8(weight: Tensor) -> Tensor:
    """Return what is left of a weight after 8-bit codes in blocks of 64, evenly spaced."""
    return codebooks.quantize_blockwise(weight, codebooks.linear_map(signed=True), block_size=64).dequantize()


def bf16(weight: Tensor) -> Tensor:
    """Return what is left of a weight in BF16."""
    return weight.bfloat16().float()


@check(TOPIC, "lossless-merge", lora.QLoRALinear.merge_to_codes, lora.MergedToCodes, points=4)
def check_lossless_merge(update_lost: LearnerFunction, rank: LearnerFunction, draw: torch.Generator) -> None:
    """Check `update_lost(base, update, quantize)` and `largest_useful_rank(out_features, in_features)`."""
    with part("back into NF4: the new rounding error, over the update"):
        _compare(update_lost, [_case(draw, nf4, "NF4", size) for size in (0.05, 0.1, 0.3)])
    with part("into BF16, and into 8 bits, where more is lost than the update is large"):
        _compare(update_lost, [_case(draw, bf16, "BF16", 0.02), _case(draw, int8, "int8", 0.001)])
    with part("the largest rank whose adapter is smaller than the weight"):
        sides = [(drawn(30, 900, draw), drawn(30, 900, draw)) for _ in range(12)]
        _compare_ranks(rank, [*sides, (4096, 11008)])
    with part("where the adapter is exactly as large it saves nothing; thin weights may have no rank at all"):
        halves = [2 * drawn(4, 500, draw) for _ in range(4)]
        thirds = [drawn(4, 300, draw) for _ in range(3)]
        # r = k n / (k + 1) is whole: a square weight at half its side, and one three times as wide
        exact = [(n, n) for n in halves] + [(4 * n, 12 * n) for n in thirds] + [(12 * n, 4 * n) for n in thirds]
        _compare_ranks(
            rank, [*exact, (1, drawn(5, 99, draw)), (drawn(5, 99, draw), 1), (2, 2), (2, drawn(3, 99, draw))]
        )


def _case(draw: torch.Generator, quantize: Quantize, name: str, size: float) -> Case:
    """Draw a base that is on the grid already, as the adapter was trained beside it, and an update of low rank."""
    out, inputs, rank = drawn(20, 28, draw), 64 * drawn(2, 3, draw), drawn(2, 4, draw)
    base = nf4(torch.randn(out, inputs, generator=draw) / 8)
    update = torch.randn(out, rank, generator=draw) @ torch.randn(rank, inputs, generator=draw)
    return Case(base, size / 8 * update, quantize, name)


def _compare(update_lost: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [update_lost(case.base, case.update, case.quantize) for case in cases],
        [_lost(case) for case in cases],
        calls=[
            f"update_lost(base, update, quantize) into {c.name}, an update of {c.update.norm() / c.base.norm():.1%}"
            for c in cases
        ],
        within=WITHIN,
        suspects=lambda: [
            Suspect(*slips[0][:2], doubles([value for _, _, value in slips]))
            for slips in zip(*map(_slips, cases), strict=True)
        ],
    )


def _norm(values: Tensor) -> float:
    return values.double().norm().item()


def _lost(case: Case) -> float:
    return _norm(case.error(case.merged)) / _norm(case.update)


def _slips(case: Case) -> Iterator[tuple[str, str, float]]:
    error, update, merged = case.error(case.merged), case.update.double(), case.merged.double()
    against = "Beside the *weight* every error looks small. What was trained is the update: divide by its norm."
    yield "relative-to-the-weight", against, _norm(error) / _norm(merged)
    yield "relative-to-the-weight", against, _norm(error) / _norm(case.base)
    exact = "The sum is exact until it goes back to codes: quantize it, then compare."
    for left in (0.0, _norm(case.merged - case.base - case.update), _norm(case.merged - case.update - case.base)):
        yield "forgets-to-requantize", exact, left / _norm(update)
    kept = _norm(case.quantize(case.merged).double() - case.base.double()) / _norm(update)
    base = "Compare the quantized sum with the exact sum: what differs is lost."
    yield "compares-with-the-base", base, kept
    yield "compares-with-the-base", base, _norm(case.quantize(case.merged) - case.quantize(case.base)) / _norm(update)
    both = _norm(case.quantize(case.merged) - case.quantize(case.base) - case.update) / _norm(update)
    yield "quantizes-the-base-too", base, both
    alone = "An update is not coded by itself: the codes are those of base plus update."
    yield "quantizes-the-update-alone", alone, _norm(case.error(case.update)) / _norm(update)
    yield "error-of-the-base", "Add the update before you quantize.", _norm(case.error(case.base)) / _norm(update)
    root = "The norm is the root of the sum of squares: of the error, over that of the update."
    yield "forgets-the-root", root, (_norm(error) / _norm(update)) ** 2
    yield "forgets-the-root", root, _norm(error) ** 2 / _norm(update)
    yield "mean-for-norm", root, (error.abs().mean() / update.abs().mean()).item()
    yield "largest-for-norm", root, (error.abs().max() / update.abs().max()).item()
    yield "not-relative", "Divide by the norm of the update.", _norm(error)
    yield "mean-for-norm", root, (error.abs() / update.abs()).mean().item()
    yield "upside-down", "The error over the update.", _norm(update) / max(_norm(error), 1e-30)
    yield "share-that-survives", "Asked for is what is lost.", 1 - _norm(error) / _norm(update)
    yield "errors-cancel", root, (error.sum() / update.sum()).item()


def _compare_ranks(rank: LearnerFunction, sides: list[tuple[int, int]]) -> None:
    require_numbers(
        rank.map(sides),
        [_rank(*side) for side in sides],
        calls=[f"largest_useful_rank{side}" for side in sides],
        suspects=lambda: [
            Suspect(*slips[0][:2], doubles([value for _, _, value in slips]))
            for slips in zip(*(_rank_slips(*side) for side in sides), strict=True)
        ],
    )


def _rank(out: int, inputs: int) -> int:
    return (out * inputs - 1) // (out + inputs)


def _rank_slips(out: int, inputs: int) -> Iterator[tuple[str, str, float]]:
    both = "A has rank · in numbers and B out · rank: together rank · (in + out)."
    yield (
        "saves-nothing-at-equality",
        "As many numbers as the weight has is no saving: strictly fewer.",
        (out * inputs // (out + inputs)),
    )
    yield "one-matrix-only", both, min(out, inputs)
    yield "one-matrix-only", both, min(out, inputs) - 1
    yield "one-matrix-only", both, out
    yield "one-matrix-only", both, inputs
    yield "half-the-smaller-side", f"{both} Half a side is right for square weights alone.", min(out, inputs) // 2
    yield "half-the-smaller-side", f"{both} Half a side is right for square weights alone.", (min(out, inputs) - 1) // 2
    whole = "A rank is a whole number, and the adapter must still be smaller: round down."
    yield "rounds-up", whole, -(-out * inputs // (out + inputs))
    yield "rounds-to-nearest", whole, round(out * inputs / (out + inputs))
    yield "not-whole", whole, out * inputs / (out + inputs)
    yield "one-too-few", "One rank more is still smaller.", out * inputs // (out + inputs) - 1
    yield "one-too-few", "One rank more is still smaller.", (out * inputs - 1) // (out + inputs) - 1
    yield "at-least-one", "Where even rank 1 is as large as the weight the answer is 0.", max(1, _rank(out, inputs))
    yield "multiplies-the-sides", both, int(sqrt(out * inputs))
    yield (
        "first-that-saves-nothing",
        "The largest rank that still saves, not the first that does not.",
        (_rank(out, inputs) + 1),
    )
