"""Decomposition, smoothing and rotation: against loops, brute force and bitsandbytes, and where they must refuse."""

import logging
import math

import pytest
import torch
from torch import nn

from qlab.outliers import (
    NormWithReaders,
    decomposed_int8_linear,
    divide_channels,
    hadamard_transform,
    mixed_decomposition_matmul,
    norm_outputs,
    norms_with_readers,
    plant_outliers,
    smooth,
    smoothing_scales,
)
from qlab.outliers.timing import OUTLIERS, measure_decomposition
from qlab.quantize import (
    PER_ROW,
    PER_TENSOR,
    Grid,
    Quantized,
    per_group,
    quantize_affine,
    quantize_symmetric,
    sqnr_db,
)
from tests.test_outliers_finding import CONFIGS, TOKENS, lively

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

import bitsandbytes as bnb  # noqa: E402 - the logger must be quiet first


def input_with_outliers(tokens=23, width=40, columns=(3, 17, 39)):
    x = torch.randn(tokens, width).clamp(-5, 5)
    x[:, list(columns)] *= 60
    return x


def by_hand(x, weight, threshold):
    """Each output by a loop: outlier columns in FP64, the rest as a sum of int8 codes times two scales."""
    outliers = [j for j in range(x.shape[1]) if any(abs(v) >= threshold for v in x[:, j].tolist())]
    rest = [j for j in range(x.shape[1]) if j not in outliers]

    def codes(row):
        largest = max((abs(row[j]) for j in rest), default=0.0)
        scale = largest / 127 if largest else 1.0
        return scale, {j: round(row[j] / scale) for j in rest}

    y = torch.empty(len(x), len(weight), dtype=torch.float64)
    weights = [(row, *codes(row)) for row in weight.double().tolist()]
    for t, row in enumerate(x.double().tolist()):
        x_scale, x_codes = codes(row)
        for o, (w, w_scale, w_codes) in enumerate(weights):
            exact = sum(row[j] * w[j] for j in outliers)
            y[t, o] = exact + x_scale * w_scale * sum(x_codes[j] * w_codes[j] for j in rest)
    return outliers, y


