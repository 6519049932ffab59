"""Soups: exact means, integer buffers left alone, PyTorch's own averages, and the greedy recipe on its definition."""

import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from qlab.soups import greedy_soup, uniform_soup


def networks(count, seed=0):
    torch.manual_seed(seed)
    made = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(count)]
    for number, network in enumerate(made):
        for _ in range(number + 1):
            network(torch.randn(8, 3))
    return made


def number(value):
    return {"w": torch.tensor([float(value)])}


def test_the_mean_of_each_floating_tensor_and_the_counter_of_the_first():
    states = [network.state_dict() for network in networks(3)]
    soup = uniform_soup(states)
    for name, tensor in soup.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([state[name] for state in states]).mean(0))
    assert soup["1.num_batches_tracked"] == 1 and soup["1.num_batches_tracked"].dtype == torch.int64
    network = networks(1)[0]
    network.load_state_dict(soup)


def test_torch_averages_parameters_to_the_same():
    made = networks(4)
    averaged = AveragedModel(made[0], use_buffers=False)
    for network in made:
        averaged.update_parameters(network)
    soup = uniform_soup([network.state_dict() for network in made])
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(soup[name], parameter.detach(), atol=1e-6, rtol=1e-5)


def test_a_soup_of_one_is_that_state_bit_for_bit_and_aliases_nothing():
    state = networks(1)[0].state_dict()
    soup = uniform_soup([state])
    assert all(torch.equal(soup[name], tensor) for name, tensor in state.items())
    soup["0.weight"].zero_(), soup["1.num_batches_tracked"].zero_()
    assert state["0.weight"].any() and state["1.num_batches_tracked"] == 1


def test_narrow_types_are_summed_wide_and_rounded_once():
    states = [{"w": torch.tensor([1.0 + k / 128], dtype=torch.bfloat16)} for k in (0, 1, 1, 1)]
    assert uniform_soup(states)["w"].dtype == torch.bfloat16
    assert uniform_soup(states)["w"].item() == 1 + 1 / 128
    large = [{"w": torch.tensor([60000.0]).half()}] * 4  # the sum is beyond FP16
    assert uniform_soup(large)["w"].item() == 60000
    flags = [{"on": torch.tensor([True])}, {"on": torch.tensor([False])}]
    assert uniform_soup(flags)["on"].tolist() == [True]


def test_greedy_takes_from_the_best_on_and_leaves_what_hurts():
    states = [number(4), number(0), number(10), number(6)]
    soup, chosen = greedy_soup(states, lambda state: -abs(state["w"].item() - 5))
    assert chosen == (0, 3) and soup["w"].item() == 5


def test_greedy_is_never_below_its_best_member():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        states = [{"w": torch.randn(3, generator=generator)} for _ in range(5)]
        target = torch.randn(3, generator=generator)
        score = lambda state, target=target: -(state["w"] - target).norm().item()  # noqa: E731
        soup, chosen = greedy_soup(states, score)
        assert score(soup) >= max(map(score, states)) == score(states[chosen[0]])
        torch.testing.assert_close(soup["w"], uniform_soup([states[k] for k in chosen])["w"])


def test_equal_scores_come_in_and_are_tried_in_their_order():
    assert greedy_soup([number(1), number(2), number(3)], lambda _: 1.0)[1] == (0, 1, 2)
    assert greedy_soup([number(1), number(2)], lambda _: -torch.inf)[1] == (0, 1)


def test_greedy_scores_a_dictionary_of_its_own():
    def spoiling(state):
        del state["w"]
        return 0.0

    states = [number(1), number(2)]
    assert greedy_soup(states[:1], spoiling)[1] == (0,) and "w" in states[0]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "a soup needs at least one state, got 0"),
        ([number(1), {"v": torch.ones(1)}], "all states must have the same names, and state 1 differs in v"),
        ([number(1), number(1) | {"v": torch.ones(1)}], "state 1 differs in v"),
        (
            [number(1), {"w": torch.ones(2)}],
            "w must be torch.float32 (1,) in all states, got torch.float32 (2,)",
        ),
        ([number(1), {"w": torch.ones(1).double()}], "got torch.float64 (1,) in state 1"),
    ],
)
def test_states_that_do_not_mix_are_refused(states, message):
    for stir in (uniform_soup, lambda s: greedy_soup(s, lambda _: 1.0)):
        with pytest.raises(ValueError, match=re.escape(message)):
            stir(states)


def test_a_score_that_is_nan_is_refused():
    with pytest.raises(ValueError, match=re.escape("a score must not be NaN, got nan for state 1")):
        greedy_soup([number(1), number(2)], lambda state: float("nan") if state["w"] == 2 else 0.0)
