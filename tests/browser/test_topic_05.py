"""Topic 05 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/05_outliers.ipynb"


def test_the_lesson_runs_and_its_outlier_can_be_dragged(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    expect(page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')).to_have_count(0)

    explorer = lesson.cell("outlier-explorer")
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^8 bits, one value of 256 is 1 times"))
    handle = explorer.get_by_role("slider").first
    handle.focus()
    for _ in range(20):
        handle.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("^8 bits, one value of 256 is 32 times"))
    screenshot("dragged")

    remedies = lesson.cell("quality-explorer")
    bars = remedies.locator("svg[role=img]")
    expect(bars).to_have_attribute("aria-label", re.compile("^planted with s = 16: none: one scale a tensor"))
    slider = remedies.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    expect(bars).to_have_attribute("aria-label", re.compile("^planted with s = 64: none: one scale a tensor"))
    screenshot("remedies")
