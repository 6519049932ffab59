"""Settings of every test: shape annotations are checked at run time, and torch uses one thread."""

from jaxtyping import install_import_hook

install_import_hook("qlab", "beartype.beartype")

import pytest  # noqa: E402 - the hook must come before the first import of qlab
import torch  # noqa: E402

torch.set_num_threads(1)  # two threads collapse when the machine runs anything else


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA GPU on this machine")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
