"""Check of `hadamard_transform` and `rotate`: an orthogonal matrix of equal magnitudes, and a product that it keeps."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qlab import outliers
from qlab.checks.expect import Suspect, as_tensor
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.outliers.reading import TOPIC
from qlab.checks.quantization.codes import unpacked
from qlab.checks.quantization.products import require_within
from qlab.checks.report import check, part, require

CALL, ROTATE = "hadamard_transform(x)", "rotate(x, weight)"
WIDTHS = (2, 4, 16, 64)


@check(TOPIC, "hadamard-transform", outliers.hadamard_transform, points=5, forbids=("qlab.outliers.rotated",))
def check_hadamard_transform(transform: LearnerFunction, rotate: LearnerFunction, draw: torch.Generator) -> None:
    """Check `hadamard_transform(x)` and `rotate(x, weight) -> (x, weight)`."""
    with part("every value is spread evenly: the matrix holds ±1/√n"):
        for width in WIDTHS:
            _require_magnitudes(_matrix(transform, width), width)
    with part("orthogonal: no row's length changes"):
        for width in WIDTHS:
            _require_orthogonal(_matrix(transform, width), width)
    with part("along the last axis, each row by itself, any batch shape"):
        _require_rows(transform, torch.randn((3, 5)[drawn(0, 1, draw)], 32, generator=draw))
        _require_rows(transform, torch.randn(8, 8, generator=draw))
        _require_rows(transform, torch.randn(2, drawn(3, 5, draw), 16, generator=draw))
        _require_rows(transform, torch.randn(4, generator=draw))
    with part("rotate: the product stays"):
        for out in ((3, 5, 6, 7)[drawn(0, 3, draw)], 16):
            _require_product(rotate, *_factors(draw, out))
    with part("rotate: an outlier of x is spread over all channels, and a row of weight as well"):
        _require_spread(rotate, draw)


def _matrix(transform: LearnerFunction, width: int) -> Tensor:
    """Return what the answer does to the unit vectors: the rows of its matrix."""
    return as_tensor(transform(torch.eye(width)), (width, width), call=CALL).double()


def _sylvester(width: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def _tolerance(width: int) -> float:
    """FP32 rounds each of log2(width) rounds of sums, or a sum of `width` products, and a division, to 6e-8 each."""
    return 2.0**-24 * (width + 4)


def _require_magnitudes(matrix: Tensor, width: int) -> None:
    size = width**-0.5
    got, signs = matrix.abs().flatten(), torch.full((width * width,), size, dtype=torch.float64)
    one_round = (
        "One round mixes pairs only: repeat it with pairs 1, 2, 4, … apart, until every value has met every other."
    )

    def suspects() -> Iterator[Suspect]:
        root = f"Divide by √n, here {width**0.5:g}, once: then no length changes."
        for factor in (width**0.5, width**-0.5, width**0.5 / 2):
            yield Suspect("not-orthonormal", root, signs * factor)
        if abs(got[0] / size - 1) > 0.05 and got.max() - got.min() <= 1e-6 * got.max():  # ±c everywhere
            yield Suspect("not-orthonormal", root, got)
        same = "Each unit vector came back as it was: nothing is spread."
        yield Suspect("changes-nothing", same, torch.eye(width).double().flatten())
        for rounds in range(1, width.bit_length() - 1):
            for scale in (size, 2.0 ** (-rounds / 2), 1.0):
                for matrix_of in (_first_rounds, _last_rounds):
                    yield Suspect("stops-too-early", one_round, matrix_of(width, rounds).abs().flatten() * scale)
        yield Suspect("not-finite", "A division by zero?", torch.full_like(signs, torch.nan))
        if bool(((matrix @ matrix.T) - torch.eye(width)).abs().max() < 1e-5):
            other = "Orthogonal, but not a Hadamard matrix: every entry has the same magnitude, 1/√n."
            yield Suspect("another-rotation", other, got)

    require_within(
        got,
        signs,
        torch.full_like(signs, _tolerance(width)),
        given=lambda i: f"unit vector {i // width} of width {width}, value {i % width} (its magnitude)",
        suspects=suspects,
    )


def _first_rounds(width: int, rounds: int) -> Tensor:
    return torch.kron(torch.eye(width // 2**rounds, dtype=torch.float64), _sylvester(2**rounds))


def _last_rounds(width: int, rounds: int) -> Tensor:
    return torch.kron(_sylvester(2**rounds), torch.eye(width // 2**rounds, dtype=torch.float64))


def _require_orthogonal(matrix: Tensor, width: int) -> None:
    gram = matrix @ matrix.T
    off = gram - torch.diag(gram.diagonal())
    lengths, angles = gram.diagonal(), off.abs()
    # each entry errs by the tolerance times 1/√n at most, and n products of two such are summed
    allowed = 2 * _tolerance(width) * width**0.5
    require(
        bool((lengths - 1).abs().max() <= allowed),
        f"given unit vectors of width {width}, got squared lengths from {lengths.min():.6g} to {lengths.max():.6g}",
        misconception="not-orthonormal",
        thought="Sums and differences of n values make a vector √n times as long: divide by √n, once.",
    )
    require(
        bool(angles.max() <= allowed),
        f"given unit vectors of width {width}, two of the results have the product {off.abs().max():.6g}, expected 0",
        misconception="not-orthogonal",
        thought="Rows of a Hadamard matrix agree in half of their signs: H of size 2n is [[H, H], [H, −H]].",
    )
    require(
        bool((matrix - torch.eye(width)).abs().max() > 0.1),
        f"given unit vectors of width {width}, they came back as they were",
        misconception="changes-nothing",
        thought="A Hadamard matrix spreads each of them over all channels.",
    )


def _require_rows(transform: LearnerFunction, x: Tensor) -> None:
    width, rows = x.shape[-1], x.double().reshape(-1, x.shape[-1])
    matrix = _matrix(transform, width)
    require(
        torch.equal(matrix, _matrix(transform, width)),
        f"called twice with the unit vectors of width {width}, it gave two different results",
        misconception="changes-from-call-to-call",
        thought="x and weight meet only if both are rotated by the same H: draw random signs once, or not at all.",
    )
    got = as_tensor(transform(x), tuple(x.shape), call=CALL).double().reshape(rows.shape)
    axes = "Rows are tokens: the transform runs along the *last* axis."

    def suspects() -> Iterator[Suspect]:
        if len(rows) == width:
            for values in (matrix @ rows, matrix @ rows @ matrix, matrix.T @ rows):
                yield Suspect("wrong-axis", axes, values.flatten())
        yield Suspect("changes-nothing", "x came back as it was.", rows.flatten())

    size = rows.abs() @ matrix.abs()
    require_within(
        got.flatten(),
        (rows @ matrix).flatten(),
        (2 * _tolerance(width) * size + 1e-12).flatten(),
        given=lambda i: f"x of shape {tuple(x.shape)}, row {i // width}, value {i % width}",
        suspects=suspects,
    )
    lengths = got.norm(dim=1) / rows.norm(dim=1)
    require(
        bool((lengths - 1).abs().max() < 1e-4),
        f"given x of shape {tuple(x.shape)}, a row became {lengths[0]:.6g} times as long, expected 1",
        misconception="not-orthonormal",
        thought="Divide by √n, once: then no length changes.",
    )


def _factors(draw: torch.Generator, out: int) -> tuple[Tensor, Tensor]:
    width, tokens = 16, drawn(3, 6, draw)
    return torch.randn(tokens, width, generator=draw), torch.randn(out, width, generator=draw)


def _rotated(rotate: LearnerFunction, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    new_x, new_weight = unpacked(rotate(x, weight), ("x", "weight"), call=ROTATE)
    return (
        as_tensor(new_x, tuple(x.shape), call=f"{ROTATE}[0]").double(),
        as_tensor(new_weight, tuple(weight.shape), call=f"{ROTATE}[1]").double(),
    )


BOTH = "(X H)(W H)ᵀ = X H Hᵀ Wᵀ = X Wᵀ: the product stays only if both factors are rotated, by the same matrix."
SIDES = "x and weight meet in their *last* axes: rotate both of them there."


def _require_product(rotate: LearnerFunction, x: Tensor, weight: Tensor) -> None:
    new_x, new_weight = _rotated(rotate, x, weight)
    require(
        not (torch.equal(new_x, x.double()) and torch.equal(new_weight, weight.double())),
        f"given x of shape {tuple(x.shape)}, both factors came back as they were",
        misconception="changes-nothing",
        thought=BOTH,
    )
    got, expected = new_x @ new_weight.T, x.double() @ weight.double().T
    h = _sylvester(x.shape[1]) / x.shape[1] ** 0.5

    def suspects() -> Iterator[Suspect]:
        for root in (1.0, x.shape[1] ** 0.5):
            one_side = x.double() @ h @ weight.double().T
            yield Suspect("rotates-one-factor", BOTH, root * one_side.flatten())
            if len(weight) == x.shape[1]:
                turned = x.double() @ h @ (h @ weight.double()).T
                yield Suspect("rotates-the-wrong-axis", SIDES, root**2 * turned.flatten())
        longer = "The product was scaled: an orthonormal transform divides each factor by √n, once."
        factor = float((got * expected).sum() / expected.square().sum())
        yield Suspect("not-orthonormal", longer, factor * expected.flatten())
        unchanged = torch.equal(new_x, x.double()) or torch.equal(new_weight, weight.double())
        yield from [Suspect("rotates-one-factor", BOTH, got.flatten())] if unchanged else []

    # every value of both factors errs by the tolerance, and their products are summed here in FP64
    size = 4 * _tolerance(x.shape[1]) * torch.outer(x.double().norm(dim=1), weight.double().norm(dim=1))
    require_within(
        got.flatten(),
        expected.flatten(),
        size.flatten(),
        given=lambda i: (
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, product [{i // len(weight)}, {i % len(weight)}]"
        ),
        suspects=suspects,
    )


def _require_spread(rotate: LearnerFunction, draw: torch.Generator) -> None:
    """Give one-hot rows: a Hadamard matrix of any order of rows and any signs makes them flat."""
    width = 16
    x, weight = torch.zeros(3, width), torch.zeros(5, width)
    for factor in (x, weight):
        for row in factor:
            row[drawn(0, width - 1, draw)] = 100.0
    for name, new in zip(("x", "weight"), _rotated(rotate, x, weight), strict=True):
        largest = float(new.abs().max())
        require(
            abs(largest - 25.0) < 1e-3,
            f"a row of {name} held one 100 and 15 zeros; now its largest magnitude is {largest:.6g}, expected 25",
            misconception="not-spread",
            thought=BOTH if largest == 100 else "One value of n becomes n values, each 1/√n of it.",
        )
