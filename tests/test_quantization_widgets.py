"""The explorers of grids and clips, driven from Python, with answers that are right, wrong, missing and broken."""

import math
import xml.etree.ElementTree as ET

import pytest
import torch

from qlab.calibrate import mse_clip
from qlab.checks.learner import STUB_MESSAGE
from qlab.quantize import TILES, quantize_affine, quantize_symmetric
from qlab.widgets import ClipExplorer, GridExplorer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(explorer) -> str:
    return ET.fromstring(explorer.drawing.value).get("aria-label")


def note(explorer) -> str:
    """Return the last line of the drawing."""
    return [e.text for e in ET.fromstring(explorer.drawing.value).iter() if e.tag.endswith("text")][-1]


def symmetric(x, bits):
    largest = 2 ** (bits - 1) - 1
    scale = x.abs().max() / largest
    scale = scale if scale > 0 else torch.tensor(1.0)
    return (x / scale).round().clamp(-largest, largest).to(torch.int8), scale


def affine(x, bits):
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    zero_point = round(-low / scale)
    return (x / scale + zero_point).round().clamp(0, 2**bits - 1).to(torch.uint8), scale, zero_point


def in_fp64(x, bits):
    codes, scale = symmetric(x.double(), bits)
    return codes.tolist(), scale.item()


def by_the_inverse(x, bits):
    largest = 2 ** (bits - 1) - 1
    c = largest / x.abs().max()
    return (x * c).round(), 1 / c


