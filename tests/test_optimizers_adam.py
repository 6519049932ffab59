"""SGD, momentum and Adam against torch.optim bit for bit, against exact arithmetic, and with bad numbers."""

import math

import pytest
import torch

from qlab.optimizers import adam_update, momentum_update, sgd_update
from qlab.optimizers.adam import AdamSettings, apply_adam, corrected


def twins(*shape):
    values = torch.randn(shape)
    return values.clone(), torch.nn.Parameter(values)


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (1000,)])
def test_adam_is_torchs_bit_for_bit(shape):
    ours, theirs = twins(*shape)
    first, second = torch.zeros(shape), torch.zeros(shape)
    peer = torch.optim.Adam([theirs], lr=3e-3, betas=(0.8, 0.99), eps=1e-6, foreach=False)
    for step in range(1, 31):
        theirs.grad = torch.randn(shape)
        peer.step()
        adam_update(ours, theirs.grad, first, second, step=step, lr=3e-3, betas=(0.8, 0.99), eps=1e-6)
        assert torch.equal(ours, theirs)
    assert torch.equal(first, peer.state[theirs]["exp_avg"])
    assert torch.equal(second, peer.state[theirs]["exp_avg_sq"])


@pytest.mark.parametrize("decoupled", [False, True])
def test_both_decays_are_torchs(decoupled):
    ours, theirs = twins(100)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    peer = kind([theirs], lr=1e-2, weight_decay=0.1, foreach=False)
    settings = AdamSettings(lr=1e-2, weight_decay=0.1, decoupled=decoupled)
    moments = (torch.zeros(100), torch.zeros(100))
    for step in range(1, 6):
        theirs.grad = torch.randn(100)
        peer.step()
        apply_adam(ours, theirs.grad, moments, corrected(settings, step))
    assert torch.equal(ours, theirs)


def test_adam_is_algorithm_1_in_exact_arithmetic():
    gradients = [0.5, -2.0, 0.25]
    w, m, v = 1.0, 0.0, 0.0
    ours, first, second = torch.tensor([1.0]), torch.zeros(1), torch.zeros(1)
    for step, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.01 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
        adam_update(ours, torch.tensor([g]), first, second, step=step, lr=0.01)
        assert ours.item() == pytest.approx(w, rel=1e-6)


def test_the_first_step_is_the_learning_rate_whatever_the_gradient():
    parameter = torch.zeros(5)
    gradient = torch.tensor([1e-4, -1e-2, 1.0, 1e2, -1e4])
    adam_update(parameter, gradient, torch.zeros(5), torch.zeros(5), step=1, lr=0.1)
    assert parameter == pytest.approx(-0.1 * gradient.sign(), rel=1e-3)


def test_sgd_and_momentum_are_torchs():
    ours, theirs = twins(50)
    buffer = torch.zeros(50)
    peer = torch.optim.SGD([theirs], lr=0.1, momentum=0.8, foreach=False)
    for _ in range(5):
        theirs.grad = torch.randn(50)
        peer.step()
        momentum_update(ours, theirs.grad, buffer, lr=0.1, momentum=0.8)
    assert torch.equal(ours, theirs)
    before, gradient = ours.clone(), torch.randn(50)
    sgd_update(ours, gradient, lr=0.5)
    assert torch.allclose(ours, before - gradient / 2)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lr": -0.1}, "lr must be at least 0 and finite, got -0.1"),
        ({"lr": math.nan}, "lr must be at least 0 and finite, got nan"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers from 0 to below 1, got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, "betas must be two"),
        ({"betas": (math.nan, 0.9)}, "betas must be two"),
        ({"eps": 0.0}, r"eps must be at least 2\^-126 and finite, got 0.0"),
        ({"eps": math.inf}, "eps must be"),
        ({"step": 0}, "step must be at least 1, got 0"),
    ],
)
def test_bad_rates_are_named_and_nothing_is_overwritten(wrong, sentence):
    tensors = [torch.ones(3) for _ in range(4)]
    with pytest.raises(ValueError, match=sentence):
        adam_update(*tensors, **{"step": 1, "lr": 0.1} | wrong)
    assert all(torch.equal(tensor, torch.ones(3)) for tensor in tensors)
