"""Magnitude pruning: exact counts, ties, one threshold against many, and masks that stay through optimizer steps."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from qlab.model import load_course_model
from qlab.sparsity import (
    apply_masks,
    global_masks,
    magnitude_mask,
    masks_kept,
    per_layer_masks,
    prunable_weights,
    random_masks,
    sparsity_of,
)


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"small": 0.1 * torch.randn(6, 10, generator=generator), "large": torch.randn(8, 5, generator=generator)}


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.33, 0.5, 0.999, 1])
def test_the_count_is_exact_also_among_equal_magnitudes(sparsity):
    for weight in (torch.randn(7, 11), torch.ones(7, 11), torch.zeros(7, 11), torch.tensor([1.0, -1.0, 1.0, -1.0])):
        pruned = weight.numel() - int(magnitude_mask(weight, sparsity).sum())
        assert pruned == round(sparsity * weight.numel())


def test_what_goes_is_never_larger_than_what_stays():
    weight = torch.randn(40, 30).bfloat16()  # many equal magnitudes
    mask = magnitude_mask(weight, 0.4)
    assert weight[~mask].abs().max() <= weight[mask].abs().min()


def test_globally_the_small_layer_loses_more_and_layer_by_layer_all_lose_the_same():
    together, apart = global_masks(weights(), 0.5), per_layer_masks(weights(), 0.5)
    assert sparsity_of(together) == sparsity_of(apart) == 0.5
    assert sparsity_of({"small": together["small"]}) > 0.7
    assert all(sparsity_of({name: mask}) == 0.5 for name, mask in apart.items())
    flat = torch.cat([weight.abs().flatten() for weight in weights().values()]).sort().values
    assert all(torch.equal(mask, weights()[name].abs() > flat[49]) for name, mask in together.items())


@pytest.mark.parametrize("method", [prune.L1Unstructured, None])
def test_torch_prunes_the_same_weights(method):
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    mine = (global_masks if method else per_layer_masks)(prunable_weights(net), 0.6)
    if method:
        prune.global_unstructured([(net[0], "weight"), (net[1], "weight")], pruning_method=method, amount=0.6)
    else:
        for layer in net:
            prune.l1_unstructured(layer, "weight", amount=0.6)
    assert torch.equal(mine["0.weight"], net[0].weight_mask.bool())
    assert torch.equal(mine["1.weight"], net[1].weight_mask.bool())


def test_masks_are_nested_within_earlier_ones_though_weights_became_zero():
    first = {"w": torch.tensor([False, True, True, True, True, True])}
    weight = {"w": torch.tensor([0.0, 0.0, 0.0, 3.0, 2.0, 1.0])}
    assert global_masks(weight, 0.5, within=first)["w"].tolist() == [False, False, False, True, True, True]
    back = {"w": torch.tensor([9.0, 0.0, 0.0, 3.0, 2.0, 1.0])}  # a pruned weight that has moved stays pruned
    for sparsity in (1 / 6, 0):
        assert global_masks(back, sparsity, within=first)["w"].tolist() == [False, True, True, True, True, True]


def test_the_masks_of_the_course_model_leave_its_tied_head_alone():
    model = load_course_model()
    names = prunable_weights(model)
    assert len(names) == 28 and "head.weight" not in names and "embedding.weight" not in names
    before = model.embedding.weight.clone()
    apply_masks(model, global_masks(names, 1))
    assert torch.equal(model.embedding.weight, before)
    assert not any(weight.any() for weight in prunable_weights(model).values())


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_pruned_weights_stay_zero_through_steps_that_would_move_them(make):
    net = nn.Linear(8, 8)
    optimizer = make(net.parameters())
    step = lambda: (net(torch.randn(4, 8)).square().sum().backward(), optimizer.step())  # noqa: E731
    step()  # the momentum now points at every weight
    masks = {"weight": magnitude_mask(net.weight, 0.5)}
    with masks_kept(optimizer, net, masks):
        for _ in range(3):
            optimizer.zero_grad()
            step()
            assert not net.weight[~masks["weight"]].any() and net.weight[masks["weight"]].all()
    step()
    assert net.weight[~masks["weight"]].all()  # and no longer afterwards


def test_random_masks_keep_as_many_of_each_layer_elsewhere():
    masks = global_masks(weights(), 0.5)
    drawn = random_masks(masks, generator=torch.Generator().manual_seed(0))
    assert all(drawn[name].sum() == mask.sum() and not torch.equal(drawn[name], mask) for name, mask in masks.items())
    again = random_masks(masks, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(drawn[name], again[name]) for name in masks)


def test_a_pruned_weight_that_is_not_finite_becomes_zero():
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[float("nan"), 1.0]])
    apply_masks(net, {"weight": torch.tensor([[False, True]])})
    assert net.weight.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: magnitude_mask(torch.ones(3), 1.01), "sparsity must be 0 to 1, got 1.01"),
        (lambda: magnitude_mask(torch.ones(3), -0.5), "sparsity must be 0 to 1, got -0.5"),
        (lambda: magnitude_mask(torch.ones(3), float("nan")), "sparsity must be 0 to 1, got nan"),
        (lambda: global_masks({}, 0.5), "pruning needs at least one weight, got 0"),
        (lambda: sparsity_of({}), "a sparsity is that of at least one mask, got 0"),
        (lambda: per_layer_masks({"up": torch.tensor([1.0, torch.inf])}, 0.5), "up must be finite, and holds 1 NaN"),
        (
            lambda: global_masks({"up": torch.ones(3)}, 0.5, within={}),
            "the earlier mask of up must have its shape (3,), got none",
        ),
        (
            lambda: apply_masks(nn.Linear(2, 3), {"up": torch.ones(3, 2) > 0}),
            "a mask is named up, and the model has no such parameter",
        ),
        (
            lambda: apply_masks(nn.Linear(2, 3), {"weight": torch.ones(2, 3) > 0}),
            "the mask of weight must have the parameter's shape (3, 2), got (2, 3)",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
