"""Check of `int8_matmul`: the sum of products, the cross terms, and integers that FP32 cannot add up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import quantize
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.quantization.codes import TOPIC
from qlab.checks.report import check, part

ROUNDING = 2.0**-20  # the total, the product of the scales and the last product round to 2⁻²⁴ each
LONG = 4_096  # products near 2¹⁶ and so many of them: sums near 2²⁸, sixteen times what FP32 counts one by one


@dataclass(frozen=True)
class Product:
    """Codes, scales and zero points of both factors: x has one of each, w one for each row."""

    x: Tensor
    w: Tensor
    x_scale: float
    w_scale: Tensor
    x_zero: int
    w_zero: Tensor

    @property
    def arguments(self) -> tuple[tuple[Tensor, float, int], tuple[Tensor, Tensor, Tensor]]:
        """What the learner's function is called with."""
        return (self.x, self.x_scale, self.x_zero), (self.w, self.w_scale, self.w_zero)

    @property
    def scale(self) -> Tensor:
        """What one integer of the result is worth, for each row of w."""
        return self.x_scale * self.w_scale.double().T

    @property
    def terms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Σ X W, Z_x Σ W, Z_w Σ X and K Z_x Z_w, each as (tokens, out) or what broadcasts to it."""
        x, w, w_zero = self.x.long(), self.w.long(), self.w_zero.long().T
        return x @ w.T, self.x_zero * w.sum(1), x.sum(1, keepdim=True) * w_zero, x.shape[1] * self.x_zero * w_zero

    @property
    def total(self) -> Tensor:
        """The exact integers before any scale."""
        products, of_w, of_x, of_both = self.terms
        return products - of_w - of_x + of_both


Slip = tuple[str, str, Callable[[Product], Tensor]]


@check(TOPIC, "int8-matmul", quantize.int8_matmul, points=4, forbids=("qlab.quantize.int8_linear",))
def check_int8_matmul(int8_matmul: LearnerFunction, draw: torch.Generator) -> None:
    """Check `int8_matmul(x, w)`, where both are tuples of codes, scale and zero point."""
    with part("both zero points 0: products summed in 32 bits, a scale for each row of w"):
        _compare(int8_matmul, [_product(draw, x_zero=False, w_zero=False) for _ in range(2)])
    with part("one zero point: the cross terms of x and of w"):
        _compare(int8_matmul, [_product(draw, x_zero=x_zero, w_zero=not x_zero) for x_zero in (True, False)])
    with part("both zero points, also for one token and for one row of w"):
        _compare(int8_matmul, [_product(draw), _product(draw, tokens=1), _product(draw, out=1)])
    with part("sums near 2²⁸, exact to the integer"):
        _compare_exactly(int8_matmul, [_long_product(draw), _long_product(draw)])


def _product(
    draw: torch.Generator, *, tokens: int = 0, out: int = 0, x_zero: bool = True, w_zero: bool = True
) -> Product:
    side = _drawn(4, 7, draw)
    tokens, out, count = tokens or side, out or side, _drawn(20, 40, draw)
    return Product(
        torch.randint(0, 256, (tokens, count), generator=draw).to(torch.uint8),
        torch.randint(-127, 128, (out, count), generator=draw).to(torch.int8),
        torch.empty(1).uniform_(0.01, 0.1, generator=draw).item(),
        torch.empty(out, 1).uniform_(0.001, 0.01, generator=draw),
        _drawn(90, 160, draw) if x_zero else 0,
        torch.randint(10, 60, (out, 1), generator=draw).int() if w_zero else torch.zeros(out, 1, dtype=torch.int32),
    )


def _long_product(draw: torch.Generator) -> Product:
    """Return codes far from their zero points, and scales that are powers of two: they round nothing."""
    side = 5
    return Product(
        torch.randint(192, 256, (side, LONG), generator=draw).to(torch.uint8),
        torch.randint(96, 128, (side, LONG), generator=draw).to(torch.int8),
        2.0 ** -_drawn(3, 6, draw),
        2.0 ** -torch.randint(5, 9, (side, 1), generator=draw).float(),
        _drawn(1, 20, draw),
        -torch.randint(90, 120, (side, 1), generator=draw).int(),
    )


def _compare(int8_matmul: LearnerFunction, products: Sequence[Product]) -> None:
    got = _results(int8_matmul, products)
    want = _flat(p.total * p.scale for p in products)
    # a quarter of an integer: room for scaling each term by itself, and none for a missing product
    allowed = ROUNDING * want.abs() + _flat((p.scale / 4).expand(p.total.shape) for p in products)
    require_within(got, want, allowed, given=_told(products), suspects=lambda: _suspects(products))


def _compare_exactly(int8_matmul: LearnerFunction, products: Sequence[Product]) -> None:
    exact = _flat(p.total * p.scale for p in products)
    got = _results(int8_matmul, products).float()  # FP32 holds 24 bits: the result may be rounded, once
    require_values(
        got,
        exact.float(),
        given=lambda i: f"{_told(products)(i)}, scales that are powers of two",
        suspects=lambda: [*_summed_in_float(got, exact, products), *_nearest(got, products)],
    )


def _results(int8_matmul: LearnerFunction, products: Sequence[Product]) -> Tensor:
    returned = [int8_matmul(*p.arguments) for p in products]
    return _flat(
        as_tensor(r, tuple(p.total.shape), call="int8_matmul(x, w)") for r, p in zip(returned, products, strict=True)
    )


def _told(products: Sequence[Product]) -> Callable[[int], str]:
    places = [(p, i, j) for p in products for i in range(p.x.shape[0]) for j in range(p.w.shape[0])]

    def tell(index: int) -> str:
        p, token, row = places[index]
        zeros = f"Z_x = {p.x_zero}, Z_w = {int(p.w_zero[row])}"
        return f"{len(p.x)} tokens, {len(p.w)} rows of w, K = {p.x.shape[1]}, at [{token}, {row}], where {zeros}"

    return tell


def require_within(
    got: Tensor,
    expected: Tensor,
    allowed: Tensor,
    *,
    given: Callable[[int], str],
    suspects: Callable[[], Iterable[Suspect]] = tuple,
) -> None:
    """Refuse the part unless each value is as near to the expected one as `allowed` there; suspects fit as closely.

    A suspect may be far larger than what was expected, and is allowed the rounding of its own size.
    """

    def snapped(values: Tensor, rounding: float = 0.0) -> Tensor:
        near = (got - values).abs() <= allowed + rounding * values.abs()
        return torch.where(near & values.isfinite(), got, values)  # an infinity is near to nothing

    require_values(
        got,
        snapped(expected),
        given=given,
        suspects=lambda: [Suspect(s.misconception, s.thought, snapped(s.values, ROUNDING)) for s in suspects()],
    )


def _suspects(products: Sequence[Product]) -> Iterable[Suspect]:
    for misconception, thought, slip in SLIPS:
        yield Suspect(misconception, thought, _flat(slip(p).double() * p.scale for p in products))
    wrong_axis = "w_scale is (out, 1) and the result (tokens, out): transpose the scale, or each *token* gets one."
    if all(p.x.shape[0] == p.w.shape[0] for p in products):
        values = _flat(p.total * p.x_scale * p.w_scale.double() for p in products)
        yield Suspect("scale-on-the-wrong-axis", wrong_axis, values)
        turned = _flat((p.total * p.scale).T for p in products)
        yield Suspect("transposes", "The result is (tokens, out): one row for each row of x.", turned)
    missing = "The integers are right: one of them is worth S_x · S_w of its row."
    for scale in (lambda p: torch.ones_like(p.scale), lambda p: p.scale / p.x_scale, lambda p: 0 * p.scale + p.x_scale):
        yield Suspect("forgets-a-scale", missing, _flat(p.total * scale(p) for p in products))


def _nearest(got: Tensor, products: Sequence[Product]) -> list[Suspect]:
    """Return the suspects, each rounded to FP32 once, as `got` was."""
    near = ROUNDING * got.abs().double()
    rounded = [(s, s.values.float()) for s in _suspects(products)]
    return [
        Suspect(s.misconception, s.thought, torch.where((got - values).abs() <= near, got, values))
        for s, values in rounded
    ]


def _summed_in_float(got: Tensor, exact: Tensor, products: Sequence[Product]) -> list[Suspect]:
    """Return a suspect that fits where every error is one that sums in FP32 can have: Higham 1993, u · terms · size."""
    size = _flat(sum(term.abs() for term in p.terms) * p.scale for p in products)
    fits = (got.double() - exact).abs() <= 2.0**-24 * LONG * size
    thought = "Near, but not the integer: FP32 counts to 2²⁴ = 16 777 216 one by one. Sum in int32, then apply scales."
    return [Suspect("accumulates-in-float", thought, torch.where(fits, got, exact.float()))]


def _drawn(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=draw))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


def _wrapped(values: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    low = -(2 ** (bits - 1)) if signed else 0
    return (values - low) % 2**bits + low


def _wrapped_products(bits: int) -> Callable[[Product], Tensor]:
    return lambda p: _wrapped(p.terms[0], bits) - p.terms[0] + p.total


def _of_differences(p: Product, x_bits: Callable[[Tensor], Tensor], w_bits: Callable[[Tensor], Tensor]) -> Tensor:
    return x_bits(p.x.long() - p.x_zero) @ w_bits(p.w.long() - p.w_zero.long()).T


def _as_int8(p: Product) -> Tensor:
    signed = p.x.view(torch.int8).long()
    return (signed - p.x_zero) @ (p.w.long() - p.w_zero).T


CROSS = "(X − Z_x)(W − Z_w) has four terms: beside Σ X W come Z_x Σ W, Z_w Σ X and K Z_x Z_w."
WRAPS = "A product of two codes needs 16 bits and their sum more: ask for int32 before you multiply."
DIFFERENCE = "X − Z_x in uint8 has no negative numbers, it wraps: widen to int32 before you subtract."
SLIPS: tuple[Slip, ...] = (
    ("accumulates-in-8-bits", WRAPS, lambda p: _wrapped(p.total, 8)),
    ("accumulates-in-8-bits", WRAPS, _wrapped_products(8)),
    ("accumulates-in-8-bits", WRAPS, lambda p: _wrapped(p.terms[0], 8)),
    ("accumulates-in-8-bits", WRAPS, lambda p: _wrapped(p.total, 8, signed=False)),
    ("accumulates-in-16-bits", WRAPS, lambda p: _wrapped(p.total, 16)),
    ("accumulates-in-16-bits", WRAPS, _wrapped_products(16)),
    ("accumulates-in-16-bits", WRAPS, lambda p: _wrapped(p.terms[0], 16)),
    ("reads-uint8-as-int8", "X reaches 255 and int8 ends at 127: `.to(torch.int8)` wraps what is above.", _as_int8),
    ("reads-uint8-as-int8", "Codes of x above 127 wrap in int8.", lambda p: p.x.view(torch.int8).long() @ p.w.long().T),
    ("wraps-the-difference", DIFFERENCE, lambda p: _of_differences(p, lambda x: x & 0xFF, lambda w: w)),
    ("wraps-the-difference", DIFFERENCE, lambda p: _of_differences(p, lambda x: _wrapped(x, 8), lambda w: w)),
    ("wraps-the-difference", DIFFERENCE, lambda p: _of_differences(p, lambda x: x & 0xFF, lambda w: _wrapped(w, 8))),
    (
        "wraps-the-difference",
        DIFFERENCE,
        lambda p: _of_differences(p, lambda x: _wrapped(x, 8), lambda w: _wrapped(w, 8)),
    ),
    ("drops-the-cross-terms", CROSS, lambda p: p.terms[0]),
    ("drops-the-cross-terms", CROSS, lambda p: p.terms[0] + p.terms[3]),
    ("drops-the-cross-terms", CROSS, lambda p: p.terms[0] - p.x_zero * p.w_zero.T),
    ("forgets-k-zx-zw", f"{CROSS} The last is missing.", lambda p: p.total - p.terms[3]),
    (
        "subtracts-k-zx-zw",
        "The product of two minus signs is a plus: K Z_x Z_w is added.",
        lambda p: p.total - 2 * p.terms[3],
    ),
    ("forgets-k", "Z_x Z_w stands in each of the K products.", lambda p: p.total - p.terms[3] + p.x_zero * p.w_zero.T),
    ("forgets-the-sum-of-w", f"{CROSS} Z_x Σ W is missing.", lambda p: p.total + p.terms[1]),
    ("forgets-the-sum-of-x", f"{CROSS} Z_w Σ X is missing.", lambda p: p.total + p.terms[2]),
    ("adds-the-cross-terms", "Both sums are subtracted.", lambda p: p.total + 2 * p.terms[1] + 2 * p.terms[2]),
)
