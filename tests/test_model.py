import hashlib
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from qlab.config import COURSE_MODEL, NAMED_CONFIGS, count_parameters
from qlab.corpus import load_corpus
from qlab.measure import provenance
from qlab.model import (
    COURSE_CHECKPOINT,
    Card,
    Decoder,
    RMSNorm,
    load_course_model,
    read_card,
    rotary_table,
    rotate,
    run_checkpointed,
)
from qlab.scoring import generate, held_out_bits

TINY = replace(COURSE_MODEL, layers=2, width=32, heads=4, kv_heads=4, ffn_width=48, sequence=24)
VARIANTS = {
    "course": TINY,
    "grouped": replace(TINY, kv_heads=2),
    "gpt2-like": replace(TINY, norm="layernorm", positions="learned", gated=False, biases=True),
    "untied": replace(TINY, tied_embeddings=False),
}
FP32_UNIT = 2**-24
PYTORCH_NAMES = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for kind in ("weight", "bias")
    for ours, theirs in {
        "attention_norm": "norm1",
        "ffn_norm": "norm2",
        "attention.output": "self_attn.out_proj",
        "ffn.up": "linear1",
        "ffn.down": "linear2",
    }.items()
}


def text(config, batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, config.vocabulary, (batch, length))


def randomize(module: torch.nn.Module) -> None:
    """Move every parameter away from its initial zeros and ones."""
    for parameter in module.parameters(recurse=False):
        torch.nn.init.normal_(parameter, std=0.3)


# ------------------------------------------------------------------ the decoder


@pytest.mark.parametrize("config", [*VARIANTS.values(), *NAMED_CONFIGS.values()], ids=[*VARIANTS, *NAMED_CONFIGS])
def test_the_parameters_are_those_that_the_config_counts(config):
    with torch.device("meta"):
        decoder = Decoder(config)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == count_parameters(config)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_byte_changes_nothing_before_it_and_something_after_it(config):
    decoder, tokens = Decoder(config), text(config, batch=1)
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 256
    before, after = decoder(tokens)[0], decoder(changed)[0]
    assert torch.equal(before[:10], after[:10])
    assert (before[10:] != after[10:]).any(dim=-1).all()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_gets_a_gradient(config):
    decoder = Decoder(config)
    decoder(text(config)).square().sum().backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_checkpointed_layers_give_the_same_gradients_bit_for_bit(config):
    kept, recomputed = Decoder(config), Decoder(config, run_layer=run_checkpointed)
    recomputed.load_state_dict(kept.state_dict())
    tokens = text(config)
    for decoder in (kept, recomputed):
        decoder(tokens).square().sum().backward()
    for first, second in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)


def test_the_attention_given_is_the_one_used():
    shapes = []

    def spied(q, k, v, is_causal):
        shapes.append((q.shape, k.shape, is_causal))
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    Decoder(VARIANTS["grouped"], attention=spied)(text(TINY))
    assert shapes == [((2, 4, 24, 8), (2, 4, 24, 8), True)] * 2


def test_grouped_heads_equal_full_heads_that_repeat_them():
    grouped, full = Decoder(VARIANTS["grouped"]), Decoder(TINY)
    state = grouped.state_dict()
    for name in [name for name in state if ".key." in name or ".value." in name]:
        state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    tokens = text(TINY)
    assert torch.allclose(grouped(tokens), full(tokens), atol=1e-6)  # logits below 1; products of up to 48 terms


def test_a_gpt2_like_layer_is_pytorchs_transformer_layer():
    config = VARIANTS["gpt2-like"]
    ours, state = Decoder(config).layers[0], {}
    ours.apply(randomize)
    for name, tensor in ours.state_dict().items():
        state[PYTORCH_NAMES.get(name, name)] = tensor
    for kind in ("weight", "bias"):
        parts = [state.pop(f"attention.{part}.{kind}") for part in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    theirs = torch.nn.TransformerEncoderLayer(
        config.width, config.heads, config.ffn_width, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs.load_state_dict(state)
    x, future = torch.randn(2, 24, config.width), torch.ones(24, 24, dtype=torch.bool).triu(1)
    expected = theirs.double()(x.double(), src_mask=future, is_causal=True)
    # values below 32, sums of up to 48 products in each of six matrices
    assert (ours(x) - expected).abs().max() < 6 * 48 * 32 * FP32_UNIT


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_decoder_in_bf16_is_near_the_one_in_fp32(config):
    decoder, tokens = Decoder(config), text(config)
    expected = decoder(tokens)
    narrow = decoder.bfloat16()(tokens)
    assert narrow.dtype == torch.bfloat16
    # each of about 8 operations in a row rounds its result by at most 2^-8 of it
    assert (narrow - expected).norm() <= 8 * 2**-8 * expected.norm()


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match="sequence must be at most 24 tokens, got 25"):
        Decoder(TINY)(text(TINY, length=25))


# ------------------------------------------------------------------ its parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_pytorchs(dtype):
    norm, x = RMSNorm(64), 10 * torch.randn(5, 64, dtype=dtype)
    norm.weight.data.normal_()
    expected = F.rms_norm(x.double(), (64,), norm.weight.double(), eps=1e-5)
    # a mean of 64 squares, a root and three products in FP32: well under 64 roundings; then one to `dtype`
    rtol = 64 * FP32_UNIT + torch.finfo(dtype).eps / 2
    assert norm(x).dtype == dtype
    assert torch.allclose(norm(x).double(), expected, rtol=rtol, atol=0)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    config = replace(TINY, width=256, heads=4, kv_heads=4, sequence=64)
    table = rotary_table(config)
    q, k = torch.randn(2, 64)
    everywhere = [x.expand(1, 64, 1, 64) for x in (q, k)]
    turned_q, turned_k = (rotate(x, table)[0, :, 0] for x in everywhere)
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(64), rtol=64 * FP32_UNIT)
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 17):
        along = scores.diagonal(offset=distance)
        # angles up to 64 radians are held to 64 · 2^-24, times the vectors' lengths
        assert (along - along[0]).abs().max() <= 4 * 64 * FP32_UNIT * q.norm() * k.norm()
    assert torch.equal(turned_q[0], q)