def half_up(x, bits):
    """Take the other neighbor of every tie, of codes and of the zero point."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    zero_point = math.floor(-low / scale + 0.5)
    return torch.floor(x / scale + zero_point + 0.5).clamp(0, 2**bits - 1), scale, zero_point


# ------------------------------------------------------------------ the grid


def test_every_control_redraws():
    explorer = GridExplorer(random(40, 300))
    seen = [told(explorer)]
    assert seen[0].startswith("4 bits, symmetric, per tensor, whole range kept: 4.00 bits per weight")
    for control, value in (
        (explorer.bits, 3),
        (explorer.kind, "affine"),
        (explorer.granularity, "per row"),
        (explorer.rank, 100),
        (explorer.clip, 60),
    ):
        control.value = value
        seen.append(told(explorer))
    assert len(set(seen)) == len(seen)
    assert seen[-1].startswith("3 bits, affine, per row, 60 % of range kept: 3.13 bits per weight with constants.")
    assert "drawn: row 40 of 40 by range" in seen[-1]


def test_a_tile_is_chosen_only_where_there_are_several():
    explorer = GridExplorer(random(4, 4))
    assert explorer.rank.disabled
    explorer.granularity.value = "per column"
    assert not explorer.rank.disabled


def test_finer_grains_lower_the_error_and_take_more_bits():
    x = random(64, 256) * torch.linspace(0.1, 4, 64)[:, None]
    explorer, found = GridExplorer(x), []
    for granularity in ("per tensor", "per row", "groups of 32"):
        explorer.granularity.value = granularity
        words = told(explorer)
        found.append((float(words.split("SQNR ")[1].split(" dB")[0]), float(words.split(": ")[1].split(" bits")[0])))
    assert sorted(found) == found and len(set(found)) == 3


@pytest.mark.parametrize(
    "answer", [symmetric, affine, in_fp64, by_the_inverse], ids=["symmetric", "affine", "fp64 lists", "127/absmax"]
)
def test_a_right_quantizer_is_right_at_every_setting(answer):
    explorer = GridExplorer(random(48, 130) + 0.2, answer)
    assert (explorer.kind.value == "affine") == (answer is affine)
    for bits in (2, 3, 8):
        for granularity in TILES:
            for clip in (100, 37):
                explorer.bits.value, explorer.granularity.value, explorer.clip.value = bits, granularity, clip
                assert "✓ as it should be" in note(explorer), note(explorer)
    assert note(explorer).startswith(f"your quantize_{explorer.kind.value}: step ")


@pytest.mark.parametrize("seed", range(3))
def test_a_right_quantizer_is_right_on_other_values(seed):
    for x in (random(30, 70, seed=seed), random(30, 70, seed=seed).relu(), random(9, 9, seed=seed) - 9):
        for answer in (symmetric, affine):
            explorer = GridExplorer(x.half().float(), answer)
            for bits in (2, 5, 8):
                explorer.bits.value = bits
                assert "✓ as it should be" in note(explorer), note(explorer)


@pytest.mark.parametrize("answer", [affine, half_up])
def test_of_a_tie_either_neighbor_is_right(answer):
    halves = torch.tensor([[-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.5, 12.5]])  # S is 1, and Z is at 2.5
    explorer = GridExplorer(halves, answer)
    assert "step 1, " in note(explorer) and "✓ as it should be" in note(explorer)
    explorer.kind.value = "symmetric"
    assert "expected (codes, scale)" in note(explorer)


@pytest.mark.parametrize("x", [torch.zeros(3, 5), torch.full((3, 5), -2.0), torch.tensor([[1.0]])])
def test_a_right_quantizer_is_right_on_constants(x):
    assert "✓ as it should be" in note(GridExplorer(x, symmetric))
    assert "✓ as it should be" in note(GridExplorer(x, affine))


def truncates(x, bits):
    scale = symmetric(x, bits)[1]
    return (x / scale).to(torch.int8), scale


def forgets_the_scale_of_bits(x, bits):
    return (x / (x.abs().max() / 127)).round(), x.abs().max() / 127


def wraps(x, bits):
    codes, scale, zero_point = affine(x, 8)
    return codes.to(torch.int16).to(torch.int8), scale, zero_point


def leaves_zero_out(x, bits):
    scale = (x.max() - x.min()) / (2**bits - 1)
    return ((x - x.min()) / scale).round(), scale, 0


def does_not_round(x, bits):
    scale = symmetric(x, bits)[1]
    return x / scale, scale


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (truncates, r"of the codes differ: "),
        (forgets_the_scale_of_bits, "✗ expected step "),
        (wraps, "✗ expected step "),
        (leaves_zero_out, "✗ expected zero_point "),
        (does_not_round, "✗ expected whole numbers as codes, got "),
        (lambda x, bits: (x, 0.0), "✗ expected a scale above 0 and a finite zero_point, got 0 and 0"),
        (lambda x, bits: (x * math.nan, 1.0), "✗ expected whole numbers as codes, got nan"),
        (lambda x, bits: (x * math.inf, 1.0), "✗ expected whole numbers as codes, got "),
        (lambda x, bits: (x, math.nan), "✗ expected a scale above 0 and a finite zero_point, got nan and 0"),
        (lambda x, bits: ((x * 1e6).round(), 1e-6), "✗ expected codes from −7 to 7, got -"),
        (lambda x, bits: (torch.full_like(x, 1e30), 1.0), "✗ expected codes from −7 to 7, got 1,000,000"),
        (lambda x, bits: x, "✗ returned Tensor, expected (codes, scale)"),
        (lambda x, bits: (x, 1.0, 0, 0), "✗ returned 4 things, expected (codes, scale)"),
        (lambda x, bits: None, "✗ returned NoneType, expected (codes, scale)"),
        (lambda x, bits: ("codes", 1.0), "which holds no plain numbers"),
        (lambda x, bits: (x[:1], 1.0), "returned shape (1, 20), expected (30, 20)"),
        (lambda x, bits: (x, x), "expected ()"),
        (lambda x, bits: 1 / 0, "ZeroDivisionError"),
        (lambda x: x, "TypeError"),
    ],
)
def test_a_wrong_quantizer_is_told_in_one_line(answer, sentence):
    explorer = GridExplorer(random(30, 20) + 0.3, answer)
    assert note(explorer).startswith("your quantize_") and sentence in note(explorer), note(explorer)
    assert "Traceback" not in explorer.drawing.value and "\n" not in note(explorer)
    for bits in (2, 8):
        explorer.bits.value = bits
        assert 'role="img"' in explorer.drawing.value


def test_codes_that_wrap_are_told_at_eight_bits():
    explorer = GridExplorer(random(30, 20) + 0.3, wraps)
    explorer.bits.value = 8
    assert "of the codes differ: " in note(explorer) and " got −" in note(explorer)


def test_the_other_kind_is_asked_for_by_its_shape():
    explorer = GridExplorer(random(5, 5), symmetric)
    explorer.kind.value = "affine"
    assert note(explorer) == "your quantize_affine: ✗ returned 2 things, expected (codes, scale, zero_point)"


def test_a_quantizer_that_is_missing_is_one_line_and_qlabs_is_drawn():
    def stub(x, bits):
        raise NotImplementedError(STUB_MESSAGE)

    explorer = GridExplorer(random(5, 5), stub)
    assert note(explorer) == "your quantize_symmetric: not answered yet"
    assert told(explorer).startswith(told(GridExplorer(random(5, 5))))


def test_the_learners_codes_are_what_is_drawn():
    explorer = GridExplorer(random(5, 5), lambda x, bits: (torch.zeros(5, 5), x.abs().max() / 7))
    assert "at most 25 values on one" in explorer.drawing.value
    assert "SQNR 0.0 dB" in note(explorer)


def test_a_quantizer_that_works_in_place_changes_nothing():
    def in_place(x, bits):
        codes, scale = symmetric(x, bits)
        return codes, scale + 0 * x.zero_().sum()

    x = random(6, 7)
    before = x.clone()
    assert "✓ as it should be" in note(GridExplorer(x, in_place)) and torch.equal(x, before)


@pytest.mark.parametrize("x", [random(24), random(2, 3, 8), random(6, 8).bfloat16(), random(6, 8).requires_grad_()])
def test_other_tensors_are_read_as_a_matrix(x):
    explorer = GridExplorer(x)
    explorer.granularity.value = "per row"
    assert "drawn: row " in told(explorer) or len(x.shape) == 1


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.tensor([[1.0, math.nan]]), "x must be finite, and holds 1 NaN or infinite values"),
        (torch.tensor([[math.inf, -math.inf]]), "x must be finite, and holds 2 NaN or infinite values"),
        (torch.empty(0, 3), "x must hold at least one value, got shape (0, 3)"),
        (torch.empty(0), "x must hold at least one value, got shape (1, 0)"),
    ],
)
def test_what_has_no_grid_is_a_sentence(x, sentence):
    for quantizer in (None, symmetric):
        assert GridExplorer(x, quantizer).drawing.value == f'<p role="alert">No such grid: {sentence}.</p>'


# ------------------------------------------------------------------ the clip


def exact_clip(x, bits):
    return mse_clip(x, bits=bits)


def coarse_clip(x, bits):
    """Try forty clips with a loop."""
    largest, best = x.abs().max().item(), (math.inf, 0.0)
    for place in range(1, 41):
        clip = largest * place / 40
        codes, scale = symmetric(x.clamp(-clip, clip), bits)
        best = min(best, ((codes * scale - x).square().mean().item(), clip))
    return torch.tensor(best[1])


def test_moving_clip_and_bits_redraws():
    explorer = ClipExplorer(random(60, 80))
    assert told(explorer).startswith("4 bits, clip at ") and "100 % of the largest magnitude" in told(explorer)
    explorer.clip.value = 25
    assert "25 % of the largest magnitude" in told(explorer)
    explorer.bits.value = 8
    assert told(explorer).startswith("8 bits, clip at ")
    for clip in (1, 100):
        explorer.clip.value = clip
        assert 'role="img"' in explorer.drawing.value


@pytest.mark.parametrize("answer", [exact_clip, coarse_clip])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_right_clip_is_right_and_marked(answer, bits):
    explorer = ClipExplorer(random(60, 90), answer)
    explorer.bits.value = bits
    assert note(explorer).startswith("your mse_clip: ") and note(explorer).endswith("✓ as it should be")
    assert 'class="found"' in explorer.drawing.value


def test_a_right_clip_is_right_on_a_sample():
    explorer = ClipExplorer(random(200, 100) * random(200, 1, seed=1).exp(), exact_clip)
    for bits in (2, 4, 8):
        explorer.bits.value = bits
        assert note(explorer).endswith("✓ as it should be")


def test_a_clip_is_looked_for_once_for_each_number_of_bits():
    asked = []

    def counts(x, bits):
        asked.append(bits)
        return 1.0

    explorer = ClipExplorer(random(20, 20), counts)
    for bits in (4, 8, 4, 8):
        explorer.bits.value = bits
        explorer.clip.value = 10 * bits
    assert asked == [4, 8]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x, bits: x.abs().max(), "times the least error: expected "),
        (lambda x, bits: 1e9, "times the least error: expected "),
        (lambda x, bits: -1.0, "✗ expected a number above 0, near "),
        (lambda x, bits: 0, "✗ expected a number above 0, near "),
        (lambda x, bits: math.nan, "✗ expected a number above 0, near "),
        (lambda x, bits: math.inf, "✗ expected a number above 0, near "),
        (lambda x, bits: None, "`mse_clip` returned None"),
        (lambda x, bits: x, "expected ()"),
        (lambda x, bits: x[bits, 99], "IndexError"),
    ],
)
def test_a_wrong_clip_is_told_in_one_line(answer, sentence):
    explorer = ClipExplorer(random(30, 20), answer)
    assert note(explorer).startswith("your mse_clip: ") and sentence in note(explorer), note(explorer)


def test_a_clip_finder_that_is_missing_is_one_line():
    def stub(x, bits):
        raise NotImplementedError(STUB_MESSAGE)

    assert note(ClipExplorer(random(5, 5), stub)) == "your mse_clip: not answered yet"


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.tensor([1.0, math.nan]), "x must be finite, and holds 1 NaN or infinite values"),
        (torch.zeros(2, 3), "x must hold a value that is not zero, got 6 zeros"),
        (torch.empty(0), "x must hold at least one value, got shape (0,)"),
    ],
)
def test_what_has_no_clip_is_a_sentence(x, sentence):
    assert ClipExplorer(x).drawing.value == f'<p role="alert">No such clip: {sentence}.</p>'


def test_the_explorers_agree_with_the_lab_twins():
    x = random(20, 30)
    assert torch.equal(symmetric(x, 4)[0], quantize_symmetric(x, bits=4).codes)
    assert torch.equal(affine(x, 4)[0], quantize_affine(x, bits=4).codes)
