"""One JupyterLab and one Chromium for all browser tests of a run; screenshots are kept in artifacts/."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.browser.jupyter import CHROMIUM, CHROMIUM_FLAGS, REPOSITORY, jupyterlab

SCREENSHOTS = REPOSITORY / "artifacts" / "screenshots"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if CHROMIUM is None:
        if os.environ.get("QLAB_REQUIRE_BROWSER"):
            pytest.fail("QLAB_REQUIRE_BROWSER is set and no Chromium is installed")
        pytest.skip("no Chromium is installed")
    with jupyterlab(tmp_path_factory.mktemp("course")) as running:
        yield running


@pytest.fixture(scope="module")  # while it is open an event loop runs in this thread, which other tests need free
def browser(server):
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.fixture
def screenshot(page, request):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{request.node.name}_{name}.png")

    return take
