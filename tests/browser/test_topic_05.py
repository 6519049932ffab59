"""Topic 05 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/05_outliers.ipynb"
LAB = "work/05_outliers/05_outliers.ipynb"
ONE_FACTOR = """
def hadamard_transform(x):
    h = torch.ones(1, 1)
    while len(h) < x.shape[-1]:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return x @ h / len(h) ** 0.5

def rotate(x, weight):
    return hadamard_transform(x), weight
"""


def test_the_lesson_runs_and_its_outlier_can_be_dragged(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

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


def test_the_lab_starts_at_zero_and_sees_a_factor_that_was_not_rotated(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()
    check = lab.answer("hadamard-transform", ONE_FACTOR)
    expect(check.locator(".qlab-misconception").first).to_contain_text("one-factor")
    screenshot("one-factor")
    both = lab.answer("hadamard-transform", ONE_FACTOR.replace("x), weight", "x), hadamard_transform(weight)"))
    expect(both.locator(".qlab-verdict")).to_contain_text("5 of 5 points")
