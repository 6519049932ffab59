"""Triton's kernels against FP64, on the device they run on here: interpreted on a CPU, compiled on a CUDA GPU."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from qlab.attention_triton import DEVICE, INTERPRETED, flash_attention, flash_backward, flash_forward
from qlab.attention_triton.border import check_inputs
from qlab.config import COURSE_MODEL
from qlab.measure import saved_bytes
from qlab.model import Decoder

FP32_STEPS = 8  # of one term: it is a product of standard normals, or a few of them
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="compiled kernels take no FP32")
SHAPES = [(1, 1), (64, 64), (128, 128), (100, 150), (150, 100), (257, 129), (1, 300), (300, 1)]


def inputs(queries, keys, *, width=64, heads=2, key_heads=1, batch=1, dtype=torch.float32, scale=1.0):  # noqa: PLR0913
    """Draw q, k, v and the gradient of the output."""
    shapes = [(batch, heads, queries, width), *[(batch, key_heads, keys, width)] * 2, (batch, heads, queries, width)]
    q, k, v, grad = (torch.randn(shape) for shape in shapes)
    return tuple(x.to(dtype).to(DEVICE) for x in (q * scale, k, v, grad))


def exact(q, k, v, grad, *, is_causal: bool):
    """Compute output, log-sum-exp and the three gradients in FP64 with the whole matrix of scores."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    group = q.shape[-3] // k.shape[-3]
    scores = q @ k.repeat_interleave(group, -3).mT / math.sqrt(q.shape[-1])
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores).tril() == 0, -math.inf)
    output = scores.softmax(-1) @ v.repeat_interleave(group, -3)
    return output.detach(), scores.logsumexp(-1).detach(), *torch.autograd.grad(output, (q, k, v), grad.double())


def ours(q, k, v, grad, *, is_causal: bool):
    """Compute the same through the kernels and autograd."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    output = flash_attention(q, k, v, is_causal=is_causal)
    log_sum_exp = flash_forward(q, k, v, is_causal=is_causal)[1]
    return output.detach(), log_sum_exp, *torch.autograd.grad(output, (q, k, v), grad)


def torchs(q, k, v, grad, *, is_causal: bool):
    """Compute the same, without the log-sum-exp, through torch's own attention."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    output = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)
    return output.detach(), *torch.autograd.grad(output, (q, k, v), grad)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def close(found: torch.Tensor, expected: torch.Tensor, *, terms: int) -> bool:
    """Compare to FP32 rounding: each term of a sum errs by some roundings of its own, and n errors add up as √n."""
    worst = (found.double() - expected).abs().max().item()
    return worst <= FP32_STEPS * torch.finfo(torch.float32).eps * terms**0.5 * max(1.0, expected.abs().max().item())


@needs_interpreter
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_every_length_agrees_with_fp64(queries: int, keys: int, is_causal: bool):
    given = inputs(queries, keys)
    for found, expected in zip(ours(*given, is_causal=is_causal), exact(*given, is_causal=is_causal), strict=True):
        assert found.shape == expected.shape
        assert close(found, expected, terms=max(queries, keys))


@needs_interpreter
@pytest.mark.parametrize("is_causal", [False, True])
def test_wide_heads_groups_and_batches_agree_with_fp64(is_causal: bool):
    given = inputs(70, 90, width=128, heads=4, key_heads=2, batch=2)
    for found, expected in zip(ours(*given, is_causal=is_causal), exact(*given, is_causal=is_causal), strict=True):
        assert close(found, expected, terms=2 * 90)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("is_causal", [False, True])
def test_errors_are_at_most_half_again_those_of_torch(dtype: torch.dtype, width: int, is_causal: bool):
    given = inputs(150, 150, width=width, heads=2, key_heads=2, dtype=dtype)
    expected = exact(*given, is_causal=is_causal)
    found = ours(*given, is_causal=is_causal)
    theirs = torchs(*given, is_causal=is_causal)
    assert all(x.dtype == dtype for x in (found[0], *found[2:])) and found[1].dtype == torch.float32
    pairs = zip((found[0], *found[2:]), theirs, (expected[0], *expected[2:]), strict=True)
    for mine, reference, truth in pairs:
        assert relative_error(mine, truth) <= 1.5 * relative_error(reference, truth)
    assert relative_error(found[1], expected[1]) <= 1e-6  # products of 16-bit values are exact in FP32


def test_scores_that_overflow_a_plain_exponential_are_safe():
    q, k, v, grad = inputs(64, 200, scale=200.0, dtype=torch.float16)
    found, expected = ours(q, k, v, grad, is_causal=True), exact(q, k, v, grad, is_causal=True)
    assert expected[1].max() > 200  # exp(88.8) is the last that FP32 holds
    assert all(x.isfinite().all() for x in found)
    assert relative_error(found[0], expected[0]) < 2**-10
    assert relative_error(found[1], expected[1]) < 1e-6


@pytest.mark.parametrize("is_causal", [False, True])
def test_any_strides_give_the_same_bits(is_causal: bool):
    dtype = torch.float16
    q, k, v, grad = inputs(70, 70, heads=2, key_heads=2, batch=2, dtype=dtype)
    expected = ours(q, k, v, grad, is_causal=is_causal)
    seen = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]  # the decoder's layout
    odd = torch.empty(2, 2, 70, 67, dtype=dtype, device=DEVICE)[..., 3:].copy_(k)  # rows of 134 bytes
    shifted = torch.empty(v.numel() + 1, dtype=dtype, device=DEVICE)[1:].view_as(v).copy_(v)  # not on 16 bytes
    columns = grad.mT.contiguous().mT  # neighbors in a row are far apart
    for k_given, v_given, grad_given in ((seen[1], seen[2], grad), (odd, shifted, columns)):
        found = ours(seen[0], k_given, v_given, grad_given, is_causal=is_causal)
        assert all(map(torch.equal, found, expected))
    assert flash_attention(*seen).transpose(1, 2).is_contiguous()  # no copy where the heads are joined


