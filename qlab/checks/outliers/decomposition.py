"""Check of `mixed_decomposition_matmul`: which columns, what is rounded, and by which scales."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab import outliers
from qlab.checks.expect import Suspect, as_tensor, require_values
from qlab.checks.learner import LearnerFunction
from qlab.checks.memory.numbers import drawn
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
        return f"{tokens} tokens, width {width}, {out} rows of weight, threshold {self.threshold:g}, {kept} outlier columns"

    @property
    def allowed(self) -> Tensor:
        """What FP32 may round off sums of `width` products and of two parts: Higham 1993, u · terms · size."""
        return 2.0**-24 * (self.x.shape[1] + 8) * 1.02 * (self.x.abs().double() @ self.weight.abs().double().T)


@check(TOPIC, "mixed-decomposition-matmul", outliers.mixed_decomposition_matmul, points=5)
def check_mixed_decomposition_matmul(decompose: LearnerFunction, draw: torch.Generator) -> None:
    """Check `mixed_decomposition_matmul(x, weight, threshold) -> (y, outlier_columns)`."""
    with part("a column is an outlier if any magnitude in it reaches the threshold"):
        _require_columns(decompose, [_case(draw), _case(draw), _case(draw, planted=False)])
    with part("without outliers: an int8 product, a scale for each token and each row of weight"):
        _require_product(decompose, _case(draw, planted=False))
        _require_product(decompose, _case(draw, planted=False))
    with part("outlier columns in FP32, the rest in int8 with token scales found without them"):
        _require_product(decompose, _case(draw))
        _require_product(decompose, _case(draw))
    with part("the scales of weight are found without the outlier columns too"):
        _require_product(decompose, _case(draw, large_columns=True))
    with part("all columns outliers; a token, and a row of weight, with nothing but zeros in the rest"):
        case = _case(draw)
        _require_product(decompose, Case(case.x, case.weight, case.x.abs().amax(0).min().item() / 2))
        x, weight, rest = case.x.clone(), case.weight.clone(), ~case.columns
        x[drawn(3, len(x) - 1, draw), rest] = 0.0
        weight[drawn(0, len(weight) - 1, draw), rest] = 0.0
        _require_product(decompose, Case(x, weight, case.threshold))


def _case(draw: torch.Generator, *, planted: bool = True, large_columns: bool = False) -> Case:
    """Draw tokens and rows of different sizes; no code of the rest lies near a tie.

    The planted columns are told apart by one rule each: a negative value only, one that is the threshold itself,
    values that cancel in a sum, and every token far beyond. One ordinary column adds up to more than the threshold.
    """
    tokens, width, out = drawn(5, 7, draw), drawn(24, 32, draw), drawn(6, 9, draw)
    threshold = drawn(12, 32, draw) / 4  # exact in every float type
    sizes = 10.0 ** uniform(-0.8, -0.1, (tokens, 1), draw)
    x = threshold * sizes * uniform(-1.0, 1.0, (tokens, width), draw)
    columns = torch.randperm(width, generator=draw)[:5]
    x[:, columns[4]] = threshold * sizes[:, 0].clamp(min=0.5) * uniform(0.8, 0.9, (tokens,), draw)
    if planted:
        x[0, columns[0]] = -threshold * drawn(3, 9, draw)
        x[1, columns[1]] = threshold
        x[:, columns[1]] = x[:, columns[1]].clamp(-threshold / 4, threshold)
        far = threshold * uniform(4.0, 6.0, (), draw)
        x[:, columns[2]] = 0.0
        x[0, columns[2]], x[2, columns[2]] = far, -far
        x[:, columns[3]] = threshold * uniform(6.0, 20.0, (tokens,), draw)
    weight = 10.0 ** uniform(-1.0, 0.0, (out, 1), draw) * uniform(-1.0, 1.0, (out, width), draw)
    weight[:, columns[:4]] *= 4.0 if large_columns else 0.25
    rest = ~(x.abs() >= threshold).any(0)
    return Case(_off_ties(x, rest), _off_ties(weight, rest), threshold)


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
        return f"column {column} with values from {low:.6g} to {high:.6g}, threshold {case.threshold:g} (is it an outlier?)"

    def suspects() -> Iterator[Suspect]:
        for misconception, thought, rule in rule_slips():
            yield Suspect(misconception, thought, _joined(cases, rule))

    require_values(torch.cat(got).double(), torch.cat([c.columns for c in cases]).double(), given=told, suspects=suspects)


def _joined(cases: list[Case], rule: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    return torch.cat([rule(c.x, c.weight, c.threshold).expand(c.x.shape[1]) for c in cases]).double()


def _require_product(decompose: LearnerFunction, case: Case) -> None:
    (tokens, _), out = case.x.shape, len(case.weight)
    got = as_tensor(_results(decompose, case)[0], (tokens, out), call=f"{CALL}[0]").double()
    lost = ~got.isfinite()
    require(
        not lost.any(),
        f"given {case.told}, {int(lost.sum())} of {got.numel()} outputs are not finite",
        misconception="divides-by-zero",
        thought="Where the rest of a token or row is all zeros its scale is 0, and 0 / 0 is NaN: take 1 there.",
    )

    def suspects() -> Iterator[Suspect]:
        for misconception, thought, values in product_slips(case.x, case.weight, case.threshold):
            yield Suspect(misconception, thought, values.double().expand(tokens, out).flatten())

    require_within(
        got.flatten(),
        as_it_should(case.x, case.weight, case.columns).double().flatten(),
        case.allowed.flatten(),
        given=lambda i: f"{case.told}, y[{i // out}, {i % out}]",
        suspects=suspects,
    )
