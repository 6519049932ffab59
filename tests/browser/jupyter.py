"""A real JupyterLab on loopback and a real Chromium on it, both stopped by whoever started them."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

REPOSITORY = Path(__file__).parents[2]
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
expect.set_options(timeout=30_000)
START_SECONDS = 60
RUN_SECONDS = 240
ATTEMPTS = 5
TAKEN_MS = 10_000
SETTLED_MS = 500


@dataclass(frozen=True)
class Server:
    """A running JupyterLab: its address, and the course it serves."""

    address: str
    course: Path


@contextmanager
def jupyterlab(course: Path, *, theme: str = "JupyterLab Light") -> Iterator[Server]:
    """Serve a copy of the course's pages from `course` on a free loopback port, with settings of its own."""
    for folder in ("lessons", "labs", "solutions"):
        shutil.copytree(REPOSITORY / folder, course / folder, dirs_exist_ok=True)
    environment = os.environ | {
        "QLAB_ROOT": str(course),
        "JUPYTER_CONFIG_DIR": str(course / ".jupyter"),
        "JUPYTERLAB_SETTINGS_DIR": str(_settings(course / ".settings", theme)),
        "JUPYTERLAB_WORKSPACES_DIR": str(course / ".workspaces"),
    }
    copy = [sys.executable, "-c", "from qlab.labs.copies import copy_labs; copy_labs()"]
    subprocess.run(copy, env=environment, check=True, timeout=60)
    port = _free_port()
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"]
    options += [f"--ServerApp.root_dir={course}", "--IdentityProvider.token="]
    with (course / "server.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=course, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/api", server)
            yield Server(f"http://127.0.0.1:{port}", course)
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(20)


class NotebookPage:
    """A notebook open in JupyterLab: its cells, by their ids."""

    def __init__(self, page: Page, server: Server, path: str) -> None:
        self.page = page
        page.goto(f"{server.address}/lab/tree/{path}?reset")
        page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell", timeout=START_SECONDS * 1000)
        _wait_until_connected(server, path)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=START_SECONDS * 1000)
        cells = json.loads((server.course / path).read_text(encoding="utf-8"))["cells"]
        self.ids = [cell["id"] for cell in cells]
        graded = [(cell["id"], cell["metadata"].get("nbgrader", {}).get("points")) for cell in cells]
        self.points = {cell_id: points for cell_id, points in graded if points}

    def cell(self, cell_id: str) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(self.ids.index(cell_id))

    def run_all(self) -> None:
        """Run every cell, and wait until the last one's prompt shows its number."""
        prompts = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell .jp-InputPrompt")

        def begin() -> None:
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.get_by_text("Run All Cells", exact=True).click()

        _insist(begin, prompts.first, prompts.first.inner_text())
        expect(prompts.last).to_have_text(re.compile(r"\[\d+\]:"), timeout=RUN_SECONDS * 1000)

    def run(self, cell_id: str) -> None:
        """Run one cell, and wait until its prompt shows the number of this run."""
        prompt = self.cell(cell_id).locator(".jp-InputPrompt")

        def begin() -> None:
            self.cell(cell_id).locator(".cm-content").click()
            self.page.keyboard.press("Control+Enter")

        _insist(begin, prompt, prompt.inner_text())
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=RUN_SECONDS * 1000)

    def expect_no_error(self) -> None:
        """Find no cell of the page that ended in an error."""
        errors = self.page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
        expect(errors).to_have_count(0)

    def expect_nothing_won(self) -> None:
        """Find every check of an unanswered lab at zero, and saying that nothing was answered."""
        self.expect_no_error()
        for cell_id, points in self.points.items():
            verdict = self.cell(cell_id).locator(".qlab-verdict")
            expect(verdict).to_contain_text(f"0 of {points} points")
            expect(verdict).to_contain_text("not answered yet")

    def answer(self, exercise: str, source: str) -> Locator:
        """Answer an exercise as a learner does, run its check, and return the check's cell."""
        self.type_into(f"answer-{exercise}", source)
        self.run(f"answer-{exercise}")
        self.run(f"check-{exercise}")
        return self.cell(f"check-{exercise}")

    def type_into(self, cell_id: str, source: str) -> None:
        """Replace a cell's source as a learner does: select all, and paste."""
        self.cell(cell_id).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)


def _insist(begin: Callable[[], None], prompt: Locator, before: str) -> None:
    """Begin a run until a prompt shows it: JupyterLab silently drops what it sends before the kernel is ready."""
    for _ in range(ATTEMPTS):
        begin()
        with contextlib.suppress(AssertionError):
            expect(prompt).not_to_have_text(before, timeout=TAKEN_MS)
            prompt.page.wait_for_timeout(SETTLED_MS)  # a star that a dropped run leaves is taken back at once
            expect(prompt).not_to_have_text(before, timeout=1)
            return
    raise AssertionError(f"JupyterLab took none of {ATTEMPTS} runs: the prompt still reads {before!r}")


def _wait_until_connected(server: Server, path: str) -> None:
    """Wait until the notebook at `path` has a kernel that is idle and that its page listens to."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{server.address}/api/sessions", timeout=10) as answer:
            kernels = [session["kernel"] for session in json.load(answer) if session["path"] == path]
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no kernel for {path} within {START_SECONDS} s")


def _settings(folder: Path, theme: str) -> Path:
    """Write settings that show every cell, ask nothing, and fetch nothing."""
    settings = {
        "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
        "@jupyterlab/apputils-extension/themes": {"theme": theme},
        "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, content in settings.items():
        path = folder / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(address: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab stopped with status {server.returncode} while starting")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {START_SECONDS} s")
