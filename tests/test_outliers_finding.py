"""Outliers found by the paper's rule, and planted so that nothing changes but the magnitudes."""

import dataclasses
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from qlab.config import COURSE_MODEL
from qlab.corpus import load_corpus
from qlab.model import Decoder, load_course_model
from qlab.outliers import (
    COURSE_MODEL_RULE,
    PAPER_RULE,
    NormWithReaders,
    OutlierRule,
    divide_channels,
    find_outliers,
    norm_outputs,
    norms_with_readers,
    plant_outliers,
)
from qlab.outliers.finding import outliers_by_count

SMALL = dataclasses.replace(COURSE_MODEL, layers=2, width=16, ffn_width=24, sequence=32)
GPT_LIKE = {"norm": "layernorm", "positions": "learned", "gated": False, "biases": True}
CONFIGS = {
    "course": SMALL,
    "llama": dataclasses.replace(SMALL, kv_heads=2, tied_embeddings=False),
    "gpt": dataclasses.replace(SMALL, **GPT_LIKE),
    "gpt with gates, untied": dataclasses.replace(SMALL, **GPT_LIKE | {"gated": True, "tied_embeddings": False}),
    "rmsnorm with biases": dataclasses.replace(SMALL, biases=True, gated=False),
}
TOKENS = torch.randint(256, (3, 32), generator=torch.Generator().manual_seed(0))


def lively(config):
    """A decoder whose norms and biases are not all ones and zeros."""
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def by_hand(hidden, rule):
    """The three conditions, value by value, shares as exact fractions."""
    tokens = sum(len(layer) for layer in hidden)
    found = []
    for dimension in range(hidden[0].shape[1]):
        large = [sum(abs(v) >= rule.magnitude for v in layer[:, dimension].tolist()) for layer in hidden]
        layers = Fraction(sum(count > 0 for count in large), len(hidden))
        enough_layers = layers >= Fraction(str(rule.layer_share))
        enough_tokens = Fraction(sum(large), tokens) >= Fraction(str(rule.token_share))
        if sum(large) and enough_layers and enough_tokens:
            found.append(dimension)
    return found


def spiky(layers, tokens, width, *, share):
    values = torch.randn(layers, tokens, width)
    spikes = torch.rand(layers, tokens, width) < share * torch.rand(width)
    return [torch.where(s, v.sign() * (6 + v.abs()), v) for v, s in zip(values, spikes, strict=True)]


@pytest.mark.parametrize("layers", [1, 3, 4, 8])
@pytest.mark.parametrize("share", [0.02, 0.15, 0.6])
def test_the_rule_is_the_papers_by_brute_force(layers, share):
    for tokens, rule in itertools.product((1, 17, 50), (PAPER_RULE, OutlierRule(token_share=0.3, layer_share=0.5))):
        hidden = spiky(layers, tokens, 40, share=share)
        assert find_outliers(hidden, rule).tolist() == by_hand(hidden, rule)


def test_layers_may_have_different_numbers_of_tokens():
    hidden = [torch.cat(spiky(1, tokens, 30, share=0.2)) for tokens in (3, 40, 9)]
    assert find_outliers(hidden).tolist() == by_hand(hidden, PAPER_RULE)


def test_each_condition_holds_at_its_edge_and_fails_below():
    hidden = [torch.zeros(25, 8) for _ in range(8)]  # 6 % of 200 tokens are 12, a quarter of 8 layers are 2
    hidden[0][:6, 0], hidden[1][:6, 0] = 6.0, -6.0
    hidden[0][:6, 1], hidden[1][:5, 1] = 6.0, 6.0  # 11 tokens
    hidden[0][:12, 2] = 60.0  # one layer
    hidden[0][:6, 3], hidden[1][:6, 3] = 5.999, 6.0  # not large enough in one layer
    for layer in hidden:
        layer[0, 4] = 1e6  # one token of each layer: 8 of 200
    assert find_outliers(hidden).tolist() == [0]


def test_the_share_is_exact_for_every_count():
    for tokens in range(1, 400):
        counts = torch.arange(tokens + 1)[None]
        expected = [k for k in range(1, tokens + 1) if Fraction(k, tokens) >= Fraction(6, 100)]
        assert outliers_by_count(counts, tokens=tokens).tolist() == expected


def test_a_dimension_that_is_never_large_is_no_outlier():
    anything = OutlierRule(layer_share=0.0, token_share=0.0)
    hidden = [torch.tensor([[0.0, 7.0]]), torch.zeros(1, 2)]
    assert find_outliers(hidden, anything).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_rule_reads_every_type(dtype):
    assert find_outliers([torch.tensor([[6.0, 5.75], [0.0, 0.0]], dtype=dtype)]).tolist() == [0]


