"""Settings of every test: shape annotations are checked at run time, and torch uses one thread."""

import sys

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 - the hook looks it up by its name

install_import_hook("qlab", "tests.typechecker.check_types")

import pytest  # noqa: E402 - the hook must come before the first import of qlab
import torch  # noqa: E402

torch.set_num_threads(1)  # two threads collapse when the machine runs anything else


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "extra" not in config.getoption("markexpr"):  # a run of its own, where its extras are installed
        apart = [item for item in items if item.get_closest_marker("extra")]
        items[:] = [item for item in items if item not in apart]
        config.hook.pytest_deselected(items=apart)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA GPU on this machine")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def figures_closed():
    """Close the figures that a test left open, if it drew any: the next test must not find them."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
