"""Check of `QuantizedLinear`: what its weight stands for, what it keeps, and that a `state_dict` carries all of it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab import quantize
from qlab.checks.beside import reports, require_right_too
from qlab.checks.expect import Suspect, as_tensor
from qlab.checks.learner import Crashed, LearnerFunction
from qlab.checks.quantization.codes import TOPIC
from qlab.checks.quantization.layers import Held, called, carried, held_before_and_after, plain_of, saved
from qlab.checks.quantization.module_slips import step_of, weight_suspects
from qlab.checks.quantization.products import require_within
from qlab.checks.report import Refused, check, part, require

HALF_A_STEP = 0.505  # a scale kept in BF16 is off by up to 2⁻⁸ of itself, and half a step with it; FP32 rounds to 6e-8
MOST_VALUES = 36  # of 48: groups of 6 with a sign, and two codes each, make 32; floats make 45 or more
BYTES_A_WEIGHT = 1.5  # a code, and half a byte for scales and bias: a row of 48 weights with both takes 1.17

BIAS = "A layer is x Wᵀ + b: keep b as it is, in FP32, and add it."
KEPT = "A float for each weight is still there: keep codes and scales, and make the weight anew in `forward`."
WIDE = "The codes are whole numbers in a type of two bytes or more: store them as int8."


@check(
    TOPIC,
    "quantized-linear",
    quantize.QuantizedLinear,
    points=5,
    forbids=("qlab.quantize.quantize_linears", "torch.ao"),
)
def check_quantized_linear(quantized_linear: LearnerFunction, draw: torch.Generator) -> None:
    """Check the class `QuantizedLinear(linear)` as its task documents it: made, called, saved and loaded."""
    with part("every weight within half a step of its row's scale, a row of zeros too"):
        _require_weights(quantized_linear, _linear(draw, out=48, bias=False))
        _require_weights(quantized_linear, _linear(draw, out=20, bias=False))
    with part("the bias, and an input of any batch shape"):
        linear = _linear(draw, out=20)
        x = torch.randn(4, linear.in_features, generator=draw)
        batches = [torch.randn(*batch, linear.in_features, generator=draw) for batch in ((3, 4), (5,), ())]
        found = reports(quantized_linear, called, plain_of(linear), [*_for_product(x), *_for_outputs(batches)])
        _require_product(found, linear, x)
        for batch in batches:
            _require_outputs(found, linear, batch)
    with part(f"the state_dict takes at most {BYTES_A_WEIGHT} bytes a weight, bias included"):
        linear = _crowded(draw)
        x = torch.randn(4, linear.in_features, generator=draw)
        found = reports(quantized_linear, saved, plain_of(linear), [*_for_product(x), *_for_weight(linear)])
        _require_product(found, linear, x)
        most = _most_values(found, linear)
        _require_bytes(next(found), linear, what="its state_dict")
        _require_codes(most, "does-not-survive-load")
    with part("a state_dict, saved and loaded into another layer, makes it the same layer"):
        first, second = (_linear(draw, out=24) for _ in range(2))
        x, y, z = (torch.randn(n, first.in_features, generator=draw) for n in (4, 4, 6))
        inputs = [_for_product(x), _for_product(y), _for_product(z)]
        found = reports(quantized_linear, carried, [plain_of(first), plain_of(second)], inputs)
        _require_product(found, first, x)
        _require_product(found, second, y)
        _require_carried(found, first, z)
    with part("nothing else is kept, before a call and after: no float weight, no cache, no autograd graph"):
        linear = _crowded(draw)
        x = torch.randn(4, linear.in_features, generator=draw)
        inputs = [*_for_product(x), *_for_weight(linear)]
        found = reports(quantized_linear, held_before_and_after, plain_of(linear), inputs)
        _require_bytes(next(found), linear, what="a deep copy of the new layer")
        _require_product(found, linear, x)
        most = _most_values(found, linear)
        _require_bytes(next(found), linear, what="a deep copy of the layer, once called,")
        _require_codes(most, "keeps-the-float-weight")


def _linear(draw: torch.Generator, *, out: int, bias: bool = True) -> nn.Linear:
    """Return a layer whose rows differ in size, up to a hundred times, and one of them all zero."""
    linear = nn.utils.skip_init(nn.Linear, 48, out, bias=bias)  # leaves the global random numbers alone
    sizes = 10.0 ** torch.empty(out, 1).uniform_(-2, 0, generator=draw)
    sizes[int(torch.randint(out, (), generator=draw))] = 0.0
    with torch.no_grad():
        linear.weight.copy_(sizes * torch.randn(linear.weight.shape, generator=draw) / 7)
        if bias:
            linear.bias.copy_(1 + torch.rand(out, generator=draw))
    return linear


def _crowded(draw: torch.Generator) -> nn.Linear:
    """Return a layer whose weights are nearly as large as their row's largest: a row has few codes, if it has codes."""
    linear = nn.utils.skip_init(nn.Linear, 48, 24)
    near = torch.empty(24, 48).uniform_(0.998, 1, generator=draw) * torch.tensor([1.0, -1.0]).repeat(24)
    with torch.no_grad():
        linear.weight.copy_(near * torch.empty(24, 1).uniform_(0.5, 1, generator=draw))
        linear.bias.copy_(1 + torch.rand(24, generator=draw))
    return linear


