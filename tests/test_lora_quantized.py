"""QLoRA's layer: products from codes, no floating-point weight saved or kept, and merges that are not lossless."""

import copy
import io
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from qlab.codebooks import FP4, NF4, DoublyQuantizedCodes, double_quantize, dynamic_map, quantize_blockwise
from qlab.lora import LoRALinear, QLoRALinear, linear_through_codes
from qlab.measure import PeakBytes, SavedForBackward

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes  # noqa: E402 - the logger must be quiet first

KINDS = [
    {},
    {"double": False},
    {"codebook": FP4},
    {"block_size": 32, "double": False},
    {"codebook": dynamic_map(signed=True), "block_size": 7},
]


def adapted(inputs=100, outputs=72, *, bias=True, dtype=torch.float32, **told):
    """Return a layer whose update is not zero, and whose rows are no multiple of the block."""
    layer = QLoRALinear(nn.Linear(inputs, outputs, bias=bias, dtype=dtype), **{"rank": 4, "alpha": 6} | told)
    nn.init.normal_(layer.lora_b, std=0.1)
    return layer


def codes_of(weight, *, double=True, codebook=NF4, block_size=64):
    single = quantize_blockwise(weight, codebook, block_size=block_size)
    return double_quantize(single) if double else single


@pytest.mark.parametrize("told", KINDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradients_are_those_of_the_dequantized_weight(told, bias):
    codes = codes_of(torch.randn(72, 100), **told)
    x, b = torch.randn(2, 5, 100, requires_grad=True), torch.randn(72, requires_grad=True) if bias else None
    other = x.detach().clone().requires_grad_()
    expected = F.linear(other, codes.dequantize(), b)
    out = linear_through_codes(x, codes, b)
    target = torch.randn_like(out)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    ours = torch.autograd.grad(out, [x, b] if bias else [x], target)
    theirs = torch.autograd.grad(expected, [other, b] if bias else [other], target)
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-4)


def test_gradients_by_finite_differences():
    codes, x = codes_of(torch.randn(6, 10)), torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: linear_through_codes(x, codes), (x,))
    layer = adapted(10, 6, dtype=torch.float64)
    values = (x, layer.lora_a.detach().requires_grad_(), layer.lora_b.detach().requires_grad_())

    def forward(x, a, b):
        return torch.func.functional_call(layer, {"lora_a": a, "lora_b": b}, (x,))

    assert torch.autograd.gradcheck(forward, values)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first,) = torch.autograd.grad(linear_through_codes(x, codes).square().sum(), x, create_graph=True)
        first.sum().backward()


@pytest.mark.parametrize("told", KINDS[:2], ids=["double", "single"])
def test_saved_are_the_input_once_and_what_a_gives(told):
    layer = adapted(256, 512, **told)
    x = torch.randn(8, 256, requires_grad=True)
    with SavedForBackward() as saved:
        out = layer(x)
    assert saved.live_bytes == x.nbytes + 8 * 4 * 4
    out.sum().backward()
    assert x.grad is not None and layer.lora_b.grad is not None
    assert {name for name, p in layer.named_parameters()} == {"lora_a", "lora_b"}
    assert not [name for name, b in layer.named_buffers() if b.is_floating_point() and b.numel() > 256 * 512 // 32]


def test_at_no_time_is_there_a_whole_weight_in_floating_point():
    layer, x = adapted(1024, 2048, bias=False), torch.randn(8, 1024, requires_grad=True)
    with PeakBytes() as peak:
        layer(x).sum().backward()
    weight = 4 * 1024 * 2048
    assert peak.bytes < 0.75 * weight  # some tiles, however large the weight is


def test_a_frozen_input_needs_no_gradient_and_a_trained_one_gets_it():
    layer, x = adapted(), torch.randn(3, 100)
    layer(x).sum().backward()
    assert layer.lora_a.grad is not None and x.grad is None


@pytest.mark.parametrize(
    ("double", "quant_type", "codebook"), [(True, "nf4", NF4), (False, "nf4", NF4), (False, "fp4", FP4)]
)
def test_the_frozen_product_is_that_of_linear4bit(double, quant_type, codebook):
    plain = nn.Linear(128, 64)
    theirs = bitsandbytes.nn.Linear4bit(
        128, 64, compute_dtype=torch.float32, compress_statistics=double, quant_type=quant_type
    )
    theirs.load_state_dict(plain.state_dict())
    theirs.to("cpu")
    assert theirs.weight.dtype == torch.uint8
    layer = QLoRALinear(plain, rank=4, alpha=4, codebook=codebook, double=double)
    x = torch.randn(10, 128, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    ours, reference = layer(x), theirs(other)
    # a few absmaxes of its CPU kernel are a level further from the truth: by half a percent of the largest
    bound = 0.02 if double else 1e-5
    torch.testing.assert_close(ours, reference, rtol=bound, atol=bound)
    ours.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=bound, atol=bound)
    assert torch.equal(layer.packed, theirs.weight.view(-1)) or codebook is FP4  # its FP4 codes are not in order


def test_rows_that_are_no_multiple_of_the_block_are_right():
    weight = torch.randn(9, 100)
    layer = QLoRALinear(linear_of(weight), rank=1, alpha=1, double=False)
    absmax = torch.stack([part.abs().max() for part in weight.flatten().split(64)])
    levels = NF4[layer.codes.codes.flatten().long()] * absmax.repeat_interleave(64)[:900]
    torch.testing.assert_close(layer(torch.eye(100)).T, levels.view(9, 100))


def linear_of(weight):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone())
    return linear


