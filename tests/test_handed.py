"""What an answer hands to a function that it was given is read by its shape and type before anything is computed."""

import numpy as np
import pytest
import torch

from qlab.checks import probe
from qlab.checks.handed import handed, handed_named
from qlab.checks.optimizers_8bit.printed import NO_EPS, Walk
from qlab.checks.optimizers_8bit.rules import Settings
from qlab.checks.smaller_models.kitchen import Counted
from qlab.checks.smaller_models.trainer import NOTED, SHAPES, Trainer

HUGE = 30_000_000


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3, 8).T[:, 0:3].T[:, ::4],
        torch.nn.Parameter(torch.zeros(3, 2)),
        torch.zeros(3, 2, dtype=torch.bfloat16),
        np.zeros((3, 2)),
        [[0.0, 0.0]] * 3,
        [torch.zeros(2).tolist(), (0.0, 0.0), [0.0, 0.0]],
    ],
)
def test_a_view_an_array_and_a_list_are_read(value):
    assert torch.equal(handed(value, (3, 2), what="x").double(), torch.zeros(3, 2).double())


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.zeros(()).expand(HUGE), f"shape ({HUGE},), expected (3, 2)"),
        (torch.zeros(2), r"shape (2,), expected (3, 2)"),
        ([0.0] * 9, "shape (9,), expected (3, 2)"),
        ([], "shape (0,), expected (3, 2)"),
        (None, "shape (), expected (3, 2)"),
        (torch.zeros(3, 2, dtype=torch.uint8), "torch.uint8, expected a floating type"),
        (torch.zeros(3, 2, dtype=torch.complex64), "torch.complex64, expected a floating type"),
    ],
)
def test_another_shape_or_type_is_refused(value, told):
    with pytest.raises(ValueError) as error:
        handed(value, (3, 2), what="x")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("values", "told"), [([1.0], "must be a dict of tensors, got a list"), ({"b": 1.0}, "the state has no 'a'")]
)
def test_another_dict_is_refused(values, told):
    with pytest.raises(ValueError, match=told):
        handed_named(values, {"a": ()}, what="the state")


def test_a_score_keeps_no_more_than_one_state():
    score = Counted((1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="'weight' of the state"):
        score({"weight": torch.zeros(1, dtype=torch.uint8).expand(HUGE)})
    assert (score.calls, score.first) == (0, ())
    for number in range(4):
        assert score({"weight": torch.tensor([1.0, 2.0, 3.0 + number])}) == -(number**2)
    assert (score.calls, score.first) == (4, (1.0, 2.0, 3.0))


def test_training_broadcasts_nothing_and_notes_few_calls():
    train, weights = Trainer(torch.Generator()), {name: torch.ones(shape) for name, shape in SHAPES.items()}
    tall, wide = ({name: torch.ones(shape) for name in SHAPES} for shape in ((36_000, 1), (1, 36_000)))
    for given in ((tall, wide), (weights, wide), (tall, None)):
        with pytest.raises(ValueError, match="expected"):
            train(*given)
    masks = {name: torch.ones(shape, dtype=torch.int8) for name, shape in SHAPES.items()}
    for _ in range(2 * NOTED):
        train(weights, masks)
    assert train.calls == 2 * NOTED and len(train.begun) == len(train.masks) == len(train.ended) == NOTED


def test_a_gradient_has_the_shape_of_its_place():
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    walk = Walk(start, torch.ones(2), torch.zeros(2), 3, Settings(0.1, (0.9, 0.99), NO_EPS))
    assert torch.equal(walk.gradient_of(start.float()[None]), start[None])
    for place in (torch.zeros(36_000, 1), torch.zeros(36_000, 2), torch.zeros(2, 1), torch.zeros(())):
        with pytest.raises(ValueError, match="expected"):
            walk.gradient_of(place)


def test_what_python_and_numpy_hold_is_counted_at_its_most():
    def squared(x):
        return np.multiply.outer(x.numpy(), x.numpy()).sum()

    result, most = probe.result_and_python_bytes(squared, torch.ones(500))
    assert result == 250_000 and 1_000_000 <= most < 1_100_000
    assert probe.result_and_python_bytes(lambda x: torch.outer(x, x), torch.ones(500))[1] < 50_000
