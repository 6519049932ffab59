"""Checks of the two ways from FP32 to BF16: on bit patterns, and stochastically."""

import math

import torch
from torch import Tensor

from qlab import formats
from qlab.checks.data_types.decoding import TOPIC
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part, require

DROPPED_BITS = 16
COPIES = 20_000
SHARE_RANGES = ((0.1, 0.4), (0.45, 0.49), (0.6, 0.9))
FINE_SHARES = (0.0037, 0.9963)  # noise of eight bits or fewer never, or always, reaches these
COARSEST_NOISE = 1 / 8  # three bits of it
SIGMAS = 6  # standard errors: the chance of a false alarm in ten such tests is 2 in 10⁸
FAIR_COIN_SPREAD = SIGMAS * math.sqrt(0.25 / COPIES)


@check(TOPIC, "fp32-bits-to-bf16-bits", formats.fp32_bits_to_bf16_bits, points=4)
def check_fp32_bits_to_bf16_bits(to_bf16: LearnerFunction, draw: torch.Generator) -> None:
    """Check `fp32_bits_to_bf16_bits(bits)` against the cast of another library, on bit patterns."""
    with part("the nearest BF16 pattern, both signs"):
        bits = _finite_patterns(4000, draw)
        _compare_patterns(to_bf16, torch.where(bits & 0xFFFF == 0x8000, bits + 1, bits))  # ties have their own part
    with part("a tie goes to the even pattern"):
        upper = torch.randint(0, 0x7F7F, (500,), generator=draw) | (torch.arange(500) % 2 << 15)
        _compare_patterns(to_bf16, torch.cat([(upper << 16) | 0x8000, _finite_patterns(500, draw)]))
    with part("zeros, infinities, and the largest numbers, which round to infinity"):
        edges = [0, 1, 0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000]
        both_signs = torch.tensor([bits | sign << 31 for bits in edges for sign in (0, 1)])
        ties = (torch.randint(0, 0x7F7F, (100,), generator=draw) << 16) | 0x8000
        _compare_patterns(to_bf16, torch.cat([both_signs, ties, _finite_patterns(500, draw)]))
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
    with part("all randomness comes from the generator, and each call draws anew"):
        x = torch.rand(COPIES, generator=draw) + 1
        call = "stochastic_round(x, generator)"
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
        runs = [stochastic_round(x, g) for g in (*generators, generators[0])]
        first, same, other, later = (as_tensor(run, (COPIES,), call=call).float() for run in runs)
        require(
            torch.equal(first, same) and not torch.equal(first, other),
            "two generators with seed 1 must give the same result, and seed 2 another",
            misconception="ignores-the-generator",
            thought="All that is random must be drawn with `generator=generator`, and nothing else may be random.",
        )
        require(
            not torch.equal(first, later),
            "a second call with the same generator gave the same result",
            misconception="same-noise-every-call",
            thought="Do not seed the generator again: draw from it as it comes.",
        )


def _require_odds(stochastic_round: LearnerFunction, draw: torch.Generator) -> None:
    shares = [*(low + (high - low) * torch.rand((), generator=draw).item() for low, high in SHARE_RANGES), *FINE_SHARES]
    expected = torch.tensor([share for share in shares for _ in (1, -1)], dtype=torch.float64)
    raised = [_raised_share(stochastic_round, sign, share, draw) for share in shares for sign in (1, -1)]
    raised = torch.tensor(raised, dtype=torch.float64)
    tolerance = SIGMAS * (expected * (1 - expected) / COPIES).sqrt()
    off = (raised - expected).abs() - tolerance
    if (off <= 0).all():
        return
    worst = int(off.argmax())
    misconception, thought = _diagnose_odds(stochastic_round, expected, raised, draw)
    require(
        False,
        f"{COPIES} {('positive', 'negative')[worst % 2]} values {expected[worst]:.4f} of the way from one BF16 number"
        f" to the next, away from zero: {raised[worst]:.4f} of them went up in magnitude",
        misconception=misconception,
        thought=thought,
    )


def _raised_share(stochastic_round: LearnerFunction, sign: int, share: float, draw: torch.Generator) -> float:
    """Round values of many sizes, all the same share above a BF16 number, and return how many went up."""
    below = torch.randint(0x3000, 0x5000, (COPIES,), generator=draw, dtype=torch.int32) << DROPPED_BITS
    x = sign * (below + round(share * 2**DROPPED_BITS)).view(torch.float32)
    got = as_tensor(stochastic_round(x, draw), (COPIES,), call="stochastic_round(x, generator)").float().abs()
    return (got > below.view(torch.float32)).double().mean().item()


def _diagnose_odds(
    stochastic_round: LearnerFunction, expected: Tensor, raised: Tensor, draw: torch.Generator
) -> tuple[str, str]:
    fine = expected == FINE_SHARES[0]
    known = [
        (
            {_raised_share(stochastic_round, 1, 0.5, draw) for _ in range(20)} == {0.0, 1.0},
            "one-draw-for-all",
            "All values went the same way in a call: draw once for each element.",
        ),
        (not raised.any(), "truncates", "No result goes away from zero: add the draw before you cut bits off."),
        (
            torch.equal(raised, expected.round()),
            "rounds-to-nearest",
            "Every value went to the nearer neighbor: compare a random draw with the odds.",
        ),
        (
            (raised - 0.5).abs().max() < FAIR_COIN_SPREAD,
            "flips-a-fair-coin",
            "The odds of going up are the distance from below, in steps.",
        ),
        (
            not raised[1::2].any(),
            "truncates-negatives",
            "Negative values never go up in magnitude: do the same on both sides of zero.",
        ),
        (
            not raised[fine].any() and (raised - expected).abs().max() < COARSEST_NOISE,
            "coarse-noise",
            "Small odds never come up: your draw takes too few different values.",
        ),
    ]
    biased = ("biased", "The odds of the upper neighbor must be (x − lower) / (upper − lower).")
    return next(((name, thought) for holds, name, thought in known if holds), biased)


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
        Suspect(
            "ties-to-odd",
            "A tie goes to the even pattern: add the last kept bit, not its opposite.",
            (bits + 0x8000 - ((bits >> 16) & 1)) >> 16,
        ),
        Suspect("ignores-sign", "The top bit is the sign and stays as it is.", cast & 0x7FFF),
        Suspect(
            "signed-pattern",
            "Your patterns are signed: the upper half came out negative. Mask them with 0xffff.",
            torch.where(cast >= 0x8000, cast - 0x10000, cast),
        ),
        Suspect("not-shifted", "A BF16 pattern has 16 bits: shift the kept half down.", cast << 16),
    ]