def test_the_same_adapter_beside_the_dequantized_weight_gives_the_same():
    layer = adapted()
    other = LoRALinear(linear_of(layer.frozen_weight()), rank=4, alpha=6)
    other.base.bias = nn.Parameter(layer.bias.clone())
    other.load_state_dict({"lora_a": layer.lora_a, "lora_b": layer.lora_b}, strict=False)
    x = torch.randn(5, 100)
    torch.testing.assert_close(layer(x), other(x), rtol=0, atol=1e-5)


def test_codes_survive_every_change_of_type():
    layer = adapted()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers() if name not in {"bias", "like_base"}}
    assert before["packed"].dtype == before["absmax_codes"].dtype == torch.uint8
    for change in (nn.Module.bfloat16, nn.Module.half, nn.Module.double, nn.Module.float):
        change(layer)
        for name, buffer in before.items():
            now = layer.get_buffer(name)
            assert now.dtype == buffer.dtype and torch.equal(now, buffer), name
        assert layer(torch.randn(2, 100, dtype=layer.lora_a.dtype)).dtype == layer.lora_a.dtype
    assert layer.to("meta").packed.is_meta
    assert adapted(bias=False).bias is None


@pytest.mark.parametrize("told", KINDS[:3], ids=str)
def test_a_state_dict_goes_round_and_touches_no_constant(told):
    layer, other, x = adapted(**told), adapted(**told), torch.randn(5, 100)
    nf4, fp4 = NF4.clone(), FP4.clone()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), layer(x))
    state = {name: tensor * 0 for name, tensor in layer.state_dict().items()}
    other.load_state_dict(state)
    assert torch.equal(NF4, nf4) and torch.equal(FP4, fp4)
    assert "weight" not in state and "absmax_map" not in state
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_a_state_of_another_kind_is_refused():
    layer = adapted()
    with pytest.raises(RuntimeError, match="absmax_codes"):
        adapted(double=False).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="codebook"):
        adapted(codebook=FP4).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="absmax_codes"):
        adapted(block_size=128).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_product_runs_in_the_input_s_type(dtype):
    layer, x = adapted(), torch.randn(5, 100)
    out = layer(x.to(dtype))
    assert out.dtype == dtype
    tolerance = 30 * torch.finfo(dtype).eps + 1e-5
    torch.testing.assert_close(out.float(), layer(x), rtol=tolerance, atol=tolerance)
    out.float().sum().backward()
    assert layer.lora_a.grad.dtype == torch.float32


def test_autocast_computes_and_saves_in_bf16():
    layer, x = adapted(256, 256), torch.randn(8, 256, requires_grad=True)
    with SavedForBackward() as saved, torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    copies = layer.lora_a.numel() + layer.lora_b.numel()
    assert saved.live_bytes == 2 * (x.numel() + 8 * 4 + copies)  # autocast's copies of the adapter come to it
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert x.grad.dtype == layer.lora_b.grad.dtype == torch.float32


