import copy
import math
import statistics
from functools import partial

import pytest
import torch

from qlab import damage as room
from qlab.codebooks import NF4, kmeans_codebook
from qlab.corpus import load_corpus
from qlab.damage import (
    TILES,
    Damage,
    Scheme,
    all_schemes,
    by_codebook,
    damage,
    pareto_front,
    rounded_copy,
    uniform,
    uniform_schemes,
)
from qlab.model import Decoder, load_course_model
from qlab.plots.damage import damage_by_bits
from qlab.quantize import PER_ROW, per_group, quantize_affine, quantize_symmetric
from qlab.scoring import held_out_bits
from tests.test_qat import SMALL, TEXT


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(SMALL)


def test_a_copy_is_rounded_and_the_model_is_not(model):
    before = copy.deepcopy(model.state_dict())
    rounded, bits = rounded_copy(model, uniform(PER_ROW, bits=3), keep=(model.head,))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    old, new = model.layers[0].ffn.down.weight.detach(), rounded.layers[0].ffn.down.weight
    assert torch.equal(new, quantize_symmetric(old, bits=3, tile=PER_ROW).dequantize())
    assert torch.equal(rounded.embedding.weight, model.embedding.weight)
    assert rounded.head.weight is rounded.embedding.weight
    # a scale of 32 bits for each row: of 16 values, but in `down` of 24
    values = {name: p.shape for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name}
    total = sum(rows * columns * 3 + 32 * rows for rows, columns in values.values())
    assert bits == pytest.approx(total / sum(rows * columns for rows, columns in values.values()))


def test_a_tied_head_that_is_not_kept_takes_the_embedding_along(model):
    rounded, _ = rounded_copy(model, uniform(PER_ROW, bits=3))
    assert not torch.equal(rounded.embedding.weight, model.embedding.weight)
    assert rounded.head.weight is rounded.embedding.weight


def test_differences_are_paired_window_by_window(model):
    scheme = Scheme("per row", 2, uniform(PER_ROW, bits=2))
    (found,) = damage(model, [scheme], TEXT, sequence=32, keep=(model.head,))
    rounded, bits = rounded_copy(model, scheme.round_trip, keep=(model.head,))
    pairs = zip(
        held_out_bits(rounded, TEXT, sequence=32).tolist(),
        held_out_bits(model, TEXT, sequence=32).tolist(),
        strict=True,
    )
    lost = [after - before for after, before in pairs]
    assert len(lost) == 12
    assert found.bits_per_byte == pytest.approx(statistics.mean(lost), abs=1e-6)
    assert found.standard_error == pytest.approx(statistics.stdev(lost) / math.sqrt(12), rel=1e-3)
    assert (found.family, found.bits, found.bits_per_weight) == ("per row", 2, bits)


def test_a_round_trip_that_changes_nothing_costs_nothing(model):
    (found,) = damage(model, [Scheme("none", 8, lambda weight: (weight, 32.0))], TEXT, sequence=32)
    assert (found.bits_per_byte, found.standard_error, found.bits_per_weight) == (0, 0, 32)


def test_bits_of_a_scheme_count_its_constants():
    weight = torch.randn(64, 128)
    for trip, bits in (
        (uniform(TILES["per tensor"], bits=4), 4 + 32 / weight.numel()),
        (uniform(TILES["per column"], bits=4), 4 + 32 / 64),
        (uniform(per_group(32), bits=4), 4 + 32 / 32),
        (uniform(per_group(64), bits=4, affine=True), 4 + 40 / 64),
        (by_codebook(lambda _: NF4, block_size=64), 4 + 32 / 64),
        (by_codebook(partial(kmeans_codebook, bits=3), block_size=None), 3 + 32 * 8 / weight.numel()),
    ):
        assert trip(weight)[1] == pytest.approx(bits)
    affine, _ = uniform(PER_ROW, bits=3, affine=True)(weight)
    assert torch.equal(affine, quantize_affine(weight, bits=3, tile=PER_ROW).dequantize())


