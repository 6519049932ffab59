"""Check of `qlora_linear`: a product with a weight in codes, whose gradient passes through and which nothing keeps."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab import codebooks, lora
from qlab.checks import probe
from qlab.checks.beside import require_right_too, roughly
from qlab.checks.expect import as_tensor
from qlab.checks.flash_attention.comparing import Slip, require_near
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import drawn
from qlab.checks.qlora.adapter_slips import Adapted, gradient_slips
from qlab.checks.qlora.operands import Operands, Products
from qlab.checks.qlora.topic import TOPIC
from qlab.checks.quantization.codes import dtype_of
from qlab.checks.report import check, part, require

CALL = "qlora_linear(x, codes, lora_a, lora_b, scaling)"
FP32, BF16 = 2.0**-24, 2.0**-9  # half the distance of numbers at 1
WIDE, HIGH, ROWS, RANK = 160, 192, 9, 4  # sides that no two products of the right answer share with a whole weight
BOTH = "h = x Wᵀ + scaling · (x Aᵀ) Bᵀ: the product through the codes, and the adapter's."
AGAIN = "Keep the codes, and call `codes.dequantize()` once more in `backward`: the weight itself must go."


@dataclass(frozen=True)
class Case:
    """One call, in the order of the arguments."""

    x: Tensor
    codes: codebooks.BlockwiseCodes
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.x, self.codes, self.a, self.b, self.scaling

    @property
    def layer(self) -> Adapted:
        """The layer in FP64, with the weight that the codes stand for."""
        weight = self.codes.dequantize().to(self.x.dtype).double()
        alpha = self.scaling * len(self.a)
        none = torch.zeros(len(weight), dtype=torch.float64)
        return Adapted(weight, none, self.a.double(), self.b.double(), self.scaling, alpha)


@check(
    TOPIC,
    "qlora-linear",
    lora.linear_through_codes,
    lora.quantized.ThroughCodes,
    points=5,
    forbids=("qlab.lora.QLoRALinear",),
)
def check_qlora_linear(qlora_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Check `qlora_linear(x, codes, lora_a, lora_b, scaling)`."""
    with part("x Wᵀ + scaling · (x Aᵀ) Bᵀ, for any batch shape"):
        for batch in ((7,), (2, 3), ()):
            _require_output(qlora_linear, _case(draw, *batch))
    with part("the gradients of x, A and B"):
        for batch in ((7,), (2, 3)):
            _require_gradients(qlora_linear, _case(draw, *batch))
    with part("no gradient of the base is computed: the weight is frozen"):
        _require_no_base_gradient(qlora_linear, _large(draw))
    with part("nothing as large as the dequantized weight waits for the backward pass"):
        _require_little_kept(qlora_linear, _large(draw))
    with part("x, A and B in BF16: output and gradients too"):
        case = _case(draw, 6, dtype=torch.bfloat16)
        _require_output(qlora_linear, case)
        _require_gradients(qlora_linear, case)


def _case(
    draw: torch.Generator, *batch: int, out: int = 0, inputs: int = 0, dtype: torch.dtype = torch.float32
) -> Case:
    inputs, out, rank = inputs or 2 * drawn(10, 15, draw), out or drawn(31, 40, draw), RANK
    weight = torch.randn(out, inputs, generator=draw)
    a, b = torch.randn(rank, inputs, generator=draw), torch.randn(out, rank, generator=draw)
    x = torch.randn(*batch, inputs, generator=draw)
    codes = codebooks.quantize_blockwise(weight, codebooks.NF4, block_size=64)
    return Case(x.to(dtype), codes, a.to(dtype) / 2, b.to(dtype) / 2, 0.25 * drawn(5, 15, draw))


def _large(draw: torch.Generator) -> Case:
    return _case(draw, ROWS, out=HIGH, inputs=WIDE)


def _unit(case: Case) -> float:
    return BF16 if case.x.dtype == torch.bfloat16 else FP32


def _require_output(qlora_linear: LearnerFunction, case: Case) -> None:
    layer, rows = case.layer, case.x.double().reshape(-1, case.x.shape[-1])
    returned = qlora_linear(case.x, case.codes, case.a, case.b, case.scaling)
    shape = (*case.x.shape[:-1], len(layer.weight))
    got = as_tensor(returned, shape, call=CALL).double()
    terms = (case.x.shape[-1] + RANK + 8) if _unit(case) == FP32 else 6  # BF16 products are summed in FP32
    base, low = layer.base(rows), layer.low(rows)

    def slips() -> Iterator[Slip]:
        yield "scale-missing", BOTH, base + low
        yield "adapter-not-used", BOTH, base
        yield "base-not-used", BOTH, case.scaling * low
        yield "base-not-used", BOTH, low
        yield "scales-the-base", BOTH, case.scaling * (base + low)
        yield "scale-twice", BOTH, base + case.scaling**2 * low
        yield "divides-by-the-rank-again", "`scaling` is alpha / rank already.", base + case.scaling / RANK * low

    require_near(
        got,
        layer.output(rows),
        _unit(case) * terms * layer.magnitudes().output(rows.abs()),
        given=lambda i: f"x of shape {tuple(case.x.shape)} in {str(case.x.dtype)[6:]}, output {i}",
        slips=slips,
    )
    require(
        case.x.dtype == torch.float32 or dtype_of(returned) == str(case.x.dtype)[6:],
        f"`{CALL}` returned {dtype_of(returned)} for an x in {str(case.x.dtype)[6:]}",
        misconception="widens-the-output",
        thought="Compute in the type of x: `codes.dequantize().to(x.dtype)`.",
    )


