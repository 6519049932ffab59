"""The explorer of pruning: its numbers are those of the masks, its bytes those of the files, and it draws them all."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch

from qlab.plots import PrunableLayers, kept_by_layer, sparsity_svg
from qlab.plots.sparsity import GLOBAL, PATTERNS, PER_LAYER, ROWS, TWO_FOUR
from qlab.sparsity import bitmap_parts, global_masks, per_layer_masks, sparsity_of, two_four_mask, two_four_parts
from qlab.widgets import SparsityExplorer

GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = {
    "first": 0.3 * torch.randn(16, 24, generator=GENERATOR),
    "second": torch.randn(40, 8, generator=GENERATOR).bfloat16().float(),
}


def told(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label")


@pytest.mark.parametrize(("pattern", "masks_of"), [(GLOBAL, global_masks), (PER_LAYER, per_layer_masks)])
@pytest.mark.parametrize("sparsity", [0, 0.37, 0.9, 1])
def test_what_is_drawn_is_what_the_masks_leave(pattern, masks_of, sparsity):
    masks = masks_of(WEIGHTS, sparsity)
    for shown, weight in WEIGHTS.items():
        found = PrunableLayers(WEIGHTS).prune(shown, pattern, sparsity)
        assert torch.equal(found.mask, masks[shown])
        place = list(WEIGHTS).index(shown)
        assert found.kept[place] == pytest.approx(1 - sparsity_of({shown: masks[shown]}))
        gone = (weight * ~masks[shown]).norm() / weight.norm()
        assert found.errors[place] == pytest.approx(gone.item(), abs=1e-6)


def test_the_bytes_are_those_of_what_is_stored():
    layers = PrunableLayers(WEIGHTS)
    found = layers.prune("first", GLOBAL, 0.5)
    masks = global_masks(WEIGHTS, 0.5)
    parts = [bitmap_parts((w * masks[n]).bfloat16()) for n, w in WEIGHTS.items()]
    assert found.stored_bytes == sum(part.nbytes for made in parts for part in made.values())
    pruned = [two_four_parts((w * two_four_mask(w)).bfloat16()) for w in WEIGHTS.values()]
    assert layers.prune("first", TWO_FOUR, 0.1).stored_bytes == sum(p.nbytes for made in pruned for p in made.values())
    assert layers.prune("first", ROWS, 0.5).stored_bytes == 8 * 24 * 2 + 20 * 8 * 2
    assert found.dense_bytes == 2 * (16 * 24 + 40 * 8)


def test_whole_rows_go_with_the_smallest_norms():
    found = PrunableLayers(WEIGHTS).prune("first", ROWS, 0.25)
    rows = found.mask.any(1)
    norms = WEIGHTS["first"].norm(dim=1)
    assert rows.sum() == 12 and norms[~rows].max() <= norms[rows].min() and found.mask[rows].all()


def test_the_explorer_follows_its_controls():
    explorer = SparsityExplorer(WEIGHTS)
    assert "first, global: " in told(explorer.drawing.value) and not explorer.sparsity.disabled
    explorer.sparsity.value, explorer.layer.value = 0.9, "second"
    assert "second, global: " in told(explorer.drawing.value)
    explorer.pattern.value = PER_LAYER
    assert "second, per layer: 10.0% kept" in told(explorer.drawing.value)
    explorer.pattern.value = TWO_FOUR
    assert "50.0% kept" in told(explorer.drawing.value) and explorer.sparsity.disabled
    assert "56% of it" in told(explorer.drawing.value)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything_can_be_pruned(pattern, sparsity):
    drawn = ET.fromstring(sparsity_svg(PrunableLayers(WEIGHTS), shown="first", pattern=pattern, sparsity=sparsity))
    assert len([e for e in drawn.iter() if e.get("class") == "layer"]) == 2
    zeros = {"zero": torch.zeros(4, 4)}
    assert "of its norm" in told(sparsity_svg(PrunableLayers(zeros), shown="zero", pattern=pattern, sparsity=sparsity))


def test_the_static_figure_draws_every_layer():
    ax = kept_by_layer(PrunableLayers(WEIGHTS), (0.5, 0.9))
    assert ax.get_xlabel() and ax.get_ylabel()
    shares = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(shares) == 2 and shares[1][0] < shares[1][1]


@pytest.mark.parametrize(
    ("weights", "told", "message"),
    [
        (WEIGHTS, {"shown": "third"}, "layers are first, second, got third"),
        (WEIGHTS, {"pattern": "some"}, "patterns are global, per layer, 2:4, whole rows, got some"),
        (WEIGHTS, {"sparsity": 1.2}, "sparsity must be 0 to 1, got 1.2"),
        ({}, {}, "at least one weight, got 0"),
        ({"odd": torch.ones(3, 6)}, {}, "odd must be a matrix of a width that 4 divides, got shape (3, 6)"),
        ({"row": torch.ones(8)}, {}, "row must be a matrix"),
    ],
)
def test_what_cannot_be_drawn_is_refused(weights, told, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsity_svg(PrunableLayers(weights), **{"shown": "first", "pattern": GLOBAL, "sparsity": 0.5} | told)
