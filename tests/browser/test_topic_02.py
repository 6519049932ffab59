"""Topic 02 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/02_memory.ipynb"
LAB = "work/02_memory/02_memory.ipynb"
FORGETS_THE_MASTER_COPY = """
def model_state_bytes(parameters, recipe, adapters):
    bytes_each = {"fp32-adam": 16, "mixed-adam": 12, "sgd-momentum": 12, "adam-8bit": 6 + 2 * 4 / 256}
    return parameters * bytes_each[recipe]
"""
TRY_IT = """
from qlab.widgets import BillExplorer
BillExplorer(model_state_bytes)
"""


def test_the_lesson_runs_and_its_bill_follows_the_learner(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("bill-explorer")
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute(
        "aria-label", re.compile("^gpt2-xl, mixed-adam, batch 1, sequence 1,024: weights")
    )
    choices = explorer.locator("select")
    choices.nth(0).select_option("llama-2-70b")
    expect(drawing).to_have_attribute("aria-label", re.compile("^llama-2-70b, mixed-adam, batch 1, "))
    choices.nth(1).select_option("qlora")
    expect(drawing).to_have_attribute("aria-label", re.compile("^llama-2-70b, qlora, batch 1, .*adapters 0.8284 GB"))

    batch = explorer.get_by_label("batch", exact=True)
    batch.fill("4")
    batch.press("Enter")
    expect(drawing).to_have_attribute("aria-label", re.compile("^llama-2-70b, qlora, batch 4, sequence 1,024:"))
    screenshot("batch")
    explorer.get_by_label("checkpointing").check()
    expect(drawing).to_have_attribute("aria-label", re.compile("^llama-2-70b, qlora, batch 4, .*, checkpointed:"))

    batch.fill("0")
    batch.press("Enter")
    expect(explorer.locator("p[role=alert]")).to_have_text("No such run: batch must be at least 1, got 0.")
    screenshot("refused")
    batch.fill("1")
    batch.press("Enter")
    expect(explorer.get_by_label("heads", exact=True)).to_be_disabled()
    choices.nth(0).select_option("your own, like Llama")
    heads = explorer.get_by_label("heads", exact=True)
    heads.fill("7")
    heads.press("Enter")
    expect(explorer.locator("p[role=alert]")).to_have_text("No such run: heads must divide width, got 7 and 4096.")
    heads.fill("64")
    heads.press("Enter")
    expect(drawing).to_have_attribute("aria-label", re.compile("^your own, qlora, batch 1, "))
    screenshot("own")


def test_the_lab_starts_at_zero_and_names_a_forgotten_part(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()

    lab.type_into("answer-model-state-bytes", FORGETS_THE_MASTER_COPY)
    lab.run("answer-model-state-bytes")
    lab.run("check-model-state-bytes")
    check = lab.cell("check-model-state-bytes")
    expect(check.locator(".qlab-misconception").first).to_contain_text("master")
    screenshot("wrong")

    lab.type_into("try-model-state-bytes", TRY_IT)
    lab.run("try-model-state-bytes")
    explorer = lab.cell("try-model-state-bytes")
    expect(explorer.locator("svg[role=img]")).to_contain_text("your model_state_bytes: 18.69 GB  ✗ expected 24.92 GB")
    explorer.locator("select").nth(1).select_option("fp32-adam")
    expect(explorer.locator("svg[role=img]")).to_contain_text("✓ as it should be")
    screenshot("own-states")
