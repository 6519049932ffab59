"""LoRA's layer: its formula, its gradients, its merge, and what must stay as it was."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qlab.lora import LoRALinear
from qlab.measure import SavedForBackward


def adapted(inputs=24, outputs=40, *, bias=True, dtype=torch.float32, **told):
    """Return a layer whose update is not zero."""
    base = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    layer = LoRALinear(base, **{"rank": 4, "alpha": 6} | told)
    nn.init.normal_(layer.lora_b, std=0.1)
    return layer


def state_of(layer):
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def test_at_the_start_the_output_is_the_base_s_bit_by_bit():
    base, x = nn.Linear(24, 40), torch.randn(3, 5, 24)
    expected = base(x)
    layer = LoRALinear(base, rank=4, alpha=8)
    assert torch.equal(layer(x), expected)
    assert not layer.update().any() and layer.lora_a.any()
    assert layer.base is base and not base.weight.requires_grad and not base.bias.requires_grad
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["lora_a", "lora_b"]


def test_a_starts_as_a_linear_layer_does_and_is_drawn_from_the_generator():
    start = [
        LoRALinear(nn.Linear(64, 64), rank=16, alpha=1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    first, again, other = (layer.lora_a.detach() for layer in start)
    assert torch.equal(first, again) and not torch.equal(first, other)
    bound = 1 / math.sqrt(64)
    assert bound * 0.99 < first.abs().max() <= bound
    assert first.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_formula_in_fp64(bias):
    layer, x = adapted(bias=bias, dtype=torch.float64), torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    a, b = (m.detach().clone().requires_grad_() for m in (layer.lora_a, layer.lora_b))
    other = x.detach().clone().requires_grad_()
    expected = F.linear(other, layer.base.weight + 1.5 * b @ a, layer.base.bias)
    target = torch.randn_like(expected)
    layer(x).backward(target)
    expected.backward(target)
    torch.testing.assert_close(layer(x), expected)
    for ours, theirs in ((layer.lora_a, a), (layer.lora_b, b), (x, other)):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert layer.base.weight.grad is None
    assert layer.scaling == 1.5
    torch.testing.assert_close(layer.update(), 1.5 * b @ a)


def test_gradients_by_finite_differences():
    layer, x = adapted(7, 5, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    values = (x, layer.lora_a.detach().requires_grad_(), layer.lora_b.detach().requires_grad_())

    def forward(x, a, b):
        return torch.func.functional_call(layer, {"lora_a": a, "lora_b": b}, (x,))

    assert torch.autograd.gradcheck(forward, values)
    assert torch.autograd.gradgradcheck(forward, values)


def test_nothing_of_the_weight_s_size_is_saved_for_backward():
    layer, x = adapted(64, 96, bias=False), torch.randn(5, 64)
    with SavedForBackward() as saved:
        kept = layer(x)
    assert saved.live_bytes == x.nbytes + 5 * 4 * 4  # the input for A and what A gives for B
    del kept


def test_merge_computes_the_same_and_unmerge_restores_every_bit():
    layer, x = adapted(), torch.randn(9, 24)
    before, apart = state_of(layer), layer(x)
    layer.merge()
    assert layer.merged
    torch.testing.assert_close(layer(x), apart, rtol=0, atol=1e-5)
    assert torch.equal(layer(x), F.linear(x, layer.merged_weight(), layer.base.bias))
    merged = layer.merged_in.clone()
    layer.merge()
    assert torch.equal(layer.merged_in, merged)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    layer.unmerge()
    assert not layer.merged and torch.equal(layer(x), apart)
    layer.unmerge()
    assert torch.equal(layer.base.weight, before["base.weight"])
    # what a merge in place would have left: floats do not return
    assert not torch.equal(before["base.weight"] + layer.update() - layer.update(), before["base.weight"])


def test_a_merged_linear_is_plain_and_its_own():
    layer, x = adapted(), torch.randn(9, 24)
    plain = layer.eval().merged_linear()
    assert type(plain) is nn.Linear and not plain.training
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=1e-5)
    with torch.no_grad():
        plain.weight.zero_()
        plain.bias.zero_()
    assert layer.base.weight.any() and layer.base.bias.any()
    assert adapted(bias=False).merged_linear().bias is None


def test_a_state_dict_goes_round_merged_or_not_and_a_stale_merge_does_not_stay():
    layer, x = adapted(), torch.randn(9, 24)
    apart, other = layer(x), adapted()
    assert list(layer.state_dict()) == ["lora_a", "lora_b", "base.weight", "base.bias"]
    layer.merge()
    other.merge()
    other.load_state_dict(layer.state_dict())
    assert not other.merged and torch.equal(other(x), apart)
    with pytest.raises(RuntimeError, match="size mismatch for lora_a"):
        adapted(rank=5).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("merged", [False, True])
def test_copies_are_the_same_and_apart(merged):
    layer, x = adapted(), torch.randn(9, 24)
    if merged:
        layer.merge()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.merged == merged and torch.equal(other(x), layer(x))
        other.load_state_dict(adapted().state_dict())
        assert not torch.equal(other(x), layer(x))
    assert layer.merged == merged


def test_dropout_falls_on_the_adapter_in_training_only():
    layer, x = adapted(dropout=0.5), torch.randn(2000, 24)
    still = adapted_copy_without_dropout(layer)(x)
    assert torch.equal(layer.eval()(x), still)
    layer.train()
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, still)
    # by half of the adapter's inputs, doubled: right on average
    error = (first - still).mean(0).abs()
    assert (error < 5 * (first - still).std(0) / math.sqrt(2000)).all()
    with torch.no_grad():
        layer.lora_b.zero_()
    assert torch.equal(layer(x), layer.base(x))


def adapted_copy_without_dropout(layer):
    other = copy.deepcopy(layer)
    other.dropout = 0.0
    return other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_16_bits_the_adapter_is_fp32_and_the_product_in_the_input_s_type(dtype):
    layer, x = adapted(dtype=dtype), torch.randn(4, 24, dtype=dtype)
    assert layer.lora_a.dtype == layer.lora_b.dtype == torch.float32
    out = layer(x)
    assert out.dtype == dtype and layer.update().dtype == torch.float32
    exact = F.linear(x.double(), layer.base.weight.double() + layer.update().double(), layer.base.bias.double())
    assert (out.double() - exact).abs().max() < 8 * torch.finfo(dtype).eps
    merged = layer.merged_weight()
    assert merged.dtype == dtype
    assert torch.equal(merged, (layer.base.weight.float() + layer.update()).to(dtype))
    out.float().sum().backward()
    assert layer.lora_a.grad.dtype == torch.float32


def test_autocast_computes_in_bf16_and_leaves_fp32_gradients():
    layer, x = adapted(), torch.randn(4, 24)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.02, atol=0.02)
    out.float().sum().backward()
    assert layer.lora_a.grad.dtype == layer.lora_b.grad.dtype == torch.float32


def test_moving_to_another_type_moves_everything():
    layer, x = adapted(), torch.randn(4, 24)
    layer.merge()
    layer.double()
    assert layer(x.double()).dtype == torch.float64 and layer.merged_in.dtype == torch.float64
    assert "24 → 40, rank=4, alpha=6, merged=True" in repr(layer)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"rank": 25}, "rank must be 1 to 24, the smaller side of the 40 × 24 weight, got 25"),
        ({"rank": 0}, "rank must be 1 to 24, the smaller side of the 40 × 24 weight, got 0"),
        ({"alpha": 0}, "alpha must be above 0 and finite, got 0"),
        ({"alpha": math.nan}, "alpha must be above 0 and finite, got nan"),
        ({"alpha": math.inf}, "alpha must be above 0 and finite, got inf"),
        ({"dropout": 1.0}, r"dropout must be from 0 to below 1, got 1\.0"),
        ({"dropout": -0.1}, r"dropout must be from 0 to below 1, got -0\.1"),
    ],
)
def test_adapters_that_are_none_are_refused_and_the_base_stays_trainable(told, message):
    base = nn.Linear(24, 40)
    with pytest.raises(ValueError, match=message):
        LoRALinear(base, **{"rank": 4, "alpha": 8} | told)
    assert base.weight.requires_grad


def test_wrong_inputs_are_refused_with_a_sentence():
    layer = adapted()
    for merged in (False, True):
        if merged:
            layer.merge()
        with pytest.raises(ValueError, match=r"x must end in 24 features, got shape \(3, 40\)"):
            layer(torch.randn(3, 40))
        with pytest.raises(ValueError, match="x is on meta and the adapter on cpu: move one of them"):
            layer(torch.randn(3, 24, device="meta"))
    with pytest.raises(ValueError, match="the weight must hold values, and is on device meta"):
        LoRALinear(nn.Linear(24, 40, device="meta"), rank=4, alpha=8)
    assert layer(torch.empty(0, 24)).shape == (0, 40)
    assert layer(torch.randn(24)).shape == (40,)
