"""Check of `LoRALinear`: a start that changes nothing, an adapter that alone learns, and the scale between them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qlab import lora
from qlab.checks.beside import reports, require_right_too
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.adapter_runs import asking, differentiated, filled, started
from qlab.checks.qlora.adapter_slips import Adapted, gradient_slips, output_slips
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.layers import plain_of
from qlab.checks.report import Refused, check, part, require

UNIT = 2.0**-24  # half the distance of FP32 numbers at 1
RANDOM_A = "Draw A, `nn.init.kaiming_uniform_`, and leave B at zero: then B·A is 0, and B's first gradient is not."


@check(TOPIC, "lora-linear", lora.LoRALinear, lora.AdaptedLinear, points=4, forbids=("qlab.lora.QLoRALinear",))
def check_lora_linear(lora_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `LoRALinear(linear, rank, alpha)` as its task documents it."""
    with part("a new adapter changes nothing: B is zero, A is not"):
        for bias in (True, False):
            _require_start(lora_linear, draw, bias=bias)
    with part("A and B learn, and nothing else does"):
        for bias in (False, True):
            _require_trainable(lora_linear, draw, bias=bias)
    with part("W x + b + alpha / rank · B A x, for any batch shape"):
        for bias, batch in ((False, (7,)), (True, (2, 3)), (True, ())):
            _require_output(lora_linear, draw, bias=bias, batch=batch)
    with part("the gradients of A, B and x; none arrives at the base"):
        _require_gradients(lora_linear, draw)


def _linear(draw: torch.Generator, *, bias: bool) -> nn.Linear:
    inputs, outputs = drawn(11, 15, draw), drawn(17, 21, draw)
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # leaves the global random numbers alone
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 3)
    return linear


def _require_start(lora_linear: LearnerFunction, draw: torch.Generator, *, bias: bool) -> None:
    linear, rank = _linear(draw, bias=bias), drawn(2, 6, draw)
    alpha = float(drawn(3, 40, draw))
    x = torch.randn(6, linear.in_features, generator=draw)
    found = reports(lora_linear, started, plain_of(linear), rank, alpha, x)
    (lora_a, lora_b), output = next(found), next(found)
    a, b = lora_a.double(), lora_b.double()
    require(
        not b.any() or a.any(),
        "A is zero and B is not",
        misconception="a-and-b-swapped",
        thought=f"{RANDOM_A} Only zero B is what the paper and every library have.",
    )
    require(
        not b.any(),
        f"the new layer's B has values up to {b.abs().max():.3g}, expected zeros",
        misconception="b-is-random",
        thought=f"A new adapter must not change a trained layer. {RANDOM_A}",
    )
    require(
        a.any(),
        "A and B are both zero",
        misconception="a-is-zero",
        thought=f"With both at zero each one's gradient is zero too, and neither ever moves. {RANDOM_A}",
    )
    require(
        a.isfinite().all() and int(torch.linalg.matrix_rank(a)) == rank,
        f"the {rank} rows of A are not so many directions: A has rank {int(torch.linalg.matrix_rank(a.nan_to_num()))}",
        misconception="a-is-not-random",
        thought="Rows that are alike learn alike, and count as one. Draw A at random.",
    )
    _compare(output, Adapted.of(linear, lora_a, lora_b, alpha / rank, 0.0), x)


def _require_trainable(lora_linear: LearnerFunction, draw: torch.Generator, *, bias: bool) -> None:
    linear, rank = _linear(draw, bias=bias), drawn(2, 6, draw)
    x, values = torch.randn(linear.in_features, generator=draw), _values(linear, rank, draw)
    missing, others, output = lora_linear.beside(asking, plain_of(linear), rank, values, x)
    base, (a, b) = linear(x).detach(), values
    got = as_tensor(output, tuple(base.shape), call=f"layer(x of shape {tuple(x.shape)})")
    require(
        not torch.equal(got, base),
        "with A and B filled, the output is the base's",
        misconception="adapter-not-used",
        thought="The output is the base's alone: add the adapter's part.",
    )
    require_right_too(torch.cosine_similarity(got - base, b @ (a @ x), dim=0) >= 0.9)  # whatever its scale
    require(
        not missing,
        f"{' and '.join(missing)} ask for no gradient",
        misconception="adapter-frozen",
        thought="Freeze the base first, then make A and B: they are what learns.",
    )
    weights = [shape for shape in others if len(shape) == 2]
    require(
        not others,
        f"beside A and B, parameters of shape {', '.join(map(str, others))} ask for gradients",
        misconception="base-trainable" if weights else "bias-trainable",
        thought="Freeze all of the base, weight and bias: `linear.requires_grad_(False)`.",
    )


