import math

import pytest
import torch
from torch import nn

from qlab.calibrate import DynamicLinear, MinMax, Percentile, StaticLinear, calibrate, require_disjoint, watched_inputs
from qlab.quantize import PER_ROW, affine_grid, quantize_symmetric, quantize_with, symmetric_grid


def static_of(linear, x, bits=8):
    return StaticLinear(linear, affine_grid(x, bits=bits))


LAYERS = {"static": static_of, "dynamic": lambda linear, x: DynamicLinear(linear)}


def product_of_dequantized(layer, x):
    """The same layer in FP64 real numbers: what the codes stand for, multiplied."""
    tokens = x.reshape(-1, x.shape[-1])
    y = layer.quantize_input(tokens).dequantize().double() @ layer.quantized_weight.dequantize().double().T
    return (y if layer.bias is None else y + layer.bias.double()).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24)])
def test_a_layer_computes_the_product_of_what_its_codes_stand_for(kind, bias, shape):
    linear, x = nn.Linear(24, 8, bias=bias), torch.randn(shape)
    layer = LAYERS[kind](linear, x)
    with torch.no_grad():
        y = layer(x)
    assert y.shape == linear(x).shape
    # the int32 sum is exact; two multiplications by scales and one addition round, each by 2^-24
    assert torch.allclose(y.double(), product_of_dequantized(layer, x), rtol=2**-21, atol=2**-21)
    assert (y - linear(x)).norm() < 0.03 * linear(x).norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_loaded_constants_give_the_same_layer(kind):
    x = torch.randn(9, 16)
    layer = LAYERS[kind](nn.Linear(16, 8), x)
    other = LAYERS[kind](nn.Linear(16, 8), 100 * x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_is_a_copy(kind):
    linear, x = nn.Linear(16, 8), torch.randn(9, 16)
    grid = affine_grid(x, bits=8)
    layer = StaticLinear(linear, grid) if kind == "static" else DynamicLinear(linear)
    before = layer(x)
    with torch.no_grad():
        linear.weight.zero_(), linear.bias.zero_(), grid.scale.zero_()
    assert torch.equal(layer(x), before)


def test_static_constants_never_change():
    x = torch.randn(9, 16)
    layer = static_of(nn.Linear(16, 8), x)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    outputs = [(layer.train(mode), layer(50 * x), layer(x))[-1] for mode in (True, False)]
    assert torch.equal(*outputs)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_values_beyond_the_calibrated_range_are_clamped():
    layer = static_of(nn.Linear(4, 8), torch.tensor([[-1.0, 0.0, 1.0, 2.0]]))
    inside, beyond = torch.tensor([[-1.0, 2.0, 2.0, 0.5]]), torch.tensor([[-50.0, 3.0, 1e30, 0.5]])
    assert torch.equal(layer(inside), layer(beyond))


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_inputs_of_fewer_bits(bits):
    x = torch.randn(20, 16)
    layer = static_of(nn.Linear(16, 8), x, bits)
    assert torch.allclose(layer(x).double(), product_of_dequantized(layer, x), rtol=2**-20, atol=2**-20)


def test_a_token_of_its_own_scale_is_not_hurt_by_its_neighbors():
    linear, x = nn.Linear(32, 8, bias=False), torch.randn(2, 32)
    x[1] *= 1000
    error = {kind: ((make(linear, x)(x) - linear(x))[0].norm() / linear(x)[0].norm()) for kind, make in LAYERS.items()}
    assert error["dynamic"] < 0.03 and error["static"] > 0.5


@pytest.mark.parametrize("kind", LAYERS)
def test_the_type_of_the_input_stays_and_no_gradient_passes(kind):
    x = torch.randn(5, 16, dtype=torch.bfloat16, requires_grad=True)
    layer = LAYERS[kind](nn.Linear(16, 8, bias=False), x.detach())
    assert layer(x).dtype == torch.bfloat16
    assert not layer(x).requires_grad


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_refuse_bad_input(kind):
    layer = LAYERS[kind](nn.Linear(4, 8), torch.randn(3, 4))
    with pytest.raises(ValueError, match="finite, and holds 1 NaN or infinite"):
        layer(torch.tensor([[1.0, math.nan, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"at least one value, got shape \(0, 4\)"):
        layer(torch.zeros(0, 4))
    broken = nn.Linear(4, 8)
    broken.weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="finite, and holds 1 NaN or infinite"):
        LAYERS[kind](broken, torch.randn(3, 4))


def test_a_static_layer_wants_one_affine_scale():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="affine with 1 scale, got symmetric with 1"):
        StaticLinear(nn.Linear(4, 8), symmetric_grid(x, bits=8))
    with pytest.raises(ValueError, match="affine with 1 scale, got affine with 3"):
        StaticLinear(nn.Linear(4, 8), affine_grid(x, bits=8, tile=PER_ROW))


def test_all_zeros_in_calibration_give_zeros_and_no_nan():
    observer = MinMax()
    observer.observe(torch.zeros(4, 8))
    layer = StaticLinear(nn.Linear(8, 8, bias=False), observer.grid(bits=8))
    assert layer(torch.zeros(2, 8)).count_nonzero() == 0
    assert layer(torch.randn(2, 8)).isfinite().all()


class Network(nn.Module):
    """Two layers, one of them called by name of its argument and twice, and a dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.dropout = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x):
        return self.again(input=self.again(self.dropout(self.first(x)).relu()))


@pytest.mark.parametrize("training", [False, True])
def test_every_linear_layer_sees_its_input(training):
    model, batches = Network().train(training), [torch.randn(6, 4) for _ in range(3)]
    observers = calibrate(model, (batch for batch in batches))
    assert list(observers) == ["first", "again"]
    everything = torch.cat(batches)
    assert observers["first"].range() == (everything.min().item(), everything.max().item())
    assert observers["first"].seen.counts.sum() == everything.numel()
    assert observers["again"].seen.counts.sum() == 2 * everything.numel()
    assert model.training == training
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_each_layer_gets_an_observer_of_its_own():
    observers = calibrate(Network(), [torch.randn(6, 4)], observer=lambda: Percentile(percent=90))
    assert observers["first"] is not observers["again"]
    assert all(observer.percent == 90 for observer in observers.values())


def test_hooks_go_even_when_the_model_fails():
    model = Network()
    with pytest.raises(ValueError, match="holds 4 NaN"):
        calibrate(model, [torch.randn(6, 4), torch.full((1, 4), math.nan)])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        calibrate(model, [torch.randn(6, 5)])
    with pytest.raises(KeyError), watched_inputs(model, lambda name, x: {}[name]):
        model(torch.randn(2, 4))
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_what_a_watcher_returns_changes_nothing():
    model, x, seen = Network().eval(), torch.randn(6, 4), {}
    before = model(x)
    with watched_inputs(model, seen.setdefault):
        after = model(x)
    assert torch.equal(after, before) and torch.equal(seen["first"], x)
    assert list(seen) == ["first", "again"]


def test_calibration_without_data_is_refused():
    with pytest.raises(ValueError, match="at least one batch, got 0"):
        calibrate(Network(), [])
    with pytest.raises(ValueError, match="at least one value"):
        calibrate(Network(), [torch.zeros(0, 4)])


def test_calibrated_layers_are_close_to_the_model():
    model, data = Network().eval(), torch.randn(500, 4)
    observers, x = calibrate(model, data.split(100)), data[:50]
    before = model(x)
    for name, observer in observers.items():
        setattr(model, name, StaticLinear(getattr(model, name), observer.grid(bits=8)))
    model.forward = lambda x: model.again(model.again(model.first(x).relu()))
    assert (model(x) - before).norm() < 0.03 * before.norm()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_an_evaluation_batch_found_in_the_calibration_set_is_refused(dtype):
    calibration, evaluation = torch.randint(200, (20, 16)).to(dtype), torch.randint(200, (30, 16)).to(dtype)
    require_disjoint(calibration, evaluation)
    evaluation[17] = calibration[3]
    with pytest.raises(ValueError, match="evaluation sequence 17 is in the calibration set"):
        require_disjoint(calibration, evaluation)
    with pytest.raises(ValueError, match="evaluation sequence 17"):
        require_disjoint(calibration.T.contiguous().T, evaluation.long())


def test_weight_codes_are_those_of_rows():
    linear = nn.Linear(16, 8)
    expected = quantize_symmetric(linear.weight.detach(), bits=8, tile=PER_ROW)
    assert torch.equal(DynamicLinear(linear).quantized_weight.dequantize(), expected.dequantize())
    x = torch.randn(3, 16)
    grid = affine_grid(x, bits=8)
    assert torch.equal(StaticLinear(linear, grid).quantize_input(x).codes, quantize_with(x, grid).codes)


def test_sequences_of_two_lengths_cannot_be_told_apart():
    with pytest.raises((ValueError, TypeError)):
        require_disjoint(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long))
