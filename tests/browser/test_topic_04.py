"""Topic 04 in a real browser, the way a learner meets it."""

import json
import re

import nbformat
from playwright.sync_api import expect

from tests.browser.jupyter import NotebookPage

LESSON = "lessons/04_calibration.ipynb"
LAB = "work/04_calibration/04_calibration.ipynb"
LARGEST = """
def mse_clip(x, bits):
    return x.abs().max().item()
"""
BY_SEARCH = """
def mse_clip(x, bits):
    codes, tops = 2 ** (bits - 1) - 1, x.abs().max() * torch.arange(1, 101) / 100
    errors = [((x / top * codes).round().clamp(-codes, codes) * top / codes - x).square().mean() for top in tops]
    return tops[int(torch.stack(errors).argmin())].item()
"""
SETUP = """
import torch
from qlab.widgets import ClipExplorer
torch.manual_seed(0)
activations = torch.randn(256, 1024) * torch.rand(1024).mul(3).exp()
def mse_clip(x, bits):
    return 0.5 * x.abs().max()
"""
OWN = "ClipExplorer(activations, mse_clip)"
NAN = "ClipExplorer(activations / 0)"


def test_the_lesson_runs_and_its_clip_follows_the_learner(page, server, screenshot):
    lesson = NotebookPage(page, server, LESSON)
    lesson.run_all()
    lesson.expect_no_error()
    drive_both_sliders(lesson.cell("clip-explorer"), screenshot)
    expect(lesson.cell("clip-static").locator("svg[role=img]")).to_be_visible()


def test_the_clip_marks_the_learners_own(page, server, screenshot):
    cells = [
        nbformat.v4.new_code_cell(source, id=name) for name, source in (("setup", SETUP), ("own", OWN), ("nan", NAN))
    ]
    path = server.course / "work" / "own_clip.ipynb"
    path.write_text(json.dumps(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    notebook = NotebookPage(page, server, "work/own_clip.ipynb")
    notebook.run_all()
    explorer = notebook.cell("own")
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_contain_text(re.compile("your mse_clip: .* times the least error: expected "))
    expect(explorer.locator(".found")).to_have_count(1)
    drive_both_sliders(explorer, screenshot)
    expect(notebook.cell("nan").locator("p[role=alert]")).to_have_text(
        "No such clip: x must be finite, and holds 262144 NaN or infinite values."
    )


def drive_both_sliders(explorer, screenshot):
    drawing = explorer.locator("svg[role=img]")
    expect(drawing).to_have_attribute("aria-label", re.compile("^4 bits, clip at .*, 100 % of the largest magnitude"))
    handles = explorer.locator(".noUi-handle")
    handles.nth(0).scroll_into_view_if_needed()
    screenshot("whole")
    box = handles.nth(1).bounding_box()
    explorer.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    explorer.page.mouse.down()
    explorer.page.mouse.move(box["x"] - 100, box["y"] + 5, steps=8)
    explorer.page.mouse.up()
    expect(drawing).to_have_attribute(
        "aria-label", re.compile(r"^4 bits, clip at .*, [1-9]\d(\.\d)? % of the largest ")
    )
    screenshot("dragged")
    handles.nth(0).press("End")
    expect(drawing).to_have_attribute("aria-label", re.compile("^8 bits, clip at .* least error at .*: SQNR "))
    handles.nth(1).press("Home")
    expect(drawing).to_have_attribute("aria-label", re.compile("^8 bits, clip at .*, 1 % of the largest magnitude"))
    screenshot("smallest")


def test_the_lab_starts_at_zero_and_names_the_clip_that_cuts_nothing(page, server, screenshot):
    lab = NotebookPage(page, server, LAB)
    lab.run_all()
    lab.expect_nothing_won()
    check = lab.answer("mse-clip", LARGEST)
    expect(check.locator(".qlab-misconception").first).to_contain_text("largest")
    screenshot("largest")
    expect(lab.answer("mse-clip", BY_SEARCH).locator(".qlab-verdict")).to_contain_text("4 of 4 points")
    screenshot("right")
