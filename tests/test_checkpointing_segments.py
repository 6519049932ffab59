"""Chains and models in segments: gradients, bytes and arithmetic, against predictions and against PyTorch's own."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

from qlab import activations
from qlab.checkpointing import (
    FUSED_ATTENTION,
    MATRIX_PRODUCTS,
    checkpoint,
    checkpoint_binomially,
    checkpoint_segments,
    checkpoint_selectively,
    in_segments,
    segmented,
    simulate,
)
from qlab.config import COURSE_MODEL
from qlab.measure import PeakBytes, SavedForBackward, saved_bytes
from qlab.model import Decoder
from qlab.scoring import bits_per_token

SMALL = replace(COURSE_MODEL, layers=8, width=32, heads=2, kv_heads=2, ffn_width=64, sequence=64)


@pytest.fixture
def layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.2)) for _ in range(9)))


def gradients(layers: nn.Module, run) -> list[torch.Tensor]:
    torch.manual_seed(3)
    x = torch.randn(4, 16, requires_grad=True)
    return torch.autograd.grad(run(x).square().sum(), [x, *layers.parameters()])


# ------------------------------------------------------------------ chains


@pytest.mark.parametrize(
    "run",
    [
        partial(checkpoint_segments, segments=1),
        partial(checkpoint_segments, segments=3),
        partial(checkpoint_segments, segments=9),
        partial(checkpoint_segments, segments=(1, 5, 3)),
        partial(checkpoint_segments, segments=[8, 1]),
        partial(checkpoint_binomially, slots=2),
        partial(checkpoint_binomially, slots=20),
    ],
)
def test_gradients_do_not_change_by_a_bit(layers, run):
    plain = gradients(layers, layers)
    found = gradients(layers, lambda x: run(layers, x))
    theirs = gradients(layers, lambda x: checkpoint_sequential(layers, 3, x, use_reentrant=False))
    for ours, expected, other in zip(found, plain, theirs, strict=True):
        assert torch.equal(ours, expected) and torch.equal(ours, other)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda f, x: checkpoint_segments(f, x, segments=10), "segments must be 1 to 9, the number of layers, got 10"),
        (lambda f, x: checkpoint_segments(f, x, segments=0), "segments must be 1 to 9, the number of layers, got 0"),
        (lambda f, x: checkpoint_segments(f, x, segments=(4, 4)), r"sum to 9 layers, got \(4, 4\)"),
        (lambda f, x: checkpoint_segments(f, x, segments=(10, -1)), r"at least 1 that sum to 9 layers, got \(10, -1\)"),
        (lambda f, x: checkpoint_segments(f, x, segments=()), r"sum to 9 layers, got \(\)"),
        (lambda f, x: checkpoint_binomially(f, x, slots=0), "must be at least 1, got 0 and 9"),
        (lambda _, x: checkpoint_binomially([], x, slots=2), "must be at least 1, got 2 and 0"),
        (lambda _, x: checkpoint_segments([], x, segments=1), "layers must be at least 1, got 0"),
        (lambda f, x: checkpoint_selectively(f, x, keep=()), r"such as torch.ops.aten.mm.default, got \[\]"),
    ],
)
def test_impossible_segments_are_refused(layers, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(layers, torch.randn(4, 16))


def test_pytorchs_sequence_of_checkpoints_does_not_checkpoint_its_last_segment():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(64)))
    unit, calls = 4 * 4 * 16, []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 16)
    kept = saved_bytes(lambda: checkpoint_sequential(layers, 8, x, use_reentrant=False))
    bill = simulate(in_segments(64, 8, keep_last=True))
    assert kept / unit == bill.units[bill.schedule.index(bill.schedule[63])] == 7 + 1 + 15
    calls.clear()
    checkpoint_sequential(layers, 8, x, use_reentrant=False).sum().backward()
    assert len(calls) == bill.forwards == 120


# ------------------------------------------------------------------ a model


def loss_of(model: nn.Module, config=SMALL, batch: int = 2) -> torch.Tensor:
    text = torch.randint(256, (batch, config.sequence + 1), generator=torch.Generator().manual_seed(0))
    return bits_per_token(model(text[:, :-1]), text[:, 1:]).mean()


@pytest.mark.parametrize("config", [SMALL, replace(COURSE_MODEL, layers=4, sequence=128)], ids=["small", "course"])
@pytest.mark.parametrize("segments", [1, 2, 4, (2, 1, 1)])
def test_saved_bytes_of_a_decoder_are_the_predicted_ones(config, segments):
    segments = segments if isinstance(segments, int) or config.layers == 4 else (4, 2, 2)
    model = Decoder(config)
    with SavedForBackward() as saved:
        loss = loss_of(segmented(model, segments), config)
        kept = saved.live_bytes
        loss.backward()
    run = activations.Run(batch=2, sequence=config.sequence)
    stream, layer = activations.stream_bytes(config, run), activations.layer_bytes(config, run)
    around = activations.around_bytes(config, run)
    number = segments if isinstance(segments, int) else len(segments)
    assert kept == pytest.approx(number * stream + around, rel=0.05)
    if isinstance(segments, int):
        predicted = simulate(in_segments(config.layers, segments), boundary=stream, inside=layer - stream).peak_units
        assert saved.peak_bytes == pytest.approx(max(predicted, number * stream + around), rel=0.05)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_segmented_model_shares_parameters_and_leaves_the_model_alone():
    model = Decoder(SMALL)
    names = list(model.state_dict())
    loss_of(model).backward()
    plain = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    view = segmented(model, 3)
    loss_of(view).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    assert list(model.state_dict()) == names and len(model.layers) == 8 and len(view.layers) == 3
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="segments must be 1 to 8, the number of layers, got 9"):
        segmented(model, 9)


def test_the_course_model_takes_checkpoint_as_its_way_to_run_a_layer():
    text = torch.randint(256, (2, 33))
    models = [Decoder(SMALL, run_layer=run) for run in (checkpoint, partial(torch_checkpoint, use_reentrant=False))]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        bits_per_token(model(text[:, :-1]), text[:, 1:]).mean().backward()
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("segments", [1, 2, 8])
def test_recomputing_is_one_forward_pass_at_most_a_third_more_arithmetic(segments):
    model = Decoder(SMALL)

    def flops(network) -> int:
        with FlopCounterMode(display=False) as counter:
            loss_of(network).backward()
        return counter.get_total_flops()

    ours = flops(segmented(model, segments))
    assert ours == flops(segmented(model, segments, run=partial(torch_checkpoint, use_reentrant=False)))
    assert 1.2 < ours / flops(model) <= 4 / 3  # the head, and each segment's last product, are not run again


# ------------------------------------------------------------------ selective


def test_what_is_dear_is_not_run_again_and_gradients_stay():
    model = Decoder(SMALL)
    ways = {
        "all": lambda layer, x: layer(x),
        "none": checkpoint,
        "products": partial(checkpoint_selectively, keep=MATRIX_PRODUCTS),
        "attention": partial(checkpoint_selectively, keep=FUSED_ATTENTION),
        "both": checkpoint_selectively,
    }
    flops, found, peaks = {}, {}, {}
    for name, run in ways.items():
        model.run_layer = run
        with FlopCounterMode(display=False) as counter:
            loss_of(model).backward()
        flops[name] = counter.get_total_flops()
        found[name] = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        with PeakBytes() as peak:
            loss_of(model).backward()
        peaks[name] = peak.bytes
        model.zero_grad()
    # the counter has no formula for fused attention on a CPU
    assert flops["all"] == flops["both"] == flops["products"] < flops["attention"] == flops["none"]
    assert peaks["none"] < peaks["attention"] < peaks["both"] < peaks["all"]
    for name in ways:
        assert all(torch.equal(a, b) for a, b in zip(found["all"], found[name], strict=True)), name