def _for_product(x: Tensor) -> list[Tensor]:
    return [x, torch.zeros_like(x)]


def _for_outputs(batches: Sequence[Tensor]) -> list[Tensor]:
    width = batches[0].shape[-1]
    return [x for batch in batches for x in (torch.eye(width), torch.zeros(1, width), batch)]


def _for_weight(linear: nn.Linear) -> list[Tensor]:
    return _for_product(torch.eye(linear.in_features))


def _outputs(found: Iterator[Any], x: Tensor, linear: nn.Linear) -> Tensor:
    """Read the next output that was told, which is for `x`."""
    shape = (*x.shape[:-1], linear.out_features)
    got = as_tensor(next(found), shape, call=f"layer(x of shape {tuple(x.shape)})").double()
    lost, zero_rows = ~got.isfinite(), ~linear.weight.any(1)
    require(
        not lost.any(),
        f"{int(lost.sum())} of {got.numel()} outputs are not finite",
        misconception="not-finite" if (lost & ~zero_rows).any() else "divides-by-zero",
        thought="A row of zeros has the scale 0, and 0 / 0 is NaN: give such a row the scale 1.",
    )
    return got


def _require_weights(quantized_linear: LearnerFunction, linear: nn.Linear) -> None:
    """Feed the identity: without a bias the outputs are the weight, transposed."""
    weight = linear.weight.detach().double()
    identity = torch.eye(linear.in_features)
    got = _outputs(reports(quantized_linear, called, plain_of(linear), [identity]), identity, linear).T

    def told(i: int) -> str:
        row, column = divmod(i, weight.shape[1])
        return f"weight[{row}, {column}] of a row whose largest magnitude is {weight[row].abs().max():.4g}"

    values = (got.flatten(), weight.flatten(), HALF_A_STEP * step_of(weight).expand_as(weight).flatten())
    require_within(*values, given=told, suspects=lambda: weight_suspects(weight, got))


def _require_outputs(found: Iterator[Any], linear: nn.Linear, x: Tensor) -> None:
    """Ask for x Wᵀ + b with the weight that the layer shows for the identity, near the real one or not."""
    bias, rows = linear.bias.detach().double(), x.double().view(-1, x.shape[-1])
    shown = (_outputs(found, inputs, linear) for inputs in (torch.eye(x.shape[-1]), torch.zeros(1, x.shape[-1])))
    weight = torch.sub(*shown).T
    got, products = _outputs(found, x, linear), rows @ weight.T
    # FP32 rounds each product and sum: Higham 1993, u · terms · size; and each weight was read beside the bias
    summed = (x.shape[-1] + 4) * (rows.abs() @ weight.abs().T + bias.abs())
    allowed = 2.0**-24 * (summed + 4 * rows.abs().sum(1, keepdim=True) * bias.abs())
    require_within(
        got.flatten(),
        (products + bias).flatten(),
        allowed.flatten(),
        given=lambda i: f"x of shape {tuple(x.shape)}, output {i % len(weight)}",
        suspects=lambda: [
            Suspect("forgets-the-bias", BIAS, products.flatten()),
            Suspect("subtracts-the-bias", BIAS, (products - bias).flatten()),
        ],
    )


