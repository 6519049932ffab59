"""Emulated narrow arithmetic against PyTorch's own FP16 and BF16 kernels, which are right and, for products, slow."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qlab.loss_scaling import EVERYTHING, PRODUCTS, CastPolicy, Emulated, narrow_error

TYPES = [torch.float16, torch.bfloat16]
HALF_ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
both_types = pytest.mark.parametrize("dtype", TYPES, ids=str)

# PyTorch's CPU kernels round the number in an addition to the narrow type, its GPU kernels do not: these have few bits
ELEMENTWISE = {
    "add": lambda a, b: a + b,
    "add with alpha": lambda a, b: torch.add(a, b, alpha=0.375),
    "subtract": lambda a, b: a - b,
    "from a number": lambda a, b: 0.75 - a,
    "multiply": lambda a, b: a * b,
    "by a number": lambda a, b: a * 0.1,
    "divide": lambda a, b: a / b,
    "reciprocal": lambda a, b: a.reciprocal(),
    "square root": lambda a, b: a.abs().sqrt(),
    "reciprocal square root": lambda a, b: a.abs().rsqrt(),
    "exp": lambda a, b: a.exp(),
    "log": lambda a, b: a.abs().log(),
    "tanh": lambda a, b: a.tanh(),
    "sigmoid": lambda a, b: a.sigmoid(),
    "silu": lambda a, b: F.silu(a),
    "relu": lambda a, b: a.relu(),
    "clamp": lambda a, b: a.clamp(-0.3, 1.1),
    "maximum": torch.maximum,
    "where": lambda a, b: torch.where(a > b, a, b),
    "square": lambda a, b: a**2,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.2),
}
NEAR = {  # sums in another order, or a step of their own between
    "softmax": lambda a, b: a.softmax(-1),
    "gelu": lambda a, b: F.gelu(a.abs()),
    "sum": lambda a, b: (a * a).sum(-1),
    "mean": lambda a, b: (a * a).mean(-1),
    "logsumexp": lambda a, b: torch.logsumexp(a, -1),
    "norm": lambda a, b: a.norm(dim=-1),
}


def pair(dtype, spread=8):
    """Return two narrow matrices whose magnitudes cross the whole range in which their product is finite."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(64, 48, generator=generator) for _ in range(2))
    return [(x * torch.exp2(torch.randint(-spread, 4, x.shape, generator=generator))).to(dtype) for x in (a, b)]


def steps_apart(x, y, dtype):
    """Return the largest distance of two narrow tensors, in numbers of the type between them."""
    codes = [v.to(dtype).contiguous().view(torch.int16).int() for v in (x, y)]
    ordered = [torch.where(code < 0, -(code & 0x7FFF), code) for code in codes]
    return int((ordered[0] - ordered[1]).abs().max())


def on_grid(x, dtype):
    return torch.equal(x, x.to(dtype).float())


@both_types
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_are_bitwise_those_of_the_real_type(name, dtype):
    f, (a, b) = ELEMENTWISE[name], pair(dtype)
    with Emulated(dtype, EVERYTHING):
        emulated = f(a.float(), b.float())
    assert emulated.dtype == torch.float32
    assert torch.equal(emulated, f(a, b).float())


@both_types
@pytest.mark.parametrize("name", NEAR)
def test_reductions_are_at_most_one_number_away(name, dtype):
    f, (a, b) = NEAR[name], pair(dtype, spread=3)
    with Emulated(dtype, EVERYTHING):
        emulated = f(a.float(), b.float())
    assert on_grid(emulated, dtype)
    assert steps_apart(emulated, f(a, b), dtype) <= 1


@both_types
def test_log_softmax_is_rounded_once_and_the_real_one_twice(dtype):
    a, _ = pair(dtype, spread=3)
    exact = a.double().log_softmax(-1)
    with Emulated(dtype, EVERYTHING):
        emulated = a.float().log_softmax(-1)
    # the CPU kernel rounds the difference to the largest value before it subtracts the logarithm
    error, real_error = ((y.double() - exact).abs().max() for y in (emulated, a.log_softmax(-1)))
    largest = exact.abs().max()
    assert error <= 1.01 * HALF_ULP[dtype] * largest
    assert error <= real_error <= 2 * HALF_ULP[dtype] * largest


