"""`checkpoint`: the gradients and bytes of PyTorch's own, and a sentence where a replay would go wrong."""

import gc
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from qlab.checkpointing import checkpoint
from qlab.measure import PeakBytes, SavedForBackward, saved_bytes

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLOAT = 4


def theirs(f, *args):
    return torch_checkpoint(f, *args, use_reentrant=False)


def plainly(f, *args):
    return f(*args)


def block(device="cpu", *, dropout=0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 64), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(64), nn.Linear(64, 16), nn.Tanh()
    ).to(device)


def gradients(run, f, *args, parameters=()) -> list[torch.Tensor]:
    """Run forward and backward from a fixed seed, and return every gradient and the next random number."""
    torch.manual_seed(2)
    leaves = [a.detach().clone().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a for a in args]
    outputs = run(f, *leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.requires_grad]
    loss = sum((output.float() ** 2).sum() for output in outputs)
    found = torch.autograd.grad(loss, [*wanted, *parameters])
    return [*found, *(output.detach() for output in outputs), torch.rand(3)]


def assert_same(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_bitwise_those_of_pytorch_and_of_no_checkpoint(device, dropout):
    f, x = block(device, dropout=dropout), torch.randn(8, 16, device=device, requires_grad=True)
    ours = gradients(checkpoint, f, x, parameters=f.parameters())
    assert_same(ours, gradients(theirs, f, x, parameters=f.parameters()))
    assert_same(ours, gradients(plainly, f, x, parameters=f.parameters()))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_is_replayed_outside_of_it(device):
    f, x = block(device), torch.randn(8, 16, device=device, requires_grad=True)

    def under_autocast(run):
        def forward(x):
            with torch.autocast(device, torch.bfloat16):
                return run(f, x)

        return gradients(lambda g, x: g(x), forward, x, parameters=f.parameters())

    assert_same(under_autocast(checkpoint), under_autocast(theirs))
    assert_same(under_autocast(checkpoint), under_autocast(plainly))


def test_several_inputs_and_outputs_containers_and_whatever_else():
    def f(a, pair, scale, name, nothing):
        assert (name, nothing) == ("name", None)
        b, c = pair
        return (a @ b).tanh() * scale, c.exp(), (a * 2).detach()

    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.randn(7)
    for tensor in (a, b, c):
        tensor.requires_grad_()

    def grads(run):
        first, second, cut = run(f, a, (b, c), 0.5, "name", None)
        assert not cut.requires_grad
        return torch.autograd.grad(first.square().sum() + second.sum(), (a, b, c))

    assert_same(grads(checkpoint), grads(plainly))


def test_only_some_outputs_are_used():
    x = torch.randn(5, requires_grad=True)
    first, second = checkpoint(lambda t: (t.exp().sin(), t.cos().tanh()), x)
    (found,) = torch.autograd.grad(second.sum(), x)
    (expected,) = torch.autograd.grad(x.cos().tanh().sum(), x)
    assert torch.equal(found, expected)
    del first


def test_parameters_get_gradients_where_no_input_wants_one():
    f, x = block(), torch.randn(8, 16)
    assert not x.requires_grad
    ours = gradients(checkpoint, f, x, parameters=f.parameters())
    assert_same(ours, gradients(theirs, f, x, parameters=f.parameters()))


def test_a_function_of_no_tensors_at_all():
    weight = torch.randn(5, requires_grad=True)
    checkpoint(lambda: weight.exp().sin()).sum().backward()
    (expected,) = torch.autograd.grad(weight.exp().sin().sum(), weight)
    assert torch.equal(weight.grad, expected)


def test_nested_checkpoints_replay_in_each_other():
    f, g, x = block(dropout=0.3), block(dropout=0.3), torch.randn(8, 16, requires_grad=True)
    parameters = [*f.parameters(), *g.parameters()]

    def nested(run):
        return lambda t: run(lambda u: run(g, run(f, u)).sin(), t)

    ours = gradients(plainly, nested(checkpoint), x, parameters=parameters)
    assert_same(ours, gradients(plainly, nested(theirs), x, parameters=parameters))
    assert_same(ours, gradients(plainly, nested(plainly), x, parameters=parameters))


def test_a_second_backward_pass_and_a_second_derivative():
    x = torch.randn(6, requires_grad=True)
    y = checkpoint(lambda t: t.exp().sin(), x).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    assert_same(first, torch.autograd.grad(y, x))

    def curvature(run):
        (slope,) = torch.autograd.grad(run(lambda t: t.exp().sin(), x).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)

    assert_same(curvature(checkpoint), curvature(plainly))


def test_gradcheck_in_double_precision():
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    f = lambda x, weight: checkpoint(lambda a, b: (a @ b).tanh().cumsum(0), x, weight)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, weight))
    assert torch.autograd.gradgradcheck(f, (x, weight))


