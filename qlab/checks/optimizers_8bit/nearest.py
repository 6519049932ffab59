"""Check of `nearest_codes`: no level nearer, the shape and type of codes, and no table of all distances."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import codebooks
from qlab.checks import probe
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.optimizers_8bit.topic import TOPIC
from qlab.checks.quantization.codes import dtype_of, uniform
from qlab.checks.report import Refused, check, part, require

# a value within this share of two levels' distance to 0 from their middle may take either: a sum, a half and a
# difference in FP32 round three times to 6e-8
TIE = 4e-7
BYTES_A_VALUE = 100  # copies of x in FP64, two candidates and int64 codes take 60; one FP32 row of 256 levels 1,024
IN_PYTHON = 240  # bytes a value: sorting pairs of numbers takes 127, a list of tensors 178, a table of bools 266
MANY, FEW = 20_000, 1_500


@dataclass(frozen=True)
class Case:
    """One call: values, and the codebook for them."""

    x: Tensor
    codebook: Tensor
    told: str


@check(TOPIC, "nearest-code", codebooks.nearest_codes, points=4)
def check_nearest_codes(nearest_codes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `nearest_codes(x, codebook)`."""
    with part("no level is nearer: uneven levels, and the dynamic maps"):
        for case in (_uneven(draw), _in_a_map(draw, signed=True), _in_a_map(draw, signed=False)):
            _require_nearest(nearest_codes, case)
    with part("levels themselves, and values beyond both ends"):
        for case in (_levels(draw), _beyond(draw)):
            _require_nearest(nearest_codes, case)
    with part("codes are uint8, in the shape of x"):
        for shape in ((3, 5, 4), (7, 2), ()):
            _require_bytes(nearest_codes, _shaped(draw, shape))
    with part(f"{MANY:,} values: at most {BYTES_A_VALUE} bytes for each at one time"):
        _require_small(nearest_codes, draw)


def _codebook(draw: torch.Generator, levels: int) -> Tensor:
    """Draw levels whose gaps differ up to a hundred times, not symmetric, and beyond -1 and 1 on both sides."""
    gaps = 10 ** uniform(-2, 0, (levels,), draw)
    return (gaps.cumsum(0) - uniform(0.3, 0.7, (), draw) * gaps.sum()) / gaps.sum() * uniform(5, 9, (), draw)


def _uneven(draw: torch.Generator) -> Case:
    codebook = _codebook(draw, drawn(20, 256, draw))
    low, high = codebook[0].item(), codebook[-1].item()
    x = torch.cat([uniform(low, high, (600,), draw), codebook[:1], codebook[-1:]])
    return Case(x, codebook, f"{len(codebook)} uneven levels")


def _in_a_map(draw: torch.Generator, *, signed: bool) -> Case:
    """Draw values of all magnitudes, from a millionth to 1."""
    x = 10 ** uniform(-6.5, 0, (600,), draw)
    if signed:
        x *= torch.randint(0, 2, x.shape, generator=draw) * 2 - 1
    name = "signed" if signed else "unsigned"
    return Case(x, codebooks.dynamic_map(signed=signed), f"the {name} dynamic map")


def _levels(draw: torch.Generator) -> Case:
    codebook = _codebook(draw, drawn(20, 256, draw))
    return Case(codebook[torch.randperm(len(codebook), generator=draw)], codebook, "levels themselves")


def _beyond(draw: torch.Generator) -> Case:
    codebook = _codebook(draw, drawn(5, 100, draw))
    outside = torch.stack([codebook[0] - uniform(0, 3, (20,), draw), codebook[-1] + uniform(0, 3, (20,), draw)])
    return Case(outside.flatten(), codebook, f"levels from {codebook[0]:.4g} to {codebook[-1]:.4g}")


def _shaped(draw: torch.Generator, shape: tuple[int, ...]) -> Case:
    x = uniform(-1, 1, shape, draw)
    return Case(x, codebooks.dynamic_map(signed=True), f"x of shape {tuple(x.shape)}")


def _require_nearest(nearest_codes: LearnerFunction, case: Case) -> None:
    call = f"nearest_codes(x, <{case.told}>)"
    codes = as_tensor(nearest_codes(case.x, case.codebook), tuple(case.x.shape), call=call).double().flatten()
    _require_codes(codes, case, call)
    x, levels = case.x.double().flatten(), case.codebook.double()
    got = levels[codes.long()]
    nearest = (x[:, None] - levels).abs().min(1)
    size = got.abs() + levels[nearest.indices].abs()
    farther = (x - got).abs() > nearest.values + TIE * size
    if not farther.any():
        return
    first = int(farther.nonzero()[0])
    misconception, thought = _diagnosis(codes, case)
    raise Refused(
        f"given {x[first]:.6g} and {case.told}, got code {int(codes[first])}, the level {got[first]:.6g}; nearer is"
        f" code {int(nearest.indices[first])}, the level {levels[nearest.indices[first]]:.6g}"
        f" (wrong for {int(farther.sum())} of {len(x)} values)",
        misconception=misconception,
        thought=thought,
    )