@both_types
def test_what_is_too_large_becomes_infinity_and_what_is_too_small_zero(dtype):
    largest, least = torch.finfo(dtype).max, TINY[dtype]
    with Emulated(dtype, EVERYTHING):
        assert (torch.tensor([largest]) * 1.01).item() == math.inf
        assert (torch.tensor([least]) * 0.5).item() == 0.0  # a tie, to even
        assert (torch.tensor([least]) * 0.75).item() == least
        assert torch.tensor([math.nan]).exp().isnan().all()


@both_types
def test_inputs_that_are_not_on_the_grid_are_rounded_before(dtype):
    a = torch.randn(200)
    with Emulated(dtype, EVERYTHING):
        emulated = a + 0.0
        product = a * a
    assert torch.equal(emulated, a.to(dtype).float())
    assert torch.equal(product, (a.to(dtype) * a.to(dtype)).float())
    assert not on_grid(a, dtype)  # the given tensor was only read


IN_PLACE = {
    "add_": lambda x, y: x.add_(y),
    "mul_ by a number": lambda x, y: x.mul_(0.3),
    "addcdiv_": lambda x, y: x.addcdiv_(y, y.abs() + 1, value=-0.1),
    "lerp_": lambda x, y: x.lerp_(y, 0.1),
    "sqrt_": lambda x, y: x.abs_().sqrt_(),
    "copy_": lambda x, y: x.copy_(y / 3),
    "index_put_": lambda x, y: x.index_put_((torch.tensor([0, 2]),), y[:2] / 3),
    "foreach": lambda x, y: torch._foreach_add_([x, x[0]], [y, y[0]]),
    "foreach by a number": lambda x, y: torch._foreach_mul_([x], 0.3),
    "out": lambda x, y: torch.mul(x, y, out=x),
    "normal_": lambda x, y: x.normal_(generator=torch.Generator().manual_seed(0)),
}


@both_types
@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_written_in_place_is_on_the_grid(name, dtype):
    x, y = (v.float() for v in pair(dtype))
    place, before = x.data_ptr(), x.clone()
    with Emulated(dtype, EVERYTHING):
        IN_PLACE[name](x, y)
    assert on_grid(x, dtype) and x.data_ptr() == place and not torch.equal(x, before)


@both_types
def test_in_place_arithmetic_is_that_of_the_real_type(dtype):
    real = pair(dtype)
    x, y = (v.float() for v in real)
    with Emulated(dtype, EVERYTHING):
        x.mul_(0.9).addcmul_(y, y, value=0.1)
        torch._foreach_add_([x], [y])
    real[0].mul_(0.9).addcmul_(real[1], real[1], value=0.1)
    torch._foreach_add_([real[0]], [real[1]])
    assert torch.equal(x, real[0].float())


@both_types
def test_an_operation_that_also_writes_statistics_rounds_what_it_returns(dtype):
    x, mean, variance = torch.randn(6, 4), torch.zeros(4), torch.ones(4)
    with Emulated(dtype, EVERYTHING):
        normal = F.batch_norm(x, mean, variance, training=True)
    assert on_grid(normal, dtype)
    torch.testing.assert_close(mean, 0.1 * x.mean(0), rtol=0, atol=HALF_ULP[dtype])
    assert not torch.equal(variance, torch.ones(4))


def test_views_stay_views_and_hold_what_they_held():
    x = torch.randn(6, 8)
    with Emulated(torch.bfloat16, EVERYTHING):
        views = [
            x[1],
            x.view(-1),
            x.t(),
            x.transpose(0, 1)[2],
            x.split(2)[1],
            x.detach(),
            x.unsqueeze(0),
            x.expand(6, 8),
        ]
    for view in views:
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert not on_grid(views[1], torch.bfloat16)


def test_other_types_are_left_alone():
    whole, wide, truth = torch.arange(100_000), torch.randn(50).double(), torch.tensor([True, False])
    with Emulated(torch.float16, EVERYTHING):
        assert torch.equal(whole * 3 + 1, torch.arange(100_000).mul(3).add(1))
        assert torch.equal(wide * 3, 3 * wide) and (wide * 3).dtype == torch.float64
        assert torch.equal(truth.logical_not(), torch.tensor([False, True]))
        assert (whole[99_999] + 0).item() == 99_999
        assert (torch.ones(3, dtype=torch.bfloat16) / 3).dtype == torch.bfloat16
    assert torch.equal(whole, torch.arange(100_000))


