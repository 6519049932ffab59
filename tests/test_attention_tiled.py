"""Tiled attention: values and gradients against FP64, memory by the byte, the decoder on it, and what it refuses."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from qlab.attention import flash_attention, flash_backward, flash_forward, standard_attention
from qlab.attention.border import checked_shape
from qlab.corpus import load_corpus
from qlab.measure import PeakBytes, saved_bytes
from qlab.model import load_course_model

SHAPES = {  # batch, query heads, key heads, queries, keys, head width
    "square": (2, 2, 2, 96, 96, 16),
    "ragged": (1, 2, 2, 65, 65, 8),
    "grouped": (2, 6, 2, 50, 50, 16),
    "one-key-head": (1, 4, 1, 33, 40, 24),
    "more-keys": (1, 2, 2, 20, 71, 16),
    "fewer-keys": (1, 2, 2, 71, 20, 16),
    "one-query": (2, 2, 1, 1, 40, 16),
    "single": (1, 1, 1, 1, 1, 1),
}
BLOCKS = [(16, 16), (16, 48), (33, 7), (1, 5), (128, 128)]
NARROW_AND_WIDE = (torch.float32, torch.float16, torch.bfloat16)
ALLOWED = 1.5  # times the error of PyTorch's own


def inputs(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    batch, heads, key_heads, queries, keys, width = SHAPES.get(name) or (2, 2, 2, 256, 256, 64)
    g = torch.Generator().manual_seed(seed)
    sizes = (heads, queries), (key_heads, keys), (key_heads, keys), (heads, queries)
    return [torch.randn(batch, h, n, width, generator=g, dtype=torch.float64).to(dtype) for h, n in sizes]


def sdpa(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[:-2] != k.shape[:-2], **options)


def results(attention, q, k, v, grad, **options) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    output = attention(*leaves, **options)
    output.backward(grad)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_in_fp64_are_those_of_sdpa(name, blocks, is_causal):
    given = inputs(name)
    found = results(flash_attention, *given, is_causal=is_causal, block_rows=blocks[0], block_columns=blocks[1])
    for ours, theirs in zip(found, results(sdpa, *given, is_causal=is_causal), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_standard_attention_is_sdpa(name, is_causal):
    given = inputs(name)
    found = results(standard_attention, *given, is_causal=is_causal)
    for ours, theirs in zip(found, results(sdpa, *given, is_causal=is_causal), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", NARROW_AND_WIDE)
@pytest.mark.parametrize("name", ["large", "grouped", "more-keys"])
def test_the_error_against_fp64_is_at_most_half_more_than_that_of_sdpa(name, dtype, is_causal):
    squared_errors = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(4):
        given = inputs(name, dtype=dtype, seed=seed)
        exact = results(sdpa, *(t.double() for t in given), is_causal=is_causal)
        for place, attention in enumerate((flash_attention, sdpa)):
            found = results(attention, *given, is_causal=is_causal)
            squared_errors[place] += torch.stack([(x - y).square().sum() for x, y in zip(found, exact, strict=True)])
    ratios = (squared_errors[0] / squared_errors[1]).sqrt()
    assert bool((ratios <= ALLOWED).all()), f"output and gradients of q, k, v: {ratios.tolist()} times SDPA's error"


@pytest.mark.parametrize("dtype", NARROW_AND_WIDE)
def test_the_log_sum_exp_is_that_of_the_scores(dtype):
    q, k, v, _ = inputs("ragged", dtype=dtype)
    _, found = flash_forward(q, k, v, block_rows=16, block_columns=16)
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.logsumexp(scores, -1), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(is_causal):
    q, k, v, _ = (t.requires_grad_() for t in inputs("one-key-head"))
    q, k, v = q[:, :2, :5, :3], k[..., :6, :3], v[..., :6, :3]

    def attention(*given):
        return flash_attention(*given, is_causal=is_causal, block_rows=3, block_columns=4)

    assert torch.autograd.gradcheck(attention, (q, k, v))


def test_one_gradient_can_be_asked_for_alone():
    q, k, v, _ = inputs("ragged")
    (found,) = torch.autograd.grad(flash_attention(q, k.requires_grad_(), v, is_causal=True).sum(), k)
    (expected,) = torch.autograd.grad(sdpa(q, k, v, is_causal=True).sum(), k)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 2, 3)], ids=str)
def test_any_leading_shape_and_any_layout_in_memory(leading):
    g = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(*leading, 33, 8, generator=g, dtype=torch.float64) for _ in range(4))
    turned = [t.mT.contiguous().mT for t in (q, k, v)]
    expected = results(sdpa, q, k, v, grad)
    for ours, theirs in zip(results(flash_attention, *turned, grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_expanded_inputs_share_memory_and_outputs_do_not():
    q = torch.randn(1, 1, 40, 8).expand(2, 3, 40, 8)
    torch.testing.assert_close(flash_attention(q, q, q, block_rows=16), sdpa(q, q, q))


def test_scores_far_beyond_where_an_exponential_overflows():
    q, k, v, _ = inputs("ragged", dtype=torch.float32)
    found = flash_attention(300 * q, k, v, is_causal=True)
    scores = (300 * q.double()) @ k.double().mT / q.shape[-1] ** 0.5
    expected = sdpa(*(t.double() for t in (300 * q, k, v)), is_causal=True)
    bound = 2**-21 * scores.abs().max() * v.abs().max()  # a score is off by some 2⁻²⁴ of its size, and so its weight
    assert scores.max() > 500 and (found - expected).abs().max() < bound


def test_no_key_gives_zeros_and_minus_infinity_and_no_query_gives_nothing():
    q, none = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 0, 8)
    output, log_sum_exp = flash_forward(q, none, none)
    assert output.shape == q.shape and not output.any() and bool((log_sum_exp == -torch.inf).all())
    assert flash_attention(none, q, q).shape == none.shape
    assert flash_attention(q[:0], q[:0], q[:0]).shape == (0, 3, 5, 8)
    found = results(flash_attention, q, none, none, torch.ones_like(q))
    assert [t.shape for t in found] == [q.shape, q.shape, none.shape, none.shape] and not found[1].any()
    for ours, theirs in zip(results(flash_attention, none, q, q, none), ([0], [0], [0], [0]), strict=True):
        assert ours.sum() == theirs[0]


def test_it_saves_q_k_v_output_and_log_sum_exp_and_nothing_else():
    q, k, v, _ = (t.requires_grad_() for t in inputs("large", dtype=torch.float32))
    saved = saved_bytes(lambda: flash_attention(q, k, v, is_causal=True))
    assert saved == 4 * (q.numel() + k.numel() + v.numel() + q.numel()) + 4 * q.numel() // q.shape[-1]


@pytest.mark.parametrize("is_causal", [False, True])
def test_no_matrix_of_scores_is_ever_held(is_causal):
    n, width, block = 1024, 16, 64
    q, k, v, grad = (torch.randn(1, 1, n, width) for _ in range(4))
    options = {"is_causal": is_causal, "block_rows": block, "block_columns": block}
    with PeakBytes() as forward:
        output, log_sum_exp = flash_forward(q, k, v, **options)
    with PeakBytes() as backward:
        flash_backward(q, k, v, output, log_sum_exp, grad, **options)
    with PeakBytes() as standard:
        standard_attention(q, k, v, is_causal=is_causal)
    linear, tile = 4 * n * (width + 1), 4 * block * block
    checks = 3 * n * width  # one byte a value of q, k or v while it is looked at for NaN
    assert forward.bytes <= linear + 6 * tile + checks
    assert backward.bytes <= 6 * linear + 8 * tile + checks
    assert standard.bytes >= 4 * n * n > 10 * max(forward.bytes, backward.bytes)


def test_twice_the_length_is_twice_the_memory():
    peaks = []
    for n in (512, 1024, 2048):
        q = torch.randn(1, 2, n, 32, requires_grad=True)
        with PeakBytes() as peak:
            flash_attention(q, q, q, is_causal=True).sum().backward()
        peaks.append(peak.bytes)
    assert peaks[2] / peaks[1] < 2.01 and peaks[1] / peaks[0] < 2.01


def test_causal_skips_tiles_and_so_their_products():
    q = torch.randn(1, 1, 512, 16)
    flops = []
    for is_causal in (False, True):
        with FlopCounterMode(display=False) as counter:
            flash_attention(q, q, q, is_causal=is_causal, block_rows=64, block_columns=64)
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx((8 * 9 / 2) / 64)


def test_the_course_model_computes_the_same_on_it():
    text = load_corpus().validation[:1024].view(2, 512).long()
    expected, model = load_course_model()(text), load_course_model(attention=flash_attention)
    torch.testing.assert_close(model(text), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    model(text).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_course_model_keeps_as_many_bytes_as_with_the_fused_one():
    text = load_corpus().validation[:256].view(1, 256).long()
    kept = [
        saved_bytes(lambda m=m: m(text)) for m in (load_course_model(), load_course_model(attention=flash_attention))
    ]
    assert kept[0] == kept[1]


def test_autocast_does_not_narrow_the_sums():
    given = inputs("large", dtype=torch.bfloat16)
    plain = results(flash_attention, *given, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = results(flash_attention, *given, is_causal=True)
    assert all(torch.equal(x, y) for x, y in zip(plain, within, strict=True))


def test_it_is_deterministic():
    given = inputs("large", dtype=torch.float32)
    first, second = (results(flash_attention, *given, is_causal=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_an_infinite_gradient_reaches_the_loss_scaler():
    q, k, v, grad = inputs("ragged", dtype=torch.float16)
    grad[0, 0, 3, 2] = torch.inf
    assert not torch.isfinite(results(flash_attention, q, k, v, grad)[3]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", NARROW_AND_WIDE)
def test_on_a_gpu_the_error_is_at_most_half_more_than_that_of_sdpa(dtype, is_causal):
    given = [t.cuda() for t in inputs("large", dtype=dtype)]
    exact = results(standard_attention, *(t.double() for t in given), is_causal=is_causal)
    norms = [
        torch.stack([(x - y).norm() for x, y in zip(results(way, *given, is_causal=is_causal), exact, strict=True)])
        for way in (flash_attention, sdpa)
    ]
    assert bool((norms[0] <= ALLOWED * norms[1]).all()), (norms[0] / norms[1]).tolist()


X = torch.randn(2, 4, 6, 8)


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        (X, X[..., :4], X[..., :4], "must agree in batch and head width"),
        (X, X, X[..., :3, :], "must agree in batch and head width"),
        (X, X[:1], X[:1], "must agree in batch and head width, k and v in all, got (2, 4, 6, 8), (1, 4, 6, 8)"),
        (X, X[0], X[0], "must agree in batch and head width"),
        (X[0, 0, 0], X[0, 0, 0], X[0, 0, 0], "must end in (sequence, head_width), got (8,)"),
        (X, X[:, :3], X[:, :3], "4 query heads do not divide into groups for 3 key heads"),
        (X[..., :0], X[..., :0], X[..., :0], "head_width must be at least 1, got 0"),
        (X[:, :0], X[:, :0], X[:, :0], "query_heads must be at least 1, got 0"),
        (X, X, X.half(), "must all be float16, bfloat16, float32 or float64, got float32, float32, float16"),
        (X.long(), X.long(), X.long(), "got int64, int64, int64"),
        (X.to(torch.float8_e4m3fn),) * 3 + ("got float8_e4m3fn, float8_e4m3fn, float8_e4m3fn",),
        (X, X, X.to("meta"), "must be on one device, got cpu, cpu and meta"),
        (X, X / 0, X, "k must be finite, got 384 values that are NaN or infinite"),
        (X, X, X * torch.nan, "v must be finite, got 384 values"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(q, k, v, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked_shape(q, k, v, is_causal=False)


@pytest.mark.parametrize("attention", [flash_attention, flash_forward, standard_attention])
def test_values_that_are_no_numbers_are_refused_by_every_way_in(attention):
    with pytest.raises(ValueError, match="q must be finite"):
        attention(X * torch.nan, X, X)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_beyond_the_largest_number_are_refused_and_not_nan(sign):
    huge = torch.full((1, 1, 4, 8), 1e30)
    with pytest.raises(ValueError, match=re.escape("scores overflow float32, whose largest number is 3.4e+38")):
        flash_attention(huge, sign * huge, huge)
    half = torch.full((1, 1, 4, 8), 300.0, dtype=torch.float16)
    assert torch.equal(flash_attention(half, sign * half, half), half)
    if sign > 0:
        with pytest.raises(ValueError, match=re.escape("scores overflow float16, whose largest number is 6.55e+04")):
            standard_attention(half, half, half)


@pytest.mark.parametrize("side", ["block_rows", "block_columns"])
def test_an_empty_block_is_refused(side):
    with pytest.raises(ValueError, match=f"{side} must be at least 1, got 0"):
        flash_attention(X, X, X, **{side: 0})


def test_the_backward_pass_refuses_what_another_forward_pass_kept():
    output, log_sum_exp = flash_forward(X, X, X)
    for wrong in itertools.product((False, True), repeat=3):
        given = [t[:1] if is_wrong else t for t, is_wrong in zip((output, log_sum_exp, X), wrong, strict=True)]
        if any(wrong):
            with pytest.raises((ValueError, TypeError)):  # a shape checker's TypeError comes first in the tests
                flash_backward(X, X, X, *given)
