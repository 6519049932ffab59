"""Check of `kmeans_codebook`: every level the mean of what is nearest to it, whatever the start."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from qlab import codebooks
from qlab.checks.expect import as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.quantization.codes import TOPIC
from qlab.checks.report import Refused, check, part, require

COUNT = 400
AT_REST = 0.01  # of a standard deviation: one value that changes sides moves a mean of 50 values by less
TIE = 1e-6  # of the range: FP32 cannot tell two distances apart that are nearer than that
ROUNDS = 100  # of 400 values, from the quantiles, the range or 8 values at random: 84 in the longest of 540 runs


@check(TOPIC, "kmeans-codebook", codebooks.kmeans_codebook, points=3, forbids=("sklearn.cluster", "scipy.cluster"))
def check_kmeans_codebook(kmeans_codebook: LearnerFunction, draw: torch.Generator) -> None:
    """Check `kmeans_codebook(x, bits)` by what a codebook at rest must be, in any order and from any start."""
    with part("each level is the mean of the values nearest to it"):
        for x, bits in ((_bell(draw), 2), (_skewed(draw), 3), (_skewed(draw), 1)):
            _require_means(x, _codebook(kmeans_codebook, x, bits))
    with part("a smaller squared error than the uniform grid from min to max has"):
        for x in (_bell(draw), _skewed(draw)):
            _require_smaller_error(x, _codebook(kmeans_codebook, x, 2))
    with part("finite where some level has no value: outliers, few distinct values, all the same"):
        for x in (_with_outliers(draw), _few_distinct(draw), _all_the_same(draw)):
            _require_used_levels_in_range(x, _codebook(kmeans_codebook, x, 3))


def _bell(draw: torch.Generator) -> Tensor:
    return torch.randn(COUNT, generator=draw) * 0.02


def _skewed(draw: torch.Generator) -> Tensor:
    """Return values with long tails, the right one longer, around a center that is not zero."""
    x = torch.randn(COUNT, generator=draw)
    return 3 + torch.where(x > 0, 2 * x * x.abs(), x * x.abs())


def _with_outliers(draw: torch.Generator) -> Tensor:
    x = torch.rand(200, generator=draw)
    x[: int(torch.randint(1, 4, (), generator=draw))] = 40 + 20 * torch.rand(1, generator=draw)
    return x[torch.randperm(200, generator=draw)]


def _few_distinct(draw: torch.Generator) -> Tensor:
    values = torch.tensor([-1.0, 0.5, 2.0]) + torch.randn(1, generator=draw)
    return values[torch.randint(0, 3, (60,), generator=draw)]


def _all_the_same(draw: torch.Generator) -> Tensor:
    return torch.randint(1, 9, (1,), generator=draw).repeat(60) / 4  # whose mean is exact, and whose deviation is 0


def _codebook(kmeans_codebook: LearnerFunction, x: Tensor, bits: int) -> Tensor:
    call = f"kmeans_codebook(x, {bits})"
    codebook = as_tensor(kmeans_codebook(x, bits), (2**bits,), call=call).double()
    lost = ~codebook.isfinite()
    nan = "A level with no value has a sum of 0 and a count of 0, and 0 / 0 is NaN: let it stay where it is."
    require(
        not lost.any(),
        f"`{call}` returned {int(lost.sum())} levels that are not finite: {_listed(codebook)}",
        misconception="empty-cluster-becomes-nan" if codebook.isnan().any() else "not-finite",
        thought=nan if codebook.isnan().any() else "Every level is a mean of values that are finite.",
    )
    return codebook


def _require_means(x: Tensor, codebook: Tensor) -> None:
    centroids, low, high = _means(x.double(), codebook)
    apart = torch.maximum(low - centroids, centroids - high) / x.double().std()
    require(
        len(codebook.unique()) in (1, len(codebook)),  # all equal are refused below, by their mean
        f"given {len(x)} different values, {len(codebook) - len(codebook.unique())} of the {len(codebook)} levels that"
        f" came back equal others: {_listed(codebook)}",
        misconception="some-levels-equal",
        thought=f"{DIFFER} Of two that are equal only one can be the nearest to a value.",
    )
    if apart.max() <= AT_REST and len(centroids) > 1:
        return
    worst = int(apart.argmax())
    misconception, thought = _diagnosis(x.double(), codebook)
    raise Refused(
        f"given {len(x)} values from {x.min():.4g} to {x.max():.4g} and {len(codebook)} levels, got the level"
        f" {centroids[worst]:.5g}; the mean of the values nearest to it is {low[worst]:.5g},"
        f" {apart[worst]:.2g} standard deviations away (at most {AT_REST})",
        misconception=misconception,
        thought=thought,
    )


def _require_smaller_error(x: Tensor, codebook: Tensor) -> None:
    got, uniform = (_squared_error(x.double(), c) for c in (codebook, _range_grid(x.double(), len(codebook))))
    if got < 0.99 * uniform:  # from any start of distinct values k-means comes below 0.6 here
        return
    misconception, thought = _diagnosis(x.double(), codebook)
    raise Refused(
        f"given {len(x)} values and {len(codebook)} levels, got a mean squared error of {got / len(x):.4g};"
        f" the uniform grid from min to max has {uniform / len(x):.4g}",
        misconception=misconception,
        thought=thought,
    )


def _require_used_levels_in_range(x: Tensor, codebook: Tensor) -> None:
    """Refuse a level that some value is nearest to and that lies outside the values: no mean does."""
    room = AT_REST * (x.max() - x.min() + x.abs().max())
    nearest = codebook[_nearest(x.double(), codebook)]
    outside = (nearest < x.min() - room) | (nearest > x.max() + room)
    require(
        not outside.any(),
        f"given values from {x.min():.4g} to {x.max():.4g}, got the codebook {_listed(codebook)}",
        misconception="leaves-the-range",
        thought="A mean of values lies between the smallest and the largest of them.",
    )


def _means(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centroids in use, and the smallest and largest mean each may have, ties going either way."""
    centroids = codebook.unique()
    middles = (centroids[1:] + centroids[:-1]) / 2
    room = TIE * (x.max() - x.min())
    low, high = torch.full_like(centroids, torch.inf), torch.full_like(centroids, -torch.inf)
    for left in (-room, room):
        for right in (-room, room):
            below = (x[:, None] > middles + left).sum(1), (x[:, None] > middles + right).sum(1)
            # a value within a hair of a middle is counted on both sides, on one, or on none
            inside = torch.stack([(below[0] >= i) & (below[1] <= i) for i in range(len(centroids))], dim=1)
            means = (inside * x[:, None]).sum(0) / inside.sum(0)
            low, high = torch.fmin(low, means), torch.fmax(high, means)
    used = low.isfinite()
    return centroids[used], low[used], high[used]


