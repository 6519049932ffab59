"""Check of `quantize_min_max`: a copied snippet whose codes wrap, repaired without losing a bit."""

import torch
from torch import Tensor

from qlab.checks.expect import as_number, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.quantization.codes import TOPIC, dtype_of, near, uniform, unpacked
from qlab.checks.report import check, part, require

NAMES = ("codes", "scale", "low")
ROUNDING = 0.01  # of a step: 254 steps for 255 are off by 0.502; rounding in FP32 adds 1e-4


def quantize_min_max(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes 0 to 255 from the smallest value of `x` to its largest, in the type that holds them."""
    low = x.min()
    scale = (x.max() - low) / 255
    return ((x - low) / scale).round().to(torch.uint8), scale, low


@check(TOPIC, "quantize-min-max", quantize_min_max, points=3)
def check_quantize_min_max(quantize_min_max: LearnerFunction, draw: torch.Generator) -> None:
    """Check `quantize_min_max(x)`: one byte a code, nothing far off, and no code wasted."""
    lows = [-uniform(0.2, 2.0, (), draw).item(), 10.0 ** drawn(-2, 1, draw)]
    tensors = [uniform(low, 2.0 * abs(low), (drawn(150, 250, draw),), draw) for low in lows]
    with part("one byte a code"):
        for x in tensors:
            _one_byte(quantize_min_max, x)
    with part("no value comes back from the other end of the range"):
        for x in tensors:
            _within(quantize_min_max, x, 1.0)
    with part("no error beyond half a step, a 255th of the range"):
        for x in tensors:
            _within(quantize_min_max, x, 0.5)


def _read(quantize_min_max: LearnerFunction, x: Tensor) -> tuple[object, Tensor, float, float]:
    codes, scale, low = unpacked(quantize_min_max(x), NAMES, call="quantize_min_max(x)")
    got = as_tensor(codes, tuple(x.shape), call="quantize_min_max(x)[0]").double()
    return codes, got, as_number(scale, call="quantize_min_max(x)[1]"), as_number(low, call="quantize_min_max(x)[2]")


def _one_byte(quantize_min_max: LearnerFunction, x: Tensor) -> None:
    codes, _, _, _ = _read(quantize_min_max, x)
    require(
        dtype_of(codes) in ("uint8", "int8"),
        f"given {_told(x)}, got codes of {dtype_of(codes)}, expected one byte each",
        misconception="not-one-byte",
        thought="A wider type holds the codes and costs two to eight bytes each: which type holds 0 … 255 in one?",
    )


def _within(quantize_min_max: LearnerFunction, x: Tensor, steps: float) -> None:
    """Require that no value is off by more than so many 255ths of the range."""
    _, codes, scale, low = _read(quantize_min_max, x)
    span = (x.max() - x.min()).item()
    back = codes * scale + low
    error = ((back - x.double()).abs() / (span / 255)).nan_to_num(torch.inf)
    worst = int(error.argmax())
    misconception, thought = _named(codes, scale, (x.double() - low) / scale, span)
    require(
        error[worst] <= steps + ROUNDING,
        f"given {x[worst]:.6g} in {_told(x)}, code · scale + low is {back[worst]:.6g},"
        f" off by {error[worst]:.3g} steps of a 255th of the range, expected at most {steps:g}",
        misconception=misconception,
        thought=thought,
    )


def _named(codes: Tensor, scale: float, exact: Tensor, span: float) -> tuple[str, str]:
    """Name what spoils codes that should be `exact` steps above the low end, each by its own formula."""
    steps, whole = span / scale if scale else torch.inf, exact.round()
    if bool(((codes - whole).abs() <= 1).all()):  # the nearest codes of a grid of one's own, or those below
        if steps < 250:
            name = "halves-the-range" if 120 < steps < 135 else "wastes-codes"
            return name, f"Your range is {steps:.0f} steps long: a byte has 256 codes, so it can be 255."
        if bool((near(torch.floor, exact, codes) == codes).all()):
            return "truncates", "A cast cuts the fraction off: round to the nearest code first."
    if bool((codes < 0).any()) and bool((((codes - whole + 1) % 256) <= 2).all()):
        return "casts-to-int8", "int8 ends at 127, and 128 … 255 come back as −128 … −1: what holds 0 … 255 in a byte?"
    if bool(((codes + 128 - whole).abs() <= 1).all()):
        return "shifts-one-way", "Codes lowered by 128 need a low end raised by 128 steps: code · scale + low counts."
    if bool(((codes - whole.clamp(max=127)).abs() <= 1).all()):
        return "clamps-to-127", "The clamp stops the wrapping and flattens the upper half: it comes back as one value."
    return "wrong-value", "Print the codes of a ramp, `torch.linspace(-1, 1, 9)`, and what they stand for."


def _told(x: Tensor) -> str:
    return f"x from {x.min().item():.6g} to {x.max().item():.6g}"
