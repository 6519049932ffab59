"""Topic 01 in a real browser, the way a learner meets it."""

import json

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/01_data_types.ipynb"
LAB = "work/01_data_types/01_data_types.ipynb"
FORGETS_SUBNORMALS = """
def decode(code, exponent_bits, mantissa_bits):
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    field = (code >> mantissa_bits) & (2**exponent_bits - 1)
    fraction = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    if field == 2**exponent_bits - 1:
        return sign * math.inf if fraction == 0 else math.nan
    return sign * (1 + fraction) * 2.0 ** (field - 2 ** (exponent_bits - 1) + 1)
"""
RIGHT = FORGETS_SUBNORMALS.replace(
    "    return sign * (1 + fraction)",
    "    if field == 0:\n        return sign * fraction * 2.0 ** (2 - 2 ** (exponent_bits - 1))\n"
    "    return sign * (1 + fraction)",
)


def test_the_lesson_runs_and_its_explorers_follow_the_learner(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()

    explorer = lesson.cell("anatomy-explorer")
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", "FP16 code 15360 is 1")
    handle = explorer.locator(".widget-slider .noUi-handle")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 5, steps=8)
    page.mouse.up()
    expect(drawing).not_to_have_attribute("aria-label", "FP16 code 15360 is 1")
    screenshot("dragged")

    explorer.locator("input[type=number]").fill("300")
    explorer.locator("input[type=number]").press("Enter")
    expect(drawing).to_have_attribute("aria-label", "FP16 code 23728 is 300")
    explorer.locator("button").first.click()
    expect(drawing).to_have_attribute("aria-label", "FP16 code 56496 is −300")
    screenshot("sign-bit")

    designer = lesson.cell("eight-designer")
    expect(designer.locator("svg[role=img]")).to_contain_text("4 exponent and 3 mantissa bits")
    designer.locator(".widget-slider .noUi-handle").press("ArrowRight")
    expect(designer.locator("svg[role=img]")).to_contain_text("5 exponent and 2 mantissa bits")

    prediction = lesson.cell("anatomy-predict")
    prediction.locator("input[type=number]").fill("30000")
    prediction.get_by_role("button", name="I commit to this").click()
    expect(lesson.cell("anatomy-run")).to_contain_text("You predicted 30,000: you were 95.3% off")
    screenshot("prediction")


def test_the_lab_names_what_is_wrong_and_then_what_is_right(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    check = lab.cell("check-decode")
    expect(check.locator(".qlab-verdict")).to_contain_text("0 of 4 points")
    expect(check.locator(".qlab-verdict")).to_contain_text("not answered yet")

    lab.type_into("answer-decode", FORGETS_SUBNORMALS)
    lab.run("answer-decode")
    lab.run("check-decode")
    expect(check.locator(".qlab-misconception").first).to_have_text("forgets-subnormals")
    expect(check.locator(".qlab-verdict")).to_contain_text("2 of 4 points")
    screenshot("wrong")

    lab.type_into("answer-decode", RIGHT)
    lab.run("answer-decode")
    lab.run("check-decode")
    expect(check.locator(".qlab-verdict")).to_contain_text("4 of 4 points")
    check.get_by_text("compare with qlab's own").click()
    expect(check.locator(".qlab-verdict")).to_contain_text("class FloatFormat")
    screenshot("right")

    lab.run("look-decode")
    expect(lab.cell("look-decode").locator("svg[role=img]")).to_contain_text("your decode: 1 ")

    stored = server.course / "work" / ".qlab" / "progress" / "01_data_types" / "decode.json"
    assert json.loads(stored.read_text(encoding="utf-8"))["won"] == 4

    start = NotebookPage(page, server, "lessons/00_start.ipynb")
    start.run("setup")
    start.run("topics-table")
    expect(start.cell("topics-table").locator(".qlab-topics")).to_contain_text("4 of 32")
    screenshot("landing")
