"""Topic 10 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/10_qlora.ipynb"
LAB = "work/10_qlora/10_qlora.ipynb"
WITHOUT_SCALE = """
def merge_adapter(weight, lora_a, lora_b, scaling):
    return (weight.float() + lora_b @ lora_a).to(weight.dtype)
"""
SCALED = WITHOUT_SCALE.replace("lora_b @", "scaling * lora_b @")


def test_the_lesson_runs_and_its_levels_and_ranks_can_be_moved(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    levels = lesson.cell("levels-explorer")
    drawing = levels.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^NF4, blocks of 64, absmax in FP32: 4.500 bits"))
    levels.get_by_role("checkbox").check()
    expect(drawing).to_have_attribute("aria-label", re.compile("absmax in 8 bits: 4.127 bits a parameter"))
    levels.get_by_role("combobox").select_option("E3M0")
    expect(drawing).to_have_attribute("aria-label", re.compile("^E3M0, .* 15 of 15 levels used"))
    block = levels.get_by_role("slider")
    block.focus()
    block.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("^E3M0, blocks of 128"))
    screenshot("levels")

    ranks = lesson.cell("ranks-explorer")
    drawing = ranks.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^course-model, rank 16 on all matrices"))
    rank = ranks.get_by_role("slider")
    rank.focus()
    for _ in range(3):
        rank.press("ArrowRight")
    expect(drawing).to_have_attribute("aria-label", re.compile("rank 128 .* 4 of the 7 matrices .* no smaller"))
    screenshot("ranks")
    ranks.get_by_role("combobox").first.select_option("llama-2-70b")
    expect(drawing).to_have_attribute("aria-label", re.compile("^llama-2-70b, rank 128 .* not recorded"))
    screenshot("llama")


def test_the_lab_starts_at_zero_and_names_a_missing_scale(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()
    check = lab.answer("merge-adapter", WITHOUT_SCALE)
    expect(check.locator(".qlab-misconception").first).to_contain_text("scale-missing")
    screenshot("scale-missing")
    expect(lab.answer("merge-adapter", SCALED).locator(".qlab-verdict")).to_contain_text("3 of 3 points")