def test_nothing_is_kept_or_noted_without_gradients():
    f, x = block(), torch.randn(8, 16, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(checkpoint(f, x), f(x))
        assert not checkpoint(f, x).requires_grad
    with torch.inference_mode():
        assert torch.equal(checkpoint(f, x), f(x))
    frozen = torch.randn(8, 16)
    assert not checkpoint(torch.exp, frozen).requires_grad


def test_an_input_made_in_inference_mode():
    with torch.inference_mode():
        x = torch.randn(8, 16)
    weight = torch.randn(16, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensors"):  # as without checkpoint: it cannot be saved
        checkpoint(lambda t: (t * weight).exp(), x).sum().backward()


# ------------------------------------------------------------------ random numbers


def test_the_replay_draws_what_the_first_run_drew_and_disturbs_nobody():
    drawn = []

    def f(x):
        drawn.append(torch.rand(4))
        return x.exp() * drawn[-1]

    x = torch.randn(4, requires_grad=True)
    y = checkpoint(f, x)
    torch.rand(100)
    before = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(*drawn) and torch.equal(torch.get_rng_state(), before)
    drawn.clear()
    checkpoint(f, x, preserve_rng_state=False).sum().backward()
    assert not torch.equal(*drawn)


@pytest.mark.gpu
def test_random_numbers_of_a_gpu_are_replayed():
    drawn = []

    def f(x):
        drawn.append(torch.rand(4, device=x.device))
        return x.exp() * drawn[-1]

    x = torch.randn(4, device="cuda", requires_grad=True)
    y = checkpoint(f, x)
    torch.rand(100, device="cuda")
    before = torch.cuda.get_rng_state()
    y.sum().backward()
    assert torch.equal(*drawn) and torch.equal(torch.cuda.get_rng_state(), before)


def test_a_generator_among_the_arguments_is_replayed():
    drawn, generator = [], torch.Generator().manual_seed(3)

    def f(x, generator):
        drawn.append(torch.rand(4, generator=generator))
        return x.exp() * drawn[-1]

    y = checkpoint(f, torch.randn(4, requires_grad=True), generator)
    after = generator.get_state()
    torch.rand(9, generator=generator)
    moved_on = generator.get_state()
    y.sum().backward()
    assert torch.equal(*drawn)
    assert torch.equal(generator.get_state(), moved_on) and not torch.equal(moved_on, after)


# ------------------------------------------------------------------ bytes


def deep(x):
    for _ in range(6):
        x = x.exp().tanh().sin()
    return x


@pytest.mark.parametrize("run", [checkpoint, theirs])
def test_the_input_alone_is_kept(run):
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(deep, x) == 12 * 1000 * FLOAT  # of each three: exp keeps its result, tanh too, which sin reads
    assert saved_bytes(run, deep, x) == 1000 * FLOAT


def test_one_input_of_two_checkpoints_counts_once():
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: checkpoint(deep, x) + checkpoint(deep, x)) == 1000 * FLOAT


def test_parameters_are_left_out_in_the_forward_pass_and_in_the_replay():
    f, x = nn.Linear(100, 100), torch.randn(10, 100)
    with SavedForBackward() as saved:
        checkpoint(f, x).sum().backward()
    assert saved.peak_bytes == x.nbytes


def test_what_the_replay_saves_is_seen_and_falls_as_the_backward_pass_goes_on():
    x, seen = torch.randn(1000, requires_grad=True), []

    def f(t):
        for _ in range(3):
            t = t.sin()
            t.register_hook(lambda _: seen.append(saved.live_bytes))
        return t

    with SavedForBackward() as saved:
        y = checkpoint(f, x)
        assert saved.live_bytes == 1000 * FLOAT
        y.sum().backward()
    assert saved.peak_bytes == 3 * 1000 * FLOAT
    assert seen == [1000 * FLOAT, 2 * 1000 * FLOAT, 1000 * FLOAT]  # before the replay, then one less each time
    del y
    gc.collect()
    assert saved.live_bytes == 1000 * FLOAT and x.grad is not None  # x itself, which lives on


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_is_that_of_pytorch(device):
    f, x = block(device), torch.randn(512, 16, device=device, requires_grad=True)

    def peak(run) -> int:
        with PeakBytes(device=device) as measure:
            run(f, run(f, run(f, x))).sum().backward()
        f.zero_grad()
        x.grad = None
        return measure.bytes

    peak(plainly)  # workspaces
    assert peak(checkpoint) == pytest.approx(peak(theirs), rel=0.01)
    assert peak(checkpoint) < 0.6 * peak(plainly)


def test_the_graph_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        with SavedForBackward() as saved:
            y = checkpoint(deep, torch.randn(1000, requires_grad=True))
            assert saved.live_bytes > 0
            del y
            assert saved.live_bytes == 0
            checkpoint(deep, torch.randn(1000, requires_grad=True)).sum().backward()
            assert saved.live_bytes == 0
    finally:
        gc.enable()


def test_a_hook_that_moves_what_is_saved_moves_the_input_too():
    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        y = checkpoint(deep, x)
    y.sum().backward()
    (expected,) = torch.autograd.grad(deep(x).sum(), x)
    assert torch.equal(x.grad, expected)


# ------------------------------------------------------------------ what cannot be replayed


def test_a_function_that_changes_its_argument_in_place_is_refused():
    x = torch.randn(4, requires_grad=True) * 1
    with pytest.raises(ValueError, match="tensor 1 of the arguments was changed in place by the function"):
        checkpoint(lambda a, b: (b.mul_(2) * a).exp(), torch.ones(4), x)
    assert checkpoint(lambda a, b: (b.clone().mul_(2) * a).exp(), torch.ones(4), x).requires_grad


def test_an_argument_that_is_a_view_of_what_the_function_changes_is_refused():
    whole = torch.randn(8)
    weight = torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match="changed in place by the function"):
        checkpoint(lambda part: whole.zero_().sum() + (part * weight).exp(), whole[:4])


