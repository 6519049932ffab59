import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from qlab.loss_scaling import LossScaler, StaticScaler, training_step, unscale_gradients

INTERVAL = 5
RUNS = [(2.0, 0.5, 10_000), (1.7, 0.3, 10_000), (1.0001, 0.9999, 1000), (1000.0, 0.001, 1000)]


class Theirs:
    """PyTorch's scaler on one weight, fed with gradients that are finite or not."""

    def __init__(self, growth, backoff, interval=INTERVAL, initial=65536.0):
        self.weight = nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.0, foreach=False)
        self.scaler = GradScaler(
            "cpu", init_scale=initial, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
        )
        self.scaler.scale(self.weight.sum())  # it makes its state at the first loss

    def update(self, found_inf):
        self.weight.grad = torch.full((1,), math.inf if found_inf else 1.0)
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @property
    def state(self):
        state = self.scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


def overflows(scale, backoff, falling, draw):
    """Send the scale up to FP32's largest and down to where it is subnormal, in turn, by chance."""
    falling = scale * backoff > 1e-44 if falling else scale > 1e36
    could_vanish = scale * backoff < 1e-44
    return not could_vanish and draw < (0.5 if falling else 0.02), falling


@pytest.mark.parametrize(("growth", "backoff", "steps"), RUNS)
def test_the_scale_and_its_count_follow_pytorch_s_at_every_step(growth, backoff, steps):
    theirs = Theirs(growth, backoff)
    ours = LossScaler(growth_factor=growth, backoff_factor=backoff, growth_interval=INTERVAL)
    falling, seen, draws = False, [], torch.rand(steps, generator=torch.Generator().manual_seed(1)).tolist()
    for step, draw in enumerate(draws):
        found_inf, falling = overflows(ours.scale, backoff, falling, draw)
        ours.update(found_inf)
        theirs.update(found_inf)
        assert (ours.scale, ours.good_steps) == theirs.state, f"step {step}"
        seen.append(ours.scale)
        if step == steps // 2:
            state = copy.deepcopy(ours.state_dict())
            ours = LossScaler(1.0, growth, backoff, INTERVAL)
            ours.load_state_dict(state)
    if growth > 1.5:
        assert max(seen) > 1e36 and min(seen) < 1e-39  # it was at both ends


def test_a_scale_that_cannot_grow_stays_where_it_is():
    theirs, ours = Theirs(2.0, 0.5, 1, 2.0**126), LossScaler(2.0**126, growth_interval=1)
    for _ in range(4):
        ours.update(found_inf=False)
        theirs.update(found_inf=False)
        assert (ours.scale, ours.good_steps) == theirs.state
    assert ours.scale == 2.0**127


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_the_count_starts_anew_after_growth_and_after_a_skip(interval):
    ours, theirs = LossScaler(growth_interval=interval), Theirs(2.0, 0.5, interval)
    for found_inf in [False, True, False, False, True, True, False, False, False, False, False, False, True]:
        ours.update(found_inf)
        theirs.update(found_inf)
        assert (ours.scale, ours.good_steps) == theirs.state


def test_a_static_scale_stays():
    scaler = StaticScaler(128)
    scaler.update(found_inf=True)
    scaler.update(found_inf=False)
    assert scaler.scale == 128.0 and isinstance(scaler.scale, float)


def test_gradients_that_are_never_finite_are_refused_at_scale_zero():
    scaler = LossScaler()
    with pytest.raises(ValueError, match=r"not finite at a loss scale of .* either"):
        for _ in range(1000):
            scaler.update(found_inf=True)
    assert 0 < scaler.scale < 1e-44


