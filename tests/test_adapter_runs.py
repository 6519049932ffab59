"""Fine-tuning four ways: what is trained, what is counted, and that the ways differ in nothing else."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from qlab import qat
from qlab.adapter_runs import (
    ATTENTION,
    FULL,
    LINEARS,
    LORA,
    QLORA,
    QLORA_SINGLE,
    WAYS,
    AdapterRecipe,
    energy_share,
    fine_tune,
    model_bytes,
    prepare,
    training_peak_bytes,
    update_spectrum,
)
from qlab.config import ModelConfig
from qlab.lora import adapted_layers, adapter_state, trainable
from qlab.model import Decoder
from qlab.scoring import held_out_bits

TINY = ModelConfig(
    name="tiny",
    layers=2,
    width=64,
    heads=2,
    kv_heads=2,
    ffn_width=96,
    vocabulary=256,
    sequence=64,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    biases=False,
    tied_embeddings=True,
)
WORDS = b"an adapter is a product of two narrow matrices, and its update is added to a frozen weight. "
TEXT = torch.frombuffer(bytearray(WORDS * 10), dtype=torch.uint8)
RECIPE = AdapterRecipe(steps=12, batch=4, sequence=16, rank=4, alpha=8, learning_rate=1e-2)


def tiny(seed=1):
    torch.manual_seed(seed)
    return Decoder(TINY)


def test_the_four_ways_are_those_of_the_lesson():
    assert [way.name for way in WAYS] == ["full", "LoRA", "QLoRA", "QLoRA without double quantization"]
    assert [(way.adapters, way.quantized, way.double) for way in WAYS] == [
        (False, False, False),
        (True, False, False),
        (True, True, True),
        (True, True, False),
    ]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_run_learns_and_tells_what_it_took(way):
    model = tiny()
    told = fine_tune(model, TEXT, way, RECIPE, held_out=TEXT)
    assert len(told.losses) == RECIPE.steps and told.losses[-1] < told.losses[0] - 0.1
    assert told.held_out_bits < told.start_bits - 0.1
    assert told.held_out_bits == pytest.approx(sum(told.held_out_windows) / len(told.held_out_windows))
    assert told.held_out_windows == held_out_bits(model.eval(), TEXT, sequence=32).tolist()
    assert told.way == way.name and told.trainable_parameters == sum(p.numel() for p in trainable(model))
    assert told.model_bytes == model_bytes(model) < told.peak_bytes
    numbers = sum(p.numel() for p in (adapter_state(model).values() if way.adapters else model.parameters()))
    assert 4 * numbers < told.file_bytes < 4 * numbers + 10_000


@pytest.mark.parametrize("way", [LORA, QLORA], ids=lambda way: way.name)
def test_a_run_is_the_same_again_and_moves_adapters_only(way):
    model, again = tiny(), tiny()
    prepared = prepare(tiny(), way, RECIPE).state_dict()
    told, same = (fine_tune(m, TEXT, way, RECIPE) for m in (model, again))
    assert told == same and told.held_out_windows is told.start_bits is None
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    moved = {name for name, tensor in prepared.items() if not torch.equal(tensor, state[name])}
    assert moved == set(adapter_state(model))
    assert fine_tune(tiny(), TEXT, way, replace(RECIPE, seed=1)).losses != told.losses


def test_full_is_the_plain_training_loop_bit_by_bit():
    model, plain = tiny(), tiny().train()
    told = fine_tune(model, TEXT, FULL, RECIPE)
    recipe = qat.QatRecipe(steps=12, batch=4, sequence=16, learning_rate=1e-2, max_norm=1.0, seed=0)
    assert told.losses == qat.train(plain, TEXT, recipe)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_lora_and_qlora_start_from_the_same_a_and_read_the_same_text():
    models = [prepare(tiny(), way, RECIPE) for way in WAYS[1:]]
    a, b, c = (adapter_state(model) for model in models)
    assert a.keys() == b.keys() == c.keys() and len(adapted_layers(models[0])) == 14
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)
    seen = []
    for way in WAYS:
        model, read = tiny(), []
        model.register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0].clone()))
        fine_tune(model, TEXT, way, RECIPE)
        seen.append(torch.stack(read))
    assert all(torch.equal(read[-RECIPE.steps :], seen[0][-RECIPE.steps :]) for read in seen)


def test_the_pattern_and_the_head():
    names = [set(adapted_layers(prepare(tiny(), LORA, replace(RECIPE, pattern=p)))) for p in (ATTENTION, LINEARS)]
    assert len(names[0]) == 8 and names[0] < names[1] and len(names[1]) == 14
    with pytest.raises(ValueError, match="head shares its weight with embedding"):
        fine_tune(tiny(), TEXT, QLORA, replace(RECIPE, pattern=""))
    with pytest.raises(ValueError, match="rank must be 1 to 64"):
        fine_tune(tiny(), TEXT, LORA, replace(RECIPE, rank=65))


def test_bytes_fall_from_way_to_way():
    recipe = replace(RECIPE, steps=1, batch=1, sequence=8)
    full, lora, qlora, single = (fine_tune(tiny(), TEXT, way, recipe) for way in WAYS)
    parameters = sum(p.numel() for p in tiny().parameters())
    # weights, gradients and two moments are there together, and activations come to them
    assert full.peak_bytes > 4 * 4 * parameters
    assert full.peak_bytes > 2 * lora.peak_bytes
    assert qlora.model_bytes < single.model_bytes < lora.model_bytes
    layers = adapted_layers(prepare(tiny(), QLORA, recipe))
    numbers = sum(layer.in_features * layer.out_features for layer in layers.values())
    absmaxes, small = numbers // 64, len(layers) * 4 * 2  # a scale of the second level and the mean: FP32 each
    assert single.model_bytes - qlora.model_bytes == 3 * absmaxes - small - 1024  # and one map for all
    assert full.file_bytes > 5 * lora.file_bytes and lora.file_bytes == qlora.file_bytes == single.file_bytes


def test_the_peak_is_taken_by_a_copy():
    model = prepare(tiny(), LORA, RECIPE)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    short = training_peak_bytes(model, TEXT, RECIPE.training(LORA, steps=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert training_peak_bytes(model, TEXT, RECIPE.training(LORA, steps=4)) == pytest.approx(short, rel=0.01)
    wide = training_peak_bytes(model, TEXT, replace(RECIPE, batch=8).training(LORA, steps=2))
    assert 1.5 * short < wide < 2.1 * short


def test_the_spectrum_of_an_update_is_its_singular_values():
    weight, left, right = torch.randn(12, 20), torch.randn(12, 3), torch.randn(3, 20)
    values = update_spectrum(weight, weight + left @ right)
    expected = torch.linalg.svdvals((left @ right).double())
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert values.shape == (12,) and values.dtype == torch.float64
    assert energy_share(values, 3) == pytest.approx(1) and energy_share(values, 12) == 1
    best = (expected[:2].square().sum() / expected.square().sum()).item()
    assert energy_share(values, 2) == pytest.approx(best, rel=1e-5)
    with pytest.raises(ValueError, match=r"both weights must have one shape, got \(12, 20\) and \(3, 20\)"):
        update_spectrum(weight, right)
    with pytest.raises(ValueError, match=r"an update of zero has no spectrum"):
        update_spectrum(weight, weight)


def test_lora_s_update_has_the_rank_of_its_adapter():
    model, before = tiny(), dict(tiny().named_modules())
    fine_tune(model, TEXT, LORA, RECIPE)
    for name, layer in adapted_layers(model).items():
        values = update_spectrum(before[name].weight, layer.merged_weight())
        assert energy_share(values, RECIPE.rank) > 1 - 1e-6
        assert isinstance(layer.base, nn.Linear) and torch.equal(layer.base.weight, before[name].weight)


def test_a_rate_of_none_is_the_way_s_own():
    recipe = replace(RECIPE, learning_rate=None)
    for way in WAYS:
        assert recipe.training(way).learning_rate == way.learning_rate
        assert RECIPE.training(way) == qat.QatRecipe(steps=12, batch=4, sequence=16, learning_rate=1e-2, seed=0)
    assert LORA.learning_rate == QLORA.learning_rate == QLORA_SINGLE.learning_rate > FULL.learning_rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"sequence": -1}, "sequence must be at least 1, got -1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0"),
        ({"alpha": math.inf}, "alpha must be above 0 and finite, got inf"),
        ({"max_norm": math.nan}, "max_norm must be above 0 and finite, got nan"),
    ],
)
def test_recipes_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(RECIPE, **change)


def test_text_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="a window of 16 needs at least 17 bytes, got 16"):
        fine_tune(tiny(), TEXT[:16], LORA, RECIPE)