def _require_gradients(qlora_linear: LearnerFunction, case: Case) -> None:
    rows = case.x.double().reshape(-1, case.x.shape[-1])
    weighted = torch.linspace(-1, 1, len(rows) * len(case.b)).view(*case.x.shape[:-1], -1)
    weighted = weighted.roll(7).to(case.x.dtype)

    found = probe.gradients(qlora_linear, *case.arguments, upstream=weighted)
    missing = [name for name, g in zip(("x", "A", "B"), found, strict=True) if g is None]
    require(
        not missing,
        f"no gradient arrives at {', '.join(missing)}",
        misconception="detaches",
        thought="`backward` returns a gradient for x, and None for the codes; A and B stay with autograd.",
    )
    layer, upstream = case.layer, weighted.double().reshape(len(rows), -1)
    want, sizes = layer.gradients(rows, upstream), layer.magnitudes().gradients(rows.abs(), upstream.abs())
    terms = (sum(layer.weight.shape) + len(rows) + 8) if _unit(case) == FP32 else 8
    for place, (name, g) in enumerate(zip(("x", "A", "B"), found, strict=True)):

        def slips(place: int = place) -> Iterator[Slip]:
            if not place:
                turned = "x Wᵀ has the gradient G W: the same weight, not transposed, and the upstream gradient."
                ones = torch.ones_like(upstream)
                of_adapter = case.scaling * upstream @ layer.b @ layer.a
                yield "ignores-the-upstream", turned, ones @ layer.weight + of_adapter
                yield "subtracts-the-gradient", turned, of_adapter - upstream @ layer.weight
                yield "scales-the-base", BOTH, case.scaling * upstream @ layer.weight + of_adapter
            for misconception, thought, gradients in gradient_slips(layer, rows, upstream):
                yield misconception, thought, gradients[place]

        require_near(
            g.reshape(want[place].shape),
            want[place],
            _unit(case) * terms * sizes[place],
            given=lambda i, name=name: f"x of shape {tuple(case.x.shape)}, the gradient of {name} at {i}",
            slips=slips,
        )


def _require_no_base_gradient(qlora_linear: LearnerFunction, case: Case) -> None:
    found, got = qlora_linear.beside(products_of_backward, *case.arguments)
    want = case.layer.gradients(case.x.double(), torch.ones(ROWS, HIGH, dtype=torch.float64))
    require_right_too(all(roughly(g, w) for g, w in zip(got, want, strict=True)))
    require(
        not found,
        f"the backward pass makes a product of {HIGH} × {WIDE} values ({found[:1]}): that is as large as W",
        misconception="gradient-to-the-base",
        thought="Only x, A and B need gradients: G W for x, and narrow products for A and B. W has none.",
    )


def products_of_backward(qlora_linear: LearnerFunction, *arguments: Any) -> tuple[list[str], list[Tensor | None]]:
    """Return the names of the products in the backward pass that have as many values as the weight, and gradients."""
    x, codes, a, b, scaling = arguments
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    result = _result(qlora_linear, (leaves[0], codes, *leaves[1:], scaling))
    with Products(codes.shape) as products:
        LearnerFunction(lambda: result.sum().backward())()
    return products.found, [leaf.grad for leaf in leaves]


def _result(qlora_linear: LearnerFunction, arguments: tuple[Any, ...]) -> Tensor:
    """Call on the tensors themselves, not on copies, and refuse what has no graph."""
    result = qlora_linear.map([arguments])[0]
    require(
        isinstance(result, Tensor) and result.requires_grad,
        f"`{CALL}` returned what no gradient leads back from",
        misconception="returns-nothing" if result is None else "detaches",
        thought="A and B learn: their products must be recorded by autograd.",
    )
    return result


def _require_little_kept(qlora_linear: LearnerFunction, case: Case) -> None:
    weight = 4 * case.codes.shape.numel()
    given = sum(t.nbytes for t in (case.x, case.a, case.b, case.codes.packed, case.codes.absmax, case.codes.codebook))
    room = given + 4 * 3 * ROWS * (WIDE + HIGH)  # and three tensors as wide as x and as the output
    most, result = qlora_linear.beside(kept_for_backward, *case.arguments)
    require_right_too(roughly(result, case.layer.output(case.x.double())))
    require(
        most <= room,
        f"{most:,} bytes wait for the backward pass; {room:,} are enough, and the weight in FP32 takes {weight:,}",
        misconception="saves-the-dequantized-weight",
        thought=AGAIN,
    )


def kept_for_backward(qlora_linear: LearnerFunction, *arguments: Any) -> tuple[int, Tensor]:
    """Return how many bytes wait for the backward pass, and the output."""
    x, codes, a, b, scaling = arguments
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    arguments = leaves[0], codes, *leaves[1:], scaling
    saved = probe.saved_bytes(partial(_result, qlora_linear), arguments)
    with Operands() as operands:
        result = _result(qlora_linear, arguments)
    # also what an attribute of ctx holds, which no hook sees
    return max(saved, operands.storages.live_bytes), result.detach()