def test_a_fused_in_place_activation_of_a_module_is_refused():
    f, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.randn(2, 4, requires_grad=True)
    with pytest.raises(ValueError, match="use the operation that returns a new tensor"):
        checkpoint(f, x * 1)


def test_an_argument_that_changed_before_the_replay_is_refused():
    for measured in (nullcontext, SavedForBackward):
        x = torch.randn(4, requires_grad=True) * 1
        with measured():
            y = checkpoint(deep, x)
        x.detach().zero_()
        with pytest.raises(ValueError, match="of the arguments was changed in place after the function ran"):
            y.sum().backward()


def test_a_copy_that_a_hook_brought_back_is_no_change():
    x = torch.randn(4, requires_grad=True) * 1
    x.mul_(1)  # versions of the original and of the copy differ
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        y = checkpoint(deep, x)
    y.sum().backward()


def test_a_parameter_that_changed_before_the_replay_is_refused():
    f, x = nn.Linear(4, 4), torch.randn(2, 4)
    x.requires_grad_()
    y = checkpoint(f, x)
    with torch.no_grad():
        f.weight += 1
    with pytest.raises(ValueError, match=r"a parameter of shape .* was changed in place between the forward pass"):
        y.sum().backward()


def test_a_replay_that_does_something_else_is_refused():
    calls = []

    def less_each_time(x):
        calls.append(1)
        for _ in range(3 - len(calls)):
            x = x.sin()
        return x

    y = checkpoint(less_each_time, torch.randn(4, requires_grad=True))
    with pytest.raises(ValueError, match="the replay saved 1 tensors, the first run 2"):
        y.sum().backward()

    def another_type(x):
        calls.append(1)
        return x.to(torch.float64 if len(calls) % 2 else torch.float32).sin()

    y = checkpoint(another_type, torch.randn(4, requires_grad=True))
    with pytest.raises(ValueError, match=r"saved tensor 0 is float.. .* in the replay and was float"):
        y.sum().backward()