BAD_VALUES = [math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("bad", [None, *BAD_VALUES])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_found_inf_agrees_with_pytorch_on_several_tensors(bad, place):
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((3,), (2, 5), (), (4,))]
    for weight in weights[:-1]:  # the last has no gradient
        weight.grad = torch.randn(weight.shape) * 8
    if bad is not None:
        weights[place].grad.view(-1)[-1] = bad
    mirror = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for ours, theirs in zip(weights, mirror, strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    optimizer, scaler = torch.optim.SGD(mirror, lr=1.0), GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    theirs_found = any(
        found.item() for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
    )
    assert StaticScaler(8.0).unscale(weights) is bool(theirs_found) is (bad is not None)
    for ours, theirs in zip(weights[:-1], mirror[:-1], strict=True):
        assert torch.equal(ours.grad.isfinite(), theirs.grad.isfinite())
        assert torch.equal(ours.grad.nan_to_num(), theirs.grad.nan_to_num())
    assert weights[-1].grad is None


def test_a_parameter_generator_is_read_once():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 4.0)
    assert StaticScaler(4.0).unscale(p for p in [weight]) is False
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 3.0, 1000.0, 2.0**24, 1e30])
def test_unscaled_gradients_are_the_true_ones(scale):
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(5, 16)
    (true,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    scaler = StaticScaler(scale)
    scaler.scaled(layer(x).square().sum()).backward()
    assert scaler.unscale(layer.parameters()) is False
    if math.log2(scale) % 1 == 0:
        assert torch.equal(layer.weight.grad, true)
    else:  # rounded in each of the products of the backward pass and in the division
        torch.testing.assert_close(layer.weight.grad, true, rtol=1e-5, atol=1e-5 * true.abs().max().item())


def test_sparse_gradients_are_unscaled_where_they_have_values():
    embedding = nn.Embedding(10, 4, sparse=True)
    places = torch.tensor([1, 1, 3])  # one twice
    scaler = StaticScaler(64.0)
    scaler.scaled(embedding(places).sum()).backward()
    assert embedding.weight.grad.is_sparse
    assert scaler.unscale(embedding.parameters()) is False
    expected = torch.zeros(10, 4)
    expected[1], expected[3] = 2.0, 1.0
    assert torch.equal(embedding.weight.grad.to_dense(), expected)


@pytest.mark.parametrize("bad", BAD_VALUES)
def test_sparse_gradients_that_are_not_finite_are_found(bad):
    embedding = nn.Embedding(10, 2, sparse=True)
    (embedding(torch.tensor([2, 5])) * torch.tensor([1.0, bad])).sum().backward()
    assert StaticScaler(2.0).unscale(embedding.parameters()) is True


def test_two_finite_values_of_one_place_that_overflow_together_are_found():
    weight = nn.Parameter(torch.zeros(3))
    largest = torch.finfo(torch.float32).max
    weight.grad = torch.sparse_coo_tensor([[1, 1]], [largest, largest], (3,), check_invariants=True)
    assert StaticScaler(1.0).unscale([weight]) is True


def test_no_rows_of_an_embedding_were_used():
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), [], (3,), check_invariants=True)
    assert StaticScaler(2.0).unscale([weight]) is False


def test_a_bf16_gradient_is_unscaled_and_an_fp16_one_refused_before_any_is_touched():
    wide, narrow = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    wide.grad, narrow.grad = torch.full((2,), 8.0), torch.full((2,), 8.0, dtype=torch.bfloat16)
    assert StaticScaler(8.0).unscale([wide, narrow]) is False
    assert narrow.grad.tolist() == [1.0, 1.0]
    half = nn.Parameter(torch.ones(2, dtype=torch.float16))
    half.grad = torch.ones(2, dtype=torch.float16)
    with pytest.raises(ValueError, match="a gradient is float16"):
        StaticScaler(8.0).unscale([wide, half])
    assert wide.grad.tolist() == [1.0, 1.0]


def test_nothing_to_unscale_is_refused():
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        StaticScaler(2.0).unscale([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        unscale_gradients([], 2.0)


@pytest.mark.parametrize("loss", BAD_VALUES)
def test_a_loss_that_is_lost_already_is_refused(loss):
    with pytest.raises(ValueError, match=re.escape(f"the loss is {loss} before it is scaled")):
        LossScaler().scaled(torch.tensor(loss))


def test_a_half_loss_is_scaled_in_fp32():
    scaled = StaticScaler(65536.0).scaled(torch.tensor(100.0, dtype=torch.float16))
    assert scaled.item() == 6_553_600 and scaled.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale must be above 0 and finite in FP32, got 0.0"),
        ({"scale": math.nan}, "scale must be above 0 and finite in FP32, got nan"),
        ({"scale": math.inf}, "scale must be above 0 and finite in FP32, got inf"),
        ({"scale": 1e300}, "scale must be above 0 and finite in FP32, got 1e"),
        ({"scale": 1e-300}, "scale must be above 0 and finite in FP32, got 1e"),
        ({"growth_factor": 1.0}, "growth_factor must be above 1 and finite, got 1.0"),
        ({"growth_factor": math.nan}, "growth_factor must be above 1 and finite, got nan"),
        ({"backoff_factor": 1.0}, "backoff_factor must be between 0 and 1, got 1.0"),
        ({"backoff_factor": 0.0}, "backoff_factor must be between 0 and 1, got 0.0"),
        ({"growth_interval": 0}, "growth_interval must be at least 1, got 0"),
        ({"good_steps": 2000}, "good_steps must be 0 to 1999, got 2000"),
        ({"good_steps": -1}, "good_steps must be 0 to 1999, got -1"),
    ],
)
def test_settings_that_make_no_scaler_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LossScaler(**arguments)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"scale": 4.0}, "must hold scale and good_steps, ['good_steps'] is missing"),
        ({"scale": 0.0, "good_steps": 0}, "scale must be above 0 and finite in FP32, got 0.0"),
        ({"scale": math.nan, "good_steps": 0}, "scale must be above 0 and finite in FP32, got nan"),
        ({"scale": 8.0, "good_steps": 5}, "good_steps must be 0 to 4, got 5"),
        ({"scale": 8.0, "good_steps": -1}, "good_steps must be 0 to 4, got -1"),
    ],
)
def test_a_state_that_cannot_be_taken_up_changes_nothing(state, message):
    scaler = LossScaler(growth_interval=5, good_steps=3)
    with pytest.raises(ValueError, match=re.escape(message)):
        scaler.load_state_dict(state)
    assert scaler.state_dict() == {"scale": 65536.0, "good_steps": 3}


