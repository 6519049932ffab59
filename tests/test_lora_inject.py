"""Adapters put into models by name: what is replaced, what is frozen, and what is refused with nothing changed."""

import copy
import re

import pytest
import torch
from torch import nn

from qlab.config import ModelConfig
from qlab.lora import LoRALinear, QLoRALinear, adapted_layers, frozen_bytes, inject, trainable, unload
from qlab.model import Decoder

TINY = ModelConfig(
    name="tiny",
    layers=2,
    width=32,
    heads=2,
    kv_heads=1,
    ffn_width=48,
    vocabulary=64,
    sequence=16,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    biases=False,
    tied_embeddings=True,
)
TOKENS = torch.arange(24).view(2, 12)


def lora(linear):
    return LoRALinear(linear, rank=2, alpha=4)


def qlora(linear):
    return QLoRALinear(linear, rank=2, alpha=4)


def moved(model):
    """Give each adapter an update that shows."""
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_b, std=0.1)
    return model


def test_the_pattern_is_searched_in_the_dotted_names():
    model = Decoder(TINY)
    before = model(TOKENS)
    names = inject(model, r"\.(query|value)$", lora)
    assert names == tuple(f"layers.{i}.attention.{part}" for i in (0, 1) for part in ("query", "value"))
    assert list(adapted_layers(model)) == list(names)
    assert torch.equal(model(TOKENS), before)
    assert type(model.layers[0].attention.key) is nn.Linear
    assert inject(Decoder(TINY), "layers.1.ffn", lora) == tuple(f"layers.1.ffn.{p}" for p in ("up", "gate", "down"))


@pytest.mark.parametrize("make", [lora, qlora])
def test_only_adapters_are_trained(make):
    model = Decoder(TINY)
    names = inject(model, "attention|ffn", make)
    assert len(names) == 14
    parameters = trainable(model)
    assert sum(p.numel() for p in parameters) == sum(
        2 * (m.in_features + m.out_features) for m in adapted_layers(model).values()
    )
    assert {id(p) for p in parameters} == {
        id(p) for name, p in model.named_parameters() if name.endswith(("lora_a", "lora_b"))
    }
    model(TOKENS).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        f"{name}.{part}" for name in names for part in ("lora_a", "lora_b")
    }


def test_a_second_pattern_leaves_the_first_adapters_trainable():
    model = Decoder(TINY)
    first = inject(model, "attention", lora)
    second = inject(model, "ffn", qlora)
    assert set(adapted_layers(model)) == {*first, *second}
    assert len(trainable(model)) == 2 * len(first + second)


def test_frozen_bytes_are_those_held_and_shared_ones_count_once():
    model = Decoder(TINY)
    assert frozen_bytes(model.requires_grad_(True)) == sum(b.nbytes for b in model.buffers())
    whole = frozen_bytes(model.requires_grad_(False))
    assert whole == sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    inject(model, "attention|ffn", lora)
    assert frozen_bytes(model) == whole
    coded = Decoder(TINY)
    inject(coded, "attention|ffn", qlora)
    layers = adapted_layers(coded).values()
    linears = sum(4 * m.in_features * m.out_features for m in layers)
    codes = sum(m.codes.stored_bytes + m.codebook.nbytes for m in layers)
    assert frozen_bytes(coded) == whole - linears + codes + 1024  # one map of 256 levels for all


@pytest.mark.parametrize("make", [lora, qlora])
def test_unload_leaves_plain_layers_that_compute_the_same(make):
    model = Decoder(TINY)
    names = inject(model, "attention|ffn", make)
    expected = moved(model)(TOKENS)
    assert unload(model) == names
    torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=1e-5)
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)
    assert set(model.state_dict()) == set(Decoder(TINY).state_dict())
    with pytest.raises(ValueError, match="a Decoder without adapted layers was given: inject some first"):
        unload(model)


