"""The explorers of adapters and of four-bit levels: what they draw, what they say, and what they refuse."""

import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pytest
import torch

from qlab.codebooks import double_quantize, linear_map, quantize_blockwise
from qlab.config import COURSE_MODEL, LLAMA_2_70B, NAMED_CONFIGS, count_parameters
from qlab.memory import LORA, QLORA, adapter_parameters, state_bytes
from qlab.plots import adapter_figure, adapter_svg, codebook_errors, levels_figure, levels_svg
from qlab.plots.adapters import BASES, TARGETS, AdapterChoice, in_bytes
from qlab.plots.levels import CODEBOOKS, LevelsChoice, WeightLevels
from qlab.widgets import LevelsExplorer, RankExplorer
from qlab.widgets.adapters import BLOCK_SIZES, RANKS

WEIGHT = torch.randn(96, 80, generator=torch.Generator().manual_seed(0))
QUALITY = {("all matrices", 4): 2.5, ("all matrices", 16): 2.25, ("attention", 16): 2.75}


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def told(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label")


def marked(svg: str, name: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter() if element.get("class") == name]


@pytest.mark.parametrize("config", NAMED_CONFIGS.values(), ids=lambda config: config.name)
def test_adapters_on_all_matrices_cost_what_the_memory_module_says(config):
    assert AdapterChoice(config, 16).adapters == adapter_parameters(config, rank=16)
    for base, recipe in (("16 bits", LORA), ("NF4, double quantized", QLORA)):
        assert AdapterChoice(config, 16, base=base).bills["all of these"][1] == state_bytes(config, recipe).total


def test_the_parts_of_the_matrices_make_the_whole():
    part = {targets: AdapterChoice(LLAMA_2_70B, 8, targets).adapters for targets in TARGETS}
    assert part["attention"] + part["feed-forward"] == part["all matrices"]
    assert part["queries and values"] == 80 * 8 * (8192 + 8192 + 8192 + 1024)


def test_a_full_rank_saves_nothing_and_the_drawing_says_so():
    assert AdapterChoice(COURSE_MODEL, 127).without_saving == 0
    assert AdapterChoice(COURSE_MODEL, 128).without_saving == 4  # 128 · (256 + 256) = 256 · 256
    svg = adapter_svg(AdapterChoice(COURSE_MODEL, 256))
    assert "on 7 of the 7 matrices of a layer the adapter is no smaller" in told(svg)
    assert AdapterChoice(COURSE_MODEL, 256).adapters > count_parameters(COURSE_MODEL)


def test_the_drawing_shows_recorded_quality_and_says_where_there_is_none():
    explorer = RankExplorer(QUALITY, full=2.0)
    assert "recorded beside a base in FP32: 2.2500 bits per byte" in told(explorer.drawing.value)
    assert len(marked(explorer.drawing.value, "quality")) == 2
    explorer.rank.value = 8
    assert told(explorer.drawing.value).endswith("quality: not recorded for this choice")
    assert len(marked(explorer.drawing.value, "quality")) == 2
    explorer.rank.value, explorer.targets.value = 16, "attention"
    assert "in FP32: 2.7500 bits" in told(explorer.drawing.value)
    explorer.model.value = "llama-2-70b"
    assert "not recorded" in told(explorer.drawing.value) and not marked(explorer.drawing.value, "quality")


def test_the_bars_are_on_one_scale_of_tenfold_steps():
    explorer = RankExplorer()
    widths = [float(bar.get("width")) for bar in marked(explorer.drawing.value, "bytes")]
    bills = [count for pair in AdapterChoice().bills.values() for count in pair]
    logs = torch.tensor(bills).double().log10()
    expected = (torch.tensor(widths).double() - min(widths)) / (max(widths) - min(widths))
    torch.testing.assert_close((logs - logs.min()) / (logs.max() - logs.min()), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("base", BASES)
def test_every_choice_of_the_ranks_can_be_drawn(base):
    explorer = RankExplorer(QUALITY)
    explorer.base.value = base
    for name in ("gpt2-xl", "course-model"):
        explorer.model.value = name
        for targets in TARGETS:
            explorer.targets.value = targets
            for rank in (1, RANKS[-1]):
                explorer.rank.value = rank
                assert told(explorer.drawing.value).startswith(f"{name}, rank {rank} on {targets}, base in {base}:")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (lambda: AdapterChoice(rank=0), "rank must be at least 1, got 0"),
        (lambda: AdapterChoice(targets="heads"), "targets must be one of queries and values, attention"),
        (lambda: AdapterChoice(base="FP8"), "base must be one of FP32, 16 bits, NF4"),
        (lambda: LevelsChoice("NF5"), "codebook must be one of NF4, FP4"),
        (lambda: levels_svg(WeightLevels(WEIGHT), LevelsChoice(block_size=0)), "block_size must be at least 1, got 0"),
        (lambda: LevelsExplorer(torch.tensor([1.0, float("nan")])), "must be finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(choice, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        choice()


def test_errors_and_bits_are_those_of_the_codes():
    levels = WeightLevels(WEIGHT)
    for double in (False, True):
        stored = quantize_blockwise(WEIGHT, linear_map(bits=4, signed=True), block_size=32)
        stored = double_quantize(stored) if double else stored
        coded = levels.coded(LevelsChoice("even steps", 32, double))
        assert coded.bits == stored.bits_per_value and sum(coded.counts) == WEIGHT.numel()
        assert coded.error == pytest.approx(((stored.dequantize() - WEIGHT).norm() / WEIGHT.norm()).item())


def test_the_levels_follow_codebook_block_and_double_quantization():
    explorer = LevelsExplorer(WEIGHT)
    assert told(explorer.drawing.value).startswith("NF4, blocks of 64, absmax in FP32: 4.500 bits a parameter")
    explorer.double.value = True
    assert "absmax in 8 bits: 4.1" in told(explorer.drawing.value)
    explorer.codebook.value, explorer.block_size.value = "E3M0", 4096
    assert told(explorer.drawing.value).startswith("E3M0, blocks of 4,096, absmax in 8 bits")
    assert "15 of 15 levels used" in told(explorer.drawing.value)
    assert len(marked(explorer.drawing.value, "error")) == len(CODEBOOKS)


def test_the_histogram_counts_every_weight_also_in_a_ragged_last_block():
    levels = WeightLevels(torch.cat([WEIGHT.flatten(), torch.zeros(5)]))
    assert all(levels.counts(size).sum() == WEIGHT.numel() + 5 for size in BLOCK_SIZES)


def test_a_weight_of_zeros_is_drawn():
    assert "error 0 %" in told(LevelsExplorer(torch.zeros(64)).drawing.value)


def test_the_static_figures_say_the_same():
    left, right = adapter_figure(QUALITY, full=2.0).axes
    assert [line.get_label() for line in left.lines] == [*TARGETS, "all weights trained"]
    assert left.lines[3].get_ydata()[4] == pytest.approx(16 * AdapterChoice(COURSE_MODEL, 16).adapters / 1e6)
    assert len(right.lines) == 3 and right.get_ylabel() == "held-out bits per byte"
    assert adapter_figure({}).axes[1].get_ylabel() == "not recorded yet"
    ax = levels_figure(WEIGHT)
    assert [text.get_text().split(":")[0] for text in ax.texts] == list(CODEBOOKS)
    assert len(codebook_errors(WEIGHT, sizes=(32, 64)).lines) == 2 * len(CODEBOOKS)


@pytest.mark.parametrize(
    ("count", "words"), [(999, "999 bytes"), (1500, "1.5 kB"), (999_700_000, "1,000 MB"), (1.1e12, "1.1 TB")]
)
def test_bytes_are_told_in_the_unit_that_suits_them(count, words):
    assert in_bytes(count) == words