def test_a_state_goes_through_a_file(tmp_path):
    scaler = LossScaler(scale=1.1, growth_interval=7)
    for found_inf in (False, True, False, False):
        scaler.update(found_inf)
    torch.save(scaler.state_dict(), tmp_path / "scaler.pt")
    other = LossScaler(growth_interval=7)
    other.load_state_dict(torch.load(tmp_path / "scaler.pt"))
    assert other == scaler


def step_of(layer, optimizer, x, *, scaler, max_norm=0.1):
    return training_step(layer(x).square().sum(), layer.parameters(), optimizer, scaler=scaler, max_norm=max_norm)


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**16])
@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_a_step_clips_the_true_gradients(scale, max_norm):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), torch.randn(4, 6)
    plain = copy.deepcopy(layer)
    optimizer, theirs = (torch.optim.Adam(model.parameters(), lr=0.1) for model in (layer, plain))
    for _ in range(3):
        assert step_of(layer, optimizer, x, scaler=StaticScaler(scale), max_norm=max_norm)
        plain(x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), max_norm)
        theirs.step()
        theirs.zero_grad()
    for ours, expected in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, expected)
        assert ours.grad is None


@pytest.mark.parametrize("bad", BAD_VALUES)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(bad, which):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), torch.randn(4, 6)
    optimizer, scaler = torch.optim.Adam(layer.parameters(), lr=0.1), LossScaler(8.0)
    assert step_of(layer, optimizer, x, scaler=scaler)
    weights, states = copy.deepcopy(layer.state_dict()), copy.deepcopy(optimizer.state_dict())
    hook = getattr(layer, which).register_hook(lambda g: torch.cat([g.flatten()[:-1], torch.tensor([bad])]).view_as(g))
    assert not step_of(layer, optimizer, x, scaler=scaler)
    hook.remove()
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in weights.items())
    for place, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], value) for name, value in states["state"][place].items())
    assert (scaler.scale, scaler.good_steps) == (4.0, 0)
    assert all(p.grad is None for p in layer.parameters())  # or the next step would add to them
    assert step_of(layer, optimizer, x, scaler=scaler)
    assert scaler.good_steps == 1


def test_the_same_steps_as_pytorch_s_loop_with_overflow_in_between():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    plain = copy.deepcopy(layer)
    optimizer, theirs = (torch.optim.Adam(model.parameters(), lr=0.01) for model in (layer, plain))
    scaler = LossScaler(2.0**120, growth_interval=4)
    reference = GradScaler("cpu", init_scale=2.0**120, growth_interval=4)
    taken = []
    for step in range(60):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)) * 2.0 ** (step % 7)
        taken.append(step_of(layer, optimizer, x, scaler=scaler, max_norm=1.0))
        reference.scale(plain(x).square().sum()).backward()
        reference.unscale_(theirs)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        reference.step(theirs)
        reference.update()
        theirs.zero_grad()
        assert scaler.scale == reference.get_scale()
        assert torch.equal(layer.weight, plain.weight) and torch.equal(layer.bias, plain.bias)
    assert 3 < sum(taken) < 60


def test_gradients_of_a_lost_loss_do_not_reach_the_weights():
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="the loss is nan before it is scaled"):
        step_of(layer, torch.optim.SGD(layer.parameters(), lr=1.0), torch.full((1, 2), math.nan), scaler=LossScaler())
    assert torch.equal(layer.weight, before)


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [None, *BAD_VALUES])
def test_found_inf_on_a_gpu_and_across_devices(bad):
    weights = [nn.Parameter(torch.ones(3, device=device)) for device in ("cuda", "cpu")]
    for weight in weights:
        weight.grad = torch.full((3,), 8.0, device=weight.device)
    if bad is not None:
        weights[0].grad[1] = bad
    assert StaticScaler(8.0).unscale(weights) is (bad is not None)
    assert weights[1].grad.tolist() == [1.0, 1.0, 1.0]
