"""Topic 07 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/07_checkpointing.ipynb"
LAB = "work/07_checkpointing/07_checkpointing.ipynb"
MEAN_OF_MEANS = """
def accumulate(model, micro_batches):
    for x, targets in micro_batches:
        (model(x, targets).mean() / len(micro_batches)).backward()
"""
OVER_ALL_TOKENS = """
def accumulate(model, micro_batches):
    total = sum(len(targets) for _, targets in micro_batches)
    for x, targets in micro_batches:
        (model(x, targets).sum() / total).backward()
"""


def test_the_lesson_runs_and_its_timeline_can_be_played(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("timeline-explorer")
    drawing = explorer.locator("svg[role=img]")
    bill = "^segments, 4 segments: peak 11 units, 32 forward runs of 16 layers"
    expect(drawing).to_have_attribute("aria-label", re.compile(bill))
    expect(explorer).to_contain_text("measured peak 11 units")
    screenshot("segments")

    policy = explorer.get_by_role("combobox")
    policy.select_option("binomial")
    expect(drawing).to_have_attribute("aria-label", re.compile("^binomial, 4 slots: peak 6 units"))
    expect(explorer).to_contain_text("measured peak 6 units")
    setting = explorer.get_by_role("slider").nth(1)
    setting.focus()
    setting.press("ArrowLeft")
    expect(drawing).to_have_attribute("aria-label", re.compile("^binomial, 3 slots: peak 5 units, 49 forward runs"))
    screenshot("binomial")

    step = explorer.get_by_role("slider").nth(2)
    step.focus()
    step.press("Home")
    expect(drawing).to_have_attribute("aria-label", re.compile("step 1 of 65: layer 0 runs forward"))
    explorer.locator(".widget-play button").first.click()
    expect(drawing).to_have_attribute("aria-label", re.compile(r"step (1\d|[2-6]\d) of 65:"))
    screenshot("played")


def test_the_lab_starts_at_zero_and_names_a_mean_of_means(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()
    check = lab.answer("accumulate", MEAN_OF_MEANS)
    expect(check.locator(".qlab-misconception").first).to_contain_text("averages-averages")
    screenshot("mean-of-means")
    expect(lab.answer("accumulate", OVER_ALL_TOKENS).locator(".qlab-verdict")).to_contain_text("4 of 4 points")
