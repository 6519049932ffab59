"""Check of `decomposition_seconds`: every kernel of the decomposition is counted, not the int8 product alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from qlab import roofline
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.outliers.reading import TOPIC
from qlab.checks.quantization.codes import uniform
from qlab.checks.report import check, part

WITHIN = 1e-5  # sums of a few numbers; the smallest slip, one launch of five, changes 4e-4
Kernel = tuple[float, float, float]  # operations in BF16, operations in int8, bytes


@dataclass(frozen=True)
class Case:
    """One call."""

    tokens: int
    width: int
    out: int
    outliers: int
    machine: tuple[float, float, float, float]

    @property
    def call(self) -> str:
        rates = ", ".join(f"{rate:.4g}" for rate in self.machine)
        return f"decomposition_seconds({self.tokens}, {self.width}, {self.out}, {self.outliers}, ({rates}))"

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Find, quantize, multiply codes, multiply outliers, rescale and add."""
        t, w, o, k = self.tokens, self.width, self.out, self.outliers
        return (
            (0.0, 0.0, 2.0 * t * w),
            (0.0, 0.0, 3.0 * t * w),
            (0.0, 2.0 * t * w * o, 1.0 * t * w + o * w + 4 * t * o),
            (2.0 * t * k * o, 0.0, 2.0 * (t * k + o * k + t * o)),
            (0.0, 0.0, 8.0 * t * o),
        )

    def seconds(self, kernel: Kernel) -> float:
        """Return the time of one kernel without its launch."""
        bf16, int8, rate, _ = self.machine
        return max(kernel[0] / bf16 + kernel[1] / int8, kernel[2] / rate)

    def total(self, kernels: tuple[Kernel, ...]) -> float:
        return sum(self.seconds(kernel) + self.machine[3] for kernel in kernels)


@check(TOPIC, "decomposition-seconds", roofline.Work.least_seconds, points=3)
def check_decomposition_seconds(decomposition_seconds: LearnerFunction, draw: torch.Generator) -> None:
    """Check `decomposition_seconds(tokens, width, out, outliers, machine)`."""
    with part("thousands of tokens: arithmetic or traffic, kernel by kernel"):
        many = (4_000, 9_000)
        wide = [_case(draw, many, (8_000, 16_000)) for _ in range(2)]
        narrow = replace(_case(draw, many, (8_000, 16_000)), out=drawn(20, 40, draw))
        low_threshold = replace(_case(draw, many, (8_000, 16_000)), outliers=drawn(3_000, 5_000, draw))
        _compare(decomposition_seconds, [*wide, narrow, low_threshold])
    with part("a few tokens: traffic decides"):
        _compare(decomposition_seconds, [_case(draw, (1, 40), (8_000, 16_000)) for _ in range(4)])
    with part("a small layer: the launches decide"):
        _compare(decomposition_seconds, [_case(draw, (16, 64), (256, 1_024)) for _ in range(4)])


def _case(draw: torch.Generator, tokens: tuple[int, int], width: tuple[int, int]) -> Case:
    bf16 = 1e12 * drawn(100, 900, draw)
    machine = (bf16, bf16 * uniform(1.7, 2.3, (), draw).item(), 1e9 * drawn(900, 4_800, draw), 1e-6 * drawn(3, 9, draw))
    return Case(drawn(*tokens, draw), drawn(*width, draw), drawn(*width, draw), drawn(5, 60, draw), machine)


def _compare(decomposition_seconds: LearnerFunction, cases: list[Case]) -> None:
    require_numbers(
        [decomposition_seconds(c.tokens, c.width, c.out, c.outliers, c.machine) for c in cases],
        [c.total(c.kernels) for c in cases],
        calls=[c.call for c in cases],
        within=WITHIN,
        suspects=lambda: _suspects(cases),
    )


def _suspects(cases: list[Case]) -> Iterator[Suspect]:
    by_case = [list(_slips(case)) for case in cases]
    for same_slip in zip(*by_case, strict=True):
        misconception, thought, _ = same_slip[0]
        yield Suspect(misconception, thought, doubles([value for _, _, value in same_slip]))