def _require_output(lora_linear: LearnerFunction, draw: torch.Generator, *, bias: bool, batch: tuple[int, ...]) -> None:
    linear, rank, alpha = _linear(draw, bias=bias), *_rank_and_alpha(draw)
    drawn_values = _values(linear, rank, draw)
    x = torch.randn(*batch, linear.in_features, generator=draw)
    found = reports(lora_linear, filled, plain_of(linear), rank, alpha, drawn_values, x)
    values = _read_back(next(found), drawn_values)
    _compare(next(found), Adapted.of(linear, *values, alpha / rank, alpha), x)


def _values(linear: nn.Linear, rank: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw values for A and B."""
    shapes = (rank, linear.in_features), (linear.out_features, rank)
    a, b = (torch.randn(shape, generator=draw) / 2 for shape in shapes)
    return a, b


def _read_back(told: Iterable[Tensor], drawn_values: Iterable[Tensor]) -> list[Tensor]:
    """Return what A and B hold once the drawn values are in them: these, in the type that they have."""
    values = list(told)
    require(
        all(bool(((v - d).abs() <= 2.0**-8 * d.abs()).all()) for v, d in zip(values, drawn_values, strict=True)),
        "A and B do not hold what was copied into them",
        misconception="not-a-parameter",
        thought="`self.lora_a = nn.Parameter(…)` and no more: an optimizer writes into it.",
    )
    return values


def _rank_and_alpha(draw: torch.Generator) -> tuple[int, float]:
    """Draw an alpha that no whole number of ranks makes: alpha / rank is not whole, and alpha is not rank squared."""
    rank = drawn(3, 6, draw)
    return rank, float(rank * drawn(2, 6, draw) + drawn(1, rank - 1, draw))


def _compare(output: Any, case: Adapted, x: Tensor) -> None:
    shape = (*x.shape[:-1], len(case.weight))
    got = as_tensor(output, shape, call=f"layer(x of shape {tuple(x.shape)})").double()
    rows = x.double().reshape(-1, x.shape[-1])
    # FP32 rounds each product and sum: Higham 1993, u · terms · size
    terms = case.weight.shape[1] + case.rank + 8
    require_near(
        got,
        case.output(rows),
        UNIT * terms * case.magnitudes().output(rows.abs()),
        given=lambda i: f"x of shape {tuple(x.shape)}, rank {case.rank}, alpha {case.alpha:g}, output {i}",
        slips=lambda: output_slips(case, rows),
    )


def _require_gradients(lora_linear: LearnerFunction, draw: torch.Generator) -> None:
    linear, rank, alpha = _linear(draw, bias=True), *_rank_and_alpha(draw)
    drawn_values = _values(linear, rank, draw)
    x = torch.randn(5, linear.in_features, generator=draw)
    upstream = torch.randn(5, linear.out_features, generator=draw)
    found = reports(lora_linear, differentiated, plain_of(linear), rank, alpha, drawn_values, (x, upstream))
    case = Adapted.of(linear, *_read_back(next(found), drawn_values), alpha / rank, alpha)
    arrived, gradients = next(found)
    require(
        not arrived,
        f"after a backward pass the base's {' and '.join(arrived)} have gradients",
        misconception="base-trainable",
        thought="Freeze all of the base, weight and bias: `linear.requires_grad_(False)`.",
    )
    missing = [name for name, grad in zip(("x", "lora_a", "lora_b"), gradients, strict=True) if grad is None]
    require(
        not missing,
        f"no gradient arrives at {', '.join(missing)}",
        misconception="detaches",
        thought="A, B and x must stay in the graph: no `detach`, `.data` or `no_grad` on the way to the output.",
    )
    _compare_gradients(case, [grad.double() for grad in gradients], x.double(), upstream.double())


def _compare_gradients(case: Adapted, got: list[Tensor], x: Tensor, upstream: Tensor) -> None:
    want, sizes = case.gradients(x, upstream), case.magnitudes().gradients(x.abs(), upstream.abs())
    terms = x.shape[1] + upstream.shape[1] + case.rank + 8
    names = [name for name, g in zip(("x", "A", "B"), want, strict=True) for _ in range(g.numel())]

    def slips() -> Iterator[Slip]:
        for misconception, thought, gradients in gradient_slips(case, x, upstream):
            yield misconception, thought, _row(gradients)

    try:
        require_near(
            _row(got), _row(want), UNIT * terms * _row(sizes), given=lambda i: f"a gradient of {names[i]}", slips=slips
        )
    except Refused as refusal:
        if refusal.misconception != "wrong-value":
            raise
        raise Refused(
            str(refusal),
            misconception="wrong-gradient",
            thought="Let autograd do it: the output written with plain products of x, A and B has the right gradients.",
        ) from None


def _row(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
