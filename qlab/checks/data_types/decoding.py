"""Checks of `decode` and `decode_e4m3`: every code against a walk along the number line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qlab import formats
from qlab.checks.expect import Suspect, as_number, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import check, part

TOPIC = "01_data_types"
SMALL_SPLITS = [(5, 2), (4, 3)]


@dataclass(frozen=True)
class Way:
    """A way to decode a number: the defaults are right, and each field can be got wrong."""

    bias: int | None = None
    bias_shift: int = 0
    normal_one: int = 1
    subnormal_one: int = 0
    subnormal_exponent: int = 1
    last_fraction_is_one: bool = False


RIGHT_WAY = Way()


@lru_cache
def number_line(exponent_bits: int, mantissa_bits: int, last_code: int) -> Tensor:
    """Return the values of the codes 0 to `last_code` by walking up from zero in steps that double each binade."""
    step = 2.0 ** (2 - 2 ** (exponent_bits - 1) - mantissa_bits)
    steps = [step * 2.0 ** max((code >> mantissa_bits) - 1, 0) for code in range(last_code)]
    return torch.tensor([0.0, *steps], dtype=torch.float64).cumsum(0)


@check(
    TOPIC,
    "decode",
    formats.decode_by_formula,
    formats.FloatFormat,
    points=4,
    forbids=("qlab.formats.decode", "qlab.formats.finite_values"),
)
def check_decode(decode: LearnerFunction, draw: torch.Generator) -> None:
    """Check `decode(code, exponent_bits, mantissa_bits)` for IEEE-like formats."""
    with part("normal numbers of E5M2 and E4M3, both signs"):
        for e, m in SMALL_SPLITS:
            _compare(decode, range(1 << m, (2**e - 1) << m), e, m)
    with part("zero and every subnormal number"):
        for e, m in SMALL_SPLITS:
            _compare(decode, range(1 << m), e, m)
    with part("infinity and NaN in the all-ones exponent"):
        for e, m in SMALL_SPLITS:
            _compare(decode, range((2**e - 1) << m, 2**e << m), e, m)
    with part("any split of the bits: FP16, BF16, FP32 and odd ones"):
        drawn = (int(torch.randint(2, 8, (), generator=draw)), int(torch.randint(1, 7, (), generator=draw)))
        for e, m in [(5, 10), (8, 7), (8, 23), (2, 3), (6, 1), drawn]:
            infinity = (2**e - 1) << m
            edges = [0, 1, (1 << m) - 1, 1 << m, infinity - 1, infinity, infinity + 1, (2**e << m) - 1]
            codes = torch.randint(0, 2 ** (e + m), (40,), generator=draw).tolist()
            _compare(decode, [*edges, *codes], e, m)


@check(
    TOPIC,
    "decode-e4m3",
    formats.decode_by_formula,
    formats.FloatFormat,
    points=4,
    forbids=("qlab.formats.decode", "qlab.formats.finite_values"),
)
def check_decode_e4m3(decode_e4m3: LearnerFunction, draw: torch.Generator) -> None:
    """Check `decode_e4m3(code)`: all 256 codes of the 8-bit format without infinity."""
    del draw  # there are only 256 inputs, and all of them are tried
    with part("normal numbers with an exponent below 1111"):
        _compare_e4m3(decode_e4m3, range(0x08, 0x78))
    with part("an exponent of 1111 holds numbers too, up to 448"):
        _compare_e4m3(decode_e4m3, range(0x78, 0x7F))
    with part("one NaN for each sign, beside its largest number"):
        _compare_e4m3(decode_e4m3, [0x7E, 0x7F])
    with part("zero and every subnormal number"):
        _compare_e4m3(decode_e4m3, range(0x08))


def _compare(decode: LearnerFunction, magnitudes: Sequence[int], e: int, m: int) -> None:
    """Compare both signs of some codes; FP32 codes by the formula, since a walk of 2³¹ steps would not end."""
    codes = [code | sign << (e + m) for code in magnitudes for sign in (0, 1)]
    returned = decode.map([(code, e, m) for code in codes])
    got = [as_number(r, call=f"decode({c}, {e}, {m})") for r, c in zip(returned, codes, strict=True)]
    if e + m < 16:
        line = number_line(e, m, ((2**e - 1) << m) - 1)
        expected = [_signed(_special(code, e, m, line), code, e, m) for code in codes]
    else:
        fmt = formats.FloatFormat("checked", e, m)
        expected = formats.decode(torch.tensor(codes), fmt).tolist()
    require_values(
        _doubles(got),
        _doubles(expected),
        given=lambda i: f"code={_binary(codes[i], e, m)}, exponent_bits={e}, mantissa_bits={m}",
        suspects=lambda: _suspects(codes, e, m, expected),
    )


def _compare_e4m3(decode_e4m3: LearnerFunction, magnitudes: Sequence[int]) -> None:
    codes = [code | sign << 7 for code in magnitudes for sign in (0, 1)]
    returned = decode_e4m3.map([(code,) for code in codes])
    got = [as_number(r, call=f"decode_e4m3({c})") for r, c in zip(returned, codes, strict=True)]
    line = [*number_line(4, 3, 0x7E).tolist(), math.nan]
    expected = [_signed(line[code & 0x7F], code, 4, 3) for code in codes]
    require_values(
        _doubles(got),
        _doubles(expected),
        given=lambda i: f"code={_binary(codes[i], 4, 3)}",
        suspects=lambda: _e4m3_suspects(codes, expected),
    )


def _e4m3_suspects(codes: Sequence[int], expected: Sequence[float]) -> list[Suspect]:
    all_ones = [_formula(c, 4, 3) if c & 0x78 != 0x78 else _ieee_special(c, 4, 3) for c in codes]
    infinities = [_signed(math.inf, c, 4, 3) if c & 0x7F == 0x7F else v for c, v in zip(codes, expected, strict=True)]
    return [
        Suspect(
            "nan-is-infinity",
            "E4M3 gave up infinity: the pattern 1111.111 is NaN, with either sign.",
            _doubles(infinities),
        ),
        *(
            Suspect(
                "treats-1111-as-special",
                "Only 1111.111 is special in E4M3: the other seven patterns of exponent 1111 are 256 to 448.",
                _doubles(values),
            )
            for values in (
                all_ones,
                [_nan_unless(v, c & 0x78 != 0x78) for v, c in zip(all_ones, codes, strict=True)],
                [_signed(math.inf, c, 4, 3) if c & 0x78 == 0x78 else v for v, c in zip(all_ones, codes, strict=True)],
                [v if math.isnan(v) else max(-240.0, min(240.0, v)) for v in expected],
            )
        ),
        Suspect(
            "nan-is-a-number",
            "The pattern 1111.111 would be 480 by the formula: in E4M3 it is the one NaN of each sign.",
            _doubles([_formula(code, 4, 3) for code in codes]),
        ),
        *(
            Suspect(
                "nan-of-one-sign-only",
                "The sign does not matter to NaN: 0x7f and 0xff both are.",
                _doubles([_formula(c, 4, 3) if c == number else v for c, v in zip(codes, expected, strict=True)]),
            )
            for number in (0x7F, 0xFF)
        ),
        *_suspects(codes, 4, 3, expected),
    ]


def _suspects(codes: Sequence[int], e: int, m: int, expected: Sequence[float]) -> list[Suspect]:
    def variant(misconception: str, thought: str, values: list[float]) -> Suspect:
        return Suspect(misconception, thought, _doubles(values))

    def formula(way: Way) -> list[float]:
        return [_formula(c, e, m, way) if math.isfinite(v) else v for c, v in zip(codes, expected, strict=True)]

    no_subnormals = formula(Way(subnormal_one=1, subnormal_exponent=0))
    nan_as_infinity = [_signed(math.inf, c, e, m) if math.isnan(v) else v for c, v in zip(codes, expected, strict=True)]
    return [
        *(
            variant(
                "forgets-subnormals",
                "An exponent field of zero has no implicit one: the value is fraction · 2^(1 − bias).",
                [0.0 if v == 0.0 and zero_is_known else f for f, v in zip(no_subnormals, expected, strict=True)],
            )
            for zero_is_known in (False, True)
        ),
        variant(
            "forgets-subnormals",
            "Codes with an exponent field of zero are not all zero: they are fraction · 2^(1 − bias).",
            [v if c >> m & (2**e - 1) else 0.0 for c, v in zip(codes, expected, strict=True)],
        ),
        variant(
            "subnormal-exponent-off-by-one",
            "Subnormals share the exponent of the smallest normal number, 1 − bias, not −bias.",
            formula(Way(subnormal_exponent=0)),
        ),
        variant(
            "keeps-implicit-one",
            "Subnormals have no implicit one in front of the fraction.",
            formula(Way(subnormal_one=1)),
        ),
        *(
            variant(
                "bias-off-by-one",
                "The bias is 2^(exponent_bits − 1) − 1: the code of 1.0 has the exponent field 0111…1.",
                formula(Way(bias_shift=shift)),
            )
            for shift in (1, -1)
        ),
        variant(
            "forgets-bias",
            "The stored exponent field is the exponent plus the bias: take 2^(exponent_bits − 1) − 1 off again.",
            formula(Way(bias=0)),
        ),
        *(
            variant(
                "bias-hard-coded",
                "Your bias does not follow `exponent_bits`: it is 2^(exponent_bits − 1) − 1.",
                formula(Way(bias=bias)),
            )
            for bias in (7, 15, 127)
        ),
        variant(
            "fraction-off-by-one",
            "The mantissa counts in steps of 1 / 2^mantissa_bits: there are 2^mantissa_bits steps, not one less.",
            formula(Way(last_fraction_is_one=True)),
        ),
        variant("ignores-sign", "The top bit is the sign: it negates the value.", [abs(v) for v in expected]),
        variant(
            "forgets-implicit-one",
            "A normal number has a one in front of its fraction that is not stored.",
            formula(Way(normal_one=0)),
        ),
        variant(
            "all-ones-is-a-number",
            "An exponent field of all ones is special: fraction zero is infinity, any other fraction is NaN.",
            [_formula(c, e, m) for c in codes],
        ),
        variant(
            "nan-is-infinity",
            "An exponent of all ones is infinity only where the fraction is zero: the rest are NaN.",
            nan_as_infinity,
        ),
        variant(
            "infinity-is-nan",
            "An exponent of all ones with a fraction of zero is infinity, with the sign of its top bit.",
            [_nan_unless(v, not math.isinf(v)) for v in expected],
        ),
    ]


def _formula(code: int, e: int, m: int, way: Way = RIGHT_WAY) -> float:
    """Return the value by the textbook formula with one thing of it changed; no code is special."""
    bias = 2 ** (e - 1) - 1 + way.bias_shift if way.bias is None else way.bias
    field, fraction = code >> m & (2**e - 1), code % 2**m / (2**m - way.last_fraction_is_one)
    one, exponent = (way.normal_one, field) if field else (way.subnormal_one, way.subnormal_exponent)
    return _signed(math.ldexp(one + fraction, exponent - bias), code, e, m)


def _special(code: int, e: int, m: int, line: Tensor) -> float:
    magnitude = code & (2 ** (e + m) - 1)
    return line[magnitude].item() if magnitude < len(line) else abs(_ieee_special(code, e, m))


def _ieee_special(code: int, e: int, m: int) -> float:
    return math.nan if code % 2**m else _signed(math.inf, code, e, m)


def _signed(value: float, code: int, e: int, m: int) -> float:
    return -value if code >> (e + m) & 1 else value


def _nan_unless(value: float, keep: bool) -> float:
    return value if keep else math.nan


def _doubles(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _binary(code: int, e: int, m: int) -> str:
    digits = f"{code:0{1 + e + m}b}"
    return f"0b{digits[0]}_{digits[1 : 1 + e]}_{digits[1 + e :]}"
