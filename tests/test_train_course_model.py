from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qlab.config import COURSE_MODEL
from qlab.corpus import load_corpus
from qlab.model import load_course_model, read_card
from qlab.train_course_model import Trainer, TrainingRecipe, draw_batch, finish, learning_rate, matmul_attention, train

TINY = replace(COURSE_MODEL, layers=1, width=16, heads=2, kv_heads=2, ffn_width=16, sequence=32)
RECIPE = TrainingRecipe(steps=6, batch=4, sequence=32, warmup_steps=2)


def test_the_learning_rate_rises_and_falls_along_a_cosine():
    recipe = TrainingRecipe(steps=1100, warmup_steps=100, learning_rate=1.0, final_share=0.1)
    assert learning_rate(0, recipe) == 0.01
    assert learning_rate(99, recipe) == learning_rate(100, recipe) == 1.0
    assert learning_rate(600, recipe) == pytest.approx(0.55)
    assert learning_rate(1100, recipe) == pytest.approx(0.1)


def test_batches_repeat_with_their_step_and_keep_their_share_of_documentation():
    corpus, recipe = load_corpus(), TrainingRecipe(batch=8, sequence=64, documentation_share=0.25)
    batch = draw_batch(corpus, recipe, step=3)
    assert torch.equal(batch, draw_batch(corpus, recipe, step=3))
    assert not torch.equal(batch, draw_batch(corpus, recipe, step=4))
    assert batch.shape == (8, 65)
    documentation = corpus.train[: corpus.record.train_documentation_bytes].numpy().tobytes()
    assert all(bytes(row.tolist()) in documentation for row in batch[:2])


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_by_matmul_is_pytorchs(is_causal):
    q, k, v = torch.randn(3, 2, 2, 9, 8)
    expected = F.scaled_dot_product_attention(*(t.double() for t in (q, k, v)), is_causal=is_causal)
    # rows of 9 weights that add to 1, scores of 8 products: at most some 32 roundings of values below 4
    assert (matmul_attention(q, k, v, is_causal) - expected).abs().max() < 32 * 4 * 2**-24


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    corpus, state = load_corpus(), tmp_path / "state.pt"
    whole = Trainer(TINY, RECIPE, compiled=False)
    train(whole, corpus, state=tmp_path / "other.pt")
    first = Trainer(TINY, RECIPE, compiled=False)
    for step in range(3):
        first.train_step(draw_batch(corpus, RECIPE, step=step))
    first.save(state)
    second = Trainer(TINY, RECIPE, compiled=False)
    second.resume(state)
    assert second.step == 3
    train(second, corpus, state=state)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_the_finished_run_loads_with_its_card(tmp_path):
    full = load_corpus()
    corpus = replace(full, validation=full.validation[: full.record.validation_documentation_bytes])
    trainer = Trainer(TINY, RECIPE, compiled=False)
    train(trainer, corpus, state=tmp_path / "state.pt")
    finish(trainer, corpus, path=tmp_path / "data" / "m.safetensors", command="a command")
    card = read_card(tmp_path / "data" / "m.safetensors")
    decoder = load_course_model(tmp_path / "data" / "m.safetensors")
    assert (card.steps, card.command, card.config) == (6, "a command", TINY)
    assert 4 < card.validation_bits_per_byte < 9
    assert torch.equal(decoder.norm.weight, trainer.model.norm.weight.bfloat16().float())