@pytest.mark.parametrize("make", [lora, qlora])
@pytest.mark.parametrize("cast_first", [True, False])
def test_a_16_bit_model_stays_one(make, cast_first):
    model = Decoder(TINY).bfloat16() if cast_first else Decoder(TINY)
    inject(model, "attention|ffn", make)
    moved(model.bfloat16())
    expected = model(TOKENS)
    unload(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model(TOKENS).float(), expected.float(), rtol=0.05, atol=0.05)


def test_a_layer_alone_is_not_a_model_to_unload():
    with pytest.raises(ValueError, match=r"the model is a LoRALinear itself: take its merged_linear\(\) in its place"):
        unload(lora(nn.Linear(8, 8)))


def test_any_module_can_be_made_and_children_of_lists_are_replaced():
    class Doubled(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.gain = linear, nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.gain * self.linear(x)

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.ModuleDict({"last": nn.Linear(5, 2)})["last"]).eval()
    assert inject(model, "^0$", Doubled) == ("0",)
    assert isinstance(model[0], Doubled) and not model[0].training
    assert trainable(model) == [model[0].gain]


def broken(linear):
    if linear.in_features == 48:
        raise ValueError("no more")
    return lora(linear)


def share_a_layer(model):
    model.layers[1].ffn.up = model.layers[0].ffn.up


def tie_two_weights(model):
    model.layers[1].ffn.up.weight = model.layers[0].ffn.up.weight


def make_special(model):
    model.layers[0].ffn.up = nn.modules.linear.NonDynamicallyQuantizableLinear(32, 48)


@pytest.mark.parametrize(
    ("change", "pattern", "make", "message"),
    [
        (None, "", lora, "head shares its weight with embedding: leave it out of ''"),
        (None, "head", qlora, "head shares its weight with embedding: leave it out of 'head'"),
        (None, "quary", lora, "no linear layer matches 'quary'; the model has layers.0.attention.query, "),
        (None, "norm", lora, "no linear layer matches 'norm'"),
        (None, "(", lora, "pattern must be a regular expression, got '(': "),
        (None, "ffn", broken, "no more"),
        (None, "attention", lambda layer: LoRALinear(layer, rank=17, alpha=1), "rank must be 1 to 16"),
        (share_a_layer, "ffn", lora, "layers.0.ffn.up shares its weight with layers.1.ffn.up"),
        (tie_two_weights, "1.ffn", lora, "layers.1.ffn.up shares its weight with layers.0.ffn.up"),
        (make_special, "ffn", lora, "layers.0.ffn.up is a NonDynamicallyQuantizableLinear, not a plain nn.Linear"),
    ],
)
def test_what_cannot_be_injected_is_refused_and_the_model_stays_as_it_was(change, pattern, make, message):
    model = Decoder(TINY)
    if change:
        change(model)
    model.norm.weight.requires_grad_(False)
    modules, trained = dict(model.named_modules()), {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=re.escape(message)):
        inject(model, pattern, make)
    assert dict(model.named_modules()) == modules
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trained


def test_a_layer_gets_one_adapter():
    model = Decoder(TINY)
    inject(model, "attention", lora)
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.query\.base has an adapter already"):
        inject(model, "attention", lora)
    coded = Decoder(TINY)
    inject(coded, "attention", qlora)
    with pytest.raises(ValueError, match="no linear layer matches 'attention'"):
        inject(coded, "attention", lora)
    with pytest.raises(ValueError, match="no linear layer matches ''; the model has none"):
        inject(nn.Linear(3, 3), "", lora)


@pytest.mark.parametrize("make", [lora, qlora])
def test_a_whole_model_s_state_goes_round(make):
    models = [Decoder(TINY) for _ in range(2)]
    for model in models:
        inject(model, "attention|ffn", make)
        moved(model)
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](TOKENS), models[1](TOKENS))
    assert torch.equal(copy.deepcopy(models[0])(TOKENS), models[0](TOKENS))
