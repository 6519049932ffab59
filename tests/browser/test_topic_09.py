"""Topic 09 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/09_optimizers_8bit.ipynb"


def test_the_lesson_runs_and_its_moments_can_be_explored(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("moment-explorer")
    drawing = explorer.locator("svg[role=img]")
    linear = r"layers\.0\.ffn\.down\.weight: 180,224 second moments, linear, unsigned, blocks of 256: become zero: \d"
    expect(drawing).to_have_attribute("aria-label", re.compile(linear))
    screenshot("linear")

    explorer.get_by_role("combobox").nth(1).select_option("dynamic, unsigned")
    expect(drawing).to_have_attribute("aria-label", re.compile("dynamic, unsigned, blocks of 256: become zero: none;"))
    screenshot("dynamic")

    explorer.get_by_role("combobox").nth(0).select_option("embedding.weight")
    size = explorer.get_by_role("slider")
    size.focus()
    size.press("End")
    whole = "embedding.weight: 65,536 second moments, dynamic, unsigned, one absmax for all: become zero: [1-9]"
    expect(drawing).to_have_attribute("aria-label", re.compile(whole))
    screenshot("one-absmax")
