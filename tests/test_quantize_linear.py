"""The weight-only layer: what it keeps, what it survives, and a model full of them."""

import copy
import io

import pytest
import safetensors.torch
import torch
from torch import nn

from qlab.model import load_course_model
from qlab.quantize import PER_ROW, QuantizedLinear, per_block, per_group, quantize_linears, quantize_symmetric


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("tile", [PER_ROW, per_group(4), per_block(10)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_is_the_quantized_one(bits, tile, bias):
    linear = nn.Linear(13, 5, bias=bias)
    made = QuantizedLinear.from_linear(linear, bits=bits, tile=tile)
    expected = quantize_symmetric(linear.weight.detach(), bits=bits, tile=tile).dequantize()
    assert torch.equal(made.weight, expected)
    x = torch.randn(2, 3, 13)
    torch.testing.assert_close(made(x), nn.functional.linear(x, expected, linear.bias))
    assert sum(held.nbytes for held in made.state_dict().values()) == bits * 9 + made.scale.nbytes + 20 * bias


@pytest.mark.parametrize("bias", [True, False])
def test_a_state_dict_comes_back_from_disk(bias, tmp_path):
    made = QuantizedLinear.from_linear(nn.Linear(9, 7, bias=bias), bits=3, tile=per_group(4))
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    safetensors.torch.save_file(made.state_dict(), tmp_path / "layer.safetensors")
    stored = torch.load(buffer, weights_only=True), safetensors.torch.load_file(tmp_path / "layer.safetensors")
    for tensors in stored:
        empty = QuantizedLinear(9, 7, bits=3, tile=per_group(4), bias=bias)
        empty.load_state_dict(tensors)
        assert torch.equal(empty.weight, made.weight)
        assert torch.equal(empty(torch.ones(9)), made(torch.ones(9)))


def test_other_bits_are_refused_when_loading():
    made = QuantizedLinear.from_linear(nn.Linear(9, 7), bits=3)
    for bits in (2, 4, 8):
        with pytest.raises(RuntimeError, match="size mismatch for packed_codes"):
            QuantizedLinear(9, 7, bits=bits).load_state_dict(made.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_keep_their_digits_when_the_module_changes_type(dtype):
    made = QuantizedLinear.from_linear(nn.Linear(16, 4), bits=8)
    before = made.weight
    made.to(dtype)
    assert made.scale.dtype == torch.float32 and made.bias.dtype == dtype
    assert torch.equal(made.weight, before)
    assert made(torch.randn(2, 16, dtype=dtype)).dtype == dtype


def test_it_can_be_made_on_meta_and_filled_later():
    made = QuantizedLinear.from_linear(nn.Linear(16, 4), bits=5)
    with torch.device("meta"):
        empty = QuantizedLinear(16, 4, bits=5)
    empty.to_empty(device="cpu").load_state_dict(made.state_dict())
    assert torch.equal(empty.weight, made.weight)


def test_a_copy_is_a_layer_of_its_own():
    made = QuantizedLinear.from_linear(nn.Linear(16, 4), bits=4).eval()
    twin = copy.deepcopy(made)
    twin.scale.mul_(2)
    assert torch.equal(twin.weight, 2 * made.weight) and not twin.training


def test_the_gradient_reaches_input_and_bias_and_a_frozen_bias_stays_frozen():
    linear = nn.Linear(6, 4)
    made = QuantizedLinear.from_linear(linear, bits=4)
    x = torch.randn(3, 6, requires_grad=True)
    made(x).sum().backward()
    torch.testing.assert_close(x.grad, made.weight.sum(0).expand(3, 6))
    assert made.bias.grad.tolist() == [3] * 4
    linear.bias.requires_grad_(False)
    assert not QuantizedLinear.from_linear(linear, bits=4).bias.requires_grad


def test_bad_weights_and_bits_are_refused():
    linear = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="bits must be 2 to 8, got 9"):
        QuantizedLinear.from_linear(linear, bits=9)
    with torch.no_grad():
        linear.weight[1, 1] = torch.nan
    with pytest.raises(ValueError, match="x must be finite, and holds 1 NaN"):
        QuantizedLinear.from_linear(linear, bits=8)


def test_the_course_model_shrinks_and_its_tied_head_is_not_doubled():
    model = load_course_model()
    tokens = torch.randint(0, 256, (1, 32))
    with torch.no_grad():
        before = model(tokens)
        quantize_linears(model, bits=8)
        after = model(tokens)
    left = [name for name, inner in model.named_modules() if isinstance(inner, nn.Linear)]
    assert left == (["head"] if model.config.tied_embeddings else [])
    assert not model.config.tied_embeddings or model.head.weight is model.embedding.weight
    assert 0 < (after - before).norm() / before.norm() < 0.05


def test_a_layer_in_two_places_stays_one_and_what_is_kept_is_kept():
    shared, kept = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()), kept)
    quantize_linears(model, bits=4, keep=(kept,))
    assert isinstance(model[0], QuantizedLinear) and model[0] is model[1][0] and model[2] is kept