def test_an_expanded_gradient_and_expanded_keys_are_read_rightly():
    q, k, v, _ = inputs(70, 70, heads=2, key_heads=1, dtype=torch.float16)
    wide_k, wide_v = k.expand(1, 2, 70, 64), v.expand(1, 2, 70, 64)
    assert torch.equal(flash_attention(q, wide_k, wide_v), flash_attention(q, k, v))
    q.requires_grad_()
    (by_sum,) = torch.autograd.grad(flash_attention(q, k, v).sum(), q)
    (by_ones,) = torch.autograd.grad(flash_attention(q, k, v), q, torch.ones_like(q))
    assert torch.equal(by_sum, by_ones)


def test_leading_axes_may_be_none_or_several():
    q, k, v, grad = inputs(40, 40, heads=2, key_heads=1, batch=4, dtype=torch.float16)
    expected = ours(q, k, v, grad, is_causal=True)
    several = ours(*(x.unflatten(0, (2, 2)) for x in (q, k, v, grad)), is_causal=True)
    assert all(torch.equal(found.flatten(0, 1), whole) for found, whole in zip(several, expected, strict=True))
    none = ours(*(x[1] for x in (q, k, v, grad)), is_causal=True)
    assert all(torch.equal(found, whole[1]) for found, whole in zip(none, expected, strict=True))


def test_two_runs_give_the_same_bits():
    given = inputs(200, 200, heads=4, key_heads=2, dtype=torch.bfloat16)
    assert all(map(torch.equal, ours(*given, is_causal=True), ours(*given, is_causal=True)))


@pytest.mark.parametrize(("queries", "keys", "batch"), [(0, 5, 1), (5, 0, 1), (0, 0, 1), (5, 5, 0)])
def test_no_keys_give_zeros_and_minus_infinity(queries: int, keys: int, batch: int):
    q, k, v, grad = inputs(queries, keys, batch=batch, dtype=torch.float16)
    output, log_sum_exp, *gradients = ours(q, k, v, grad, is_causal=True)
    assert output.shape == q.shape and not output.any()
    assert log_sum_exp.shape == q.shape[:-1] and (log_sum_exp == -math.inf).all()
    assert all(g.shape == x.shape and not g.any() for g, x in zip(gradients, (q, k, v), strict=True))


def test_only_the_inputs_the_output_and_the_log_sum_exp_are_kept():
    q, k, v, _ = inputs(256, 256, key_heads=2, dtype=torch.float16)
    for x in (q, k, v):
        x.requires_grad_()
    kept = saved_bytes(lambda: flash_attention(q, k, v))
    assert kept == 4 * q.numel() * 2 + q[..., 0].numel() * 4  # the scores would be 16 times the first term


def test_a_gradient_that_nobody_asked_for_is_not_an_error():
    q, k, v, grad = inputs(20, 20, dtype=torch.float16)
    q.requires_grad_()
    assert flash_attention(q, k, v).requires_grad
    assert flash_attention(q, k, v).backward(grad) is None and q.grad is not None and k.grad is None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (slope,) = torch.autograd.grad(flash_attention(q, k, v).square().sum(), q, create_graph=True)
        slope.sum().backward()


@needs_interpreter
def test_the_decoder_computes_the_same_with_it():
    torch.manual_seed(0)
    model = Decoder(COURSE_MODEL).eval()
    tokens = torch.randint(256, (1, 70))
    with torch.no_grad():
        expected = model(tokens)
        for layer in model.layers:
            layer.attention.attention = flash_attention
        assert torch.allclose(model(tokens), expected, atol=1e-5)


def wrong(**changed: torch.Tensor):
    q, k, v, _ = (x[0] for x in inputs(8, 8, key_heads=2, dtype=torch.float16))
    return {"q": q, "k": k, "v": v} | changed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": torch.zeros(2, 9, 64).half()}, r"k and v must have one shape, got \(2, 8, 64\), \(2, 9, 64\) and"),
        ({"q": torch.zeros(2, 8, 128).half()}, r"must agree in batch and head width, got \(2, 8, 128\)"),
        ({"q": torch.zeros(3, 8, 64).half()}, r"the heads of k must divide those of q, got \(3, 8, 64\)"),
        ({"q": torch.zeros(8, 64).half()}, r"must be \(\*batch, heads, sequence, head_width\), got \(8, 64\)"),
        (dict.fromkeys("qkv", torch.zeros(2, 8, 96).half()), "head width must be 64 or 128, got 96"),
        (dict.fromkeys("qkv", torch.zeros(2, 8, 64).double()), "got float64, float64, float64"),
        ({"v": torch.zeros(2, 8, 64).bfloat16()}, "got float16, float16, bfloat16"),
        (dict.fromkeys("qkv", torch.zeros(2, 8, 64).to(torch.float8_e4m3fn)), "there is no FP8 here, upcast first"),
        ({"v": torch.zeros(2, 8, 64, device="meta").half()}, "must be on one device"),
    ],
)
def test_bad_inputs_are_named(change: dict, sentence: str):
    given = wrong(**{name: x if x.is_meta else x.to(DEVICE) for name, x in change.items()})
    with pytest.raises(ValueError, match=sentence):
        check_inputs(**given)
    with pytest.raises((ValueError, TypeError)):  # the checker of annotations may be first
        flash_attention(**given)
    with pytest.raises((ValueError, TypeError)):
        flash_backward(**given, output=given["q"], log_sum_exp=given["q"][..., 0].float(), grad_output=given["q"])
