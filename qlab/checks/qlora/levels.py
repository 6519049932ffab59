"""Check of `nf4_codebook`: quantiles of a normal distribution on both sides of an exact zero."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qlab import codebooks
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.learner import LearnerFunction
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.codes import dtype_of, uniform
from qlab.checks.report import Refused, check, part, require

PAPER_OFFSET = 0.9677083
# Dettmers et al. 2023, appendix E, arXiv:2305.14314
PAPER = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# a probability in FP32 is off by 3e-8, and its quantile by that over the density, 0.03 at 0.99: 1e-6 in the worst case
CLOSE = 1e-5
CALL = "nf4_codebook(offset)"


@check(TOPIC, "nf4-codebook", codebooks.normal_map, points=3, forbids=("qlab.codebooks.NF4",))
def check_nf4_codebook(nf4_codebook: LearnerFunction, draw: torch.Generator) -> None:
    """Check `nf4_codebook(offset)`."""
    with part("16 ascending levels in FP32, from -1 to 1, one of them exactly zero"):
        for offset in (PAPER_OFFSET, *_offsets(draw)):
            _require_form(nf4_codebook, offset)
    with part("the levels of the paper"):
        _compare(nf4_codebook, PAPER_OFFSET, torch.tensor(PAPER, dtype=torch.float64))
    with part("other offsets"):
        for offset in _offsets(draw):
            _compare(nf4_codebook, offset, expected_levels(offset))


def _offsets(draw: torch.Generator) -> list[float]:
    return [round(uniform(low, high, (), draw).item(), 4) for low, high in ((0.9, 0.95), (0.975, 0.99))]


def _quantiles(offset: float, count: int) -> Tensor:
    """Return the quantiles of `count` even probabilities from the offset down to one half, which is left out."""
    return torch.special.ndtri(torch.linspace(offset, 0.5, count + 1, dtype=torch.float64)[:-1])


def expected_levels(offset: float) -> Tensor:
    """Return the codebook in FP64."""
    positive, negative = _quantiles(offset, 8), _quantiles(offset, 7)
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat([-negative, zero, positive.flip(0)]) / positive[0]


def _levels(nf4_codebook: LearnerFunction, offset: float) -> tuple[Tensor, str]:
    returned = nf4_codebook(offset)
    shape = tuple(getattr(returned, "shape", ())) or (len(returned) if isinstance(returned, list | tuple) else 0,)
    if shape == (17,):
        zeros = int((as_tensor(returned, (17,), call=CALL) == 0).sum())
        raise Refused(
            f"`{CALL}` returned 17 levels, expected 16; {zeros} of them are zero",
            misconception="zero-twice" if zeros == 2 else "wrong-shape",
            thought="8 positive levels, 7 negative ones and one zero make 16: the zero belongs to neither half.",
        )
    return as_tensor(returned, (16,), call=CALL).double(), dtype_of(returned)


def _require_form(nf4_codebook: LearnerFunction, offset: float) -> None:
    got, kind = _levels(nf4_codebook, offset)
    require(
        got.isfinite().all(),
        f"some levels are not finite: {_listed(got)}",
        misconception="infinite-levels",
        thought="The quantile of 1 is infinite: probabilities go from the offset, below 1, to one half.",
    )
    _require_no_slip(got, offset)
    require(
        (got.diff() > 0).all(),
        f"the levels are not in ascending order, each once: {_listed(got)}",
        misconception="not-ascending",
        thought="Codes are found by where a value lies between neighbors: sort the levels.",
    )
    require(
        bool((got == 0).any()),
        f"no level is exactly zero; the nearest is {got[got.abs().argmin()]:.3g}",
        misconception="no-exact-zero",
        thought="Zeros in a weight, padding among them, must come back as zeros: put a 0 between the two halves.",
    )
    ends = got[[0, -1]]
    require(
        (ends.abs() - 1).abs().max() <= CLOSE,
        f"the levels go from {ends[0]:.6g} to {ends[1]:.6g}, expected -1 to 1",
        misconception="not-normalized",
        thought="A block divided by its absmax lies from -1 to 1: divide all levels by the largest one.",
    )
    require(
        int((got > 0).sum()) == 8,
        f"{int((got > 0).sum())} levels are positive, expected 8",
        misconception="eight-negative",
        thought="The half with 8 levels is the positive one.",
    )
    require(
        kind in ("float32", "Python list", "Python tuple"),
        f"`{CALL}` returned {kind}, expected float32",
        misconception="wrong-dtype",
        thought="Weights are decoded in FP32: end in `.float()`.",
    )


def _require_no_slip(got: Tensor, offset: float) -> None:
    """Name a slip that gives every level, before its form is judged."""
    for misconception, thought, slip in _slips(offset):
        values = slip.double()
        require(
            ((values - got).abs() > CLOSE).any() or ((values - expected_levels(offset)).abs() <= CLOSE).all(),
            f"`{CALL}` at {offset:g} returned {_listed(got)}",
            misconception=misconception,
            thought=thought,
        )


def _compare(nf4_codebook: LearnerFunction, offset: float, want: Tensor) -> None:
    got, _ = _levels(nf4_codebook, offset)
    require_near(
        got,
        want,
        torch.full_like(want, CLOSE),
        given=lambda i: f"the offset {offset:g}, level {i}",
        slips=lambda: _slips(offset),
    )


def _listed(levels: Tensor) -> str:
    return ", ".join(f"{level:.4g}" for level in levels.tolist())


def _slips(offset: float) -> Iterator[Slip]:
    eight, seven = _quantiles(offset, 8), _quantiles(offset, 7)
    zero, largest = torch.zeros(1, dtype=torch.float64), eight[0]
    even = (
        "Even steps waste codes: weights crowd around zero. The *probabilities* are even, the levels their quantiles."
    )
    yield "uniform", even, torch.linspace(-1, 1, 16)
    yield "uniform", even, torch.cat([torch.linspace(-1, 0, 8), torch.linspace(0, 1, 9)[1:]])
    yield "uniform", even, torch.cat([torch.linspace(-1, 0, 9), torch.linspace(0, 1, 8)[1:]])
    yield "uniform", even, torch.arange(-8, 8) / 8
    yield "uniform", even, torch.arange(-7, 9) / 8
    exact = "16 quantiles placed evenly have no zero in the middle: make two halves, and put a 0 between them."
    for count in (16, 17):
        whole = torch.special.ndtri(torch.linspace(1 - offset, offset, count, dtype=torch.float64))
        yield "no-exact-zero", exact, (whole / whole.abs().max())[:16]
    middles = torch.special.ndtri((torch.arange(16, dtype=torch.float64) + 0.5) / 16)
    inner = torch.special.ndtri(torch.arange(1, 17, dtype=torch.float64) / 17)
    for whole in (middles, inner):
        yield "no-exact-zero", exact, whole / whole.abs().max()
    both = torch.cat([-eight, eight.flip(0)]) / largest
    yield "no-exact-zero", exact, both
    sides = "The half with 8 levels is the positive one, the half with 7 the negative one."
    yield "eight-negative", sides, torch.cat([-eight, zero, seven.flip(0)]) / largest
    once = "A zero in each half is one too many: leave the probability one half out, and put one 0 between."
    half = torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))
    yield "zero-twice", once, torch.cat([-half, half.flip(0)]) / largest
    own = "Each half has its own even probabilities: 8 steps from the offset to one half, and 7."
    yield "one-spacing-for-both-halves", own, torch.cat([-eight[:7], zero, eight.flip(0)]) / largest
    yield "one-spacing-for-both-halves", own, torch.cat([-eight[1:], zero, eight.flip(0)]) / largest
    divide = "A block divided by its absmax lies from -1 to 1: divide all levels by the largest one."
    yield "not-normalized", divide, torch.cat([-seven, zero, eight.flip(0)])
    if offset != PAPER_OFFSET:
        yield "ignores-the-offset", "The outermost probability is an argument.", torch.tensor(PAPER)
    yield "upside-down", "Ascending: from -1 to 1.", expected_levels(offset).flip(0)
