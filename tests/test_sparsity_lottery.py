"""Lottery tickets: rounds are nested, rewinding restores the very weights, and a train that leaks is caught."""

import copy
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from qlab.sparsity import apply_masks, iterative_pruning, reinitialize, rewind


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


class Recorder:
    """A train that notes where each round begins and then moves every weight that is kept."""

    def __init__(self):
        self.starts = []

    def __call__(self, model, masks):
        self.starts.append(copy.deepcopy(model.state_dict()))
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(self.starts)))
        apply_masks(model, masks)


def test_each_round_starts_from_the_very_first_weights_under_nested_masks():
    model, train = network(), Recorder()
    before = copy.deepcopy(model.state_dict())
    rounds = iterative_pruning(model, train, rounds=3, share=0.5)
    assert [found.sparsity for found in rounds] == pytest.approx([0, 0.5, 0.75, 0.875], abs=0.02)
    for start, found in zip(train.starts, rounds, strict=True):
        for name, first in before.items():
            mask = found.masks.get(name, torch.ones_like(first, dtype=torch.bool))
            assert torch.equal(start[name], first * mask)
            assert found.trained[name][mask].ne(first[mask]).all()
    for one, next_one in pairwise(rounds):
        assert all((one.masks[name] | ~mask).all() for name, mask in next_one.masks.items())
    assert all(torch.equal(model.state_dict()[name], first) for name, first in before.items())


def test_the_weights_of_one_round_do_not_change_in_the_next():
    rounds = iterative_pruning(network(), Recorder(), rounds=2, share=0.2)
    assert not torch.equal(rounds[0].trained["0.bias"], rounds[1].trained["0.bias"])


def test_reinitializing_draws_others_from_its_seed_and_leaves_the_global_stream():
    model, train = network(), Recorder()
    state = torch.random.get_rng_state()
    iterative_pruning(model, train, rounds=2, share=0.5, restart=reinitialize(7))
    assert torch.equal(torch.random.get_rng_state(), state)
    again = Recorder()
    iterative_pruning(model, again, rounds=2, share=0.5, restart=reinitialize(7))
    for k in (1, 2):
        assert torch.equal(train.starts[k]["0.bias"], again.starts[k]["0.bias"])
        assert not torch.equal(train.starts[k]["0.bias"], train.starts[0]["0.bias"])
    assert not torch.equal(train.starts[1]["0.bias"], train.starts[2]["0.bias"])


def test_rewinding_copies_and_does_not_alias():
    model, initial = network(), network().state_dict()
    rewind(model, initial)
    model[0].weight.data.zero_()
    assert initial["0.weight"].any()


def test_no_rounds_and_shares_of_none_and_all():
    assert len(iterative_pruning(network(), Recorder(), rounds=0, share=0.5)) == 1
    assert iterative_pruning(network(), Recorder(), rounds=2, share=0)[-1].sparsity == 0
    assert iterative_pruning(network(), Recorder(), rounds=1, share=1)[-1].sparsity == 1


def test_a_train_that_lets_pruned_weights_move_is_caught():
    def leaking(model, masks):
        for parameter in model.parameters():
            parameter.data += 1

    with pytest.raises(ValueError, match=re.escape("train must keep pruned weights at zero, and")):
        iterative_pruning(network(), leaking, rounds=1, share=0.5)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"rounds": -1, "share": 0.5}, "rounds must be at least 0, got -1"),
        ({"rounds": 1, "share": 1.5}, "share must be 0 to 1, got 1.5"),
    ],
)
def test_impossible_rounds_are_refused(told, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        iterative_pruning(network(), Recorder(), **told)
