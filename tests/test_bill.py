"""The bill in words: its numbers are those of the predictions, and its advice holds."""

import math
import re
from dataclasses import replace

import pytest

from qlab import cli
from qlab.bill import (
    Budget,
    Order,
    advice,
    as_table,
    as_text,
    budget_of,
    device_bill,
    fits,
    largest_fitting_batch,
    parts,
    run_for,
    verdict,
)
from qlab.budget import largest_batch, training_bill
from qlab.config import COURSE_MODEL, GPT2_XL, LLAMA_2_7B, LLAMA_2_70B, LLAMA_3_405B, NAMED_CONFIGS
from qlab.memory import FP32_ADAM, GB, MIXED_ADAM, QLORA, RECIPES, GiB, Recipe, zero_state_bytes

EXAMPLE = ("bill", "llama-2-70b", "--recipe", "qlora", "--batch", "1", "--seq", "2048")


def order_of(config, recipe: Recipe = MIXED_ADAM, *, batch: int = 1, sequence: int = 512, checkpointed: bool = False):
    run = run_for(recipe, batch=batch, sequence=sequence, checkpointed=checkpointed)
    return Order(config=config, recipe=recipe, run=run)


def sentence(order: Order, budget: Budget, about: str) -> str:
    (found,) = [line for line in advice(order, budget) if line.startswith(f"{about}: ")]
    return found


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("config", NAMED_CONFIGS.values(), ids=NAMED_CONFIGS)
def test_the_parts_are_those_of_the_prediction(config, recipe):
    for batch, checkpointed in ((1, False), (1, True), (64, True)):
        order = order_of(config, recipe, batch=batch, checkpointed=checkpointed)
        bill = training_bill(config, recipe, order.run)
        assert device_bill(order) == bill
        sizes = {part.name: part.bytes for part in parts(order)}
        assert sizes["weights"] + sizes["adapters"] == bill.states.weights
        assert sizes["master weights"] == bill.states.master
        assert sizes["gradients"] == bill.states.gradients
        assert sizes["optimizer"] == bill.states.optimizer
        assert sizes["activations"] == bill.activations.total + bill.activations.recomputed_layer
        assert sizes["temporary buffers"] >= bill.temporary
        assert all(isinstance(size, int) and 0 <= size < math.inf for size in sizes.values())
        assert 0 < bill.peak <= sum(sizes.values())


def test_the_table_adds_up_and_shows_both_units():
    order = order_of(LLAMA_2_7B, QLORA, sequence=2048)
    rows = [re.fullmatch(r"(.+?) +([\d.,]+) +([\d.,]+)", line) for line in as_table(order).splitlines()[1:]]
    read = {row[1]: (float(row[2].replace(",", "")), float(row[3].replace(",", ""))) for row in rows}
    assert list(read)[-2:] == ["all parts", "at one moment, at most"]
    assert "master weights" not in read  # it is 0
    assert sum(gb for gb, _ in list(read.values())[:-2]) == pytest.approx(read["all parts"][0], abs=0.02)
    assert all(gb / gib == pytest.approx(GiB / GB, rel=0.01) for gb, gib in read.values())
    assert read["at one moment, at most"][0] == round(device_bill(order).peak / GB, 2)


def test_sixteen_bytes_a_parameter_can_be_read_off():
    table = as_table(order_of(GPT2_XL))
    for name, gb in (("weights", "3.12"), ("master weights", "6.23"), ("gradients", "3.12"), ("optimizer", "12.46")):
        assert re.search(rf"^{name} +{gb} ", table, re.MULTILINE)


# ------------------------------------------------------------------ ZeRO


