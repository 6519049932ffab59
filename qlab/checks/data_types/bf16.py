"""Checks of the two ways from FP32 to BF16: on bit patterns, and stochastically."""

import math

import torch
from torch import Tensor

from qlab import formats
from qlab.checks.data_types.decoding import TOPIC
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part, require
from qlab.formats import BF16

DROPPED_BITS = 16
COPIES = 4000
SHARES = (1 / 16, 1 / 4, 1 / 2, 7 / 8)
FAIR_COIN_SPREAD = 6 * math.sqrt(0.25 / COPIES)


@check(TOPIC, "fp32-bits-to-bf16-bits", formats.fp32_bits_to_bf16_bits, points=4)
def check_fp32_bits_to_bf16_bits(to_bf16: LearnerFunction, draw: torch.Generator) -> None:
    """Check `fp32_bits_to_bf16_bits(bits)` against the cast of another library, on bit patterns."""
    with part("the nearest BF16 pattern, both signs"):
        _compare_patterns(to_bf16, _finite_patterns(4000, draw))
    with part("a tie goes to the even pattern"):
        upper = torch.randint(0, 0x7F7F, (500,), generator=draw) | (torch.arange(500) % 2 << 15)
        _compare_patterns(to_bf16, torch.cat([(upper << 16) | 0x8000, _finite_patterns(500, draw)]))
    with part("zeros, infinities, and the largest numbers, which round to infinity"):
        edges = [0, 1, 0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000]
        both_signs = torch.tensor([bits | sign << 31 for bits in edges for sign in (0, 1)])
        _compare_patterns(to_bf16, torch.cat([both_signs, _finite_patterns(500, draw)]))
    with part("every NaN stays a NaN"):
        payloads = torch.randint(1, 2**23, (200,), generator=draw)
        bits = torch.cat([payloads, torch.tensor([1, 0xFFFF, 0x7FFFFF, 0x7FFF80, 0x400000])]) | 0x7F800000
        bits = torch.cat([bits, bits | 1 << 31])
        got = _patterns(to_bf16(bits), bits)
        broken = ~((got & 0x7F80 == 0x7F80) & (got & 0x7F != 0))
        shown = (
            f"given bits={int(bits[broken][0]):#010x}, a NaN, got {int(got[broken][0]):#06x}" if broken.any() else ""
        )
        require(
            not broken.any(),
            f"{shown}, which is not a NaN (wrong on {int(broken.sum())} of {len(bits)} inputs)",
            misconception="turns-nan-into-infinity",
            thought="Dropping low bits, or a carry out of them, can empty a NaN's fraction or run past the exponent.",
        )


