"""The same training with different optimizers: what a run draws, what it leaves, and where it ends."""

import logging
import math

import pytest
import torch

from qlab.config import ModelConfig
from qlab.model import Decoder
from qlab.optimizer_runs import WAYS, OptimizerRun, adam_32bit, adam_on, run
from qlab.optimizers.mapped import DYNAMIC_MAPS
from qlab.recipes import TextRecipe

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import tells of a package it can do without

TINY = ModelConfig(
    name="tiny",
    layers=1,
    width=64,
    heads=2,
    kv_heads=2,
    ffn_width=96,
    vocabulary=256,
    sequence=32,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    biases=False,
    tied_embeddings=True,
)
TEXT = torch.frombuffer(
    bytearray(b"a moment is kept in eight bits, and its largest in thirty-two. " * 9), dtype=torch.uint8
)
RECIPE = TextRecipe(steps=8, batch=2, sequence=16, learning_rate=3e-3)


def trained(make, recipe=RECIPE):
    torch.manual_seed(1)
    return run(Decoder(TINY), TEXT, make, recipe)


def test_the_rate_falls_to_zero_and_the_text_is_the_same_for_all():
    seen = []

    def make(parameters, learning_rate):
        optimizer = torch.optim.SGD(parameters, lr=learning_rate)
        optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
        return optimizer

    sgd, adam = trained(make), trained(adam_32bit)
    assert seen == pytest.approx([3e-3 * (1 - step / 8) for step in range(8)])
    assert sgd.losses[0] == adam.losses[0] == pytest.approx(8, abs=0.5)
    assert sgd.state_bytes == 0


def test_every_way_learns_and_eight_bits_stay_by_32():
    told = {name: trained(make) for name, make in WAYS.items()}
    peer = told["FP32 Adam"]
    assert peer.bytes_per_parameter == pytest.approx(8, abs=0.01)
    assert peer.final_loss(2) < peer.losses[0] - 0.5
    for name in ("8-bit Adam", "8-bit Adam of bitsandbytes", "one absmax a tensor"):
        assert told[name].final_loss(2) == pytest.approx(peer.final_loss(2), rel=0.01)
        assert told[name].bytes_per_parameter < 2.2
    again = trained(WAYS["8-bit Adam"])
    assert again == told["8-bit Adam"]
    assert trained(adam_on(DYNAMIC_MAPS)).losses == again.losses


def test_a_lost_run_ends_and_says_where():
    def make(parameters, learning_rate):
        optimizer = torch.optim.SGD(parameters, lr=learning_rate)

        def spoil(*_):
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

        optimizer.register_step_post_hook(spoil)
        return optimizer

    told = trained(make)
    assert told.failed_at == 1 and len(told.losses) == 2 and math.isnan(told.final_loss())


def test_the_final_loss_is_a_mean_and_bad_recipes_are_refused():
    assert OptimizerRun(losses=[9.0, 1.0, 3.0]).final_loss(2) == 2
    for wrong, sentence in [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0 and finite, got inf"),
        ({"max_norm": 0.0}, r"max_norm must be above 0, got 0\.0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            TextRecipe(**wrong)
    with pytest.raises(ValueError, match="a window of 16 needs at least 17 bytes, got 16"):
        run(Decoder(TINY), TEXT[:16], adam_32bit, RECIPE)
