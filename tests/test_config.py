import random
from dataclasses import replace

import pytest
import torch

from qlab.config import (
    COURSE_MODEL,
    GPT2_XL,
    NAMED_CONFIGS,
    ModelConfig,
    count_parameters,
    named_config,
    parameter_parts,
)
from qlab.model import Decoder

# As published: GPT-2 XL and the Llamas by their checkpoints' sizes (Hugging Face safetensors metadata).
PUBLISHED = {
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-405b": 405_853_388_800,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    assert count_parameters(named_config(name)) == PUBLISHED[name]


@pytest.mark.parametrize("config", NAMED_CONFIGS.values(), ids=lambda config: config.name)
def test_parts_add_up(config):
    parts = parameter_parts(config)
    assert parts.total == parts.embeddings + parts.layers * parts.per_layer + parts.final_norm + parts.head


def test_tied_embeddings_are_counted_once():
    untied = replace(GPT2_XL, tied_embeddings=False)
    assert count_parameters(untied) - count_parameters(GPT2_XL) == GPT2_XL.vocabulary * GPT2_XL.width


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 7, "width": 100}, "heads must divide width, got 7 and 100"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide heads, got 3 and 4"),
        ({"layers": 0}, "layers must be a whole number of at least 1, got 0"),
        ({"width": -256}, "width must be a whole number of at least 1, got -256"),
        ({"heads": 256, "kv_heads": 256}, "rotary positions need an even head width, got 256 / 256"),
    ],
)
def test_an_impossible_shape_is_refused_with_its_values(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(COURSE_MODEL, **change)


@pytest.mark.parametrize("change", [{"norm": "batchnorm"}, {"positions": "alibi"}, {"width": 256.5}, {"gated": 1}])
def test_a_wrong_kind_is_refused(change):
    (value,) = change.values()
    with pytest.raises((ValueError, TypeError), match=str(value)):  # the shape checker may speak first
        replace(COURSE_MODEL, **change)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no model is called 'gpt-5'; the names are gpt2-xl, llama-2-7b"):
        named_config("gpt-5")


@pytest.mark.parametrize("seed", range(20))
def test_any_shape_counts_what_its_decoder_holds(seed):
    draw = random.Random(seed)
    kv_heads, head_width = draw.randint(1, 3), 2 * draw.randint(1, 5)
    heads = kv_heads * draw.randint(1, 3)
    config = ModelConfig(
        name="drawn",
        layers=draw.randint(1, 4),
        width=heads * head_width,
        heads=heads,
        kv_heads=kv_heads,
        ffn_width=draw.randint(1, 50),
        vocabulary=draw.randint(1, 50),
        sequence=draw.randint(1, 50),
        norm=draw.choice(["rmsnorm", "layernorm"]),
        positions=draw.choice(["rotary", "learned"]),
        gated=draw.random() < 0.5,
        biases=draw.random() < 0.5,
        tied_embeddings=draw.random() < 0.5,
    )
    with torch.device("meta"):
        decoder = Decoder(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in decoder.parameters())
