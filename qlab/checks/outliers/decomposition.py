"""Check of `mixed_decomposition_matmul`: which columns, what is rounded, and by which scales."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import outliers
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.outliers.decomposition_slips import as_it_should, product_slips, rule_slips
from qlab.checks.outliers.reading import TOPIC, as_mask
from qlab.checks.quantization.codes import uniform, unpacked
from qlab.checks.quantization.products import require_within
from qlab.checks.report import check, part, require

CALL = "mixed_decomposition_matmul(x, weight, threshold)"


@dataclass(frozen=True)
class Case:
    """One call, and the columns of x that are outliers."""

    x: Tensor
    weight: Tensor
    threshold: float

    @property
    def columns(self) -> Tensor:
        return (self.x.abs() >= self.threshold).any(0)

    @property
    def told(self) -> str:
        """What was given, in words."""
        (tokens, width), out = self.x.shape, len(self.weight)
        kept = int(self.columns.sum())
        sizes = f"{tokens} tokens, width {width}, {out} rows of weight"
        return f"{sizes}, threshold {self.threshold:g}, {kept} outlier columns"

    @property
    def allowed(self) -> Tensor:
        """What may differ: FP32 rounds sums of `width` products and of two parts (Higham 1993, u · terms · size).

        An epsilon of 1e-8 on a scale is let pass: the smallest scale of a row of weight is near 5e-4.
        """
        rounding, rest = 2.0**-24 * (self.x.shape[1] + 8), ~self.columns
        return 1.02 * rounding * _sizes(self.x, self.weight) + 3e-5 * _sizes(self.x * rest, self.weight * rest)


def _sizes(x: Tensor, weight: Tensor) -> Tensor:
    return x.abs().double() @ weight.abs().double().T


@check(
    TOPIC,
    "mixed-decomposition-matmul",
    outliers.mixed_decomposition_matmul,
    points=5,
    forbids=("qlab.outliers.decomposed_int8_linear", "qlab.outliers.decomposed"),
)
def check_mixed_decomposition_matmul(decompose: LearnerFunction, draw: torch.Generator) -> None:
    """Check `mixed_decomposition_matmul(x, weight, threshold) -> (y, outlier_columns)`."""
    with part("a column is an outlier if any magnitude in it reaches the threshold"):
        _require_columns(decompose, [_case(draw), _case(draw, quiet=True), _case(draw, planted=False)])
    with part("without outliers: an int8 product, a scale for each token and each row of weight"):
        _require_products(decompose, [_case(draw, planted=False)])
    with part("outlier columns in FP32, the rest in int8 with token scales found without them"):
        _require_products(decompose, [_case(draw), _case(draw, quiet=True)])
    with part("the scales of weight are found without the outlier columns too"):
        _require_products(decompose, [_case(draw, large=True), _case(draw, large=True, quiet=True)])
    with part("all columns outliers; a token, and a row of weight, with nothing but zeros in the rest"):
        case = _case(draw)
        x, weight, rest = case.x.clone(), case.weight.clone(), ~case.columns
        x[drawn(3, len(x) - 1, draw), rest] = 0.0
        weight[drawn(0, len(weight) - 1, draw), rest] = 0.0
        low = case.x.abs().amax(0).min().item() / 2
        _require_products(decompose, [Case(case.x, case.weight, low), Case(x, weight, case.threshold)])


def _case(draw: torch.Generator, *, planted: bool = True, quiet: bool = False, large: bool = False) -> Case:
    """Draw tokens and rows of different sizes; no code of the rest lies near a tie.

    A `quiet` last token reaches the threshold nowhere; `large` gives the outlier columns of weight the largest values.
    """
    tokens, width, out = drawn(5, 7, draw), drawn(24, 32, draw), drawn(6, 9, draw)
    threshold = drawn(12, 32, draw) / 4  # exact in every float type
    sizes = 10.0 ** uniform(-0.8, -0.1, (tokens, 1), draw)
    x = threshold * sizes * uniform(-1.0, 1.0, (tokens, width), draw)
    columns = torch.randperm(width, generator=draw)[: len(PLANTED) + 1]
    # an ordinary column that adds up to more than the threshold
    x[:, columns[-1]] = threshold * sizes[:, 0].clamp(min=0.5) * uniform(0.8, 0.9, (tokens,), draw)
    if planted:
        for column, plant in zip(columns.tolist(), PLANTED, strict=False):
            x[:, column] = threshold * plant(x[:, column] / threshold, draw)
        if quiet:
            x[-1] = x[-1].clamp(-0.7 * threshold, 0.7 * threshold)
    weight = 10.0 ** uniform(-1.0, 0.0, (out, 1), draw) * uniform(-1.0, 1.0, (out, width), draw)
    weight[:, columns[:-1]] *= 4.0 if large else 0.25
    rest = ~(x.abs() >= threshold).any(0)
    return Case(_off_ties(x, rest), _off_ties(weight, rest), threshold)


def _one_far_below(column: Tensor, draw: torch.Generator) -> Tensor:
    column = -column.abs()
    column[0] = -len(column) - uniform(1.0, 5.0, (), draw)
    return column


def _one_exactly_there(column: Tensor, _: torch.Generator) -> Tensor:
    column = column.clamp(-0.25, 0.25)
    column[1] = 1.0
    return column


def _one_just_above(column: Tensor, draw: torch.Generator) -> Tensor:
    column = column.clamp(-0.25, 0.25)
    column[2] = uniform(1.1, 1.6, (), draw)
    return column


def _cancelling(column: Tensor, draw: torch.Generator) -> Tensor:
    column = torch.zeros_like(column)
    column[0] = uniform(4.0, 6.0, (), draw)
    column[2] = -column[0]
    return column


def _every_token(column: Tensor, draw: torch.Generator) -> Tensor:
    return uniform(6.0, 20.0, (len(column),), draw)


# each in units of the threshold, and each told from ordinary columns by another rule
PLANTED = (_one_far_below, _one_exactly_there, _one_just_above, _cancelling, _every_token)


def _off_ties(values: Tensor, rest: Tensor) -> Tensor:
    """Move values of the rest whose code would lie near a tie, where FP32 may round either way."""
    scale = (values * rest).abs().amax(1, keepdim=True) / 127
    steps = values / scale
    tie = ((steps - steps.floor()) - 0.5).abs() < 0.02
    return torch.where(tie & rest, (steps.floor() + 0.4) * scale, values)


def _results(decompose: LearnerFunction, case: Case) -> tuple[object, object]:
    returned = decompose(case.x, case.weight, case.threshold)
    output, columns = unpacked(returned, ("y", "outlier_columns"), call=CALL)
    return output, columns


def _require_columns(decompose: LearnerFunction, cases: list[Case]) -> None:
    got = [as_mask(_results(decompose, c)[1], c.x.shape[1], call=f"{CALL}[1]") for c in cases]
    places = [(case, column) for case in cases for column in range(case.x.shape[1])]

    def told(i: int) -> str:
        case, column = places[i]
        low, high = case.x[:, column].min().item(), case.x[:, column].max().item()
        values = f"column {column} with values from {low:.6g} to {high:.6g}"
        return f"{values}, threshold {case.threshold:g} (is it an outlier?)"

    def suspects() -> Iterator[Suspect]:
        for misconception, thought, rule in rule_slips():
            yield Suspect(misconception, thought, _joined(cases, rule))

    require_values(
        torch.cat(got).double(), torch.cat([c.columns for c in cases]).double(), given=told, suspects=suspects
    )


def _joined(cases: list[Case], rule: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    return torch.cat([rule(c.x, c.weight, c.threshold).expand(c.x.shape[1]) for c in cases]).double()


def _require_products(decompose: LearnerFunction, cases: list[Case]) -> None:
    got = [_output(decompose, case) for case in cases]
    places = [(c, i, j) for c in cases for i in range(len(c.x)) for j in range(len(c.weight))]

    def told(index: int) -> str:
        case, token, row = places[index]
        return f"{case.told}, y[{token}, {row}]"

    def suspects() -> Iterator[Suspect]:
        for slips in zip(*(product_slips(c.x, c.weight, c.threshold) for c in cases), strict=True):
            misconception, thought, _ = slips[0]
            yield Suspect(misconception, thought, torch.cat([values.double().flatten() for _, _, values in slips]))

    require_within(
        torch.cat(got),
        torch.cat([as_it_should(c.x, c.weight, c.columns).flatten() for c in cases]),
        torch.cat([c.allowed.flatten() for c in cases]),
        given=told,
        suspects=suspects,
    )


def _output(decompose: LearnerFunction, case: Case) -> Tensor:
    got = as_tensor(_results(decompose, case)[0], (len(case.x), len(case.weight)), call=f"{CALL}[0]").double()
    lost = int((~got.isfinite()).sum())
    require(
        not lost,
        f"given {case.told}, {lost} of {got.numel()} outputs are not finite",
        misconception="divides-by-zero",
        thought="Where the rest of a token or row is all zeros its scale is 0, and 0 / 0 is NaN: take 1 there.",
    )
    return got.flatten()