def test_bad_input_to_the_rule_gets_a_sentence():
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        find_outliers([])
    with pytest.raises(ValueError, match="layer 1 holds 2 NaN or infinite values"):
        find_outliers([torch.zeros(2, 3), torch.tensor([[math.nan, 0.0, -math.inf]])])
    with pytest.raises(ValueError, match=r"layers must share one width, got \[2, 3\]"):
        find_outliers([torch.zeros(2, 3), torch.zeros(2, 2)])
    with pytest.raises(ValueError, match=r"magnitude must be above 0, got -1"):
        OutlierRule(magnitude=-1.0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="token_share must be 0 to 1, got"):
            OutlierRule(token_share=share)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_reader_of_every_norm_is_listed(name):
    """Which linear layers get the very tensor that a norm put out is seen, not read from the model's code."""
    model, made, seen = lively(CONFIGS[name]), {}, {}
    for norm_name, norm in model.named_modules():
        if norm_name.rpartition(".")[2] in ("attention_norm", "ffn_norm", "norm"):
            norm.register_forward_hook(lambda _, __, y, n=norm_name: made.update({n: y}))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda layer, x: seen.update({layer: x[0]}))
    model(TOKENS)
    actual = {n: {layer for layer, x in seen.items() if x is y} for n, y in made.items()}
    listed = {place.name: set(place.readers) for place in norms_with_readers(model)}
    assert listed == {n: readers for n, readers in actual.items() if n != "norm"}
    assert all(place.norm is model.get_submodule(place.name) for place in norms_with_readers(model))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("strength", [2.0**-3, 16, 256, 2.0**20])
def test_a_power_of_two_changes_no_bit_of_the_output(name, strength):
    model = lively(CONFIGS[name])
    before, hidden = model(TOKENS), norm_outputs(model, [TOKENS])
    assert plant_outliers(model, torch.tensor([3, 0, 11]), strength=strength) is model
    assert torch.equal(model(TOKENS), before)
    factor = torch.ones(16).index_fill(0, torch.tensor([0, 3, 11]), strength)
    planted = norm_outputs(model, [TOKENS])
    assert all(torch.equal(planted[n], values * factor) for n, values in hidden.items())


def test_another_strength_changes_roundings_only():
    model = lively(CONFIGS["gpt"])
    before = model(TOKENS)
    plant_outliers(model, torch.tensor([1, 2]), strength=100)
    # each of 2 layers rounds a few sums of 16 and 24 products, each by 2^-24 of its terms
    assert (model(TOKENS) - before).abs().max() <= 2**-16 * before.abs().max()


def test_planting_nothing_and_planting_twice():
    model = lively(SMALL)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    plant_outliers(model, torch.empty(0, dtype=torch.int64), strength=64)
    plant_outliers(plant_outliers(model, torch.tensor([5, 5]), strength=64), torch.tensor([5]), strength=1 / 64)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_bad_plants_get_a_sentence_and_change_nothing():
    model = lively(SMALL)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    for strength in (0, -2, math.nan):
        with pytest.raises(ValueError, match="strength must be above 0, got"):
            plant_outliers(model, torch.tensor([1]), strength=strength)
    with pytest.raises(ValueError, match=r"divisors must be above 0 and finite, got 0 to 1"):
        plant_outliers(model, torch.tensor([1]), strength=math.inf)
    for dimension in (-1, 16):
        with pytest.raises(ValueError, match=rf"dimensions must be 0 to 15, got \[{dimension}\]"):
            plant_outliers(model, torch.tensor([dimension]), strength=2)
    place = norms_with_readers(model)[0]
    with pytest.raises(ValueError, match=r"16 values, one for each channel, got shape \(15,\)"):
        divide_channels(place, torch.ones(15))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="divisors must be above 0 and finite"):
            divide_channels(place, torch.ones(16).index_fill(0, torch.tensor(2), wrong))
    with pytest.raises(ValueError, match="at least one batch is needed, got 0"):
        norm_outputs(model, [])
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def block(norm):
    """Part of a Llama-shaped block: a norm with a gain of its own, and several linear layers that read it."""
    readers = tuple(nn.Linear(32, out, bias=out == 8) for out in (32, 8, 8))
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter))
    return NormWithReaders("block", norm, readers)


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm], ids=["RMSNorm", "LayerNorm with a bias"])
@torch.no_grad()
def test_a_block_of_any_model_keeps_its_function(norm):
    place, x = block(norm(32)), torch.randn(5, 7, 32)
    before = [reader(place.norm(x)) for reader in place.readers]
    divide_channels(place, torch.exp2(torch.randint(-9, 9, (32,)).float()))
    assert all(torch.equal(reader(place.norm(x)), y) for reader, y in zip(place.readers, before, strict=True))


@torch.no_grad()
def test_a_bias_that_is_forgotten_changes_the_function():
    place, x = block(nn.LayerNorm(32)), torch.randn(5, 32)
    before, bias = place.readers[0](place.norm(x)), place.norm.bias.clone()
    divide_channels(place, torch.full((32,), 0.125))
    place.norm.bias.copy_(bias)
    assert (place.readers[0](place.norm(x)) - before).abs().max() > 0.1


def test_hooks_do_not_outlive_a_failure():
    model = lively(SMALL)
    with pytest.raises(ValueError, match="sequence must be at most 32"):
        norm_outputs(model, [TOKENS.repeat(1, 2)])
    assert not any(place.norm._forward_hooks for place in norms_with_readers(model))


@pytest.mark.slow
def test_what_is_planted_in_the_course_model_is_found_and_nothing_else():
    text = load_corpus().train[:2048].view(4, 512).long()
    model = load_course_model()
    before, hidden = model(text[:1]), norm_outputs(model, [text])
    assert not len(find_outliers(list(hidden.values()), COURSE_MODEL_RULE))
    assert not len(find_outliers(list(hidden.values()), PAPER_RULE))
    planted = torch.randperm(256, generator=torch.Generator().manual_seed(0))[:6]
    for _ in range(2):  # at 16, then at 256
        plant_outliers(model, planted, strength=16)
        assert torch.equal(model(text[:1]), before)
        found = find_outliers(list(norm_outputs(model, [text]).values()), COURSE_MODEL_RULE)
        assert found.tolist() == sorted(planted.tolist())