def test_outside_nothing_is_rounded():
    x = torch.randn(100)
    with contextlib.suppress(RuntimeError), Emulated(torch.bfloat16, EVERYTHING):
        raise RuntimeError
    assert torch.equal(x + 0, x)


@both_types
def test_the_backward_pass_is_rounded_when_it_runs_inside(dtype):
    a, b = (v.float() for v in pair(dtype, spread=2))
    a.requires_grad_()
    real = a.detach().to(dtype).requires_grad_()
    with Emulated(dtype, EVERYTHING):
        (F.silu(a * b) * b).sum().backward()
    (F.silu(real * b.to(dtype)) * b.to(dtype)).sum().backward()
    assert on_grid(a.grad, dtype)
    # the derivative of silu is one operation in PyTorch, the product with b another: one step of rounding each
    assert steps_apart(a.grad, real.grad.float(), dtype) <= 2


@both_types
def test_gradients_that_a_real_fp16_loses_are_lost(dtype):
    x = torch.ones(4, requires_grad=True)
    with Emulated(dtype, EVERYTHING):
        (x * 1e-4 * 1e-4).sum().backward()
    real = torch.ones(4, dtype=dtype, requires_grad=True)
    (real * 1e-4 * 1e-4).sum().backward()
    assert torch.equal(x.grad, real.grad.float())
    assert x.grad.any() == (dtype == torch.bfloat16)


def test_only_products_are_rounded_under_that_policy():
    x, weight = torch.randn(8, 16), torch.randn(4, 16)
    with Emulated(torch.bfloat16, PRODUCTS):
        product = x @ weight.t()
        rest = [x.exp(), x.softmax(-1), x.sum(), x + 1, F.layer_norm(x, (16,)), x.mul(x)]
    expected = (x.bfloat16().float() @ weight.bfloat16().float().t()).bfloat16().float()
    assert torch.equal(product, expected)
    for result, plain in zip(
        rest, [x.exp(), x.softmax(-1), x.sum(), x + 1, F.layer_norm(x, (16,)), x.mul(x)], strict=True
    ):
        assert torch.equal(result, plain)


def narrow_product(f, *inputs):
    with Emulated(torch.bfloat16, PRODUCTS):
        return f(*inputs)