@pytest.mark.parametrize("threshold", [1e-9, 2.0, 6.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decomposition_is_what_a_loop_computes(threshold, dtype):
    x, weight = input_with_outliers(7, 24, (3, 17)).to(dtype), torch.randn(9, 24, dtype=dtype)
    weight[4] = 0
    x[2, [j for j in range(24) if j not in (3, 17)]] = 0  # a token with nothing beside its outliers
    outliers, y = by_hand(x, weight, threshold)
    found = mixed_decomposition_matmul(x, weight, threshold=threshold)
    assert found.outlier_columns.nonzero().flatten().tolist() == outliers
    assert found.output.dtype == dtype
    # int32 sums are exact; the exact part sums at most 24 products in FP32, each rounded by 2^-24 of the terms
    allowed = 24 * 2**-23 * (x.double().abs() @ weight.double().abs().T) + 1e-9
    assert ((found.output - y).abs() <= allowed).all()
    assert not found.output[:, 4].any()


def test_all_columns_outliers_is_the_plain_product_and_none_the_plain_int8_one():
    x, weight = input_with_outliers(), torch.randn(8, 40)
    everything = mixed_decomposition_matmul(x, weight, threshold=1e-30)
    assert everything.outlier_columns.all() and torch.equal(everything.output, x @ weight.T)
    nothing = mixed_decomposition_matmul(x, weight, threshold=math.inf)
    product = quantize_symmetric(x, bits=8, tile=PER_ROW).dequantize().double() @ (
        quantize_symmetric(weight, bits=8, tile=PER_ROW).dequantize().double().T
    )
    assert not nothing.outlier_columns.any()
    assert torch.allclose(nothing.output.double(), product, rtol=1e-5, atol=1e-4)


def test_a_column_counts_by_its_magnitude_in_any_token_and_not_by_its_sum():
    x = torch.full((10, 16), 5.99)
    x[7, 2], x[0, 5], x[3, 9] = -6.0, 6.0, -600.0
    found = mixed_decomposition_matmul(x, torch.randn(8, 16))
    assert found.outlier_columns.nonzero().flatten().tolist() == [2, 5, 9]


def test_scales_of_the_rest_are_found_without_the_outliers():
    """Without outliers left in the scales, what is not an outlier is as precise as if there were none."""
    x, weight = input_with_outliers(columns=(3,)), torch.randn(8, 40)
    weight[:, 3] = 1000  # a weight column that would stretch every row's scale
    rest = [j for j in range(40) if j != 3]
    apart = mixed_decomposition_matmul(x[:, rest], weight[:, rest]).output + x[:, [3]] @ weight[:, [3]].T
    assert torch.equal(mixed_decomposition_matmul(x, weight).output, apart)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_decompositions_keep_the_type_of_a_narrow_input(dtype):
    x, weight = input_with_outliers().to(dtype), (torch.randn(16, 40) * 1e-3).to(dtype)
    exact = x.double() @ weight.double().T
    codes = quantize_symmetric(weight, bits=8, tile=PER_ROW)
    for y in (mixed_decomposition_matmul(x, weight).output, decomposed_int8_linear(x, codes)):
        assert y.dtype == dtype and not y.requires_grad
        assert sqnr_db(exact, y) > 35


def test_small_scales_are_not_rounded_to_a_narrow_type():
    """A scale of 3e-7 is subnormal in FP16, where numbers are 6e-8 apart; the columns themselves are not that small."""
    x, weight = input_with_outliers().half(), torch.randn(16, 40) * 1e-5
    y = decomposed_int8_linear(x, quantize_symmetric(weight, bits=8, tile=PER_ROW))
    assert sqnr_db(x.double() @ weight.double().T, y) > 35


def test_a_weight_in_int8_only_is_the_product_with_what_its_codes_stand_for():
    x, weight = input_with_outliers(), quantize_symmetric(torch.randn(16, 40), bits=8, tile=PER_ROW)
    outliers = (x.abs() >= 6).any(0)
    tokens = quantize_symmetric(x.masked_fill(outliers, 0), bits=8, tile=PER_ROW).dequantize()
    exact = (tokens + x.masked_fill(~outliers, 0)).double() @ weight.dequantize().double().T
    allowed = 40 * 2**-23 * (x.double().abs() @ weight.dequantize().double().abs().T)
    assert ((decomposed_int8_linear(x, weight) - exact).abs() <= allowed).all()
    plain = decomposed_int8_linear(x, weight, threshold=1e9)
    assert sqnr_db(exact, plain) < sqnr_db(exact, decomposed_int8_linear(x, weight)) - 20


def test_gradients_do_not_pass_by_halves():
    x, weight = input_with_outliers().requires_grad_(), nn.Parameter(torch.randn(8, 40))
    assert not mixed_decomposition_matmul(x, weight).output.requires_grad
    assert not decomposed_int8_linear(x, quantize_symmetric(weight, bits=8, tile=PER_ROW)).requires_grad


def test_bad_products_get_a_sentence():
    x, weight = input_with_outliers(), torch.randn(8, 40)
    codes = quantize_symmetric(weight, bits=8, tile=PER_ROW)
    for threshold in (0, -6, math.nan):
        for call, w in ((mixed_decomposition_matmul, weight), (decomposed_int8_linear, codes)):
            with pytest.raises(ValueError, match="threshold must be above 0, got"):
                call(x, w, threshold=threshold)
    for spoiled in (math.nan, math.inf, -math.inf):
        for column in (0, 3):  # one of the rest, and an outlier
            bad = x.clone()
            bad[4, column] = spoiled
            for call, w in ((mixed_decomposition_matmul, weight), (decomposed_int8_linear, codes)):
                with pytest.raises(ValueError, match="x must be finite, and holds 1 NaN"):
                    call(bad, w)
            bad_weight = weight.clone()
            bad_weight[4, column] = spoiled
            with pytest.raises(ValueError, match="weight must be finite, and holds 1 NaN"):
                mixed_decomposition_matmul(x, bad_weight)
    for call, w in ((mixed_decomposition_matmul, weight), (decomposed_int8_linear, codes)):
        with pytest.raises(ValueError, match=r"x must hold at least one value, got shape \(0, 40\)"):
            call(x[:0], w)
    with pytest.raises(ValueError, match="weight must hold at least one value"):
        mixed_decomposition_matmul(x, weight[:0])
    for tile in (PER_TENSOR, per_group(8)):
        with pytest.raises(ValueError, match="one scale for each row, got symmetric with Tile"):
            decomposed_int8_linear(x, quantize_symmetric(weight, bits=8, tile=tile))
    with pytest.raises(ValueError, match="one scale for each row, got affine with Tile"):
        decomposed_int8_linear(x, quantize_affine(weight, bits=8, tile=PER_ROW))


@pytest.mark.parametrize("columns", [(), (3, 17, 39), (0,)])
def test_bitsandbytes_takes_out_the_same_columns_and_agrees_within_its_steps(columns):
    x = input_with_outliers(columns=columns).half()
    weight = (torch.randn(16, 40) / 40**0.5).half()
    layer = bnb.nn.Linear8bitLt(40, 16, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()  # quantizes; in training mode it would multiply in floats
    with torch.no_grad():
        theirs = layer(x).double()
    found = bnb.functional.int8_vectorwise_quant(x, threshold=6.0)[2]
    outliers = mixed_decomposition_matmul(x.float(), weight.float()).outlier_columns
    assert found.tolist() == outliers.nonzero().flatten().tolist() == sorted(columns)

    ours_of_weight = quantize_symmetric(weight, bits=8, tile=PER_ROW)
    scale = layer.state.SCB.view(-1, 1) / 127
    kept = Quantized(layer.state.CB, Grid(scale, None, 8, PER_ROW))
    assert torch.allclose(scale, ours_of_weight.scale, rtol=1e-6)
    assert (kept.codes.int() - ours_of_weight.codes).abs().max() <= 1  # it multiplies by 127 / absmax: ties may move
    ours = decomposed_int8_linear(x.float(), kept).double()
    # each side rounds a token by half a step of its own; theirs is found with the small values of outlier columns too
    rest, w = x.double().masked_fill(outliers, 0), kept.dequantize().double().abs()
    step = rest.abs().amax(1, keepdim=True) / 127
    their_step = x.double().masked_fill(x.abs() >= 6, 0).abs().amax(1, keepdim=True) / 127
    by_codes = (step + their_step) / 2 * w.masked_fill(outliers, 0).sum(1)
    # their outlier weights, their two products and their sum are in FP16, whose rounding is 2^-11
    in_fp16 = 2**-11 * (2 * x.double().abs() @ w.T + theirs.abs())
    assert ((ours - theirs).abs() <= 1.01 * (by_codes + in_fp16)).all()
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("width", [1, 2, 8, 256])
def test_the_transform_is_the_hadamard_matrix(width):
    """Entry (i, j) of Sylvester's matrix is -1 where i and j share an odd number of ones in binary."""
    signs = [[(-1) ** (i & j).bit_count() for j in range(width)] for i in range(width)]
    matrix = torch.tensor(signs, dtype=torch.float64) / math.sqrt(width)
    assert torch.allclose(hadamard_transform(torch.eye(width, dtype=torch.float64)), matrix, rtol=1e-15, atol=1e-15)
    assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    for shape in ((width,), (0, width), (3, width), (2, 3, width)):
        x = torch.randn(shape, dtype=torch.float64)
        y = hadamard_transform(x)
        assert torch.allclose(y, x @ matrix, atol=1e-13) and torch.allclose(hadamard_transform(y), x, atol=1e-13)


def test_the_transform_takes_views_and_leaves_its_input():
    x = torch.randn(16, 5)
    view, before = x.T, x.clone()
    assert not view.is_contiguous()
    assert torch.equal(hadamard_transform(view), hadamard_transform(view.contiguous()))
    assert torch.equal(hadamard_transform(x[:8].T[:, ::2]), hadamard_transform(x[:8].T[:, ::2].clone()))
    assert torch.equal(x, before)
    one = torch.randn(3, 1)
    assert torch.equal(hadamard_transform(one), one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_lose_only_the_last_rounding(dtype):
    x = torch.full((2, 256), 400.0).to(dtype)  # the first sum is 102 400, beyond FP16
    assert hadamard_transform(x)[0, 0] == 6400
    x = torch.randn(5, 64).to(dtype)
    assert torch.equal(hadamard_transform(x), hadamard_transform(x.float()).to(dtype))


def test_a_rotated_product_is_the_product_and_one_outlier_is_shared_out():
    x, weight = input_with_outliers(width=64), torch.randn(8, 64)
    rotated = hadamard_transform(x.double()) @ hadamard_transform(weight.double()).T
    assert torch.allclose(rotated, x.double() @ weight.double().T, atol=1e-10)
    lone = torch.zeros(64).index_fill(0, torch.tensor(9), 400.0)
    assert torch.equal(hadamard_transform(lone).abs(), torch.full((64,), 50.0))


@pytest.mark.parametrize("width", [0, 3, 12, 255])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match=f"width must be a power of two, got {width}"):
        hadamard_transform(torch.zeros(2, width))


def test_smoothing_scales_follow_the_formula():
    activations, weights = torch.rand(12) * 100 + 0.1, torch.rand(12) + 0.1
    for alpha in (0, 0.25, 0.5, 0.9, 1):
        expected = [a**alpha / w ** (1 - alpha) for a, w in zip(activations.tolist(), weights.tolist(), strict=True)]
        assert torch.allclose(smoothing_scales(activations, weights, alpha=alpha), torch.tensor(expected), rtol=1e-5)
    assert torch.equal(smoothing_scales(activations, weights, alpha=1), activations)
    assert torch.equal(smoothing_scales(activations, weights, alpha=0), 1 / weights)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha must be 0 to 1, got"):
            smoothing_scales(activations, weights, alpha=alpha)


def test_channels_that_are_never_used_keep_a_finite_scale():
    for alpha in (0, 0.5, 1):
        scales = smoothing_scales(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([0.0, 1.0, 0.0]), alpha=alpha)
        assert scales.isfinite().all() and (scales > 0).all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_smoothing_keeps_the_function_and_evens_out_the_channels(name, alpha):
    model = lively(CONFIGS[name])
    plant_outliers(model, torch.tensor([2, 7]), strength=64)
    with torch.no_grad():
        for place in norms_with_readers(model):
            place.readers[0].weight[:, 4] = 0
            place.norm.weight[5] = 0
    before = model(TOKENS)
    absmax = {n: values.abs().amax(0) for n, values in norm_outputs(model, [TOKENS]).items()}
    assert smooth(model, absmax, alpha=alpha) is model
    # a division and a multiplication more, by 2^-24 each, in sums of 16 and 24 terms of either sign
    assert (model(TOKENS) - before).abs().max() <= 2**-15 * before.abs().max()
    for place in norms_with_readers(model):
        after = norm_outputs(model, [TOKENS])[place.name].abs().amax(0)
        weights = torch.cat([reader.weight for reader in place.readers]).abs().amax(0)
        used = (absmax[place.name] > 1e-4) & (weights > 0)
        level = {0: weights, 0.5: after / weights, 1: after}[alpha][used]
        assert torch.allclose(level, torch.ones_like(level), rtol=1e-3)


def test_smoothing_needs_every_norms_magnitudes():
    model = lively(CONFIGS["course"])
    with pytest.raises(ValueError, match=r"layers.0.attention_norm has no calibrated magnitudes, only \['other'\]"):
        smooth(model, {"other": torch.ones(16)})


REPAIRED_DB = 30  # of the product: int8 of ordinary values gives about 37 dB, a few bits less must be left


def int8_product(x, weight, tile):
    factors = [quantize_symmetric(factor, bits=8, tile=tile).dequantize() for factor in (x, weight)]
    return factors[0] @ factors[1].T


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm], ids=["RMSNorm", "LayerNorm with a bias"])
@torch.no_grad()
def test_each_remedy_repairs_a_llama_shaped_block(norm):
    """Queries, keys and values of grouped attention, and a gated block's two matrices, each on one norm."""
    for outs in ((64, 16, 16), (172, 172)):
        place = NormWithReaders("block", norm(64), tuple(nn.Linear(64, out, bias=False) for out in outs))
        stream = torch.randn(200, 64)
        exact = [reader(place.norm(stream)) for reader in place.readers]
        divide_channels(place, torch.ones(64).index_fill(0, torch.tensor([5, 40]), 2.0**-8))
        x, weights = place.norm(stream), [reader.weight.clone() for reader in place.readers]
        for y, weight in zip(exact, weights, strict=True):
            assert torch.equal(x @ weight.T, y)
            assert sqnr_db(y, int8_product(x, weight, PER_TENSOR)) < 12
            assert sqnr_db(y, mixed_decomposition_matmul(x, weight, threshold=20.0).output) > REPAIRED_DB
            turned = int8_product(hadamard_transform(x), hadamard_transform(weight), PER_ROW)
            assert sqnr_db(y, turned) > sqnr_db(y, int8_product(x, weight, PER_ROW)) + 6
        scales = smoothing_scales(x.abs().amax(0), torch.cat(weights).abs().amax(0))
        divide_channels(place, scales)
        for y, reader in zip(exact, place.readers, strict=True):
            assert sqnr_db(y, int8_product(place.norm(stream), reader.weight, PER_TENSOR)) > REPAIRED_DB


def test_the_timing_measures_a_product_that_is_right():
    (found,) = measure_decomposition(widths=[64], tokens=32, device="cpu", repeats=1)
    assert (found.width, found.tokens, OUTLIERS) == (64, 32, 6)
    assert 0 < found.relative_error < 0.02
    assert min(found.bf16_ms, found.decomposition_ms) > 0
    assert found.bf16_bytes >= 2 * 64 * 32  # the output in BF16
    assert found.decomposition_bytes > found.bf16_bytes
    for widths, tokens in (([0], 4), ([8], 0), ([], 0)):
        with pytest.raises(ValueError, match="widths and tokens must be at least 1"):
            measure_decomposition(widths=widths, tokens=tokens, device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 23])