def test_a_checkpointed_layer_gives_the_same_gradients():
    layer, x = adapted(dropout=0.3), torch.randn(5, 100, requires_grad=True)
    found = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(5)
        found.append(torch.autograd.grad(run(x).square().sum(), [x, layer.lora_a, layer.lora_b]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_merge_in_floating_point_is_exact_and_one_into_codes_is_not():
    layer, x = adapted(), torch.randn(5, 100)
    apart = layer(x)
    packed = layer.packed.clone()
    layer.merge()
    torch.testing.assert_close(layer(x), apart, rtol=0, atol=1e-5)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    layer.unmerge()
    assert torch.equal(layer(x), apart) and torch.equal(layer.packed, packed)
    torch.testing.assert_close(layer.merged_linear()(x), apart, rtol=0, atol=1e-5)

    told = layer.merge_to_codes()
    exact = layer.frozen_weight() + layer.update()
    error = (told.codes.dequantize() - exact).norm().item()
    assert told.error_norm == pytest.approx(error, rel=1e-4) and error > 0
    assert told.update_norm == pytest.approx(layer.update().norm().item(), rel=1e-5)
    assert told.relative_error == told.error_norm / told.update_norm
    assert told.changed == (told.codes.codes != layer.codes.codes).float().mean().item()
    assert torch.equal(layer(x), apart)  # the layer stays as it was

    layer.take_codes(told.codes)
    assert not layer.update().any() and isinstance(layer.codes, DoublyQuantizedCodes)
    expected = F.linear(x, told.codes.dequantize(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_a_small_update_is_more_than_lost_in_a_merge_to_codes():
    layer = adapted(double=False)
    with torch.no_grad():
        layer.lora_b.mul_(1e-4)
    told = layer.merge_to_codes()
    # all of it, and more: where the largest value of a block moves, all of the block moves with it
    assert 1 < told.relative_error < 1.7 and told.changed < 1e-3
    with torch.no_grad():
        layer.lora_b.zero_()
    assert layer.merge_to_codes().error_norm == 0
    assert layer.merge_to_codes().relative_error == float("inf")


def test_codes_of_another_kind_are_not_taken():
    layer = adapted()
    for other in (adapted(double=False), adapted(block_size=32), adapted(72, 100)):
        with pytest.raises(ValueError, match=r"codes must be like the layer's, DoublyQuantizedCodes of \(72, 100\)"):
            layer.take_codes(other.codes)


def test_the_base_is_given_up_and_not_changed():
    base = nn.Linear(64, 64)
    weight = base.weight.detach().clone()
    layer = QLoRALinear(base, rank=2, alpha=2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(base.weight, weight) and base not in layer.modules()
    same_a = LoRALinear(base, rank=2, alpha=2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(layer.lora_a, same_a.lora_a)
    layer.bias.zero_()
    assert base.bias.any()


def test_stored_bits_are_4_127_and_an_adapter_of_fp32():
    layer = QLoRALinear(nn.Linear(1024, 2048, bias=False), rank=4, alpha=4)
    held = sum(b.nbytes for name, b in layer.named_buffers() if name not in {"absmax_map", "codebook"})
    assert 8 * held / 2**21 == pytest.approx(4.127, abs=5e-4)
    assert layer.codes.bits_per_value == 8 * held / 2**21


def test_what_cannot_be_is_refused_with_a_sentence():
    layer = adapted()
    with pytest.raises(ValueError, match="x is on meta and the adapter on cpu: move one of them"):
        layer(torch.randn(3, 100, device="meta"))
    with pytest.raises(ValueError, match=r"x must end in 100 features, got shape \(3, 72\)"):
        layer(torch.randn(3, 72))
    with pytest.raises(ValueError, match="must have 100 values a row"):
        linear_through_codes(torch.randn(3, 72), layer.codes)
    with pytest.raises(ValueError, match="must be where the codes are"):
        linear_through_codes(torch.randn(3, 100, device="meta"), layer.codes)
    with pytest.raises(ValueError, match="rank must be 1 to 72"):
        adapted(rank=73)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        adapted(block_size=0)
    broken = nn.Linear(8, 8)
    nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(ValueError, match="x must be finite in FP32, and holds 64 NaN or infinite values"):
        QLoRALinear(broken, rank=1, alpha=1)


@pytest.mark.gpu
@pytest.mark.parametrize("told", KINDS[:3], ids=str)
def test_on_a_gpu_a_layer_moves_and_computes_as_on_a_cpu(told):
    layer, x = adapted(256, 512, **told), torch.randn(7, 256)
    expected = layer(x)
    moved = copy.deepcopy(layer).cuda()
    y = x.cuda().requires_grad_()
    torch.testing.assert_close(moved(y).cpu(), expected, rtol=1e-3, atol=1e-3)
    moved(y).sum().backward()
    assert y.grad.is_cuda and moved.lora_a.grad.is_cuda
    with pytest.raises(ValueError, match="x is on cpu and the adapter on cuda:0"):
        moved(x)