def _slips(case: Case) -> Iterator[tuple[str, str, float]]:
    bf16, int8, rate, launch = case.machine
    kernels, right = case.kernels, case.total(case.kernels)
    find, quantize, codes, outliers, add = kernels
    alone = "This is what the claim counts: the int8 product. Four more kernels run around it."
    yield "counts-the-int8-product-only", alone, case.total((codes,))
    yield "counts-the-int8-product-only", alone, case.seconds(codes)
    yield "counts-the-int8-product-only", alone, codes[1] / int8
    yield "counts-the-products-only", "Three more kernels run around the two products.", case.total((codes, outliers))
    for name, forgotten in (
        ("finding", find),
        ("quantizing", quantize),
        ("outlier-product", outliers),
        ("adding", add),
    ):
        less = tuple(kernel for kernel in kernels if kernel is not forgotten)
        yield f"forgets-{name}", f"One kernel of the table is missing: {name.replace('-', ' ')}.", case.total(less)
        yield f"forgets-{name}", "Its time is missing.", right - case.seconds(forgotten)
    each = "Every kernel is launched: five times the launch."
    yield "forgets-the-launches", each, right - 5 * launch
    yield "counts-one-launch", each, right - 4 * launch
    slower = "Arithmetic and traffic overlap inside a kernel: it takes the longer of the two, not the sum."
    both = sum(k[0] / bf16 + k[1] / int8 + k[2] / rate + launch for k in kernels)
    yield "adds-arithmetic-and-traffic", slower, both
    lone = "One kernel waits for another: take the maximum in each, then add."
    operations, traffic = sum(k[0] / bf16 + k[1] / int8 for k in kernels), sum(k[2] / rate for k in kernels)
    yield "counts-traffic-only", "Products take arithmetic as well.", traffic + 5 * launch
    yield "counts-arithmetic-only", "Every kernel reads and writes: bytes over bytes a second.", operations + 5 * launch
    yield "overlaps-the-kernels", lone, max(operations, traffic) + 5 * launch
    yield "overlaps-the-kernels", lone, max(map(case.seconds, kernels)) + 5 * launch
    yield "overlaps-the-kernels", lone, max(case.seconds(kernel) + launch for kernel in kernels)
    for misconception, thought, changed in _other_kernels(case):
        yield misconception, thought, case.total(changed)


def _other_kernels(case: Case) -> Iterator[tuple[str, str, tuple[Kernel, ...]]]:
    t, w, o, k = case.tokens, case.width, case.out, case.outliers
    find, quantize, codes, outliers, add = case.kernels
    halves = tuple((bf16 / 2, int8 / 2, size) for bf16, int8, size in case.kernels)
    yield "counts-a-multiply-add-once", "A multiply-add is two operations.", halves
    slow = (codes[1], 0.0, codes[2])
    yield "int8-at-the-bf16-rate", "The codes are multiplied at the int8 rate.", (find, quantize, slow, outliers, add)
    fast = (0.0, outliers[0], outliers[2])
    yield "outliers-at-the-int8-rate", "The outliers are multiplied in BF16.", (find, quantize, codes, fast, add)
    once = (outliers[0], 0.0, outliers[2] - 2.0 * o * k)
    twice = "The columns of weight that meet outliers are read in BF16, beside their codes: 2·O·k bytes."
    yield "forgets-the-second-copy", twice, (find, quantize, codes, once, add)
    two = (0.0, codes[1], 2.0 * (t * w + o * w) + 4 * t * o)
    yield "codes-in-two-bytes", "Codes of x and of weight take one byte each.", (find, quantize, two, outliers, add)
    small = (0.0, codes[1], 1.0 * t * w + o * w + t * o)
    yield (
        "sums-in-one-byte",
        "Sums of int8 products are int32: four bytes each.",
        (find, quantize, small, outliers, add),
    )
    whole = (2.0 * t * w * o, 0.0, 2.0 * (t * w + o * w + t * o))
    all_of_it = "The BF16 product has `outliers` columns only."
    yield "multiplies-all-in-bf16", all_of_it, (find, quantize, codes, whole, add)
    fewer = (0.0, 2.0 * t * (w - k) * o, 1.0 * t * (w - k) + o * (w - k) + 4 * t * o)
    zeros = "In the table the codes of all `width` columns are multiplied, zeros included."
    yield "leaves-columns-out", zeros, (find, quantize, fewer, outliers, add)
