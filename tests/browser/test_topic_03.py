"""Topic 03 in a real browser, the way a learner meets it."""

import re

from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/03_quantization.ipynb"
LAB = "work/03_quantization/03_quantization.ipynb"
TRUNCATES = """
def quantize_on(x, scale, bits):
    largest = 2 ** (bits - 1) - 1
    return (x / scale).clamp(-largest, largest).to(torch.int8)

def quantize_symmetric(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return quantize_on(x, scale, bits), scale

def dequantize(codes, scale):
    return codes.float() * scale
"""
RIGHT = TRUNCATES.replace("(x / scale).clamp", "(x / scale).round().clamp")
SHOW = """
from qlab.widgets import GridExplorer
GridExplorer(torch.randn(256, 1024), {})
"""
AFFINE = """
def quantize_affine(x, bits):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero_point = (-low / scale).round()
    return (x / scale + zero_point).round().clamp(0, 2**bits - 1).to(torch.uint8), scale, zero_point
"""


def test_the_lesson_runs_and_its_grid_follows_the_learner(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()
    expect(lesson.cell("grid-static").locator("svg[role=img]")).to_be_visible()

    explorer = lesson.cell("grid-explorer")
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^4 bits, symmetric, per tensor, whole range kept: 4"))
    bits, clip, tile = (explorer.locator(".noUi-handle").nth(place) for place in range(3))
    bits.scroll_into_view_if_needed()
    bits.press("ArrowLeft")
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, symmetric, per tensor, "))
    screenshot("three-bits")
    explorer.locator("select").select_option("per row")
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, symmetric, per row, .* drawn: row "))
    for _ in range(5):
        clip.press("ArrowLeft")
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, symmetric, per row, 95 % of range kept"))
    before = drawing.get_attribute("aria-label")
    tile.press("PageUp")
    expect(drawing).not_to_have_attribute("aria-label", before)
    screenshot("per-row")
    explorer.get_by_role("button", name="affine").click()
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, affine, per row, 95 % of range kept"))
    bits.press("End")
    expect(drawing).to_have_attribute("aria-label", re.compile("^8 bits, affine, "))
    screenshot("affine")


def test_the_lab_starts_at_zero_and_draws_the_learners_own_codes(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()

    show, check = lab.cell("try-quantize-symmetric"), lab.cell("check-quantize-symmetric")
    drawing = show.locator("svg[role=img]")
    lab.type_into("try-quantize-symmetric", SHOW.format("quantize_symmetric"))
    lab.run("try-quantize-symmetric")
    expect(drawing).to_contain_text("your quantize_symmetric: not answered yet")

    lab.type_into("answer-quantize-symmetric", TRUNCATES)
    lab.run("answer-quantize-symmetric")
    lab.run("check-quantize-symmetric")
    expect(check.locator(".qlab-misconception").first).to_contain_text("truncates")
    lab.run("try-quantize-symmetric")
    expect(drawing).to_contain_text(re.compile("your quantize_symmetric: step .* SQNR .* dB +✗ .* codes differ: "))
    screenshot("truncates")

    lab.type_into("answer-quantize-symmetric", RIGHT)
    lab.run("answer-quantize-symmetric")
    lab.run("check-quantize-symmetric")
    expect(check.locator(".qlab-verdict")).to_contain_text("5 of 5 points")
    lab.run("try-quantize-symmetric")
    expect(drawing).to_contain_text("✓ as it should be")
    show.locator("select").select_option("groups of 64")
    expect(drawing).to_have_attribute("aria-label", re.compile("symmetric, groups of 64.*✓ as it should be$"))
    screenshot("right")

    lab.type_into("try-quantize-affine", AFFINE + SHOW.format("quantize_affine"))
    lab.run("try-quantize-affine")
    drawing = lab.cell("try-quantize-affine").locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^4 bits, affine.*✓ as it should be$"))
