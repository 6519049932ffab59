"""Topic 08 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/08_flash_attention.ipynb"
LAB = "work/08_flash_attention/08_flash_attention.ipynb"
OLD_SUM_AS_IT_WAS = """
def merge_partials(a, b):
    maximum = torch.maximum(a[0], b[0])
    pivot = maximum.masked_fill(maximum == -torch.inf, 0)
    of_a, of_b = (a[0] - pivot).exp(), (b[0] - pivot).exp()
    return maximum, a[1] + of_b * b[1], of_a[:, None] * a[2] + of_b[:, None] * b[2]
"""


def test_the_lesson_runs_and_its_tiles_walk(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("tile-explorer")
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^tile 14 of 16: queries 96 to 127, keys 32 to 63"))
    sram, length, step = (explorer.get_by_role("slider").nth(place) for place in range(3))
    step.focus()
    step.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("^tile 15 of 16: queries 96 to 127, keys 64 to 95"))
    expect(drawing).to_have_attribute("aria-label", re.compile("moved 152 of 164 kB"))
    sram.focus()
    sram.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("^tile 8 of 8: .*blocks of 64 queries × 32 keys"))
    expect(drawing).to_have_attribute("aria-label", re.compile("moved 99 of 99 kB"))
    explorer.get_by_role("checkbox").check()
    expect(drawing).to_have_attribute("aria-label", re.compile("^tile 6 of 6; 2 skipped"))
    length.focus()
    length.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("^tile 6 of 20; 12 skipped"))
    screenshot("causal")

    explorer.get_by_role("button").first.click()  # play
    expect(drawing).to_have_attribute("aria-label", re.compile("^tile 20 of 20"), timeout=60_000)
    expect(drawing).to_have_attribute("aria-label", re.compile("query 192: maximum"))
    screenshot("walked")


def test_the_lab_starts_at_zero_and_sees_an_old_sum_that_was_not_rescaled(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()
    check = lab.answer("merge-partials", OLD_SUM_AS_IT_WAS)
    expect(check.locator(".qlab-misconception").first).to_contain_text("forgets-to-rescale-the-old-side")
    screenshot("old-sum")
    repaired = lab.answer("merge-partials", OLD_SUM_AS_IT_WAS.replace("a[1] + of_b", "of_a * a[1] + of_b"))
    expect(repaired.locator(".qlab-verdict")).to_contain_text("5 of 5 points")
