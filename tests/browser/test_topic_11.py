"""Topic 11 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/11_smaller_models.ipynb"


def test_the_lesson_runs_and_its_sparsity_can_be_slid(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("sparsity-explorer")
    drawing = explorer.locator("svg[role=img]")
    start = "^layers.0.attention.query.weight, global: .* kept.*dense 6.42 MB, stored as values and a bitmap 56%"
    expect(drawing).to_have_attribute("aria-label", re.compile(start))
    slider = explorer.get_by_role("slider").first
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("stored as values and a bitmap 46%"))
    screenshot("slid")
    explorer.get_by_role("button", name="per layer").click()
    expect(drawing).to_have_attribute("aria-label", re.compile("per layer: 40.0% kept"))
    explorer.get_by_role("button", name="2:4").click()
    expect(drawing).to_have_attribute("aria-label", re.compile("2:4: 50.0% kept.*2-bit places 56%"))
    screenshot("two-four")
