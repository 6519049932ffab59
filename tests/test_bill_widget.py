"""The drawing of a bill and its explorer: true to scale, told in words, and never a traceback."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import ipywidgets
import pytest

from qlab import plots
from qlab.bill import GPU_SIZES_GB, Order, both, device_bill, parts, run_for
from qlab.checks.learner import STUB_MESSAGE
from qlab.config import COURSE_MODEL, GPT2_XL, LLAMA_2_70B, LLAMA_3_405B, NAMED_CONFIGS
from qlab.memory import FP32_ADAM, GB, LORA, MIXED_ADAM, QLORA, RECIPES, model_state_bytes, named_recipe
from qlab.plots.bills import LEFT, PART_COLORS, RIGHT
from qlab.widgets import BillExplorer


def draw(config, recipe, *, batch=1, sequence=512, **rest) -> ET.Element:
    return ET.fromstring(plots.bill_svg(config, recipe, run_for(recipe, batch=batch, sequence=sequence), **rest))


def of_class(drawing: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in drawing.iter() if element.get("class") == name]


def texts(drawing: ET.Element) -> list[str]:
    return [element.text for element in drawing.iter("text")]


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in bytes_of(digits)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def bytes_of(digits: str) -> list[float]:
    return [value / 255 for value in bytes.fromhex(digits)]


# ------------------------------------------------------------------ the drawing


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("config", NAMED_CONFIGS.values(), ids=NAMED_CONFIGS)
def test_lengths_are_bytes_on_one_scale(config, recipe):
    for batch in (1, 64):
        drawing = draw(config, recipe, batch=batch)
        order = Order(config=config, recipe=recipe, run=run_for(recipe, batch=batch, sequence=512))
        named = [part for part in parts(order) if part.bytes]
        widths = [float(bar.get("width")) for bar in of_class(drawing, "part")]
        scale = sum(widths) / sum(part.bytes for part in named)
        assert widths == pytest.approx([part.bytes * scale for part in named], abs=0.05)
        (peak,) = of_class(drawing, "peak")
        assert float(peak.get("width")) == pytest.approx(device_bill(order).peak * scale, abs=0.05)
        for line in of_class(drawing, "gpu"):
            size = (float(line.get("x1")) - LEFT) / scale / GB
            assert min(abs(size - known) for known in GPU_SIZES_GB) * GB * scale < 0.1
        assert LEFT + sum(widths) <= RIGHT


def test_every_color_has_its_letter_name_and_number_beside_it():
    drawing = draw(LLAMA_2_70B, LORA, sequence=2048)
    written = texts(drawing)
    order = Order(config=LLAMA_2_70B, recipe=LORA, run=run_for(LORA, batch=1, sequence=2048))
    for part in parts(order):
        assert (f"{part.name} {both(part.bytes)}" in written) == (part.bytes > 0)
    used = [bar.get("fill") for bar in of_class(drawing, "part")]
    assert len(used) == len(set(used)) == 6
    assert f"at one moment {both(device_bill(order).peak)}" in written


@pytest.mark.parametrize(("fill", "ink"), PART_COLORS.values(), ids=PART_COLORS)
def test_letters_can_be_read_on_their_color(fill, ink):
    darker, lighter = sorted((luminance(fill), luminance(ink)))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2, level AA


def test_it_tells_a_screen_reader_everything_and_takes_the_themes_ink():
    drawing = draw(GPT2_XL, MIXED_ADAM, sequence=1024)
    assert drawing.get("role") == "img"
    assert drawing.get("aria-label") == (
        "gpt2-xl, mixed-adam, batch 1, sequence 1,024: weights 3.12 GB, master weights 6.23 GB, gradients 3.12 GB, "
        "optimizer 12.46 GB, activations 2.73 GB, temporary buffers 0.4117 GB. "
        "At most 25.25 GB at one moment: fits a GPU of 40 GB, 63.12% of it"
    )
    inks = {text.get("fill") for text in drawing.iter("text")} - {"#000", "#fff"}
    assert inks == {"currentColor"}


def test_gpu_labels_never_touch_and_the_first_that_fits_is_in_the_picture():
    for config in NAMED_CONFIGS.values():
        for batch in (1, 4, 16, 64, 256, 1024):
            drawing = draw(config, MIXED_ADAM, batch=batch)
            labels = [text for text in drawing.iter("text") if re.fullmatch(r"\d+( GB)?", text.text)]
            places = sorted(float(label.get("x")) for label in labels)
            assert all(right - left >= 30 for left, right in pairwise(places))
            fits = re.search(r"fits a GPU of (\d+) GB", drawing.get("aria-label"))
            if fits and labels:
                assert max(int(label.text.removesuffix(" GB")) for label in labels) >= int(fits[1])


def test_a_small_bill_is_drawn_alone_and_a_huge_one_against_small_lines():
    small = draw(COURSE_MODEL, FP32_ADAM)
    assert not of_class(small, "gpu")
    assert "the smallest GPU here, 16 GB, is far to the right →" in texts(small)
    huge = draw(LLAMA_3_405B, MIXED_ADAM)
    assert len(of_class(huge, "gpu")) == len(GPU_SIZES_GB)
    assert re.search(r"[\d.]+ times a GPU of 141 GB", huge.get("aria-label"))


def test_other_gpus_and_a_note():
    drawing = draw(GPT2_XL, QLORA, gpu_sizes_gb=(6, 12), note="<mine> & yours")
    assert "fits a GPU of 6 GB" in drawing.get("aria-label") and "<mine> & yours" in texts(drawing)


# ------------------------------------------------------------------ the explorer


def told(explorer: BillExplorer) -> str:
    return ET.fromstring(explorer.drawing.value).get("aria-label")


def test_every_control_redraws():
    explorer = BillExplorer()
    seen = [told(explorer)]
    assert seen[0].startswith("gpt2-xl, mixed-adam, batch 1, sequence 1,024:")
    for control, value in (
        (explorer.model, "llama-2-7b"),
        (explorer.recipe, "qlora"),
        (explorer.batch, 4),
        (explorer.sequence, 2048),
        (explorer.checkpointing, True),
    ):
        control.value = value
        seen.append(told(explorer))
    assert len(set(seen)) == len(seen)
    assert seen[-1].startswith("llama-2-7b, qlora, batch 4, sequence 2,048, checkpointed:")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", NAMED_CONFIGS)
def test_every_model_and_recipe_can_be_chosen(name, recipe):
    explorer = BillExplorer()
    explorer.sequence.value = 256
    explorer.model.value, explorer.recipe.value = name, recipe
    assert told(explorer).startswith(f"{name}, {recipe}, batch 1, sequence 256:")
    assert explorer.sizes["width"].value == NAMED_CONFIGS[name].width
    assert all(field.disabled for field in explorer.sizes.values())


@pytest.mark.parametrize("name", ["your own, like Llama", "your own, like GPT-2"])
def test_a_shape_can_be_typed(name):
    explorer = BillExplorer()
    explorer.model.value = name
    assert not any(field.disabled for field in explorer.sizes.values())
    before = told(explorer)
    explorer.sizes["layers"].value *= 2
    assert told(explorer) != before and told(explorer).startswith("your own, mixed-adam")
    explorer.sequence.value = 100_000  # one's own model is as long as one likes
    assert "sequence 100,000" in told(explorer)
    explorer.model.value = "gpt2-xl"
    explorer.sequence.value = 1024
    assert explorer.sizes["layers"].value == GPT2_XL.layers and told(explorer).startswith("gpt2-xl")


@pytest.mark.parametrize(
    ("control", "value", "sentence"),
    [
        ("batch", 0, "batch must be at least 1, got 0"),
        ("sequence", -5, "sequence must be a whole number of at least 1, got -5"),
        ("heads", 7, "heads must divide width, got 7 and 4096"),
        ("kv_heads", 5, "kv_heads must divide heads, got 5 and 32"),
        ("layers", 0, "layers must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_built_is_a_sentence_and_not_the_end(control, value, sentence):
    explorer = BillExplorer()
    explorer.model.value = "your own, like Llama"
    field = explorer.sizes.get(control) or getattr(explorer, control)
    right, drawn = field.value, explorer.drawing.value
    field.value = value
    assert explorer.drawing.value == f'<p role="alert">No such run: {sentence}.</p>'
    field.value = right
    assert explorer.drawing.value == drawn


def test_a_sequence_longer_than_a_named_models_is_a_sentence():
    explorer = BillExplorer()
    explorer.sequence.value = 2048
    assert "sequence must be at most the model&#x27;s 1024, got 2048" in explorer.drawing.value


def test_it_starts_with_the_config_it_is_given():
    explorer = BillExplorer(config=COURSE_MODEL)
    assert told(explorer).startswith("course-model, mixed-adam, batch 1, sequence 512:")


def test_the_learners_own_states_are_run_and_compared():
    def right(parameters, recipe_name, adapters):
        return model_state_bytes(parameters, named_recipe(recipe_name), adapters=adapters).total

    explorer = BillExplorer(state_bytes=right)
    for name in RECIPES:
        explorer.recipe.value = name
        assert "✓ as it should be" in explorer.drawing.value
    explorer = BillExplorer(state_bytes=lambda parameters, recipe_name, adapters: 12 * parameters)  # no master copy
    assert "your model_state_bytes: 18.69 GB  ✗ expected 24.92 GB" in explorer.drawing.value


def test_states_that_are_missing_or_break_are_one_line():
    def stub(parameters, recipe_name, adapters):
        raise NotImplementedError(STUB_MESSAGE)

    assert "your model_state_bytes: not answered yet" in BillExplorer(stub).drawing.value
    assert "your model_state_bytes: ZeroDivisionError" in BillExplorer(lambda *_: 1 / 0).drawing.value
    assert "returned None" in BillExplorer(lambda *_: None).drawing.value
    assert "✗ expected" in BillExplorer(lambda *_: float("nan")).drawing.value


def test_choosing_a_model_draws_once():
    explorer, drawn = BillExplorer(), []
    explorer.drawing.observe(drawn.append, "value")
    explorer.model.value = "llama-2-7b"
    assert len(drawn) == 1 and isinstance(explorer.drawing, ipywidgets.HTML)