def _require_codes(codes: Tensor, case: Case, call: str) -> None:
    broken = codes[codes != codes.round()]
    are_levels = torch.isin(codes.float(), case.codebook).all()
    require(
        not len(broken),
        f"`{call}` returned {broken[0] if len(broken) else 0:.6g}, which is no whole number",
        misconception="returns-the-levels" if are_levels else "returns-no-codes",
        thought="A code is a level's place in the codebook, from 0 on.",
    )
    outside = codes[(codes < 0) | (codes >= len(case.codebook))].long().tolist()
    require(
        not outside,
        f"`{call}` returned code {outside[0] if outside else 0}; the codebook has {len(case.codebook)} levels",
        misconception="negative-code" if outside and outside[0] < 0 else "code-beyond-the-end",
        thought="Of n levels the last has code n − 1: n − 1 boundaries between them make n places, 0 to n − 1.",
    )


def _require_bytes(nearest_codes: LearnerFunction, case: Case) -> None:
    call = f"nearest_codes({case.told}, codebook)"
    codes = nearest_codes(case.x, case.codebook)
    as_tensor(codes, tuple(case.x.shape), call=call)
    require(
        dtype_of(codes) == "uint8",
        f"`{call}` returned codes of {dtype_of(codes)}, expected uint8",
        misconception="not-uint8",
        thought="256 codes fill a byte: end with `.to(torch.uint8)`. An int64 code would take eight bytes of state.",
    )
    _require_nearest(nearest_codes, case)


def _require_small(nearest_codes: LearnerFunction, draw: torch.Generator) -> None:
    case = Case(uniform(-1, 1, (MANY,), draw), codebooks.dynamic_map(signed=True), "the signed dynamic map")
    small = Case(case.x[:FEW], case.codebook, case.told)
    _require_nearest(nearest_codes, small)  # what an answer makes once for a codebook is not counted
    codes, most = probe.result_and_peak_bytes(nearest_codes, case.x, case.codebook)
    most /= MANY
    _require_nearest(LearnerFunction(lambda *_: codes), case)
    _require_no_table(most, BYTES_A_VALUE, "")
    codes, most = probe.result_and_python_bytes(nearest_codes, case.x, case.codebook)
    _require_nearest(LearnerFunction(lambda *_: codes), case)
    _require_no_table(most / MANY, IN_PYTHON, " in Python and NumPy")


def _require_no_table(most: float, allowed: int, where: str) -> None:
    require(
        most <= allowed,
        f"{MANY:,} values and 256 levels: {most:,.0f} bytes a value at one time{where}, at most {allowed}",
        misconception="compares-with-every-level",
        thought="A table of all distances is 256 times as large as x: search among the boundaries between levels.",
    )


Rule = Callable[[Tensor, Tensor], Tensor]


def _diagnosis(codes: Tensor, case: Case) -> tuple[str, str]:
    """Name the slip whose own formula gives every code, but for values within a hair of where it changes."""
    x, levels = case.x.double().flatten(), case.codebook.double()
    hair = TIE * (x.abs() + 1e-9)
    for misconception, thought, rule in SLIPS:
        fits = torch.zeros_like(codes, dtype=torch.bool)
        for moved in (x, x - hair, x + hair):
            fits |= rule(moved, levels).clamp(0, len(levels) - 1) == codes
        if fits.all():
            return misconception, thought
    return "not-the-nearest", "Compare with the level on either side: the smaller distance wins."


def _middles(levels: Tensor) -> Tensor:
    return (levels[1:] + levels[:-1]) / 2


def _even(x: Tensor, levels: Tensor) -> Tensor:
    return ((x - levels[0]) / (levels[-1] - levels[0]) * (len(levels) - 1)).round()


FLOOR = "This is the level below, however near the one above is: put the boundaries in the middle between levels."
CEIL = "This is the level above, however near the one below is: put the boundaries in the middle between levels."
EVEN = "Levels of this codebook are not evenly spaced: no formula gives the place, it has to be searched."
SHIFT = "The number of boundaries below a value is its code: nothing to add or take away."
CLAMP = "The codebook need not end at −1 and 1: leave the values as they are, its ends catch what is beyond."
FAR = "A level of the other sign is far away: the magnitude is taken of the difference, not before."
SLIPS: tuple[tuple[str, str, Rule], ...] = (
    ("takes-the-level-below", FLOOR, lambda x, c: torch.searchsorted(c, x, right=True) - 1),
    ("takes-the-level-below", FLOOR, lambda x, c: torch.searchsorted(c, x) - 1),
    ("takes-the-level-above", CEIL, lambda x, c: torch.searchsorted(c, x)),
    ("takes-the-level-above", CEIL, lambda x, c: torch.searchsorted(c, x, right=True)),
    ("assumes-even-levels", EVEN, _even),
    ("assumes-even-levels", EVEN, lambda x, c: ((x + 1) / 2 * (len(c) - 1)).round()),
    ("assumes-even-levels", EVEN, lambda x, c: (x * (len(c) - 1)).round()),
    ("one-code-off", SHIFT, lambda x, c: torch.bucketize(x, _middles(c)) + 1),
    ("one-code-off", SHIFT, lambda x, c: torch.bucketize(x, _middles(c)) - 1),
    ("takes-the-farthest", "The smallest distance, not the largest.", lambda x, c: (x[:, None] - c).abs().argmax(1)),
    ("forgets-the-sign", "Distances are absolute: |x − level|.", lambda x, c: (x[:, None] - c).argmin(1)),
    ("forgets-the-sign", "Distances are absolute: |x − level|.", lambda x, c: (c - x[:, None]).argmin(1)),
    ("clamps-to-one", CLAMP, lambda x, c: torch.bucketize(x.clamp(-1, 1), _middles(c))),
    (
        "compares-magnitudes",
        FAR,
        lambda x, c: (x.abs()[:, None] - c.abs()).abs().argmin(1),
    ),
)