@pytest.mark.parametrize("config", NAMED_CONFIGS.values(), ids=NAMED_CONFIGS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_each_stage_and_more_devices_need_no_more(config, recipe):
    plain = order_of(config, recipe, checkpointed=True)
    alone = device_bill(plain)
    for devices in (1, 3, 64, 1024):
        shared = [replace(plain, stage=stage, devices=devices) for stage in range(3)]
        peaks = [device_bill(order).peak for order in shared]
        assert peaks == sorted(peaks, reverse=True) and peaks[0] == alone.peak
        if devices == 1:
            assert peaks[2] == alone.peak
    for stage in range(4):
        order = replace(plain, stage=stage, devices=64)
        bill = device_bill(order)
        assert bill.states == zero_state_bytes(alone.states, stage=stage, devices=64)
        assert sum(part.bytes for part in parts(order)) >= bill.peak > bill.states.weights + bill.states.optimizer


def test_a_gathered_layer_is_counted_at_stage_three():
    plain = order_of(LLAMA_3_405B, checkpointed=True)
    second, third = (device_bill(replace(plain, stage=stage, devices=1024)) for stage in (2, 3))
    assert third.temporary - second.temporary == pytest.approx(6.38 * GB, rel=0.01)  # 3.19 billion parameters in BF16
    assert third.peak < second.peak


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [
        ("48GB", 48 * GB, "48 GB (= 44.70 GiB)"),
        ("48", 48 * GB, "48 GB (no unit means GB; = 44.70 GiB)"),
        ("48GiB", 48 * GiB, "48 GiB (= 51.54 GB)"),
        (" 79.6 gib ", 85_469_849_190, "79.6 GiB (= 85.47 GB)"),
        ("0.5gb", GB // 2, "0.5 GB (= 0.4657 GiB)"),
    ],
)
def test_a_memory_size_is_read_and_said(text, count, said):
    assert budget_of(text) == Budget(count, said)


@pytest.mark.parametrize("text", ["", "GB", "48TB", "0", "0.0GB", "-1GB", "1e9", "nan", "48 GB GB", "٤٨GB", "9" * 13])
def test_what_is_no_memory_size(text):
    with pytest.raises(ValueError, match=f"above 0 in GB or GiB, as 48GB, 48GiB or 48, got {re.escape(repr(text))}"):
        budget_of(text)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("gb", [1, 2.5, 40])
def test_the_largest_batch_is_the_predictions_own(gb, checkpointed):
    order, budget = order_of(COURSE_MODEL, FP32_ADAM, checkpointed=checkpointed), budget_of(f"{gb}GB")
    assert largest_fitting_batch(order, budget) == largest_batch(budget.bytes, COURSE_MODEL, FP32_ADAM, order.run)


def test_a_budget_of_exactly_the_peak_fits_and_a_byte_less_does_not():
    order = order_of(GPT2_XL)
    peak = device_bill(order).peak
    assert fits(order, Budget(peak, "it")) and not fits(order, Budget(peak - 1, "less"))
    assert largest_fitting_batch(order, Budget(peak, "it")) == 1
    assert largest_fitting_batch(order, Budget(peak - 1, "less")) == 0


# ------------------------------------------------------------------ advice


def test_what_fits_gets_its_room_and_its_largest_batch():
    order, budget = order_of(COURSE_MODEL), budget_of("48GB")
    assert re.fullmatch(r"It fits 48 GB \(= 44\.70 GiB\), with 47\.\d\d GB to spare\.", verdict(order, budget))
    assert len(list(advice(order, budget))) == 1


def test_a_batch_too_large_is_told_the_one_that_fits():
    order, budget = order_of(GPT2_XL, batch=64, sequence=1024), budget_of("40GB")
    said = sentence(order, budget, "Batch")
    largest = int(re.fullmatch(r"Batch: (\d+) is the largest that fits\.", said)[1])
    assert fits(order_of(GPT2_XL, batch=largest, sequence=1024), budget)
    assert not fits(order_of(GPT2_XL, batch=largest + 1, sequence=1024), budget)


def test_a_budget_too_small_for_batch_one_says_by_how_much():
    order, budget = order_of(GPT2_XL, batch=8), budget_of("16GB")
    single = device_bill(order_of(GPT2_XL)).peak
    over = f"{(single - 16 * GB) / GB:.2f} GB more than the 16.00 GB given"
    assert sentence(order, budget, "Batch") == f"Batch: none fits, batch 1 needs {single / GB:.2f} GB, {over}."


def test_checkpointing_is_advised_only_where_it_is_not_used():
    order, budget = order_of(LLAMA_2_70B, QLORA, sequence=2048), budget_of("48GB")
    assert sentence(order, budget, "Checkpointing") == "Checkpointing: the peak would be 43.41 GB, which fits."
    again = order_of(LLAMA_2_70B, QLORA, batch=8, sequence=2048, checkpointed=True)
    assert not any(line.startswith("Checkpointing") for line in advice(again, budget))
    tight = sentence(order, budget_of("40GB"), "Checkpointing")
    assert tight == "Checkpointing: the peak would be 43.41 GB, still 3.41 GB too much."


@pytest.mark.parametrize("gb", [10, 16, 40, 80])
def test_the_recipes_advised_fit_as_they_say(gb):
    budget = budget_of(f"{gb}GB")
    said = sentence(order_of(LLAMA_2_7B, FP32_ADAM), budget, "Recipe")
    named = re.findall(r"([a-z\d-]+) \(([\d.]+) GB\)", said)
    with_checkpointing = said.endswith("with checkpointing.")
    for name, peak in named:
        other = order_of(LLAMA_2_7B, RECIPES[name], checkpointed=with_checkpointing)
        assert fits(other, budget) and float(peak) == round(device_bill(other).peak / GB, 2)
    fitting = [r for r in RECIPES.values() if fits(order_of(LLAMA_2_7B, r, checkpointed=with_checkpointing), budget)]
    assert [name for name, _ in named] == [recipe.name for recipe in fitting]


def test_where_no_recipe_fits_the_smallest_is_named():
    said = sentence(order_of(LLAMA_3_405B), budget_of("16GB"), "Recipe")
    assert said.startswith("Recipe: no other fits; the smallest, qlora with checkpointing, needs 2")


@pytest.mark.parametrize("config", [LLAMA_2_7B, LLAMA_2_70B, LLAMA_3_405B], ids=lambda config: config.name)
def test_the_devices_advised_are_the_fewest_power_of_two(config):
    order, budget = order_of(config), budget_of("80GB")
    said = sentence(order, budget, "ZeRO")
    found = re.match(r"ZeRO: on each of ([\d,]+) devices stage (\d)( with checkpointing)? needs [\d.]+ GB, which", said)
    devices, stage = int(found[1].replace(",", "")), int(found[2])
    chosen = order_of(config, checkpointed=bool(found[3]))
    assert fits(replace(chosen, stage=stage, devices=devices), budget)
    assert not any(fits(replace(chosen, stage=s, devices=devices // 2), budget) for s in (1, 2, 3))


def test_advice_ends_at_the_largest_cluster():
    order = replace(order_of(LLAMA_3_405B, batch=64), devices=1024)
    assert sentence(order, budget_of("16GB"), "ZeRO") == "ZeRO: advice ends at 1,024 devices."


def test_without_a_budget_the_smallest_usual_gpu_is_named():
    assert "It fits a GPU of 40 GB, with 1" in as_text(order_of(GPT2_XL, sequence=1024))
    assert "It does not fit a GPU of 141 GB: 6,3" in as_text(order_of(LLAMA_3_405B))


# ------------------------------------------------------------------ the command


def test_the_command_of_the_readme(capsys):
    assert cli.main([*EXAMPLE, "--gpu", "48GB"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("llama-2-70b, qlora, batch 1, sequence 2,048\n")
    assert "It does not fit 48 GB (= 44.70 GiB): 67.09 GB too much.\n" in said
    assert re.findall(r"^(Batch|Checkpointing|Recipe|ZeRO): ", said, re.MULTILINE) == [
        "Batch",
        "Checkpointing",
        "Recipe",
        "ZeRO",
    ]
    assert cli.main([*EXAMPLE, "--gpu", "48GB", "--checkpointing"]) == 0
    assert "It fits 48 GB (= 44.70 GiB), with 4.59 GB to spare.\n" in capsys.readouterr().out


def test_defaults_and_shared_states(capsys):
    assert cli.main(["bill", "llama-2-7b", "--devices", "8", "--zero", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("llama-2-7b, mixed-adam, batch 1, sequence 4,096, ZeRO stage 3, on each of 8 devices\n")
    assert re.search(r"^weights +1\.68 ", said, re.MULTILINE)  # 13.48 GB on 8 devices


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", NAMED_CONFIGS)
def test_every_model_and_recipe_has_a_bill(model, recipe, capsys):
    assert cli.main(["bill", model, "--recipe", recipe, "--seq", "512", "--gpu", "80"]) in (0, 1)
    said = capsys.readouterr().out
    order = order_of(NAMED_CONFIGS[model], RECIPES[recipe])
    assert said == as_text(order, budget_of("80")) + "\n"
    assert "nan" not in said and "inf" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["llama"], "no model is called 'llama'; the names are gpt2-xl, .*course-model"),
        (["gpt2-xl", "--recipe", "adam"], "no recipe is called 'adam'; the names are fp32-adam, .*qlora"),
        (["gpt2-xl", "--gpu", "48TB"], "a device's memory is .* 48GB, 48GiB or 48, got '48TB'"),
        (["gpt2-xl", "--batch", "0"], "batch must be at least 1, got 0"),
        (["gpt2-xl", "--seq", "0"], "sequence must be at least 1, got 0"),
        (["gpt2-xl", "--seq", "1025"], "sequence must be at most the model's 1024, got 1025"),
        (["gpt2-xl", "--zero", "4"], "stage must be 0, 1, 2 or 3, got 4"),
        (["gpt2-xl", "--devices", "0"], "devices must be at least 1, got 0"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, capsys):
    assert cli.main(["bill", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(rf"qlab bill: {sentence}\n", said.err)