def test_rotation_is_that_of_complex_numbers():
    table, x = rotary_table(TINY), torch.randn(2, 24, 4, 8)
    angles = torch.arange(24)[:, None] * 10_000.0 ** (-torch.arange(4) / 4)
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones(24, 4), angles)[:, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    assert torch.allclose(rotate(x, table), expected, atol=8 * 8 * FP32_UNIT)  # components below 8, a few roundings


# ------------------------------------------------------------------ the checkpoint


@pytest.fixture
def saved(tmp_path):
    """A tiny model in a folder, with its card."""
    decoder, path = Decoder(TINY), tmp_path / "tiny.safetensors"
    state = {name: tensor.bfloat16() for name, tensor in decoder.state_dict().items() if name != "head.weight"}
    path.write_bytes(save(state))
    card = Card(
        validation_bits_per_byte=8.0,
        validation_standard_error=0.1,
        documentation_bits_per_byte=8.0,
        parameters=count_parameters(TINY),
        checkpoint_bytes=path.stat().st_size,
        checkpoint_dtype="bfloat16",
        checkpoint_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        command="none",
        steps=0,
        training_seconds=0,
        config=TINY,
        recipe={},
        corpus=load_corpus().record,
        provenance=provenance(seed=0),
        sample="",
    )
    path.with_suffix(".json").write_text(json.dumps(asdict(card)))
    return decoder, path, card


def test_a_checkpoint_and_its_card_come_back(saved):
    decoder, path, card = saved
    assert read_card(path) == card
    loaded = load_course_model(path)
    assert not loaded.training
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float())
    assert loaded.head.weight is loaded.embedding.weight


def test_a_changed_checkpoint_is_refused(saved):
    _, path, card = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"tiny.safetensors has sha256 .* card says {card.checkpoint_sha256[:12]}"):
        load_course_model(path)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_named_with_the_way_to_rebuild_it(saved, suffix):
    _, path, _ = saved
    path.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=r"missing.* rebuild both with `python -m qlab\.train_course_model`"):
        load_course_model(path)


# ------------------------------------------------------------------ the checkpoint that ships


@pytest.fixture(scope="module")
def shipped():
    return load_course_model()


def documentation_windows(windows: int) -> Tensor:
    return load_corpus().validation[: 512 * windows + 1]


def rounded_per_tensor(decoder: Decoder, bits: int) -> Decoder:
    """Copy `decoder` with each matrix rounded to `bits` bits, symmetric, one scale for the whole matrix."""
    copied = Decoder(decoder.config)
    copied.load_state_dict(decoder.state_dict())
    for matrix in {parameter for parameter in copied.parameters() if parameter.ndim == 2}:
        scale = matrix.detach().abs().max() / (2 ** (bits - 1) - 1)
        matrix.data = (matrix.data / scale).round() * scale
    return copied


def test_the_shipped_checkpoint_is_small_and_good(shipped):
    card = read_card()
    assert card.checkpoint_bytes == COURSE_CHECKPOINT.stat().st_size <= 16_000_000
    assert card.parameters == sum(parameter.numel() for parameter in shipped.parameters())
    assert card.validation_bits_per_byte <= 1.6


def test_the_shipped_checkpoint_scores_what_its_card_says(shipped):
    card, corpus = read_card(), load_corpus()
    if corpus.record.sha256 != card.corpus.sha256:
        pytest.skip(f"the card's text is that of Python {card.corpus.python_version}, this one's differs a little")
    documentation = corpus.validation[: corpus.record.validation_documentation_bytes]
    bits = held_out_bits(shipped, documentation, sequence=512).mean().item()
    assert bits == pytest.approx(card.documentation_bits_per_byte, abs=1e-3)  # the card has four decimals


def test_damage_is_plain_in_3_bits_measurable_in_4_and_none_in_8(shipped):
    text = documentation_windows(24)
    whole = held_out_bits(shipped, text, sequence=512)
    damage = {bits: held_out_bits(rounded_per_tensor(shipped, bits), text, sequence=512) - whole for bits in (3, 4, 8)}
    errors = {bits: change.std() / len(change) ** 0.5 for bits, change in damage.items()}
    assert damage[3].mean() > 0.5
    assert damage[4].mean() > 5 * errors[4]
    assert damage[8].mean().abs() < 0.01


def test_the_new_domain_is_new_to_it(shipped):
    new = held_out_bits(shipped, load_corpus().new_domain_validation[: 512 * 8 + 1], sequence=512)
    assert new.mean() > 1 + held_out_bits(shipped, documentation_windows(8), sequence=512).mean()


def test_it_writes_documentation(shipped):
    prompt = b'The "with" statement\n********************\n\nThe "with" statement '
    written = generate(shipped, prompt, new_bytes=150, temperature=0.5, generator=torch.Generator().manual_seed(0))
    words = written[len(prompt) :].decode(errors="replace").split()
    known = set(load_corpus().train.numpy().tobytes().decode(errors="replace").split())
    # the first and the last word may be cut
    assert sum(word in known for word in words[1:-1]) > 0.7 * len(words[1:-1])
