"""Topic 03 in a real browser, the way a learner meets it."""

import json
import re

import nbformat
from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/03_quantization.ipynb"
NO_ANSWER_YET = """
import torch
from qlab.widgets import GridExplorer
torch.manual_seed(0)
weight = torch.randn(256, 1024)
def quantize_symmetric(x, bits):
    raise NotImplementedError("replace this line with your answer")
"""
TRUNCATES = """
def quantize_symmetric(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return (x / scale).to(torch.int8), scale
"""
RIGHT = TRUNCATES.replace("(x / scale).to", "(x / scale).round().to")
AFFINE = """
def quantize_affine(x, bits):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero_point = (-low / scale).round()
    return (x / scale + zero_point).round().clamp(0, 2**bits - 1).to(torch.uint8), scale, zero_point
GridExplorer(weight, quantize_affine)
"""


def test_the_lesson_runs_and_its_grid_follows_the_learner(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    expect(page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')).to_have_count(0)
    drive_every_control(lesson.cell("grid-explorer"), screenshot)
    expect(lesson.cell("grid-static").locator("svg[role=img]")).to_be_visible()


def test_the_grid_draws_the_learners_own_codes(page, server, screenshot):
    sources = {"answer": NO_ANSWER_YET, "explorer": "GridExplorer(weight, quantize_symmetric)", "affine": AFFINE}
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    path = server.course / "work" / "own_grid.ipynb"
    path.write_text(json.dumps(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    notebook = NotebookPage(page, server, "work/own_grid.ipynb")
    notebook.run_all()
    drawing = notebook.cell("explorer").locator("svg[role=img]")
    expect(drawing).to_contain_text("your quantize_symmetric: not answered yet")

    notebook.type_into("answer", NO_ANSWER_YET + TRUNCATES)
    notebook.run("answer")
    notebook.run("explorer")
    expect(drawing).to_contain_text(re.compile("your quantize_symmetric: step .* SQNR .* dB +✗ .* codes differ: "))
    screenshot("truncates")

    notebook.type_into("answer", NO_ANSWER_YET + RIGHT)
    notebook.run("answer")
    notebook.run("explorer")
    expect(drawing).to_contain_text("✓ as it should be")
    notebook.cell("explorer").locator("select").select_option("groups of 64")
    expect(drawing).to_have_attribute("aria-label", re.compile("symmetric, groups of 64.*✓ as it should be$"))
    screenshot("right")
    drawing = notebook.cell("affine").locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^4 bits, affine.*✓ as it should be$"))


def drive_every_control(explorer, screenshot):
    """Move bits, clip, kind, granularity and tile, and see the drawing follow each."""
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^4 bits, symmetric, per tensor, whole range kept: 4"))
    handles = explorer.locator(".noUi-handle")
    handles.nth(0).scroll_into_view_if_needed()
    handles.nth(0).press("ArrowLeft")
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, symmetric, per tensor, "))
    screenshot("three-bits")
    explorer.locator("select").select_option("per row")
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, symmetric, per row, .* drawn: row "))
    for _ in range(5):
        handles.nth(1).press("ArrowLeft")
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, symmetric, per row, 95 % of range kept"))
    before = drawing.get_attribute("aria-label")
    handles.nth(2).press("PageUp")
    expect(drawing).not_to_have_attribute("aria-label", before)
    screenshot("per-row")
    explorer.get_by_role("button", name="affine").click()
    expect(drawing).to_have_attribute("aria-label", re.compile("^3 bits, affine, per row, 95 % of range kept"))
    handles.nth(0).press("End")
    expect(drawing).to_have_attribute("aria-label", re.compile("^8 bits, affine, "))
    screenshot("affine")
