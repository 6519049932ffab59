"""Structured pruning: the smaller network computes what the masked one did, is smaller, and shares nothing."""

import copy
import re

import pytest
import torch
from torch import nn

from qlab.config import COURSE_MODEL, ModelConfig, count_parameters
from qlab.model import Decoder, load_course_model
from qlab.sparsity import file_bytes, largest_units, remove_ffn_units, remove_units, unit_scores


def pair(bias=True):
    return nn.Linear(6, 8, bias=bias), nn.Linear(8, 3, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [torch.relu, torch.sigmoid])
def test_what_is_left_computes_what_the_masked_pair_did(bias, activation):
    first, second = pair(bias)
    kept = torch.tensor([0, 2, 3, 7])
    smaller = remove_units(first, second, kept)
    x, mask = torch.randn(5, 6), torch.zeros(8)
    mask[kept] = 1
    torch.testing.assert_close(smaller[1](activation(smaller[0](x))), second(activation(first(x)) * mask))
    assert (smaller[0].out_features, smaller[1].in_features) == (4, 4)
    assert smaller[0].weight.shape == (4, 6) and smaller[1].weight.shape == (3, 4)


def test_a_mask_and_numbers_say_the_same_and_numbers_keep_their_order():
    first, second = pair()
    mask = torch.tensor([True, False, True, True, False, False, False, True])
    by_mask, by_numbers = remove_units(first, second, mask), remove_units(first, second, mask.nonzero().flatten())
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(by_mask, by_numbers, strict=True))
    turned = remove_units(first, second, torch.tensor([3, 0]))
    assert torch.equal(turned[0].weight, first.weight[[3, 0]]) and torch.equal(
        turned[1].weight, second.weight[:, [3, 0]]
    )


def test_nothing_is_shared_and_the_layers_train():
    first, second = pair()
    before = copy.deepcopy(first.weight)
    smaller = remove_units(first, second, torch.tensor([1, 4]))
    smaller[1](smaller[0](torch.randn(2, 6))).sum().backward()
    smaller[0].weight.data.zero_()
    assert torch.equal(first.weight, before) and first.weight.grad is None
    assert smaller[0].weight.grad.shape == (2, 6) and smaller[0].weight.untyped_storage().nbytes() == 2 * 6 * 4


def test_a_frozen_layer_stays_frozen_and_the_type_stays():
    first, second = pair()
    first.requires_grad_(False)
    smaller = remove_units(first.double(), second.double().eval(), torch.tensor([1]))
    assert not smaller[0].weight.requires_grad and smaller[1].weight.requires_grad
    assert smaller[0].weight.dtype == torch.float64 and not smaller[1].training


def test_scores_are_products_of_norms_and_the_first_of_equal_ones_stay():
    first, second = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
    first.weight.data, second.weight.data = torch.tensor([[3.0, 4], [0, 1], [1, 0]]), torch.tensor([[2.0, -1, 1]])
    assert unit_scores([first], second).tolist() == [10.0, 1.0, 1.0]
    assert largest_units(torch.tensor([1.0, 5, 1, 5]), count=3).tolist() == [0, 1, 3]


def test_a_gated_decoder_computes_what_the_masked_one_did_and_its_file_is_smaller():
    model = load_course_model()
    kept = [largest_units(unit_scores((x.ffn.gate, x.ffn.up), x.ffn.down), count=352) for x in model.layers]
    masked = copy.deepcopy(model)
    for layer, numbers in zip(masked.layers, kept, strict=True):
        gone = torch.ones(704, dtype=torch.bool)
        gone[numbers] = False
        layer.ffn.down.weight.data[:, gone] = 0
    smaller = remove_ffn_units(copy.deepcopy(model), kept)
    tokens = torch.randint(256, (2, 32))
    torch.testing.assert_close(smaller(tokens), masked(tokens), atol=2e-4, rtol=1e-4)
    assert smaller.config.ffn_width == 352 and count_parameters(smaller.config) == sum(
        p.numel() for p in smaller.parameters()
    )
    assert smaller.head.weight is smaller.embedding.weight
    assert file_bytes(smaller.state_dict()) < 0.69 * file_bytes(model.state_dict())


def test_a_decoder_without_gates_and_with_biases():
    config = ModelConfig(
        **{**vars(COURSE_MODEL), "layers": 2, "width": 32, "ffn_width": 16, "gated": False, "biases": True}
    )
    model = remove_ffn_units(Decoder(config), [torch.arange(8), torch.arange(8, 16)])
    assert model.layers[1].ffn.up.bias.shape == (8,) and model.layers[1].ffn.down.bias.shape == (32,)
    assert model(torch.randint(256, (1, 4))).shape == (1, 4, 256)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remove_units(nn.Linear(2, 3), nn.Linear(4, 1), torch.tensor([0])), "got [3] rows and 4 columns"),
        (lambda: remove_units([], nn.Linear(4, 1), torch.tensor([0])), "units are read from at least one layer, got 0"),
        (lambda: remove_units(*pair(), torch.tensor([8])), "units must be 0 to 7, got 8 to 8"),
        (lambda: remove_units(*pair(), torch.tensor([-1])), "units must be 0 to 7, got -1 to -1"),
        (lambda: remove_units(*pair(), torch.tensor([1, 1])), "a unit can stay once, got 2 numbers of 1 units"),
        (lambda: remove_units(*pair(), torch.zeros(8) > 0), "at least one of 8 units must stay, got none"),
        (lambda: remove_units(*pair(), torch.ones(7) > 0), "one value for each of 8 units, got shape (7,)"),
        (lambda: largest_units(torch.ones(3), count=0), "count must be 1 to 3, got 0"),
        (lambda: remove_ffn_units(load_course_model(), []), "one keep for each of 4 layers, got 0"),
        (
            lambda: remove_ffn_units(load_course_model(), [torch.arange(k) for k in (4, 4, 5, 4)]),
            "all layers must keep as many units, since a config holds one width, got [4, 5]",
        ),
    ],
)
def test_what_cannot_be_removed_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_refusal_leaves_the_decoder_as_it_was():
    model = load_course_model()
    with pytest.raises(ValueError, match="units must be"):
        remove_ffn_units(model, [torch.arange(4), torch.arange(4), torch.arange(4), torch.arange(701, 705)])
    assert model.layers[0].ffn.up.out_features == 704