def test_a_replay_ends_with_the_last_tensor_that_is_needed():
    ran = []

    def f(x):
        y = x.exp().sin()
        ran.append("saved")
        y = y + 1
        ran.append("all")
        return y

    checkpoint(f, torch.randn(4, requires_grad=True)).sum().backward()
    assert ran == ["saved", "all"]


def test_an_error_in_the_function_passes_and_leaves_no_hook_behind():
    with pytest.raises(ZeroDivisionError):
        checkpoint(lambda x: x.exp() / (1 // 0), torch.randn(4, requires_grad=True))
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(torch.sin, x) == 1000 * FLOAT


def test_running_statistics_count_the_batch_twice_as_with_pytorch():
    x = 1 + torch.randn(32, 4, requires_grad=True)

    def mean_after(run):
        norm = nn.BatchNorm1d(4)
        run(norm, x).square().sum().backward()
        return norm.running_mean, norm.num_batches_tracked

    once, twice = mean_after(plainly), mean_after(checkpoint)
    assert (once[1], twice[1]) == (1, 2) and not torch.equal(once[0], twice[0])
    assert_same(twice, mean_after(theirs))


def test_a_gradient_taken_inside_the_function():
    def f(x):
        (slope,) = torch.autograd.grad(x.sin().exp().sum(), x, create_graph=True)
        return slope.square()

    x = torch.randn(5, requires_grad=True)
    (expected,) = torch.autograd.grad(f(x).sum(), x)
    (found,) = torch.autograd.grad(checkpoint(f, x).sum(), x)
    assert torch.equal(found, expected)


def test_attention_and_convolution_and_sorting():
    def f(x):
        y = F.scaled_dot_product_attention(x, x.sin(), x.cos(), is_causal=True)
        values, order = y.sort(-1)
        return F.conv1d(values.flatten(1, 2), torch.ones(3, 8, 2)) + order.float().mean()

    x = torch.randn(2, 2, 4, 8, requires_grad=True)
    assert_same(gradients(checkpoint, f, x), gradients(theirs, f, x))


def test_pytorchs_own_inside_and_outside():
    f, g, x = block(dropout=0.3), block(dropout=0.3), torch.randn(8, 16, requires_grad=True)
    parameters = [*f.parameters(), *g.parameters()]

    def nested(outer, inner):
        return lambda t: outer(lambda u: inner(g, inner(f, u)).sin(), t)

    expected = gradients(plainly, nested(plainly, plainly), x, parameters=parameters)
    for outer, inner in ((checkpoint, theirs), (theirs, checkpoint)):
        assert_same(gradients(plainly, nested(outer, inner), x, parameters=parameters), expected)


def test_functions_that_save_nothing_or_return_what_they_got():
    x = torch.randn(4, 6, requires_grad=True)
    assert checkpoint(lambda t: t, x) is x
    for f in (lambda t: t.view(6, 4), lambda t: t[1:], lambda t: t + 1, lambda t: {"here": [t * 2, None]}["here"][0]):
        assert_same(gradients(checkpoint, f, x), gradients(plainly, f, x))
    assert checkpoint(lambda t: {"value": t * 2, "else": 7}, x)["else"] == 7
    assert checkpoint(lambda: None) is None


def test_a_graph_is_used_once_unless_retained():
    y = checkpoint(deep, torch.randn(4, requires_grad=True)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


def test_a_sparse_argument():
    weight = torch.randn(3, 2, requires_grad=True)
    sparse = torch.eye(3).to_sparse()
    checkpoint(lambda a, b: torch.sparse.mm(a, b).exp(), sparse, weight).sum().backward()
    torch.testing.assert_close(weight.grad, weight.exp().detach())


def test_named_containers_of_arguments():
    def f(arguments):
        return arguments["a"].exp() * arguments["pair"][0].sin()

    a, b = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    found = torch.autograd.grad(checkpoint(f, {"a": a, "pair": (b, "word")}).sum(), (a, b))
    assert_same(found, torch.autograd.grad(f({"a": a, "pair": (b, "word")}).sum(), (a, b)))
