"""From a slider event to the redrawn picture in a real browser: the SVG explorers against a matplotlib PNG."""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from _peer import arguments, report

sys.path.insert(0, str(Path(__file__).parents[1]))
from playwright.sync_api import sync_playwright

from tests.browser.jupyter import CHROMIUM, CHROMIUM_FLAGS, NotebookPage, jupyterlab

BIT_EXPLORER = """from qlab.widgets import BitExplorer
BitExplorer()"""
GRID_EXPLORER = """import torch
from qlab.widgets import ClipExplorer, GridExplorer
torch.set_num_threads(1)
GridExplorer(torch.randn(256, 1024))"""
CLIP_EXPLORER = "ClipExplorer(torch.randn(256, 1024))"
LOSS_SCALE_EXPLORER = """from qlab.widgets import LossScaleExplorer
LossScaleExplorer({"a million": torch.randn(10**6) * torch.exp2(4 * torch.randn(10**6) - 20)})"""
MOMENT_EXPLORER = """from qlab.widgets import MomentExplorer
MomentExplorer({"normal": torch.randn(256, 256).square()})"""
LEVELS_EXPLORER = """from qlab.model import load_course_model
from qlab.widgets import LevelsExplorer, RankExplorer, SparsityExplorer
model = load_course_model()
LevelsExplorer(model.layers[1].ffn.up.weight)"""
RANK_EXPLORER = "RankExplorer({('all matrices', 2**k): 2 - k / 10 for k in range(7)}, full=1.3)"
SPARSITY_EXPLORER = """from qlab.sparsity import prunable_weights
SparsityExplorer(prunable_weights(model))"""
PNG_EXPLORER = """import io
import ipywidgets
import matplotlib.pyplot as plt
import torch
from qlab import formats
slider = ipywidgets.IntSlider(15_360, min=0, max=65_535)
picture = ipywidgets.Image(format="png")
def draw(change):
    values = formats.decode(torch.arange(change.new - 3, change.new + 4).clamp(0, 31_743), formats.FP16)
    figure, ax = plt.subplots(figsize=(7.6, 2.4))
    ax.plot(values, [0] * 7, "o")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    picture.value = buffer.getvalue()
slider.observe(draw, "value")
ipywidgets.VBox([slider, picture])"""
# Starts at the key event in the page and ends at the frame in which the changed picture is shown: an SVG is in the
# document at once, an image when it has loaded.
CLOCK = """([cell, selector]) => {
  window.latencies = [];
  let start = null;
  const stop = () => requestAnimationFrame(() => {
    if (start !== null) { window.latencies.push(performance.now() - start); start = null; }
  });
  cell.addEventListener("keydown", () => { start = performance.now(); }, true);
  const picture = cell.querySelector(selector);
  if (picture.tagName === "IMG") picture.addEventListener("load", stop);
  else new MutationObserver(stop).observe(picture.parentElement, {childList: true, subtree: true});
}"""
REPEATS = 20
BACK_AND_FORTH = ("ArrowRight", "ArrowLeft")  # for a slider of few places
SECONDS_APART = 0.25  # single events: a widget holds its next message back until the kernel is idle again


@dataclass(frozen=True)
class Explorer:
    """A cell with an explorer, its picture, and the keys that move one of its sliders, pressed in turn."""

    name: str
    source: str
    picture: str = "svg[role=img]"
    slider: int = 0
    keys: tuple[str, ...] = ("ArrowRight",)


def latency_ms(page, notebook: NotebookPage, explorer: Explorer, *, repeats: int) -> float:
    """Press the key on an explorer's slider and return the median time until its picture changed."""
    cell = notebook.cell(explorer.name)
    page.evaluate(CLOCK, [cell.element_handle(), explorer.picture])
    handle = cell.locator(".noUi-handle").nth(explorer.slider)
    for press in range(repeats + 3):  # the first three warm up
        time.sleep(SECONDS_APART)
        handle.press(explorer.keys[press % len(explorer.keys)])
        page.wait_for_function(f"window.latencies.length > {press}", timeout=20_000)
    return statistics.median(page.evaluate("window.latencies")[3:])


options = arguments(__doc__)
if CHROMIUM is None:
    sys.exit("nothing measured: no Chromium is installed")
repeats = 2 if options.tiny else REPEATS
explorers = [
    Explorer("bits", BIT_EXPLORER),
    Explorer("grid", GRID_EXPLORER, slider=1, keys=("ArrowLeft",)),
    Explorer("clip", CLIP_EXPLORER, slider=1, keys=("ArrowLeft",)),
    Explorer("gradients", LOSS_SCALE_EXPLORER),
    Explorer("moments", MOMENT_EXPLORER, keys=BACK_AND_FORTH),
    Explorer("levels", LEVELS_EXPLORER, keys=BACK_AND_FORTH),
    Explorer("ranks", RANK_EXPLORER, keys=BACK_AND_FORTH),
    Explorer("sparsity", SPARSITY_EXPLORER),
    Explorer("png", PNG_EXPLORER, picture="img"),
]
with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as server, sync_playwright() as playwright:
    cells = [nbformat.v4.new_code_cell(explorer.source, id=explorer.name) for explorer in explorers]
    (server.course / "explorers.ipynb").write_text(json.dumps(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
    page = chromium.new_page(viewport={"width": 1300, "height": 1000})
    notebook = NotebookPage(page, server, "explorers.ipynb")
    notebook.run_all()
    times = {explorer.name: latency_ms(page, notebook, explorer, repeats=repeats) for explorer in explorers}
    chromium.close()
png = times.pop("png")
for name, ours in times.items():
    report(f"slider event to redrawn {name}", ours=ours, peer=png, peer_name="matplotlib PNG", target="35 ms")