@check(TOPIC, "stochastic-round", formats.stochastic_round, points=3)
def check_stochastic_round(stochastic_round: LearnerFunction, draw: torch.Generator) -> None:
    """Check `stochastic_round(x, generator)`, FP32 to BF16, by its neighbors, its mean, and its generator."""
    with part("only the two neighbors in BF16, and numbers of BF16 stay as they are"):
        x = torch.randn(2000, generator=draw) * torch.exp2(torch.randint(-20, 20, (2000,), generator=draw))
        x = torch.cat([x, x[:200].bfloat16().float(), torch.tensor([0.0, 1.0, -2.0])])
        below = (x.view(torch.int32) >> DROPPED_BITS << DROPPED_BITS).view(torch.float32)
        exact = x == below
        above = (below.view(torch.int32) + torch.where(exact, 0, 2**DROPPED_BITS).int()).view(torch.float32)
        got = as_tensor(stochastic_round(x, draw), tuple(x.shape), call="stochastic_round(x, generator)").float()
        strange = ~((got == below) | (got == above))
        first = int(strange.nonzero()[0]) if strange.any() else 0
        require(
            not strange.any(),
            f"given {x[first]:.9g}, between {below[first]:.9g} and {above[first]:.9g}, got {got[first]:.9g}",
            misconception="moves-exact-values" if exact[first] else "not-a-neighbor",
            thought="The result is the BF16 number just below or just above; a number BF16 holds has no choice.",
        )
    with part("the odds keep the mean: a value a quarter of the way up goes up a quarter of the time"):
        _require_odds(stochastic_round, draw)
    with part("all randomness comes from the generator"):
        x = torch.full((64,), 1 + 2.0**-8)
        runs = [stochastic_round(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        first, same, other = (as_tensor(run, (64,), call="stochastic_round(x, generator)").float() for run in runs)
        require(
            torch.equal(first, same) and not torch.equal(first, other),
            "two generators with seed 1 must give the same result, and seed 2 another",
            misconception="ignores-the-generator",
            thought="Hand the generator to the function that draws: `torch.rand(..., generator=generator)`.",
        )


def _require_odds(stochastic_round: LearnerFunction, draw: torch.Generator) -> None:
    raised = torch.tensor([sign * _raised_share(stochastic_round, sign, s, draw) for sign in (1, -1) for s in SHARES])
    expected = torch.tensor([sign * share for sign in (1, -1) for share in SHARES])
    tolerance = 6 * (expected.abs() * (1 - expected.abs()) / COPIES).sqrt()  # six standard errors: 2 in 10⁹ by chance
    off = (raised - expected).abs() > tolerance
    if not off.any():
        return
    worst = int((raised - expected).abs().argmax())
    misconception, thought = _diagnose_odds(stochastic_round, raised.abs(), draw)
    require(
        False,
        f"{COPIES} copies of a value {expected[worst].abs():.4g} of the way from one BF16 number to the next,"
        f" away from zero, ended {raised[worst].abs():.4g} of the way on average",
        misconception=misconception,
        thought=thought,
    )


def _raised_share(stochastic_round: LearnerFunction, sign: int, share: float, draw: torch.Generator) -> float:
    x = torch.full((COPIES,), sign * (1.5 + share * BF16.epsilon))
    got = as_tensor(stochastic_round(x, draw), (COPIES,), call="stochastic_round(x, generator)").double()
    return ((got.abs() - 1.5) / BF16.epsilon).mean().item()


def _diagnose_odds(stochastic_round: LearnerFunction, raised: Tensor, draw: torch.Generator) -> tuple[str, str]:
    shares = torch.tensor(SHARES).repeat(2)
    halfway = [_raised_share(stochastic_round, 1, 0.5, draw) for _ in range(30)]
    if set(halfway) == {0.0, 1.0}:
        return "one-draw-for-all", "All copies went the same way in a call: draw once for each element."
    if torch.equal(raised, torch.zeros(len(raised))):
        return "truncates", "The result never goes away from zero: add the draw before you cut bits off."
    if torch.equal(raised[shares != 0.5], shares[shares != 0.5].round()):
        return "rounds-to-nearest", "Every copy went to the nearer neighbor: compare a random draw with the odds."
    if (raised - 0.5).abs().max() < FAIR_COIN_SPREAD:
        return "flips-a-fair-coin", "The odds of going up are the distance from below, in steps."
    return "biased", "The odds of the upper neighbor must be (x − lower) / (upper − lower)."


def _finite_patterns(count: int, draw: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2**32, (count,), generator=draw)
    return bits[(bits >> 23) & 0xFF != 0xFF]


def _patterns(value: object, bits: Tensor) -> Tensor:
    """Read BF16 patterns from integers of any width; int16 holds the upper half as negative numbers."""
    got = as_tensor(value, tuple(bits.shape), call="fp32_bits_to_bf16_bits(bits)")
    if got.is_floating_point():
        got = got.float().nan_to_num(-1.0)
    return got.long() & 0xFFFF if got.dtype == torch.int16 else got.long()


def _compare_patterns(to_bf16: LearnerFunction, bits: Tensor) -> None:
    got = _patterns(to_bf16(bits), bits)
    cast = bits.to(torch.int32).view(torch.float32).bfloat16().view(torch.int16).long() & 0xFFFF
    require_values(
        got,
        cast,
        given=lambda i: f"bits={int(bits[i]):#010x}",
        suspects=lambda: _pattern_suspects(bits, cast),
    )


def _pattern_suspects(bits: Tensor, cast: Tensor) -> list[Suspect]:
    return [
        Suspect("truncates", "Cutting off 16 bits rounds toward zero: add before you shift.", bits >> DROPPED_BITS),
        Suspect(
            "ties-away-from-zero",
            "Adding 0x8000 sends every tie up: add 0x7fff, and one more where the last kept bit is one.",
            (bits + 0x8000) >> 16,
        ),
        Suspect(
            "ties-toward-zero",
            "Adding 0x7fff alone sends every tie down: add one more where the last kept bit is one.",
            (bits + 0x7FFF) >> 16,
        ),
        Suspect("not-shifted", "A BF16 pattern has 16 bits: shift the kept half down.", cast << 16),
    ]
