import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from qlab.calibrate import FakeQuantize, LearnedStep
from qlab.config import ModelConfig
from qlab.corpus import load_corpus
from qlab.model import Decoder, load_course_model
from qlab.qat import QatRecipe, convert, prepare, train
from qlab.quantize import PER_ROW, quantize_symmetric
from qlab.scoring import held_out_bits

SMALL = ModelConfig(
    name="small",
    layers=1,
    width=16,
    heads=2,
    kv_heads=2,
    ffn_width=24,
    vocabulary=256,
    sequence=32,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    biases=False,
    tied_embeddings=True,
)
TEXT = torch.randint(256, (400,), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
TOKENS = TEXT[:60].long().view(2, 30)
FEW_STEPS = QatRecipe(steps=4, batch=2, sequence=16, learning_rate=1e-2)
ROUNDINGS = {"absmax": lambda weight: FakeQuantize(bits=3), "learned step": lambda weight: LearnedStep(weight, bits=3)}


def prepared(rounding, seed=0):
    torch.manual_seed(seed)
    model = Decoder(SMALL)
    return prepare(model, ROUNDINGS[rounding], keep=(model.head,))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_prepared_layers_compute_with_rounded_weights_and_keep_their_own(rounding):
    torch.manual_seed(0)
    model = Decoder(SMALL)
    plain = copy.deepcopy(model)
    weights = {id(parameter) for parameter in model.parameters()}
    assert prepare(model, ROUNDINGS[rounding], keep=(model.head,)) is model
    assert weights <= {id(parameter) for parameter in model.parameters()}
    assert model.head.weight is model.embedding.weight
    assert not parametrize.is_parametrized(model.head)
    query = model.layers[0].attention.query
    assert query.weight.unique(dim=None).numel() < query.weight.numel() / 2
    assert torch.equal(query.parametrizations.weight.original, plain.layers[0].attention.query.weight)
    if rounding == "absmax":
        expected = quantize_symmetric(query.parametrizations.weight.original.detach(), bits=3, tile=PER_ROW)
        assert torch.equal(query.weight, expected.dequantize())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_training_moves_the_weights_and_conversion_keeps_what_was_trained(rounding):
    model = prepared(rounding)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = train(model, TEXT, FEW_STEPS)
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert model.head.weight is model.embedding.weight
    with torch.no_grad():
        trained = model(TOKENS)
    assert convert(model) is model
    assert torch.equal(model(TOKENS), trained)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert model.head.weight is model.embedding.weight
    fresh = Decoder(SMALL)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(TOKENS), trained)
    assert all(isinstance(layer.weight, nn.Parameter) for layer in model.modules() if type(layer) is nn.Linear)
    rows = model.layers[0].ffn.down.weight
    assert all(row.unique().numel() <= 7 for row in rows)


def test_a_seed_decides_everything():
    losses = [train(prepared("absmax"), TEXT, FEW_STEPS) for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] != train(prepared("absmax"), TEXT, replace(FEW_STEPS, seed=1))


def test_gradients_from_before_do_not_count():
    first, second = prepared("absmax"), prepared("absmax")
    for parameter in second.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    assert train(first, TEXT, FEW_STEPS) == train(second, TEXT, FEW_STEPS)


def test_a_window_may_be_all_the_text():
    assert len(train(prepared("absmax"), TEXT[:17], FEW_STEPS)) == 4
    with pytest.raises(ValueError, match="a window of 16 needs at least 17 bytes, got 16"):
        train(prepared("absmax"), TEXT[:16], FEW_STEPS)


def test_a_layer_is_prepared_once():
    model = prepared("absmax")
    with pytest.raises(ValueError, match="prepared once, and 7 of 7 are already"):
        prepare(model, ROUNDINGS["absmax"], keep=(model.head,))
    convert(model)
    prepare(model, ROUNDINGS["learned step"], keep=(model.head,))


def test_a_model_never_turns_into_nan_in_silence():
    model = prepared("absmax")
    model.layers[0].ffn.up.parametrizations.weight.original.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite, and holds 1 NaN"):
        train(model, TEXT, FEW_STEPS)
    model = prepared("learned step")
    model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="the loss must stay finite, got nan at step 0: lower the learning rate"):
        train(model, TEXT, FEW_STEPS)


@pytest.mark.slow
def test_a_few_steps_win_back_much_of_what_two_bits_cost():
    corpus, model, bits = load_corpus(), load_course_model(), {}
    text = corpus.validation[: 4 * 256 + 1]
    bits["exact"] = held_out_bits(model, text, sequence=256).mean().item()
    prepare(model, lambda weight: FakeQuantize(bits=2), keep=(model.head,))
    bits["rounded"] = held_out_bits(model, text, sequence=256).mean().item()
    train(model, corpus.train, QatRecipe(steps=16, batch=2, sequence=128, learning_rate=1e-3))
    bits["trained"] = held_out_bits(convert(model), text, sequence=256).mean().item()
    assert bits["rounded"] > bits["exact"] + 2  # measured: 4.0, and 0.9 after training
    assert bits["trained"] - bits["exact"] < 0.75 * (bits["rounded"] - bits["exact"])


@pytest.mark.gpu
def test_training_runs_where_the_model_is():
    model = prepared("learned step").cuda()
    assert all(math.isfinite(loss) for loss in train(model, TEXT, FEW_STEPS))
    convert(model)
