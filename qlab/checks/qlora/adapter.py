"""Check of `LoRALinear`: a start that changes nothing, an adapter that alone learns, and the scale between them."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qlab import lora
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.adapter_slips import Adapted, gradient_slips, output_slips
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.report import Refused, check, part, require

UNIT = 2.0**-24  # half the distance of FP32 numbers at 1
RANDOM_A = "Draw A, `nn.init.kaiming_uniform_`, and leave B at zero: then B·A is 0, and B's first gradient is not."


@check(TOPIC, "lora-linear", lora.LoRALinear, lora.AdaptedLinear, points=4)
def check_lora_linear(lora_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `LoRALinear(linear, rank, alpha)` as its task documents it."""
    with part("a new adapter changes nothing: B is zero, A is not"):
        for bias in (True, False):
            _require_start(lora_linear, draw, bias=bias)
    with part("A and B learn, and nothing else does"):
        for bias in (False, True):
            _require_trainable(lora_linear, _linear(draw, bias=bias), drawn(2, 6, draw))
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


def _made(lora_linear: LearnerFunction, linear: nn.Linear, rank: int, alpha: float) -> nn.Module:
    layer = lora_linear(linear, rank, alpha)
    require(
        isinstance(layer, nn.Module),
        f"`LoRALinear(linear, {rank}, {alpha:g})` gave a {type(layer).__name__}",
        misconception="returns-nothing" if layer is None else "not-a-module",
        thought="`class LoRALinear(nn.Module):`, with `super().__init__()` first.",
    )
    shapes = {"lora_a": (rank, linear.in_features), "lora_b": (linear.out_features, rank)}
    for name, shape in shapes.items():
        matrix = getattr(layer, name, None)
        require(
            isinstance(matrix, nn.Parameter),
            f"`layer.{name}` is a {type(matrix).__name__}, expected an nn.Parameter",
            misconception="not-a-parameter",
            thought=f"`self.{name} = nn.Parameter(…)`: an optimizer finds parameters, and no plain tensors.",
        )
        require(
            tuple(matrix.shape) == shape,
            f"`layer.{name}` has shape {tuple(matrix.shape)}, expected {shape}",
            misconception="wrong-shape",
            thought="A takes the inputs down to `rank` numbers: (rank, in). B takes these up: (out, rank).",
        )
    return layer


def _output(layer: nn.Module, x: Tensor, out: int) -> Tensor:
    shape = (*x.shape[:-1], out)
    return as_tensor(LearnerFunction(layer)(x), shape, call=f"layer(x of shape {tuple(x.shape)})").double()


def _require_start(lora_linear: LearnerFunction, draw: torch.Generator, *, bias: bool) -> None:
    linear, rank = _linear(draw, bias=bias), drawn(2, 6, draw)
    alpha = float(drawn(3, 40, draw))
    x = torch.randn(6, linear.in_features, generator=draw)
    layer = _made(lora_linear, copy.deepcopy(linear), rank, alpha)
    a, b = layer.lora_a.detach().double(), layer.lora_b.detach().double()
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
    _compare(layer, linear, x, alpha / rank)


def _require_trainable(lora_linear: LearnerFunction, linear: nn.Linear, rank: int) -> None:
    layer = _made(lora_linear, copy.deepcopy(linear), rank, 8.0)
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    wanted = [layer.lora_a, layer.lora_b]
    missing = [name for name in ("lora_a", "lora_b") if not getattr(layer, name).requires_grad]
    require(
        not missing,
        f"{' and '.join(missing)} ask for no gradient",
        misconception="adapter-frozen",
        thought="Freeze the base first, then make A and B: they are what learns.",
    )
    others = [tuple(p.shape) for p in learning if all(p is not one for one in wanted)]
    weights = [shape for shape in others if len(shape) == 2]
    require(
        not others,
        f"beside A and B, parameters of shape {', '.join(map(str, others))} ask for gradients",
        misconception="base-trainable" if weights else "bias-trainable",
        thought="Freeze all of the base, weight and bias: `linear.requires_grad_(False)`.",
    )


def _filled(layer: nn.Module, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put drawn values into A and B, as an optimizer does, and return them."""
    with torch.no_grad():
        for matrix in (layer.lora_a, layer.lora_b):
            matrix.copy_(torch.randn(matrix.shape, generator=draw) / 2)
    return layer.lora_a.detach().clone(), layer.lora_b.detach().clone()


def _require_output(lora_linear: LearnerFunction, draw: torch.Generator, *, bias: bool, batch: tuple[int, ...]) -> None:
    linear, rank, alpha = _linear(draw, bias=bias), *_rank_and_alpha(draw)
    layer = _made(lora_linear, copy.deepcopy(linear), rank, alpha)
    _filled(layer, draw)
    _compare(layer, linear, torch.randn(*batch, linear.in_features, generator=draw), alpha / rank, alpha)


def _rank_and_alpha(draw: torch.Generator) -> tuple[int, float]:
    """Draw an alpha that no whole number of ranks makes: alpha / rank is not whole, and alpha is not rank squared."""
    rank = drawn(3, 6, draw)
    return rank, float(rank * drawn(2, 6, draw) + drawn(1, rank - 1, draw))


def _compare(layer: nn.Module, linear: nn.Linear, x: Tensor, scaling: float, alpha: float = 0.0) -> None:
    got = _output(layer, x, linear.out_features)
    case = Adapted.of(linear, layer.lora_a, layer.lora_b, scaling, alpha)
    rows = x.double().reshape(-1, x.shape[-1])
    # FP32 rounds each product and sum: Higham 1993, u · terms · size
    terms = linear.in_features + case.rank + 8
    require_near(
        got,
        case.output(rows),
        UNIT * terms * case.magnitudes().output(rows.abs()),
        given=lambda i: f"x of shape {tuple(x.shape)}, rank {case.rank}, alpha {alpha:g}, output {i}",
        slips=lambda: output_slips(case, rows),
    )


def _require_gradients(lora_linear: LearnerFunction, draw: torch.Generator) -> None:
    linear, rank, alpha = _linear(draw, bias=True), *_rank_and_alpha(draw)
    given = copy.deepcopy(linear)
    layer = _made(lora_linear, given, rank, alpha)
    _filled(layer, draw)
    case = Adapted.of(linear, layer.lora_a, layer.lora_b, alpha / rank, alpha)
    x = torch.randn(5, linear.in_features, generator=draw)
    upstream = torch.randn(5, linear.out_features, generator=draw)
    leaf = x.clone().requires_grad_()
    wanted = {"x": leaf, "lora_a": layer.lora_a, "lora_b": layer.lora_b}
    LearnerFunction(lambda: (layer(leaf) * upstream).sum().backward())()
    arrived = [name for name, parameter in given.named_parameters() if parameter.grad is not None]
    require(
        not arrived,
        f"after a backward pass the base's {' and '.join(arrived)} have gradients",
        misconception="base-trainable",
        thought="Freeze all of the base, weight and bias: `linear.requires_grad_(False)`.",
    )
    missing = [name for name, tensor in wanted.items() if tensor.grad is None]
    require(
        not missing,
        f"no gradient arrives at {', '.join(missing)}",
        misconception="detaches",
        thought="A, B and x must stay in the graph: no `detach`, `.data` or `no_grad` on the way to the output.",
    )
    _compare_gradients(case, [tensor.grad.double() for tensor in wanted.values()], x.double(), upstream.double())


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
