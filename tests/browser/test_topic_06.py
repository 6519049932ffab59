"""Topic 06 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/06_mixed_precision.ipynb"
LAB = "work/06_mixed_precision/06_mixed_precision.ipynb"
TIE_GOES_UP = """
def underflow_fraction(x, scale=1.0):
    counted = (x != 0) & x.isfinite()
    lost = counted & ((x * scale).abs() < 2.0**-25)
    return lost.sum().item() / max(counted.sum().item(), 1)
"""


def test_the_lesson_runs_and_its_loss_scale_can_be_moved(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("scale-explorer")
    drawing = explorer.locator("svg[role=img]")
    first = "^layers.3.ffn.gate: [0-9,]+ gradients"
    expect(drawing).to_have_attribute("aria-label", re.compile(first + " × 2⁰ in FP16: rounds to zero [1-9]"))
    handle = explorer.get_by_role("slider").first
    handle.focus()
    for _ in range(12):
        handle.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile(first + " × 2¹² in FP16: rounds to zero 0"))
    screenshot("scaled")

    tensor, number_format = explorer.locator("select").first, explorer.locator("select").last
    tensor.select_option("head")
    expect(drawing).to_have_attribute("aria-label", re.compile("^head: [0-9,]+ gradients × 2¹² in FP16"))
    number_format.select_option("BF16")
    expect(drawing).to_have_attribute("aria-label", re.compile("× 2¹² in BF16: rounds to zero none"))
    number_format.select_option("E5M2")
    expect(drawing).to_have_attribute("aria-label", re.compile("× 2¹² in E5M2"))
    handle.focus()
    handle.press("End")
    expect(drawing).to_have_attribute("aria-label", re.compile("× 2²⁴ in E5M2: .*overflows"))
    screenshot("another-format")


def test_the_lab_starts_at_zero_and_sees_a_tie_that_was_kept(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()
    check = lab.answer("underflow-fraction", TIE_GOES_UP)
    expect(check.locator(".qlab-misconception").first).to_contain_text("tie-goes-up")
    screenshot("tie-goes-up")
    right = lab.answer("underflow-fraction", TIE_GOES_UP.replace("< 2.0**-25", "<= 2.0**-25"))
    expect(right.locator(".qlab-verdict")).to_contain_text("4 of 4 points")