def _require_product(found: Iterator[Any], linear: nn.Linear, x: Tensor) -> None:
    """Refuse a layer that does not multiply: one that keeps nothing is small, too."""
    got = _outputs(found, x, linear) - _outputs(found, torch.zeros_like(x), linear)
    want = _product(linear, x)
    require(
        _is_product(got, linear, x),
        f"the outputs for two inputs differ by {got.norm():.4g}; those of the float layer by {want.norm():.4g}",
        misconception="outputs-zeros" if not got.any() else "wrong-output",
        thought="This part asks for a layer that works: win the first part before this one.",
    )


def _product(linear: nn.Linear, x: Tensor) -> Tensor:
    return x.double() @ linear.weight.detach().double().T


def _is_product(got: Tensor, linear: nn.Linear, x: Tensor) -> bool:
    want = _product(linear, x)
    return bool((got - want).norm() <= 0.5 * want.norm())


def _require_bytes(tensors: list[Held], linear: nn.Linear, *, what: str) -> None:
    by_storage = {tensor.address: tensor for tensor in tensors}
    taken, weights = sum(tensor.bytes for tensor in by_storage.values()), linear.weight.numel()
    if taken <= BYTES_A_WEIGHT * weights:
        return
    large = [t for t in by_storage.values() if math.prod(t.shape) >= weights and t.bytes >= 2 * weights]
    misconception, thought = "more-than-codes", "Print the name, shape and dtype of everything that is kept."
    if large:
        codes = all(tensor.is_whole for tensor in large)
        misconception, thought = ("wide-codes", WIDE) if codes else ("keeps-the-float-weight", KEPT)
    told = ", ".join(f"{tuple(t.shape)} of {t.dtype}" for t in by_storage.values())
    most = int(BYTES_A_WEIGHT * weights)
    raise Refused(
        f"given a layer of {weights} weights, {what} holds {taken} bytes, at most {most}: {told}",
        misconception=misconception,
        thought=thought,
    )


def _most_values(found: Iterator[Any], linear: nn.Linear) -> int:
    """Count the values, apart by a ten-thousandth of a step or more, in the row of the layer's weight with most."""
    identity, zeros = _for_weight(linear)
    weight = (_outputs(found, identity, linear) - _outputs(found, zeros, linear)).T
    gaps = weight.sort(1).values.diff(dim=1)
    return 1 + int((gaps > 1e-4 * step_of(weight)).sum(1).max())


def _require_codes(most: int, misconception: str) -> None:
    require(
        most <= MOST_VALUES,
        f"given rows of 48 weights within 0.2 % of ± their largest, the layer multiplies by {most} values in one row:"
        " those are no codes",
        misconception=misconception,
        thought="The float weight was multiplied by: compute with what the codes and scales stand for, and no other.",
    )


def _require_carried(found: Iterator[Any], linear: nn.Linear, x: Tensor) -> None:
    """Ask a layer into which another one's state was loaded for the outputs of that one."""
    try:
        want, still = (_outputs(found, inputs, linear) for inputs in _for_product(x))
        require_right_too(_is_product(want - still, linear, x))
        got, want = _outputs(found, x, linear).flatten(), want.flatten()
        require_within(got, want, 1e-6 * want.abs().max().expand_as(want), given=lambda i: f"output {i}")
    except (Crashed, Refused) as error:
        raise Refused(
            f"after loading: {error}",
            misconception="does-not-survive-load",
            thought="Only what `register_buffer` or `nn.Parameter` made is saved and loaded: codes, scales and bias,"
            " under the same names in every layer; and `forward` must use those.",
        ) from None