PRODUCT_CALLS = {
    "matrix": lambda: (torch.matmul, torch.randn(5, 6), torch.randn(6, 7)),
    "batches": lambda: (torch.matmul, torch.randn(3, 5, 6), torch.randn(3, 6, 7)),
    "vector": lambda: (torch.matmul, torch.randn(5, 6), torch.randn(6)),
    "two vectors": lambda: (torch.matmul, torch.randn(16), torch.randn(16)),
    "einsum": lambda: (lambda a, b: torch.einsum("ij,kj->ik", a, b), torch.randn(3, 8), torch.randn(4, 8)),
    "linear": lambda: (F.linear, torch.randn(2, 3, 8), torch.randn(4, 8), torch.randn(4)),
    "linear on a vector": lambda: (F.linear, torch.randn(8), torch.randn(4, 8), torch.randn(4)),
    "convolution": lambda: (F.conv1d, torch.randn(2, 3, 9), torch.randn(4, 3, 3)),
    "attention": lambda: (F.scaled_dot_product_attention, *torch.randn(3, 1, 2, 5, 8).unbind(0)),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", PRODUCT_CALLS)
def test_every_kind_of_product_is_narrow_with_gradients_and_without(name, mode):
    f, *inputs = PRODUCT_CALLS[name]()
    with mode():
        emulated = narrow_product(f, *inputs)
        from_rounded = narrow_product(f, *(x.bfloat16().float() for x in inputs))
        wide = f(*inputs)
    assert on_grid(emulated, torch.bfloat16) and not on_grid(wide, torch.bfloat16)
    assert torch.equal(emulated, from_rounded)
    torch.testing.assert_close(emulated, wide, rtol=0.05, atol=0.05 * wide.abs().max().item())


def test_a_linear_layer_is_that_of_autocast_to_one_step_forward_and_backward():
    layer, x = nn.Linear(64, 32), torch.randn(16, 64)
    results = []
    for context in (Emulated(torch.bfloat16, PRODUCTS), torch.autocast("cpu", torch.bfloat16)):
        layer.zero_grad()
        given = x.clone().requires_grad_()
        with context:
            y = layer(given)
            loss = (y.float() * torch.linspace(-1, 1, 32)).sum()
        with context if isinstance(context, Emulated) else contextlib.nullcontext():
            loss.backward()
        results.append([y.detach(), layer.weight.grad.clone(), given.grad])
    for ours, theirs in zip(*results, strict=True):
        assert steps_apart(ours, theirs, torch.bfloat16) <= 1


@both_types
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_attention_is_as_exact_as_the_real_one_forward_and_backward(dtype, strength):
    def results(kind, context):
        inputs = [(x * strength).to(dtype).to(kind).requires_grad_() for x in narrow]
        with context:
            y = F.scaled_dot_product_attention(*inputs, is_causal=True)
            y.backward(upstream.to(dtype).to(kind))
        return [y.detach().double(), *(x.grad.double() for x in inputs)]

    generator = torch.Generator().manual_seed(0)
    narrow, upstream = torch.randn(3, 2, 4, 64, 32, generator=generator), torch.randn(2, 4, 64, 32, generator=generator)
    exact = results(torch.float64, contextlib.nullcontext())
    real = results(dtype, contextlib.nullcontext())
    emulated = results(torch.float32, Emulated(dtype, PRODUCTS))
    for ours, theirs, truth in zip(emulated, real, exact, strict=True):
        # the real kernel rounds the probabilities too: the emulated one is no less exact, but as coarse at the end
        error, theirs_error = ((x - truth).norm() / truth.norm() for x in (ours, theirs))
        assert HALF_ULP[dtype] / 4 < error < 1.1 * theirs_error


def test_a_policy_of_one_s_own_narrows_what_it_names():
    policy = CastPolicy("exponentials", frozenset({"exp"}))
    x = torch.randn(100)
    with Emulated(torch.bfloat16, policy):
        assert on_grid(x.exp(), torch.bfloat16)
        assert not on_grid(x * 3, torch.bfloat16)
    assert policy.narrows("exp") and not policy.narrows("mm") and EVERYTHING.narrows("exp")


def test_contexts_nest_the_inner_one_first():
    x = torch.randn(1000)
    with Emulated(torch.float16, EVERYTHING), Emulated(torch.bfloat16, EVERYTHING):
        y = x * 1
    assert on_grid(y, torch.bfloat16)


@both_types
def test_the_error_of_exact_operations_is_none_and_of_rounded_ones_at_most_half_a_step(dtype):
    x = torch.randn(500)
    assert narrow_error(lambda v: v * 2, x, dtype=dtype) == 0
    assert narrow_error(torch.abs, x, dtype=dtype) == 0
    assert narrow_error(torch.zeros_like, x, dtype=dtype) == 0
    # half a step of the largest result is at most 2^-11 of it in FP16, plus what FP32 adds
    assert 0 < narrow_error(torch.exp, x, dtype=dtype) <= HALF_ULP[dtype] * 1.001
    assert narrow_error(lambda v: v.exp().sum().log(), x * 0 + 1, dtype=dtype) > 0


def test_the_error_of_an_overflow_is_infinite_and_of_a_true_infinity_none():
    large = torch.full((4,), 300.0)
    assert narrow_error(lambda x: (x * x).sum(), large, dtype=torch.float16) == math.inf
    assert narrow_error(lambda x: x * x - x * x, large, dtype=torch.float16) == math.inf  # NaN
    assert narrow_error(lambda x: (x * x).sum(), large, dtype=torch.bfloat16) < 2.0**-8
    assert narrow_error(torch.log, torch.tensor([0.0, 1.0]), dtype=torch.float16) == 0
    assert narrow_error(torch.log, torch.tensor([-1.0, 1.0]), dtype=torch.float16) == 0


@pytest.mark.gpu
@both_types
def test_products_are_those_of_a_tensor_core_to_one_step(dtype):
    a, b = torch.randn(64, 128).to(dtype), torch.randn(128, 32).to(dtype)
    with Emulated(dtype, PRODUCTS):
        emulated = a.float() @ b.float()
    assert steps_apart(emulated, (a.cuda() @ b.cuda()).cpu(), dtype) <= 1
