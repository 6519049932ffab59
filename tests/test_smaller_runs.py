"""The runs of topic 11: files that bring their models back, masks that hold, students, and points that add up."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from qlab import smaller_runs as runs
from qlab.config import COURSE_MODEL
from qlab.corpus import load_corpus
from qlab.damage import all_schemes
from qlab.digits import load_digits_split
from qlab.model import Decoder, load_course_model
from qlab.packing import unpack_codes
from qlab.quantize import TILES, code_range
from qlab.smaller_runs.points import Point
from qlab.sparsity import file_bytes, prunable_weights, sparsity_of

TINY = replace(COURSE_MODEL, layers=2, width=32, heads=2, kv_heads=2, ffn_width=48, sequence=64)
SHORT = runs.DecoderRecipe(steps=2, batch=2, sequence=32)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    torch.manual_seed(0)
    return runs.rounded_as_stored(Decoder(TINY))


def test_a_small_network_learns_in_a_few_steps_and_its_seed_decides():
    digits = load_digits_split()
    recipe = runs.DigitsRecipe(steps=60)
    first, again = (runs.train_network(runs.digits_network(seed=3), digits.train, recipe) for _ in range(2))
    untrained = runs.digits_network(seed=3)
    assert runs.accuracy(first, digits.test) > 0.7 and runs.accuracy(untrained, digits.test) < 0.3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(runs.digits_network(seed=1)[0].weight, runs.digits_network(seed=2)[0].weight)


def test_training_keeps_masks_and_leaves_the_global_stream_alone():
    digits, network = load_digits_split(), runs.digits_network(seed=0)
    state = torch.random.get_rng_state()
    masks = {"0.weight": torch.rand(128, 64, generator=torch.Generator().manual_seed(0)) < 0.5}
    runs.train_network(network, digits.train, runs.DigitsRecipe(steps=3, weight_decay=0.1), masks=masks)
    assert not network[0].weight[~masks["0.weight"]].any() and torch.equal(torch.random.get_rng_state(), state)


def test_a_decoder_trains_under_masks_and_from_a_teacher(tiny):
    text = load_corpus().train[:4000]
    cut, masks = runs.pruned(tiny, runs.layer_by_layer(0.5))
    losses = runs.train_decoder(cut, text, SHORT, masks=masks)
    assert len(losses) == 2 and sparsity_of({n: w != 0 for n, w in prunable_weights(cut).items()}) >= 0.5
    student = runs.new_student(TINY, seed=1)
    first = runs.from_teacher(student, temperature=2.0, weight=1.0)
    same = runs.train_decoder(copy.deepcopy(student), text, replace(SHORT, steps=1), loss=first)
    assert same[0] == pytest.approx(0, abs=1e-5)


def test_forgetting_the_square_weighs_the_soft_part_less(tiny):
    tokens, targets = torch.randint(256, (2, 8)), torch.randint(256, (2, 8))
    logits = runs.new_student(TINY, seed=1)(tokens)
    told = {"temperature": 4.0, "weight": 0.5}
    right, wrong = (make(tiny, **told)(tokens, logits, targets) for make in (runs.from_teacher, runs.without_square))
    hard = 0.5 * runs.next_byte(tokens, logits, targets)
    assert (wrong - hard).item() == pytest.approx((right - hard).item() / 16, rel=1e-3)


def test_narrowing_keeps_all_at_full_width_and_is_smaller_below(tiny):
    tokens = torch.randint(256, (1, 16))
    torch.testing.assert_close(runs.narrowed(tiny, units=48)(tokens), tiny(tokens))
    narrow = runs.narrowed(tiny, units=12)
    assert narrow.config.ffn_width == 12 and tiny.config.ffn_width == 48
    gone = 2 * 2 * 3 * 36 * 32
    assert file_bytes(runs.stored_tensors(tiny)) - file_bytes(runs.stored_tensors(narrow)) == pytest.approx(
        gone, abs=64
    )


@pytest.mark.parametrize("scheme", [s for s in all_schemes() if s.bits in (8, 3)], ids=lambda s: s.name)
def test_a_scheme_writes_the_bits_that_it_claims(scheme):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    parts = runs.encoded(scheme.family, scheme.bits)("w", weight)
    _, claimed = scheme.round_trip(weight)
    assert 8 * sum(part.nbytes for part in parts.values()) == pytest.approx(claimed * weight.numel(), rel=0.002)


@pytest.mark.parametrize("bits", [8, 3])
def test_what_is_written_comes_back(bits):
    weight, tile = torch.randn(16, 64), TILES["per row"]
    parts = runs.encoded("per row", bits)("w", weight)
    codes = unpack_codes(parts["codes"], bits=bits, count=weight.numel()).float().view(16, 64)
    back = (codes + code_range(bits, signed=True)[0]) * parts["scale"]
    scheme = next(s for s in all_schemes() if (s.family, s.bits) == ("per row", bits))
    torch.testing.assert_close(back, scheme.round_trip(weight)[0])
    assert tile.count(weight.shape) == (16, 1)


def test_every_way_is_made_and_no_file_is_larger_than_fp32(tiny):
    windows = torch.randint(256, (4, 64))
    wide = Decoder(replace(TINY, width=64, heads=2, kv_heads=2))
    dims = runs.schemes.OUTLIER_DIMENSIONS
    runs.schemes.OUTLIER_DIMENSIONS = (3, 40)
    try:
        ways = [
            *runs.rounding_ways(wide, widths=(8,)),
            *runs.int8_ways(wide, windows),
            *runs.remedy_ways(wide, windows),
        ]
        points = list(runs.take_points(ways, peer=wide, tokens=windows[:1], quality=lambda _: 1.0, seed=0))
    finally:
        runs.schemes.OUTLIER_DIMENSIONS = dims
    assert len({point.name for point in points}) == len(points) == 2 + 11 + 2 + 2 + 9
    assert all(point.file_bytes <= points[0].file_bytes and point.forward_ms > 0 for point in points)
    assert file_bytes(runs.stored_tensors(wide)) == points[1].file_bytes


def test_a_grid_with_a_learned_step_is_written_as_it_was_trained(tiny):
    recipe = runs.schemes.qat.QatRecipe(steps=2, batch=1, sequence=32)
    trained, tensors = runs.schemes._trained(tiny, load_corpus().train[:4000], recipe, "per row", 3)
    name = "layers.0.ffn.up.weight"
    weight = prunable_weights(trained)[name]
    codes = unpack_codes(tensors[f"{name}.codes"], bits=3, count=weight.numel()).float().view(weight.shape)
    torch.testing.assert_close((codes - 3) * tensors[f"{name}.scale"], weight, atol=1e-6, rtol=1e-5)
    assert trained.head.weight is trained.embedding.weight


def test_the_two_forms_of_a_pruned_file_are_those_of_its_weights(tiny):
    cut, _ = runs.pruned(tiny, runs.two_of_four)
    dense, bitmap, pairs = (
        file_bytes(runs.stored_tensors(cut, e)) for e in (runs.in_bf16, runs.as_bitmap, runs.as_two_four)
    )
    assert pairs <= bitmap + 4000 < dense + 4000 and pairs < dense


def point(cost, bits):
    return Point(topic="11", name="x", arithmetic="", file_bytes=cost, bits_per_byte=bits, forward_ms=1.0, fp32_ms=2.0)


def test_the_frontier_has_what_nothing_cheaper_beats():
    found = [point(4, 1.0), point(1, 3.0), point(2, 3.0), point(3, 2.0), point(3, 2.5), point(5, 1.0)]
    front = runs.frontier(found, cost=lambda p: p.file_bytes)
    assert [(p.file_bytes, p.bits_per_byte) for p in front] == [(1, 3.0), (3, 2.0), (4, 1.0)]
    assert point(1, 1.0).relative_time == 0.5 and runs.frontier([], cost=lambda p: p.file_bytes) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: runs.DigitsRecipe(steps=0), "steps must be at least 1, got 0"),
        (lambda: runs.DigitsRecipe(learning_rate=0.0), "learning_rate must be above 0 and finite, got 0.0"),
        (lambda: runs.DecoderRecipe(batch=0), "batch must be at least 1, got 0"),
        (lambda: runs.DecoderRecipe(max_norm=-1.0), "max_norm must be above 0, got -1.0"),
        (lambda: runs.digits_network((64,), seed=0), "a network has at least two widths, got 1"),
        (lambda: runs.encoded("per pixel", 4), "families must be among per tensor"),
        (
            lambda: runs.train_decoder(nn.Identity(), torch.zeros(32, dtype=torch.uint8), SHORT),
            "a window of 32 needs at least 33 bytes, got 32",
        ),
        (
            lambda: runs.train_network(nn.Identity(), load_digits_split().test, runs.DigitsRecipe(batch=400)),
            "a batch takes 400 images, and there are 350",
        ),
        (lambda: runs.forward_times(nn.Identity(), nn.Identity(), torch.zeros(1), repeats=0), "at least 1, got 0"),
    ],
)
def test_what_cannot_run_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_course_model_is_stored_in_its_own_size():
    model = load_course_model()
    assert file_bytes(runs.stored_tensors(model)) == 6_561_880
    assert torch.equal(runs.rounded_as_stored(model).embedding.weight, model.embedding.weight)
