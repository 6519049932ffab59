"""Check of `dynamic_map`: every level of the 8-bit maps, and of narrower ones."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qlab import codebooks
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.optimizers_8bit.topic import TOPIC
from qlab.checks.report import Refused, check, part, require

ROUNDING = 1e-6  # of a level: FP32 rounds each of some five operations to 6e-8; neighbors are 0.7 percent apart
GRID_ROUNDING = 1e-7  # of an even grid in FP32, which counts from -1 or divides by 255
NOT_A_LEVEL = 1e-9  # far below the smallest level of eight bits, 3e-7: a zero that went through FP32 logarithms


@check(TOPIC, "dynamic-map", codebooks.dynamic_map, points=4)
def check_dynamic_map(dynamic_map: LearnerFunction, draw: torch.Generator) -> None:
    """Check `dynamic_map(bits, signed)`."""
    with part("unsigned, 8 bits: 256 levels from 0 to 1"):
        _compare(dynamic_map, [(8, False)])
    with part("signed, 8 bits: 256 levels, and the 1 has no negative twin"):
        _compare(dynamic_map, [(8, True)])
    fewer = (torch.randperm(5, generator=draw) + 3).tolist()
    with part("unsigned, fewer bits: one decade less for each"):
        _compare(dynamic_map, [(bits, False) for bits in fewer[:3]])
    with part("signed, fewer bits"):
        _compare(dynamic_map, [(bits, True) for bits in fewer[:3]])


def _compare(dynamic_map: LearnerFunction, calls: list[tuple[int, bool]]) -> None:
    rows = [_levels(dynamic_map, bits, signed) for bits, signed in calls]
    got = torch.cat(rows)

    def near(values: Tensor, room: float = NOT_A_LEVEL) -> Tensor:
        return torch.where((got - values).abs() <= ROUNDING * values.abs() + room, got, values)

    def suspects() -> Iterator[Suspect]:
        for misconception, thought, make in SLIPS:
            made = [make(bits, signed) for bits, signed in calls]
            if [len(levels) for levels in made] == [len(row) for row in rows]:
                yield Suspect(misconception, thought, near(torch.cat(made), GRID_ROUNDING))

    places = [(bits, signed, i) for bits, signed in calls for i in range(2**bits)]
    want = torch.cat([_map(bits, signed) for bits, signed in calls])
    require_values(
        got,
        near(want),
        given=lambda i: "`dynamic_map({}, {})`, level {} of the row".format(*places[i]),
        suspects=suspects,
    )


def _levels(dynamic_map: LearnerFunction, bits: int, signed: bool) -> Tensor:
    call, count = f"dynamic_map({bits}, {signed})", 2**bits
    value = dynamic_map(bits, signed)
    length = len(value) if hasattr(value, "__len__") and getattr(value, "ndim", 1) == 1 else count
    got = as_tensor(value, (length,), call=call).double()
    if length != count:
        _refuse_length(got, bits, signed)
    require(
        got.isfinite().all(),
        f"`{call}` holds {int((~got.isfinite()).sum())} levels that are not finite",
        misconception="not-finite",
        thought="Every level lies between −1 and 1.",
    )
    right = _map(bits, signed)
    order = bool((got.diff() >= 0).all())
    near = ((got.sort().values - right).abs() <= ROUNDING * right.abs() + NOT_A_LEVEL).all()
    require(
        order or not near,
        f"`{call}` has the right levels, but not in ascending order",
        misconception="not-ascending",
        thought="Put negative levels, zero and positive ones together, and sort: a search relies on the order.",
    )
    return got


def _refuse_length(got: Tensor, bits: int, signed: bool) -> None:
    for misconception, thought, make in SLIPS:
        values = make(bits, signed)
        if len(values) == len(got) and torch.allclose(values, got.sort().values, rtol=ROUNDING, atol=GRID_ROUNDING):
            raise Refused(
                f"`dynamic_map({bits}, {signed})` has {len(got)} levels, expected {2**bits}",
                misconception=misconception,
                thought=thought,
            )
    raise Refused(
        f"`dynamic_map({bits}, {signed})` has {len(got)} levels, expected {2**bits}",
        misconception="wrong-number-of-levels",
        thought="Count: the decades together have 2^bits − 2 levels, both signs included; 0 and 1 are the other two.",
    )


Decade = Callable[[int], Tensor]


def _middles(levels: int) -> Tensor:
    edges = torch.linspace(0.1, 1, levels + 1, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2


def _lower_edges(levels: int) -> Tensor:
    return torch.linspace(0.1, 1, levels + 1, dtype=torch.float64)[:-1]


def _upper_edges(levels: int) -> Tensor:
    return torch.linspace(0.1, 1, levels + 1, dtype=torch.float64)[1:]


def _from_end_to_end(levels: int) -> Tensor:
    return torch.linspace(0.1, 1, levels, dtype=torch.float64)


def _from_zero(levels: int) -> Tensor:
    return (torch.arange(levels, dtype=torch.float64) + 0.5) / levels


def _in_ratios(levels: int) -> Tensor:
    return 10 ** ((torch.arange(levels, dtype=torch.float64) + 0.5) / levels - 1)


def _positive(bits: int, signed: bool, decade: Decade = _middles, *, base: float = 10.0, shift: int = 0) -> Tensor:
    first = 1 if signed else 2
    decades = [base ** (i - (bits - 2) + shift) * decade(first * 2**i) for i in range(bits - 1)]
    return torch.cat(decades)


def _map(bits: int, signed: bool, positive: Tensor | None = None, ends: tuple[float, ...] = (0.0, 1.0)) -> Tensor:
    positive = _positive(bits, signed) if positive is None else positive
    negative = -positive if signed else positive[:0]
    return torch.cat([negative, torch.tensor(ends, dtype=torch.float64), positive]).sort().values


def _even(bits: int, signed: bool) -> Tensor:
    return torch.linspace(-1 if signed else 0, 1, 2**bits, dtype=torch.float64)


def _even_symmetric(bits: int, signed: bool) -> Tensor:
    largest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    whole = torch.arange(-largest if signed else 0, largest + 1, dtype=torch.float64)
    return torch.cat([whole[:1], whole])[-(2**bits) :] / largest if signed else whole / largest


def _without_doubling(bits: int, signed: bool) -> Tensor:
    per_sign = 2**bits - 2 if not signed else 2 ** (bits - 1) - 1
    share = per_sign // (bits - 1)
    return torch.cat([10.0 ** (i - (bits - 2)) * _middles(share) for i in range(bits - 1)])


def _most_below(bits: int, signed: bool) -> Tensor:
    first = 1 if signed else 2
    return torch.cat([10.0**-i * _middles(first * 2**i) for i in range(bits - 1)]).sort().values


EVEN = "These levels are evenly spaced: of values a thousand times smaller than the largest all become 0 or 1 step."
MIDDLE = "A decade from 0.1 to 1 is cut into equal pieces, and the *middle* of each is a level."
DOWN = "The decades end at 1: the largest, from 0.1 to 1, has the most levels, and each further down has half."
UP = "The largest decade goes from 0.1 to 1: its exponent is 0."
TWO = "Zero and 1 are levels of their own, beside those of the decades."
SIGN = "Unsigned, no level is spent on a sign: each decade has twice as many."
BOTH = "Signed, every level of a decade has a negative twin; 0 and 1 have none."
TENS = "Decades are powers of ten: each starts at a tenth of the one above."
Slip = tuple[str, str, Callable[[int, bool], Tensor]]
SLIPS: tuple[Slip, ...] = (
    ("linear-map", EVEN, _even),
    ("linear-map", EVEN, _even_symmetric),
    ("linear-map", EVEN, lambda b, s: _even_symmetric(b, s).unique()),
    *(
        (name, MIDDLE, lambda b, s, decade=decade: _map(b, s, _positive(b, s, decade)))
        for name, decade in (
            ("takes-edges-for-middles", _lower_edges),
            ("takes-edges-for-middles", _upper_edges),
            ("takes-edges-for-middles", _from_end_to_end),
            ("decades-from-zero", _from_zero),
            ("steps-in-ratios", _in_ratios),
        )
    ),
    ("most-levels-near-zero", DOWN, lambda b, s: _map(b, s, _most_below(b, s))),
    ("shifts-the-decades", UP, lambda b, s: _map(b, s, _positive(b, s, shift=-1))),
    ("shifts-the-decades", UP, lambda b, s: _map(b, s, _positive(b, s, shift=1))),
    ("octaves-for-decades", TENS, lambda b, s: _map(b, s, _positive(b, s, base=2.0))),
    ("equal-decades", DOWN, lambda b, s: _map(b, s, _without_doubling(b, s))),
    ("forgets-zero-and-one", TWO, lambda b, s: _map(b, s, ends=())),
    ("forgets-zero", TWO, lambda b, s: _map(b, s, ends=(1.0,))),
    ("forgets-one", TWO, lambda b, s: _map(b, s, ends=(0.0,))),
    ("adds-minus-one", BOTH, lambda b, s: _map(b, s, ends=(-1.0, 0.0, 1.0) if s else (0.0, 1.0))),
    ("minus-one-for-zero", BOTH, lambda b, s: _map(b, s, ends=(-1.0, 1.0) if s else (0.0, 1.0))),
    ("minus-one-for-one", BOTH, lambda b, s: _map(b, s, ends=(-1.0, 0.0) if s else (0.0, 1.0))),
    ("unsigned-as-signed", SIGN, lambda b, s: _map(b, s, _positive(b, True))),
    ("signed-as-unsigned", BOTH, lambda b, s: _map(b, False)),
    ("ignores-signed", BOTH, lambda b, s: _map(b, True)),
    ("ignores-bits", "One decade less for each bit less.", lambda b, s: _map(8, s)),
)