def test_every_scheme_of_the_course_runs_and_more_bits_come_nearer():
    weight, errors = torch.randn(40, 150), {}
    for scheme in all_schemes():
        back, bits = scheme.round_trip(weight)
        assert back.shape == weight.shape and scheme.bits <= bits < scheme.bits + 4
        errors.setdefault(scheme.family, []).append((back - weight).square().mean().item())
    assert len({scheme.name for scheme in all_schemes()}) == len(all_schemes()) == 10 * 7 + 3
    for family, falling in errors.items():
        assert falling == sorted(falling), family
    assert Scheme("per row", 4, uniform(PER_ROW, bits=4)).name == "per row, 4 bits"


def test_widths_may_come_from_a_generator():
    made = uniform_schemes((bits for bits in (8, 4)), families=iter(["per row", "per tensor"]))
    assert [scheme.name for scheme in made] == [
        f"{family}, {b} bits" for family in ("per row", "per tensor") for b in (8, 4)
    ]


def test_bad_input_gets_a_sentence(model):
    with pytest.raises(ValueError, match=r"families must be among per tensor, .*, got per slice"):
        uniform_schemes([4], ["per slice"])
    with pytest.raises(ValueError, match="at least 2 windows of 32 bytes, got 1"):
        damage(model, [], TEXT[:60], sequence=32)
    with pytest.raises(ValueError, match="a window of 512 needs at least 513 bytes, got 400"):
        damage(model, [], TEXT)
    with pytest.raises(ValueError, match="bits must be 2 to 8, got 9"):
        damage(model, uniform_schemes([9]), TEXT, sequence=32)
    with pytest.raises(ValueError, match="must have a linear layer to round, got 0"):
        rounded_copy(torch.nn.ReLU(), uniform(PER_ROW, bits=4))
    with pytest.raises(ValueError, match="12 of 12 windows are not: spoiled, 4 bits"):
        damage(model, [Scheme("spoiled", 4, lambda weight: (weight * math.nan, 4.0))], TEXT, sequence=32)
    model.layers[0].ffn.up.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="holds 1 NaN"):
        rounded_copy(model, uniform(PER_ROW, bits=4))
    with pytest.raises(ValueError, match="12 of 12 windows are not: the model as it was"):
        damage(model, uniform_schemes([4]), TEXT, sequence=32)


def point(bits, lost):
    return Damage("a", 4, bits, lost, 0.0)


def test_the_front_holds_what_nothing_beats():
    points = [point(4, 0.3), point(4, 0.2), point(5, 0.2), point(6, 0.25), point(6, 0.1), point(3, 1.0), point(9, 0.1)]
    front = pareto_front(iter(points))
    assert [(p.bits_per_weight, p.bits_per_byte) for p in front] == [(3, 1.0), (4, 0.2), (6, 0.1)]
    assert pareto_front([]) == []
    drawn = [point(float(b), float(lost)) for b, lost in torch.rand(60, 2).tolist()]
    beaten = [
        p
        for p in drawn
        if any(q.bits_per_weight <= p.bits_per_weight and q.bits_per_byte <= p.bits_per_byte and q != p for q in drawn)
    ]
    assert set(pareto_front(drawn)) == set(drawn) - set(beaten)


def test_the_figure_draws_every_family_with_two_standard_errors():
    found = [Damage(f"family {k}", b, b + 0.5, 0.5 / b, 0.01) for k in range(13) for b in (2, 3)]
    found.append(Damage("noise", 8, 8.5, -0.02, 0.001))
    ax = damage_by_bits(found)
    assert len(ax.get_legend().get_texts()) == 14
    looks = {(line.get_color(), line.get_marker()) for line in (box.lines[0] for box in ax.containers)}
    assert len(looks) == 14
    assert ax.get_ylim()[0] <= -0.022
    assert "bits per weight" in ax.get_xlabel() and "bits per byte" in ax.get_ylabel()


@pytest.mark.slow
def test_what_rounding_costs_the_course_model():
    model = load_course_model()
    schemes = uniform_schemes([8, 3], ["per tensor", "per row"])
    found = damage(model, schemes, load_corpus().validation[: 3 * 256 + 1], sequence=256, keep=(model.head,))
    lost = {(one.family, one.bits): one.bits_per_byte for one in found}
    assert abs(lost["per row", 8]) < 0.01
    assert 0.05 < lost["per row", 3] < lost["per tensor", 3]


def test_the_room_knows_every_granularity():
    assert set(room.TILES) == {f"per {side}" for side in ("tensor", "column", "row")} | {
        f"groups of {size}" for size in (32, 64, 128)
    }