def test_a_gpu_decomposes_as_a_cpu_does(tokens):
    x, weight = input_with_outliers(tokens), torch.randn(16, 40)
    codes = quantize_symmetric(weight, bits=8, tile=PER_ROW)
    on_gpu = Quantized(codes.codes.cuda(), Grid(codes.scale.cuda(), None, 8, PER_ROW))
    allowed = 2**-10 * (x.abs() @ weight.abs().T)  # TF32 may multiply the outliers, with 10 bits of fraction
    for cpu, gpu in (
        (mixed_decomposition_matmul(x, weight).output, mixed_decomposition_matmul(x.cuda(), weight.cuda()).output),
        (decomposed_int8_linear(x, codes), decomposed_int8_linear(x.cuda(), on_gpu)),
    ):
        assert ((gpu.cpu() - cpu).abs() <= allowed).all()
    half = decomposed_int8_linear(x.cuda().bfloat16(), on_gpu)
    assert half.dtype == torch.bfloat16 and sqnr_db(x.double() @ weight.double().T, half.cpu()) > 30


@pytest.mark.gpu
def test_a_gpu_is_timed_and_its_bytes_are_counted():
    first, second = measure_decomposition(widths=[256, 1024], tokens=64, device="cuda", repeats=2)
    assert 0 < first.relative_error < 0.02 and 0 < second.relative_error < 0.02
    assert second.decomposition_bytes > first.decomposition_bytes > 0 < first.bf16_ms
