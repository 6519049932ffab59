"""The recipe of a training run: what it refuses, what it draws, and how its rate falls."""

import math

import pytest
import torch

from qlab.recipes import TextRecipe

TEXT = torch.arange(200, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["steps", "batch", "sequence"])
def test_counts_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TextRecipe(**{name: 0})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_the_rate_is_a_positive_number(value):
    with pytest.raises(ValueError, match=f"learning_rate must be above 0 and finite, got {value}"):
        TextRecipe(learning_rate=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_the_norm_is_above_zero_and_infinity_clips_nothing(value):
    with pytest.raises(ValueError, match=f"max_norm must be above 0, got {value}"):
        TextRecipe(max_norm=value)
    assert TextRecipe(max_norm=math.inf).max_norm == math.inf


def test_windows_are_stretches_of_the_text_and_the_same_for_the_same_seed():
    recipe = TextRecipe(steps=5, batch=3, sequence=16, seed=4)
    batches = list(recipe.batches(TEXT))
    assert len(batches) == 5
    for windows in batches:
        assert windows.shape == (3, 17)
        assert windows.dtype == torch.int64
        assert (windows.diff() == 1).all()
    assert all(map(torch.equal, batches, recipe.batches(TEXT)))
    other = next(TextRecipe(steps=5, batch=3, sequence=16, seed=5).batches(TEXT))
    assert not torch.equal(batches[0], other)


def test_every_window_of_a_text_can_be_drawn():
    recipe = TextRecipe(steps=60, batch=1, sequence=5)
    starts = {windows[0, 0].item() for windows in recipe.batches(TEXT[:8])}
    assert starts == {0, 1, 2}


def test_a_text_too_short_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="a window of 16 needs at least 17 bytes, got 16"):
        TextRecipe(sequence=16).batches(TEXT[:16])


def test_the_rate_falls_to_zero_in_a_straight_line():
    recipe = TextRecipe(steps=4, learning_rate=0.4)
    assert [recipe.rate(step) for step in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