def _diagnosis(x: Tensor, codebook: Tensor) -> tuple[str, str]:
    """Name the slip whose own rule gives every centroid, to a thousandth of a standard deviation."""
    got, near = codebook.sort().values, 1e-3 * x.std()
    if got[0] == got[-1]:
        return "all-centroids-equal", DIFFER
    for misconception, thought, rule in SLIPS:
        for values in rule(x, codebook):
            if ((values.sort().values - got).abs() <= near).all():
                return misconception, thought
    if (codebook < x.min() - near).any() or (codebook > x.max() + near).any():
        return "leaves-the-range", "A mean of values lies between the smallest and the largest of them."
    again = "Assign, average, assign again, until no level moves, and return those averages"
    return "not-the-means", f"{again}: {ROUNDS} rounds are enough here."


def _range_grid(x: Tensor, levels: int) -> Tensor:
    return torch.linspace(x.min().item(), x.max().item(), levels, dtype=torch.float64)


def _starts(x: Tensor, levels: int) -> Iterator[Tensor]:
    """Return the starts that most people choose."""
    inner = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    yield _range_grid(x, levels)
    yield x.min() + inner * (x.max() - x.min())
    yield torch.quantile(x, inner)
    yield torch.quantile(x, torch.linspace(0, 1, levels, dtype=torch.float64))
    yield torch.quantile(x, torch.linspace(0, 1, levels + 2, dtype=torch.float64)[1:-1])
    yield x[:levels]


def _stayed(x: Tensor, codebook: Tensor) -> Iterator[Tensor]:
    yield from _starts(x, len(codebook))
    if torch.isin(codebook.float(), x.float()).all():  # values of x, as they were picked
        yield codebook


def _one_round(x: Tensor, codebook: Tensor) -> Iterator[Tensor]:
    for start in _starts(x, len(codebook)):
        yield _averaged(x, start, torch.mean)


def _medians(x: Tensor, codebook: Tensor) -> Iterator[Tensor]:
    yield _averaged(x, codebook, torch.median)
    yield _averaged(x, codebook, lambda values: values.quantile(0.5))


def _indices(x: Tensor, codebook: Tensor) -> Iterator[Tensor]:
    yield torch.arange(len(codebook), dtype=torch.float64)
    yield torch.full_like(codebook, (len(codebook) - 1) / 2)


def _averaged(x: Tensor, codebook: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    nearest = _nearest(x, codebook)
    members = (x[nearest == i] for i in range(len(codebook)))
    return torch.stack([average(m) if len(m) else c for m, c in zip(members, codebook, strict=True)])


def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    return (x[:, None] - codebook).abs().argmin(1)


def _squared_error(x: Tensor, codebook: Tensor) -> float:
    return (x - codebook[_nearest(x, codebook)]).square().sum().item()


def _listed(codebook: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in codebook.tolist())


DIFFER = "Start from levels that differ: values of x, quantiles, points of its range."
STAY = "These are the levels that a start has: move each to the mean of the values nearest to it, again and again."
ONCE = "This is one round. A level that moves changes which values are nearest to it: go on until none moves."
MEDIAN = "The median makes the absolute error smallest, the mean the squared error."
INDEX = "Average the values of x that chose a level, not their indices."
SLIPS: tuple[tuple[str, str, Callable[[Tensor, Tensor], Iterable[Tensor]]], ...] = (
    ("averages-indices", INDEX, _indices),
    ("moves-to-the-median", MEDIAN, _medians),
    ("never-moves-the-centroids", STAY, _stayed),
    ("stops-after-one-round", ONCE, _one_round),
)
